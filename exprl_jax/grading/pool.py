"""Worker processes for graders that may hang, crash or eat memory.

The parent's side of `grading.worker`. See docs/grading.md.
"""

from collections.abc import Iterable, Sequence
import concurrent.futures
import json
import os
import pathlib
import queue
import secrets
import select
import socket
import subprocess
import sys
import time
from typing import NamedTuple
import weakref

from exprl_jax.config import Grading
from exprl_jax.grading import sandbox
from exprl_jax.grading.orders import Order
from exprl_jax.types import InputError

_START_UP = 120.0  # seconds a worker may take to import what it needs
_LONGEST_LINE = 1 << 20  # bytes of a reply
_LONGEST_POLL = 60.0  # seconds
# Variables that workers inherit, besides LC_* and config.grading.environment.
_ENVIRONMENT = ('PATH', 'HOME', 'LANG', 'TZ', 'TMPDIR', 'LD_LIBRARY_PATH',
                'PYTHONHASHSEED')


class Reply(NamedTuple):
  """A worker's reply to one question."""

  status: str  # by the grader; a plug-in may return anything
  answer: str  # '' if the grader names none
  note: str = ''  # what went wrong


class Pool:
  """`cfg.workers` processes that answer questions in parallel.

  Kills them when it is closed or collected, or when the program exits.
  """

  def __init__(self, cfg: Grading, graders: Sequence[str]) -> None:
    """Starts no process yet.

    Args:
      cfg: number of workers and their limits.
      graders: every worker loads them: 'math', FILE.py:FUNCTION or
        MODULE:FUNCTION.
    """
    workers = [Worker(cfg, graders) for _ in range(max(1, cfg.workers))]
    self._size = len(workers)
    self._free: queue.LifoQueue[Worker] = queue.LifoQueue()
    for worker in workers:
      self._free.put(worker)
    self._finalizer = weakref.finalize(self, _close, workers)

  def start_one(self) -> None:
    """Starts one worker to see whether it can load the graders.

    Raises:
      InputError: it cannot.
    """
    worker = self._free.get()
    try:
      worker.start()
    finally:
      self._free.put(worker)

  def ask(self, questions: set[str]) -> dict[str, Reply]:
    """Asks every question once; returns the replies by question.

    Raises:
      InputError: a worker does not start.
      RuntimeError: the pool is closed.
    """
    if not questions:
      return {}
    if not self._finalizer.alive:
      raise RuntimeError('this Grader is closed')
    ordered = sorted(questions)
    with concurrent.futures.ThreadPoolExecutor(self._size) as threads:
      return dict(zip(ordered, threads.map(self._ask_one, ordered)))

  def _ask_one(self, question: str) -> Reply:
    worker = self._free.get()
    try:
      return worker.ask(question)
    finally:
      self._free.put(worker)

  def close(self) -> None:
    """Kills the workers. Asking raises afterwards."""
    self._finalizer()


