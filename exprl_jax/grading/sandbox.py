"""Runs programs that nobody trusts: for graders, in their workers.

    done = sandbox.run([sys.executable, '-I', 'main.py'],
                       files={'main.py': program}, stdin='2 3', seconds=1.0)
    right = done.code == 0 and done.stdout.strip() == '5'

docs/grading.md says what a program can and cannot do. Imports nothing that
imports jax.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import os
import pathlib
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from exprl_jax.grading.orders import Order, Report

# Fixes the level: 'namespaces', 'user' or 'limits'. By default the strongest
# that works here.
LEVEL_VARIABLE = 'EXPRL_JAX_SANDBOX'
_LEVELS = ('namespaces', 'user', 'limits')
_ROOT = str(pathlib.Path(__file__).parents[2])
_SYSTEM = ('/usr', '/bin', '/sbin', '/lib', '/lib32', '/lib64', '/libx32',
           '/etc/alternatives', '/etc/ld.so.cache', '/etc/localtime')
_GRACE = 5.0  # seconds for the jail to start, and to end what it runs


class Outcome(NamedTuple):
  """How a program ended, and what it wrote."""

  code: int  # exit status; -N: killed by signal N
  stdout: str  # bytes that are not UTF-8 are replaced
  stderr: str
  # '': it ended by itself. timeout, memory, processes, disk, output: it went
  # over that limit. failed: it did not start. killed: its jail was.
  reason: str
  message: str = ''  # why it did not start


class Containment(NamedTuple):
  """What keeps programs apart from this machine."""

  level: str  # of `orders.Order`; '': programs do not run here
  reachable: tuple[str, ...]  # what a program can reach all the same
  enough: bool  # for config.grading.require_sandbox


def run(argv: Sequence[str], stdin: str = '', seconds: float = 1.0,
        memory_mb: int = 512, disk_mb: int = 16, max_processes: int = 64,
        output_kb: int = 1024,
        files: Mapping[str, str] | None = None) -> Outcome:
  """Runs a program contained, in an empty folder, and ends all it starts.

  Args:
    argv: the program, an absolute path, and its arguments.
    stdin: what it can read.
    seconds: of time, and of processor time of each of its processes.
    memory_mb: of all its processes together; of address space of each. Cannot
      exceed what the caller has (`config.grading.memory_mb`).
    disk_mb: of what it writes.
    max_processes: processes and threads at a time.
    output_kb: of stdout and of stderr.
    files: name -> text, in the folder that it starts in.

  Raises:
    RuntimeError: programs do not run contained here, at no level.
  """
  level = containment().level
  if not level:
    raise RuntimeError(containment().reachable[0])
  order = Order([*argv], _environment('/tmp'), level, True, '/tmp',
                dict(files or {}), _readable(), seconds, memory_mb, disk_mb,
                max_processes)
  return _run(order, stdin, output_kb << 10)[0]


@functools.cache
def containment() -> Containment:
  """Finds the strongest level that works here, by trying (0.1 s each)."""
  fixed = os.environ.get(LEVEL_VARIABLE, '')
  refused: dict[str, str] = {}
  for level in (fixed,) if fixed else _LEVELS:
    if level == 'user' and os.geteuid():
      continue
    order = Order([sys.executable, '-I', '-S', '-c', 'pass'],
                  _environment('/tmp'), level, True, '/tmp', {}, _readable(),
                  30.0, 512, 16, 64)
    done, missing = _run(order, '', 1 << 16)
    if done.code == 0 and not done.reason:
      return Containment(level, _reachable(level, refused, missing),
                         level == 'namespaces' or not missing)
    refused[level] = (done.message or done.reason
                      or f'exit status {done.code}, {done.stderr[-200:]!r}')
  return Containment('', (f'programs do not start: {refused}',), False)


def _reachable(level: str, refused: Mapping[str, str],
               missing: Mapping[str, str]) -> tuple[str, ...]:
  """Says in words what a program can reach at a level."""
  why = f' ({refused["namespaces"]})' if 'namespaces' in refused else ''
  found = []
  if level == 'namespaces':
    if 'seccomp' in missing:
      found.append('system calls that only an attack on the kernel needs')
    return tuple(found)
  # Elsewhere the files are the machine's.
  if 'landlock' in missing:
    found.append('files: it reads and writes what ' +
                 ('anybody may' if level == 'user' else 'this user may, and '
                  'the memory and environment of processes of this user'))
  else:
    found.append('names, sizes and owners of files')
  if 'seccomp' in missing:
    found += ['the network']
    found += ['signals to processes of this user'] * (level == 'limits')
  return (*found[:-1], found[-1] + why)


def _environment(home: str) -> dict[str, str]:
  return {
      'PATH': '/usr/local/bin:/usr/bin:/bin', 'HOME': home, 'TMPDIR': home,
      'LANG': 'C.UTF-8', 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'
  }


@functools.cache
def _readable() -> list[str]:
  """The system's programs and libraries, and this Python; none within another.
  """
  own = (sys.prefix, os.path.realpath(sys.prefix), sys.base_prefix,
         os.path.realpath(sys.base_prefix),
         str(pathlib.Path(os.path.realpath(sys.executable)).parents[1]))
  found: list[str] = []
  for path in (*_SYSTEM, *own):
    inside = any(path == p or path.startswith(p + '/') for p in found)
    if os.path.lexists(path) and not inside and path != '/':
      found.append(path)
  return found


def start(order: Order) -> tuple[subprocess.Popen[bytes], socket.socket]:
  """Starts a jail. Closing the socket, or this process's end, ends it."""
  ours, theirs = socket.socketpair()
  with theirs:
    process = subprocess.Popen(
        [
            sys.executable, '-I', '-S', '-c',
            f'import sys; sys.path.insert(0, {_ROOT!r}); '
            'from exprl_jax.grading import jail; jail.main()',
            str(theirs.fileno())
        ], env=_environment('/'), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if order.program else subprocess.DEVNULL,
        pass_fds=[theirs.fileno()], bufsize=0)
  try:
    ours.sendall(json.dumps(dataclasses.asdict(order)).encode() + b'\n')
  except BrokenPipeError:  # it has ended, which its reports say
    pass
  return process, ours


