"""Grades answers in a process: `python -m exprl_jax.grading.worker SETTINGS`.

Algebra and plug-ins may hang, take all memory or crash. They run here, and the
parent, `grading.pool`, kills the process. Protocol: the first line out is `""`,
or says as JSON why the process cannot start. After that each line in is
`{"bound": [number, nonce], "question": {"grader": ..., "args": {...}}}`, and
each line out its reply, `[bound, status, answer, note]`.

Imports nothing of the package but `kernel`: jax takes seconds to import and
more memory than a worker may have.
"""

from collections.abc import Callable
import functools
import importlib
import importlib.util
import json
import os
import pathlib
import re
import resource
import signal
import sys
from types import FrameType
from typing import Any, TextIO

from exprl_jax.grading import kernel

_DIGITS = 30  # to which two values are computed
_EXACT = 1e-20  # relative difference that two exact values may have
_ROUNDED = 1e-4  # the same if one of them is a decimal
_LONGEST_ANSWER = 10_000  # characters that a plug-in may call the answer
_PERCENT = re.compile(r'%|\bper ?cent|\bpct\b', re.I)

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
    return _load_math()
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
  """Calls a plug-in, which returns a bool, a status or (either, answer)."""
  verdict, answer = function(text, problem), ''
  if isinstance(verdict, (tuple, list)):
    verdict, answer = verdict
  if not isinstance(verdict, str):
    verdict = 'correct' if verdict else 'wrong'
  return verdict, str(answer)[:_LONGEST_ANSWER], ''


def _load_math() -> _Grader:
  import math_verify
  import sympy
  _tighten(math_verify.grader, sympy)
  config = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]

  @functools.lru_cache(4096)
  def parse(text: str) -> Any:
    # `_answer` limits the time, not the library.
    parsed = math_verify.parse(text, config, 'no_fallback',
                               parsing_timeout=None)
    return next(iter(parsed), None)

  def equal(expected: Any, given: Any) -> bool:
    return not _absurd(given, sympy) and math_verify.verify(
        expected, given, timeout_seconds=None)

  return functools.partial(_grade_math, parse, equal)


def _grade_math(parse: Callable[[str], Any], equal: Callable[[Any, Any], bool],
                gold: str, answer: str | None, percent: bool) -> _Reply:
  """Compares an answer with the gold answer; None: only parses the gold one.

  Args:
    parse: returns an expression, or None if it cannot read the formula.
    equal: compares the gold expression with another.
    gold: as in the data set.
    answer: content of the box.
    percent: whether the gold answer is in percent. If not, one in percent is
      wrong.
  """
  expected = parse(_gold(gold))
  if answer is None:
    return ('gold_unparsable' if expected is None else 'correct'), '', ''
  word, gold_word = _word(answer), _word(gold)
  if word and gold_word:
    return ('correct' if word == gold_word else 'wrong'), word, ''
  if expected is None:
    return 'gold_unparsable', '', ''
  given = parse(_anchor(answer))
  if given is None:
    return 'unparsable', '', ''
  right = ((percent or not _PERCENT.search(answer))
           and not _other_base(answer, gold) and equal(expected, given))
  return ('correct' if right else 'wrong'), str(given)[:1000], ''


def _anchor(text: str) -> str:
  """Makes one formula of a text; the library must read all of it or nothing."""
  text = re.sub(r'(?<!\\)\$|\\[()\[\]]', ' ', text)
  # Upright e, i and d are constants. The library takes them for words, and
  # would read 1-1/e and 1+1/e alike.
  text = re.sub(r'\\(?:mathrm|text|operatorname)\s*\{([eid])\}', r'{\1}', text)
  return f'${" ".join(text.split())}$'


def _gold(text: str) -> str:
  """Makes one formula of a gold answer, unless it is a sentence with some."""
  if re.search(r'(?<!\\)\$.*[^$\s].*\$|\\\(|\\\[', text, re.S):
    inner = re.fullmatch(r'\s*(\$\$?)([^$]*)\1[\s.]*', text)
    return _anchor(inner[2]) if inner else text
  return _anchor(text)


def _word(text: str) -> str:
  """Returns a name or word in lower case; '' for formulas.

  The library reads letters as factors, by which AB = BA and no = on. Leaves two
  or three lower-case letters to it: ab = ba.
  """
  text = text.replace('$', ' ').strip(' .')
  bare = re.sub(r'\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}', r'\1', text)
  word = re.fullmatch(r'[A-Z]{2,}|[A-Za-z]{4,}', bare)
  return bare.lower() if word or bare != text and bare.isalpha() else ''


def _other_base(a: str, b: str) -> bool:
  """True for 204_5 and 204_6, of which the library reads only the digits."""
  base_a, base_b = (
      re.search(r'[0-9A-Z]_\{?(\d+)\W*$', text) for text in (a, b))
  return bool(base_a and base_b and base_a[1] != base_b[1])


def _absurd(given: Any, sympy: Any) -> bool:
  """True for 6 = 5 and x = 6 = 5; the library reads the right-hand side."""
  if not isinstance(given, (sympy.Eq, sympy.And)):
    return False
  sides = [
      side for equation in given.atoms(sympy.Eq) for side in equation.args
      if not side.free_symbols
  ]
  return not all(_agree(sides[0], side, sympy) for side in sides)


def _tighten(library: Any, sympy: Any) -> None:
  """Adds a second rule where Math-Verify 0.9.0 compares two expressions.

  By its own rule, 15 digits after the point, 1/2^99 = 1/2^98, and any two
  equations without a solution are equal. All its comparisons of sets, tuples
  and relations end in the two functions replaced here, or are exact.
  """
  numeric, solve = library.sympy_numeric_eq, library.sympy_solve_and_compare
  agree = functools.partial(_agree, sympy=sympy)

  def percent_agree(a: Any, b: Any) -> bool:  # 28% = 28, if gold is in percent
    return agree(a, b) or agree(library.get_pct_val(a, a),
                                library.get_pct_val(b, b))

  def solvable(a: Any) -> bool:
    return not isinstance(a, sympy.Eq) or bool(sympy.solve(a, a.free_symbols))

  library.sympy_numeric_eq = (
      lambda a, b, *rest: numeric(a, b, *rest) and percent_agree(a, b))
  library.sympy_solve_and_compare = (
      lambda a, b, *rest: solvable(a) and solve(a, b, *rest))


def _agree(a: Any, b: Any, sympy: Any) -> bool:
  """Compares two expressions at three points; False if one clearly differs."""
  if isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase):
    return a.shape == b.shape and all(
        _agree(x, y, sympy) for x, y in zip(a.flat(), b.flat()))
  if not isinstance(a, sympy.Expr) or not isinstance(b, sympy.Expr):
    return True
  tolerance = _ROUNDED if a.has(sympy.Float) or b.has(sympy.Float) else _EXACT
  symbols = sorted(a.free_symbols | b.free_symbols, key=str)
  for shift in (2, 5, 11):
    at = {s: sympy.Rational(7 * i + shift, 13) for i, s in enumerate(symbols)}
    x, y = _value(a, at), _value(b, at)
    if x is not None and y is not None and bool(
        abs(x - y) > tolerance * max(abs(x), abs(y))):
      return False
  return True


def _value(expression: Any, at: dict[Any, Any]) -> Any:
  """Returns the value at a point; None if not all its digits are certain.

  An exact zero that is a difference of roots is such a case, where the algebra
  of the library decides.
  """
  try:
    value = expression.subs(at).doit().evalf(_DIGITS, strict=True)
  except Exception:
    return None
  return value if value.is_number and value.is_finite else None


if __name__ == '__main__':
  main()
