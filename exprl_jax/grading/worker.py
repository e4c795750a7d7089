"""Grades answers in a process: `python -m exprl_jax.grading.worker SETTINGS`.

Algebra and plug-ins may hang, take all memory or crash. They run here, and the
parent, `grading.pool`, kills the process. Protocol: the first line out is `""`,
or says as JSON why the process cannot start. After that each line in is
`{"bound": [number, nonce], "question": {"grader": ..., "args": {...}}}`, and
each line out its reply, `[bound, status, answer, note]`.

Imports nothing of the package that imports jax: jax takes seconds to import and
more memory than a worker may have.
"""

from collections.abc import Callable
import functools
import importlib
import importlib.util
import json
import os
import pathlib
import resource
import signal
import sys
from types import FrameType
from typing import Any, TextIO

from exprl_jax.grading import algebra, kernel

_LONGEST_ANSWER = 10_000  # characters that a plug-in may call the answer

_Reply = tuple[str, str, str]  # status, answer, note
_Grader = Callable[..., _Reply]


class _Late(BaseException):
  """Time is up. No Exception, so that libraries do not swallow it."""


def main() -> None:
  """Answers questions until stdin is closed."""
  if sys.platform == 'linux':
    kernel.hide()  # from programs that plug-ins start
  settings = json.loads(sys.argv[1])
  questions, replies = _take_pipes()
  signal.signal(signal.SIGALRM, _raise_late)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  memory = settings['memory_mb'] << 20
  resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
  graders: dict[str, _Grader] = {}
  problem = ''
  for spec in settings['graders']:
    try:
      graders[spec] = _load(spec)
    except BaseException as e:
      problem = f'{spec}: {type(e).__name__}: {e}'
  print(json.dumps(problem), file=replies, flush=True)
  for line in questions:
    asked = json.loads(line)
    question = asked['question']
    reply = _answer(graders[question['grader']], question['args'],
                    settings['seconds'])
    print(json.dumps([asked['bound'], *reply]), file=replies, flush=True)


def _take_pipes() -> tuple[TextIO, TextIO]:
  """Moves stdin and stdout to new files, out of reach of plug-ins.

  They read nothing from stdin afterwards, and print to stderr.
  """
  questions, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), 'w')
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.dup2(2, 1)
  return questions, replies


def _raise_late(signum: int, frame: FrameType | None) -> None:
  raise _Late


def _answer(grader: _Grader, args: dict[str, Any], seconds: float) -> _Reply:
  """Runs a grader, for `seconds` at most."""
  try:
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
      return grader(**args)
    finally:
      signal.setitimer(signal.ITIMER_REAL, 0)
  except _Late:
    return 'timeout', '', ''
  except BaseException as e:  # includes sys.exit in a plug-in
    return 'error', '', f'{type(e).__name__}: {e}'[:500]


def _load(spec: str) -> _Grader:
  """Loads `math`, FILE.py:FUNCTION or MODULE:FUNCTION."""
  if spec == 'math':
    return algebra.load()
  path, _, name = spec.rpartition(':')
  if path.endswith('.py'):
    file = pathlib.Path(path)
    sys.path.append(str(file.resolve().parent))
    found = importlib.util.spec_from_file_location(file.stem, path)
    assert found and found.loader  # every .py file has a loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
  else:
    module = importlib.import_module(path)
  return functools.partial(_plug_in, getattr(module, name))


def _plug_in(function: Callable[[str, dict[str, str]], Any], text: str,
             problem: dict[str, str]) -> _Reply:
  """Calls a plug-in, which returns a bool, a status or (either, answer).

  Raises:
    TypeError: it returns something else; half right is not a verdict.
  """
  verdict, answer = function(text, problem), ''
  if isinstance(verdict, (tuple, list)):
    verdict, answer = verdict
  if not isinstance(verdict, str):
    verdict = _status(verdict)
  return verdict, str(answer)[:_LONGEST_ANSWER], ''


def _status(verdict: Any) -> str:
  """Reads True, False, 1 and 0, also those of NumPy."""
  try:
    if not isinstance(verdict, (bytes, dict, set)) and verdict in (0, 1):
      return 'correct' if verdict else 'wrong'
  except Exception:  # an array of several values has no truth
    pass
  raise TypeError(f'the grader returned {verdict!r:.100}; it should be True, '
                  'False or a status')


if __name__ == '__main__':
  main()