def end(process: subprocess.Popen[bytes], control: socket.socket) -> None:
  """Ends a jail and all that runs in it, and closes its pipes."""
  control.close()
  try:
    process.wait(_GRACE)
  except subprocess.TimeoutExpired:
    process.kill()
    process.wait()
  for pipe in (process.stdin, process.stdout, process.stderr):
    if pipe:
      pipe.close()


def reports(text: bytes) -> Report | None:
  """Joins the lines that a jail has sent; None if it sent no end."""
  lines = [Report(**json.loads(s)) for s in text.splitlines()]
  final = next((r for r in lines if r.reason), lines[-1] if lines[1:] else None)
  if final and lines:
    final.missing = lines[0].missing
  return final


def _run(order: Order, stdin: str,
         limit: int) -> tuple[Outcome, dict[str, str]]:
  """Runs an order; returns its outcome, and what the kernel lacks."""
  # 1. Without a root of its own, it gets a folder.
  folder = ''
  if order.level != 'namespaces':
    folder = order.cwd = tempfile.mkdtemp(prefix='graded-')
    order.env = _environment(folder)
  process, control = start(order)
  try:
    # 2. All that it writes, until the jail has ended or must.
    wrote, reason = _exchange(process, control,
                              stdin.encode('utf-8', 'surrogatepass'), limit,
                              time.monotonic() + order.seconds + _GRACE)
  finally:
    end(process, control)
    if folder:
      _remove(folder)
  # 3. The first reason counts.
  report = reports(wrote['control']) or Report(-9, 'killed')
  out, error = (wrote[k].decode(errors='replace') for k in ('out', 'error'))
  return Outcome(report.code, out, error, reason or report.reason,
                 report.message), report.missing


def _exchange(process: subprocess.Popen[bytes], control: socket.socket,
              stdin: bytes, limit: int,
              end_time: float) -> tuple[dict[str, bytes], str]:
  """Writes stdin, and reads until the jail closes its socket.

  Returns:
    The bytes of 'out', 'error' and 'control', and the limit that was exceeded.
  """
  assert process.stdin and process.stdout and process.stderr
  wrote = {'out': b'', 'error': b'', 'control': b''}
  left = memoryview(stdin)
  with selectors.DefaultSelector() as selector:
    selector.register(process.stdout, selectors.EVENT_READ, 'out')
    selector.register(process.stderr, selectors.EVENT_READ, 'error')
    selector.register(control, selectors.EVENT_READ, 'control')
    os.set_blocking(process.stdin.fileno(), False)
    selector.register(process.stdin, selectors.EVENT_WRITE, 'in')
    while selector.get_map():
      ready = selector.select(max(0.0, end_time - time.monotonic()))
      if not ready:
        return wrote, 'timeout'
      for key, _ in ready:
        if key.data == 'in':
          try:
            left = left[os.write(key.fd, left[:1 << 16]):]
          except BrokenPipeError:  # it reads no more
            left = left[:0]
          if not left:
            selector.unregister(key.fileobj)
            process.stdin.close()
          continue
        if not (more := os.read(key.fd, 1 << 16)):
          selector.unregister(key.fileobj)
          continue
        wrote[key.data] += more
        if len(wrote[key.data]) > limit:
          return wrote, 'output'
  return wrote, ''


def _remove(folder: str) -> None:
  """Removes a folder, however deep, and whatever its modes are."""
  subprocess.run(['chmod', '-R', 'u+rwX', folder], check=False,
                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  subprocess.run(['rm', '-rf', folder], check=False, stderr=subprocess.DEVNULL)
  shutil.rmtree(folder, ignore_errors=True)
