"""Worker processes for graders that may hang, crash or eat memory.

The parent's side of `grading.worker`. See docs/grading.md.
"""

from collections.abc import Iterable, Sequence
import concurrent.futures
import json
import os
import pathlib
import queue
import select
import signal
import subprocess
import sys
import time
from typing import NamedTuple
import weakref

from exprl_jax.config import Grading
from exprl_jax.types import InputError

_START_UP = 120.0  # seconds a worker may take to import what it needs


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
    self._unread = b''

  def start(self) -> None:
    """Starts the process and waits until its imports are done.

    Raises:
      InputError: it cannot load a grader, or does not start in time.
    """
    self._process = process = self._spawn()
    self._unread = b''
    try:
      problem = json.loads(self._read_line(process, _START_UP))
    except (TimeoutError, EOFError):
      problem = (f'a worker did not start in {_START_UP:.0f} s with '
                 f'config.grading.memory_mb={self._cfg.memory_mb}')
    if problem:
      self.close()
      raise InputError(f'config.grading: {problem}')

  def _spawn(self) -> subprocess.Popen[bytes]:
    settings = {
        'graders': self._graders, 'memory_mb': self._cfg.memory_mb,
        'seconds': 0.8 * self._cfg.timeout
    }
    # The worker searches modules where this process does. One thread for each
    # numerical library: stacks of more count as address space.
    root = str(pathlib.Path(__file__).parents[2])
    env = {
        **os.environ, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join([root, *filter(None, sys.path)])
    }
    return subprocess.Popen(
        [
            sys.executable, '-m', 'exprl_jax.grading.worker',
            json.dumps(settings)
        ], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True)  # so that killpg reaches its children

  def ask(self, question: str) -> Reply:
    """Sends a line of JSON and waits for the reply, `cfg.timeout` at most.

    Kills a worker that is late: status 'timeout'; 'error' if it has crashed.

    Raises:
      InputError: the process does not start.
    """
    if self._process is None or self._process.poll() is not None:
      self.close()
      self.start()
    process = self._process
    assert process is not None and process.stdin is not None
    try:
      process.stdin.write(question.encode() + b'\n')
      process.stdin.flush()
      return Reply(*json.loads(self._read_line(process, self._cfg.timeout)))
    except TimeoutError:
      self.close()
      return Reply('timeout', '')
    except (EOFError, BrokenPipeError):
      self.close()
      return Reply('error', '', 'the worker has crashed')

  def _read_line(self, process: subprocess.Popen[bytes],
                 seconds: float) -> bytes:
    """Reads a line of output; TimeoutError or EOFError if none comes."""
    assert process.stdout is not None
    end = time.monotonic() + seconds
    stdout = process.stdout.fileno()
    poll = select.poll()
    poll.register(stdout, select.POLLIN)
    while b'\n' not in self._unread:
      if not poll.poll(1000 * max(0.0, end - time.monotonic())):
        raise TimeoutError
      if not (more := os.read(stdout, 1 << 16)):
        raise EOFError
      self._unread += more
    line, _, self._unread = self._unread.partition(b'\n')
    return line

  def close(self) -> None:
    """Kills the process and its children."""
    process = self._process
    if process is None:
      return
    assert process.stdin is not None and process.stdout is not None
    try:
      os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
      pass  # it has ended already
    process.wait()
    process.stdout.close()
    try:
      process.stdin.close()
    except BrokenPipeError:
      pass  # flushes a question that the process never read
    self._process = None


def _close(workers: Iterable[Worker]) -> None:
  for worker in workers:
    worker.close()
