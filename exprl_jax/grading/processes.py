"""Processes as /proc shows them: who descends from whom, and what they use.

Like `grading.jail`, which uses it, imports nothing of the package. Where there
is no /proc, there are no processes.
"""

import os
import signal
import time
from typing import NamedTuple

_PATIENCE = 10.0  # seconds that killed processes may take to end
_PAGE = os.sysconf('SC_PAGE_SIZE')


class Process(NamedTuple):
  """A running process, or one that waits to be reaped."""

  pid: int
  parent: int
  threads: int
  user: int


def everyone() -> list[Process]:
  """Lists the processes that this one can see."""
  try:
    names = [n for n in os.listdir('/proc') if n.isdigit()]
  except OSError:
    return []
  found = []
  for name in names:
    try:
      with open(f'/proc/{name}/stat', 'rb') as file:
        text = file.read()
      user = os.stat(f'/proc/{name}/task').st_uid
    except OSError:  # it has just ended
      continue
    fields = text[text.rindex(b')') + 2:].split()  # a name may hold anything
    found.append(Process(int(name), int(fields[1]), int(fields[17]), user))
  return found


def descendants(ancestor: int) -> list[Process]:
  """Lists the children of a process, their children, and so on."""
  known, found, before = everyone(), [], {ancestor}
  while before:
    children = [p for p in known if p.parent in before]
    found += children
    before = {p.pid for p in children}
  return found


def threads_of(user: int) -> int:
  """Counts what RLIMIT_NPROC counts: the threads of a user."""
  return sum(p.threads for p in everyone() if p.user == user)


def memory(processes: list[Process]) -> int:
  """Sums the bytes of memory that are not shared with files."""
  total = 0
  for process in processes:
    try:
      with open(f'/proc/{process.pid}/statm', 'rb') as file:
        fields = file.read().split()
      total += (int(fields[1]) - int(fields[2])) * _PAGE
    except (OSError, IndexError):  # it has just ended
      pass
  return total


def end_descendants(group: int) -> None:
  """Kills and reaps all descendants of this process.

  Orphans must come to this process (`kernel.adopt_orphans`), or only the group
  is killed.
  """
  me, end = os.getpid(), time.monotonic() + _PATIENCE
  try:
    os.killpg(group, signal.SIGKILL)
  except (ProcessLookupError, PermissionError):
    pass
  while time.monotonic() < end:
    left = descendants(me)
    for process in left:
      try:
        os.kill(process.pid, signal.SIGKILL)
      except (ProcessLookupError, PermissionError):
        pass
    try:
      while os.waitpid(-1, os.WNOHANG)[0]:
        pass
    except ChildProcessError:  # none is left
      return
    time.sleep(0.001)
