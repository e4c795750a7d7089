"""Stops a run from outside, with what it has earned saved.

SIGTERM, Ctrl-C, a preemption notice to any process and --deadline ask the run
to stop. Outside of training steps it stops at once. In a step, it goes on to
the step's end where the grace period allows, else it abandons the step: the
state of the step before is saved, and the resumed run draws the same samples
again. Either way StartAgain ends the run, exit code 42. A second signal, and
the end of the grace period, exit at once.

Several processes stop at the same place: JAX takes SIGTERM to any of them and
lets all of them know at the same poll.
"""

from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType

import jax
from jax.experimental import multihost_utils

from exprl_jax.runtime import failures, watchdog
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError, StartAgain

_RESERVE = 2.0  # seconds of the grace period that are left to exit
_UNITS = {'': 1, 's': 1, 'm': 60, 'h': 3600, 'd': 86400}


class Abandoned(StartAgain):
  """The step is not finished: the grace period is too short for it."""


class _Process:
  """What this process has been asked; signals are of a process, too."""

  def __init__(self) -> None:
    self.timer: threading.Timer | None = None
    self.reset()

  def reset(self) -> None:
    """Forgets all, as if the process had just begun."""
    if self.timer is not None:
      self.timer.cancel()
    self.timer = None  # that ends the grace period
    self.asked = ''  # why to stop
    self.since = 0.0  # time.monotonic() of that
    self.grace = 30.0  # seconds
    self.deadline = float('inf')  # time.monotonic()
    self.steps: Steps | None = None  # while it trains
    self.ticks = 0  # polls, the same in all processes


_process = _Process()
_thread = threading.local()


class Steps:
  """The steps of a training run, whose ends are where it stops best."""

  def __init__(self) -> None:
    self._begun = time.monotonic()
    self._seconds: float | None = None  # of the last step
    self.finish = False  # the step goes on to its end

  def begin(self) -> None:
    """Marks the start of a step."""
    self._begun = time.monotonic()

  def end(self) -> None:
    """Marks the end of a step.

    Raises:
      StartAgain: the run was asked to stop, or another step would end after
        the deadline.
    """
    self._seconds = time.monotonic() - self._begun
    late = ''
    if time.monotonic() + self._seconds > _process.deadline:
      late = '--deadline'
    asked = _agreed(_process.asked or late)
    if asked:
      raise StartAgain(f'stopped by {asked}')

  def remaining(self) -> float:
    """Seconds to the step's end, as the last one went; unknown: a long time."""
    if self._seconds is None:
      return float('inf')
    return self._seconds - (time.monotonic() - self._begun)


def install() -> None:
  """Takes over SIGINT and SIGTERM of this process.

  jax.distributed, started later, takes SIGTERM itself, and `poll` asks it.
  """
  signal.signal(signal.SIGINT, _on_signal)
  signal.signal(signal.SIGTERM, _on_signal)


def until(deadline: str) -> None:
  """Takes the flag --deadline: a time from now.

  Raises:
    InputError: it is no time.
  """
  if deadline:
    _process.deadline = time.monotonic() + seconds(deadline)


def seconds(text: str) -> float:
  """Seconds of '600', '600s', '90m', '3h' or '2d'.

  Raises:
    InputError: it is none of these.
  """
  number, unit = (text[:-1], text[-1]) if text[-1:].isalpha() else (text, '')
  try:
    value = float(number) * _UNITS[unit]
  except (ValueError, KeyError):
    value = -1.0
  if not 0 < value < float('inf'):
    raise InputError(f'--deadline={text}: want a time from now, such as 90m, '
                     '3h or 600s')
  return value


@contextlib.contextmanager
def training(grace: float) -> Iterator[Steps]:
  """Between its steps, and in `poll`, is where the run stops from now on.

  Args:
    grace: seconds from a notice until the process is killed.
  """
  _process.grace, _process.steps = grace, Steps()
  if _process.asked:
    raise StartAgain(f'stopped by {_process.asked}')
  try:
    yield _process.steps
  finally:
    _process.steps = None


@contextlib.contextmanager
def aside(closed: threading.Event) -> Iterator[None]:
  """This thread does what the run can do again: `poll` gives it up at once.

  Args:
    closed: set when nobody waits for it any more.
  """
  _thread.closed = closed
  try:
    yield
  finally:
    del _thread.closed


def poll(phase: str) -> None:
  """Says that the run is alive, and stops it if it has to stop now.

  All processes call it in the same order.

  Raises:
    Abandoned: the grace period does not last to the end of the step.
    StartAgain: there is no step, as before training.
  """
  closed = getattr(_thread, 'closed', None)
  if closed:
    if closed.is_set() or _process.asked:
      raise StartAgain(f'stopped by {_process.asked or "its end"} in {phase}')
    return
  watchdog.beat(phase)
  _process.ticks += 1
  if jax.process_count() > 1 and not _process.asked:
    # True in all processes at the same tick, after a SIGTERM to any.
    if multihost_utils.reached_preemption_sync_point(_process.ticks):
      _ask('SIGTERM')
  if not _process.asked:
    return
  steps = _process.steps
  if steps is None:  # nothing that is not saved
    raise StartAgain(f'stopped by {_process.asked} in {phase}')
  if steps.finish:
    return
  if jax.process_count() > 1 and _process.asked == 'SIGINT':
    return  # known to this process only: all stop at the step's end
  left = _process.grace - (time.monotonic() - _process.since) - _RESERVE
  if mesh_lib.broadcast(steps.remaining() < left / 2):  # the rest is to save
    steps.finish = True
    return
  raise Abandoned(f'stopped by {_process.asked} in {phase}')


def _agreed(asked: str) -> str:
  """Why any process was asked to stop."""
  return next(filter(None, mesh_lib.everywhere(asked)), '')


def _on_signal(number: int, frame: FrameType | None) -> None:
  del frame
  name = signal.Signals(number).name
  if _process.asked:
    _exit(f'{name} again: exiting now')
  _ask(name)
  if _process.steps is None:  # nothing that is not saved
    raise StartAgain(f'stopped by {name}')


def _ask(name: str) -> None:
  """Takes down a request, and starts the clock."""
  _process.since, _process.asked = time.monotonic(), name
  if _process.steps is not None:
    _write(f'{name}: saving; another one exits at once')
  _process.timer = threading.Timer(
      max(_process.grace - _RESERVE, 1.0), _exit,
      ('the grace period (checkpoint.grace_s) is over: exiting now',))
  _process.timer.daemon = True
  _process.timer.start()


def _exit(line: str) -> None:
  _write(line)
  os._exit(failures.AGAIN)


def _write(line: str) -> None:
  """Signal handlers must not take locks, which print has."""
  os.write(sys.stderr.fileno() if sys.stderr else 2, f'{line}\n'.encode())
