"""One run at a time in a workdir.

On a file system the lock is flock's, which ends with its process. Buckets have
none: there an object says who owns the workdir, and its owner writes a new
number into it every 20 seconds. A lock whose number stands still for a minute
is of a run that died.
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from typing import IO

from etils import epath
import jax

from exprl_jax.runtime import failures, files
from exprl_jax.types import InputError

_NAME = '.lock'
_BEAT, _DEAD = 20.0, 60.0  # seconds


class Lock:
  """Held from `take` to `release`, or to the end of the process."""

  def __init__(self, workdir: epath.PathLike) -> None:
    """Takes nothing yet; the first of several processes takes it for all."""
    self._path = epath.Path(workdir) / _NAME
    self._file: IO[str] | None = None
    self._stop = threading.Event()
    self._made = False  # this run made the folder
    self._thread: threading.Thread | None = None  # that renews an object

  def take(self) -> None:
    """Takes the lock: the first that a run writes into its workdir.

    Raises:
      InputError: another run has it, which it names; or the workdir cannot be
        written.
    """
    if jax.process_index():
      return
    with failures.naming(f'--workdir={self._path.parent}'):
      self._made = not self._path.parent.exists()
      self._path.parent.mkdir(parents=True, exist_ok=True)
      if files.is_remote(self._path):
        self._take_object()
      else:
        self._take_file()

  def __enter__(self) -> None:
    self.take()

  def __exit__(self, *_: object) -> None:
    self.release()

  def release(self) -> None:
    """Gives it back."""
    self._stop.set()
    if self._thread is not None:
      # Else a process that exits may leave its object, and the next run waits.
      self._thread.join(_BEAT)
    if self._file is not None:
      self._file.close()
      self._file = None
      # A run that found its input wrong leaves no folder behind.
      folder = self._path.parent
      if self._made and [p.name for p in folder.iterdir()] == [_NAME]:
        self._path.unlink()
        folder.rmdir()

  def _take_file(self) -> None:
    file = open(self._path, 'a+')
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      owner = file.read()
      file.close()
      raise self._taken(owner) from None
    except OSError:  # a file system without locks: mounted buckets
      file.close()
      self._take_object()
      return
    file.truncate(0)
    file.write(json.dumps(_owner()))
    file.flush()
    self._file = file

  def _take_object(self) -> None:
    seen, until = self._read(), time.monotonic() + _DEAD
    if seen:
      print(
          f'{self._path}: waiting up to {_DEAD:.0f} s to see whether its '
          f'owner lives: {seen}', flush=True)
    while seen and time.monotonic() < until:
      time.sleep(_BEAT / 10)
      if (now := self._read()) and now != seen:
        raise self._taken(now)
    self._write()
    self._thread = threading.Thread(target=self._beat, name='lock', daemon=True)
    self._thread.start()

  def _beat(self) -> None:
    while not self._stop.wait(_BEAT):
      try:
        self._write()
      except Exception:  # the next beat tries again
        continue
    with contextlib.suppress(Exception):  # the next run waits, then takes it
      self._path.unlink(missing_ok=True)

  def _read(self) -> str:
    return self._path.read_text() if self._path.exists() else ''

  def _write(self) -> None:
    self._path.write_text(json.dumps(_owner() | {'beat': secrets.token_hex(4)}))

  def _taken(self, owner: str) -> InputError:
    return InputError(
        f'--workdir={self._path.parent}: another run is at work in it '
        f'({owner or "unknown"}); stop it, or choose another --workdir')


def _owner() -> dict[str, object]:
  return {
      'host': socket.gethostname(), 'pid': os.getpid(),
      'since': time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())
  }
