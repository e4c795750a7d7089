"""Ends a run that hangs: a lost process, a dead device, a stuck file system."""

import faulthandler
import os
import sys
import threading
import time

from exprl_jax.runtime import failures

_beat: tuple[float, str] = (0.0, 'start')
_thread: threading.Thread | None = None
_limit = 0.0  # seconds


def beat(phase: str) -> None:
  """Says that the run is alive, and what it does next."""
  global _beat
  _beat = time.monotonic(), phase


def phase() -> str:
  """What the run does, as of the last beat."""
  return _beat[1]


def limit(minutes: float) -> None:
  """Sets the key watchdog_minutes; 0: never."""
  global _limit
  beat('start')
  _limit = minutes * 60


def start() -> None:
  """Watches from now on: after `limit` without a beat the process prints the
  phase and the stacks of all threads, and exits with 42."""
  global _thread
  if _thread is None:
    _thread = threading.Thread(target=_watch, name='watchdog', daemon=True)
    _thread.start()


def _watch() -> None:
  while True:
    time.sleep(min(max(_limit / 20, 0.1), 10) if _limit else 1)
    since, doing = _beat
    silent = time.monotonic() - since
    if _limit and silent > _limit:
      print(
          f'watchdog: {silent / 60:.1f} minutes without progress in {doing} '
          '(watchdog_minutes); exiting with 42 to be started again. Stacks:',
          file=sys.stderr, flush=True)
      faulthandler.dump_traceback(all_threads=True)
      os._exit(failures.AGAIN)
