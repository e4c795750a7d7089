"""Notices at once when another process of the run ends.

The others would wait for it in a collective until JAX's coordination service,
after two minutes, kills them with a stack of C++. Here each process keeps a
connection to process 0, which the system closes when its owner dies. A process
that ends by itself says its exit code first.
"""

from collections.abc import Callable
import os
import secrets
import socket
import sys
import threading
import time

from absl import logging
import jax

from exprl_jax.runtime import failures, watchdog
from exprl_jax.runtime import mesh as mesh_lib

_PATIENCE = 5.0  # seconds to find process 0
_NEWS = 2.0  # seconds until a lost process is known everywhere
# Seconds to end by oneself after another process did: all may have stopped for
# the same reason, and this one may have files to write.
_OWN_END = 60.0

_lines: list['_Line'] = []  # to the others; of process 0: to all


class _Line:
  """A connection to another process, on which both say how they end."""

  def __init__(self, connection: socket.socket, peer: int,
               tell: Callable[[int, str], None]) -> None:
    self._connection, self._peer, self._tell = connection, peer, tell
    threading.Thread(target=self._listen, name='peers', daemon=True).start()

  def say(self, text: str) -> None:
    """Sends a line; a peer that is gone has noticed by itself."""
    try:
      self._connection.sendall(f'{text}\n'.encode())
    except OSError:
      pass

  def _listen(self) -> None:
    """Passes on what the peer says of itself or of others, and its end."""
    ended = False
    try:
      with self._connection.makefile() as file:
        for line in file:
          who, _, how = line.strip().partition(' ')
          ended |= int(who) == self._peer
          self._tell(int(who), how)
    except (OSError, ValueError):
      pass
    if not ended:
      self._tell(self._peer, '')


def start() -> None:
  """Connects the processes; all of them call it, after jax.distributed.

  Without a way to process 0 the run goes on, with JAX's own detection.
  """
  if jax.process_count() == 1:
    return
  if jax.process_index():
    _connect(*mesh_lib.broadcast(None))
    mesh_lib.barrier('peers')
    return
  token = secrets.token_hex(16)
  with socket.create_server(('', 0), backlog=jax.process_count()) as server:
    mesh_lib.broadcast([_addresses(), server.getsockname()[1], token])
    server.settimeout(_PATIENCE)
    _accept(server, token)
  mesh_lib.barrier('peers')


def await_news() -> None:
  """Waits where an error may be the loss of a process: that is said instead."""
  if _lines:
    time.sleep(_NEWS)


def leave(code: int) -> None:
  """Tells the others that this process ends by itself."""
  if _lines:
    _say(jax.process_index(), str(code))


def _addresses() -> list[str]:
  """Where other hosts may find this one, best first."""
  out = []
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:  # sends nothing: the system chooses the interface
      probe.connect(('10.255.255.255', 1))
      out.append(probe.getsockname()[0])
    except OSError:
      pass
  return [*out, socket.gethostname(), '127.0.0.1']


def _connect(addresses: list[str], port: int, token: str) -> None:
  """Calls process 0."""
  for address in addresses:
    try:
      connection = socket.create_connection((address, port), _PATIENCE)
      connection.sendall(f'{token} {jax.process_index()}\n'.encode())
      if connection.recv(3) == b'ok\n':
        connection.settimeout(None)
        _lines.append(_Line(connection, 0, _ended))
        return
    except OSError:
      continue
  logging.warning(
      'no connection to process 0 at %s, port %d: a lost process '
      'is noticed after minutes', addresses, port)


def _accept(server: socket.socket, token: str) -> None:
  """Takes the calls of the other processes."""
  deadline = time.monotonic() + _PATIENCE
  while len(_lines) < jax.process_count() - 1 and time.monotonic() < deadline:
    try:
      connection, _ = server.accept()
      connection.settimeout(_PATIENCE)
      said, _, who = connection.recv(64).decode().strip().partition(' ')
      if secrets.compare_digest(said, token):
        connection.sendall(b'ok\n')
        connection.settimeout(None)
        _lines.append(_Line(connection, int(who), _ended_elsewhere))
      else:
        connection.close()
    except (OSError, ValueError):
      continue


def _say(who: int, how: str) -> None:
  for line in list(_lines):
    line.say(f'{who} {how}')


def _ended_elsewhere(who: int, how: str) -> None:
  """In process 0: tells all, then ends as they do."""
  if how != '0':
    _say(who, how)
  _ended(who, how)


def _ended(who: int, how: str) -> None:
  """Ends this process, if another one has ended before its work was done.

  Args:
    who: the other one's number.
    how: its exit code; '': it did not say, as it was killed or cut off.
  """
  if how == '0':
    return
  phase = watchdog.phase()
  if how:
    time.sleep(_OWN_END)
    code, what = int(how), f'ended with exit code {how}'
  else:
    code, what = failures.AGAIN, 'is gone (killed, out of memory, or cut off)'
  again = ('; exiting with 42 to be started again'
           if code == failures.AGAIN else '; its log says why')
  print(
      f'process {who} {what}, while process {jax.process_index()} was in '
      f'{phase}{again}', file=sys.stderr, flush=True)
  os._exit(code)