class Worker:
  """One worker process. Starts on the first question and again after a kill."""

  def __init__(self, cfg: Grading, graders: Sequence[str]) -> None:
    self._cfg = cfg
    self._graders = list(graders)
    self._process: subprocess.Popen[bytes] | None = None
    self._control: socket.socket | None = None
    self._unread = b''
    self._started = False  # once, at least
    self._asked = 0

  def start(self) -> None:
    """Starts the process and waits until its imports are done.

    Raises:
      InputError: it cannot load a grader, or does not start in time.
    """
    self._process, self._control = sandbox.start(self._order())
    self._unread = b''
    try:
      problem = json.loads(self._exchange(b'', time.monotonic() + _START_UP))
    except (TimeoutError, EOFError, BrokenPipeError, ValueError):
      problem = (f'a worker did not start in {_START_UP:.0f} s with '
                 f'config.grading.memory_mb={self._cfg.memory_mb}')
    if problem:
      self.close()
      raise InputError(f'config.grading: {problem}')
    self._started = True

  def _order(self) -> Order:
    settings = {
        'graders': self._graders, 'memory_mb': self._cfg.memory_mb,
        'seconds': 0.8 * self._cfg.timeout
    }
    # The worker searches modules where this process does. One thread for each
    # numerical library: stacks of more count as address space.
    root = str(pathlib.Path(__file__).parents[2])
    kept = (*_ENVIRONMENT, *self._cfg.environment)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in kept or name.startswith('LC_')
    }
    env = {
        **inherited, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join([root, *filter(None, sys.path)])
    }
    # Algebra starts nothing; only plug-ins need namespaces.
    level = 'limits'
    if set(self._graders) - {'math'}:
      level = sandbox.containment().level
      env[sandbox.LEVEL_VARIABLE] = level
    return Order([
        sys.executable, '-m', 'exprl_jax.grading.worker',
        json.dumps(settings)
    ], env, 'namespaces' if level == 'namespaces' else 'limits', program=False)

  def ask(self, question: str) -> Reply:
    """Asks a question and waits for the reply, `cfg.timeout` at most.

    Kills a worker that is late: status 'timeout'. One that has crashed is
    asked once more, since something else may have killed it; then 'error'.

    Args:
      question: JSON, `{"grader": ..., "args": {...}}`.

    Raises:
      InputError: the process does not start.
    """
    for _ in range(2):
      if self._process is None or self._process.poll() is not None:
        self._restart()
      try:
        return self._ask(question)
      except TimeoutError:
        self.close()
        return Reply('timeout', '')
      except (EOFError, BrokenPipeError):
        self.close()
      except ValueError:
        self.close()
        return Reply('error', '', 'a reply that is not to this question')
    return Reply('error', '', 'the worker has crashed')

  def _ask(self, question: str) -> Reply:
    """Binds the reply to a number and a nonce; ValueError if it is another."""
    self._asked += 1
    bound = [self._asked, secrets.token_hex(16)]
    line = json.dumps({'bound': bound, 'question': json.loads(question)})
    end = time.monotonic() + self._cfg.timeout
    reply = json.loads(self._exchange(line.encode() + b'\n', end))
    if (not isinstance(reply, list) or len(reply) != 4 or reply[0] != bound
        or self._unread):
      raise ValueError(reply)
    return Reply(*map(str, reply[1:]))

  def _restart(self) -> None:
    """Starts the process; tries again if it has started before."""
    self.close()
    for pause in (1.0, 5.0) if self._started else ():
      try:
        self.start()
        return
      except (InputError, OSError):
        time.sleep(pause)
    self.start()

  def _exchange(self, message: bytes, end: float) -> bytes:
    """Writes a message and reads a line.

    Raises:
      TimeoutError: it takes longer than until `end`, of time.monotonic().
      EOFError, BrokenPipeError: the process has ended.
      ValueError: the line is too long.
    """
    process = self._process
    assert process and process.stdin and process.stdout
    stdin, stdout = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(stdin, False)
    left = memoryview(message)
    poll = select.poll()
    poll.register(stdout, select.POLLIN)
    if left:
      poll.register(stdin, select.POLLOUT)
    while b'\n' not in self._unread:
      wait = min(max(0.0, end - time.monotonic()), _LONGEST_POLL)
      ready = poll.poll(1000 * wait)
      if not ready and time.monotonic() >= end:
        raise TimeoutError
      for descriptor, _ in ready:
        if descriptor == stdin:
          left = left[os.write(stdin, left[:1 << 16]):]
          if not left:
            poll.unregister(stdin)
        elif more := os.read(stdout, 1 << 16):
          self._unread += more
        else:
          raise EOFError
      if len(self._unread) > _LONGEST_LINE:
        raise ValueError('its reply is too long')
    line, _, self._unread = self._unread.partition(b'\n')
    return line

  def close(self) -> None:
    """Ends the process and all that it has started."""
    if self._process and self._control:
      sandbox.end(self._process, self._control)
    self._process = self._control = None


def _close(workers: Iterable[Worker]) -> None:
  for worker in workers:
    worker.close()
