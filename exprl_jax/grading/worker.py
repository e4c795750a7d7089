"""A process that grades answers: `python -m exprl_jax.grading.worker SETTINGS`.

Algebra and code of others may hang, take all memory or crash, so they run
here, and `grading.Grader` kills what hangs. A line of JSON comes in for every
question, `{"grader": ..., "args": {...}}`, and a line goes out: `[status,
answer, note]`. The first line out is `""`, or why the process cannot start.

It is run, never imported by the package, and imports nothing of it: jax takes
seconds to import and more memory than a worker may have.
"""

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

_DIGITS = 30  # of values that are compared
_EXACT = 1e-20  # they may differ by so much of the larger one
_ROUNDED = 1e-4  # where one of them is a decimal fraction


class _Late(BaseException):
  """Time is up. Not an Exception, so that libraries do not swallow it."""


def main() -> None:
  """Answers questions until stdin is closed."""
  settings = json.loads(sys.argv[1])
  # What a plug-in prints or reads must not reach the parent's lines.
  questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), 'w')
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.dup2(2, 1)
  signal.signal(signal.SIGALRM, _late)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  memory = settings['memory_mb'] << 20
  resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
  graders, problem = {}, ''
  for spec in settings['graders']:
    try:
      graders[spec] = _load(spec)
    except BaseException as e:
      problem = f'{spec}: {type(e).__name__}: {e}'
  print(json.dumps(problem), file=answers, flush=True)
  for line in questions:
    question = json.loads(line)
    answer = _answer(graders[question['grader']], question['args'],
                     settings['seconds'])
    print(json.dumps(answer), file=answers, flush=True)


def _late(*_):
  raise _Late


def _answer(grader, args, seconds) -> tuple[str, str, str]:
  """Runs a grader: (status, answer, what went wrong)."""
  try:
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
      return grader(**args)
    finally:
      signal.setitimer(signal.ITIMER_REAL, 0)
  except _Late:
    return 'timeout', '', ''
  except BaseException as e:  # sys.exit of a plug-in, too
    return 'error', '', f'{type(e).__name__}: {e}'[:500]


def _load(spec):
  if spec == 'math':
    return _load_math()
  path, _, name = spec.rpartition(':')
  if path.endswith('.py'):
    sys.path.append(str(pathlib.Path(path).resolve().parent))
    module = importlib.util.module_from_spec(
        found := importlib.util.spec_from_file_location(
            pathlib.Path(path).stem, path))
    found.loader.exec_module(module)
  else:
    module = importlib.import_module(path)
  return functools.partial(_plug_in, getattr(module, name))


def _plug_in(function, text, problem) -> tuple[str, str, str]:
  verdict, answer = function(text, problem), ''
  if isinstance(verdict, (tuple, list)):
    verdict, answer = verdict
  if not isinstance(verdict, str):
    verdict = 'correct' if verdict else 'wrong'
  return verdict, str(answer), ''


def _load_math():
  import math_verify
  import sympy
  _tighten(math_verify.grader, sympy)
  config = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]

  @functools.lru_cache(4096)
  def parse(text):
    """One expression, or None. Time is kept by `_answer`, not the library."""
    return next(
        iter(
            math_verify.parse(text, config, 'no_fallback',
                              parsing_timeout=None)), None)

  def grade(gold, answer, percent):
    """Whether `answer` is `gold`; without an answer, whether gold is read.

    An answer in percent is right only if the gold answer is given so, too.
    """
    expected = parse(_gold(gold))
    if answer is None:
      return ('gold_unparsable' if expected is None else 'correct'), '', ''
    words, others = _word(answer), _word(gold)
    if words and others:
      return ('correct' if words == others else 'wrong'), words, ''
    if expected is None:
      return 'gold_unparsable', '', ''
    given = parse(_anchor(answer))
    if given is None:
      return 'unparsable', '', ''
    right = ((percent or not _PERCENT.search(answer))
             and not _other_base(answer, gold) and not _absurd(given, sympy)
             and math_verify.verify(expected, given, timeout_seconds=None))
    return ('correct' if right else 'wrong'), str(given)[:1000], ''

  return grade


_PERCENT = re.compile(r'%|\bper ?cent|\bpct\b', re.I)


def _anchor(text) -> str:
  """`text` as one formula, of which the library must read all or nothing."""
  text = re.sub(r'(?<!\\)\$|\\[()\[\]]', ' ', text)
  # Upright e, i and d are constants; the library takes them for words, and
  # then reads 1-1/e and 1+1/e alike.
  text = re.sub(r'\\(?:mathrm|text|operatorname)\s*\{([eid])\}', r'{\1}', text)
  return f'${" ".join(text.split())}$'


def _gold(text) -> str:
  """A gold answer may be a sentence with formulas in it."""
  if re.search(r'(?<!\\)\$.*[^$\s].*\$|\\\(|\\\[', text, re.S):
    inner = re.fullmatch(r'\s*(\$\$?)([^$]*)\1[\s.]*', text)
    return _anchor(inner[2]) if inner else text
  return _anchor(text)


def _word(text) -> str:
  """A name or word, in lower case; '' for formulas.

  The library reads letters as factors, so that AB = BA and no = on. Two or
  three small letters are left to it: ab = ba.
  """
  text = text.replace('$', ' ').strip(' .')
  bare = re.sub(r'\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}', r'\1', text)
  word = re.fullmatch(r'[A-Z]{2,}|[A-Za-z]{4,}', bare)
  return bare.lower() if word or bare != text and bare.isalpha() else ''


def _other_base(a, b) -> bool:
  """204_5 and 204_6, of which the library reads the digits only."""
  bases = [re.search(r'[0-9A-Z]_\{?(\d+)\W*$', text) for text in (a, b)]
  return all(bases) and bases[0][1] != bases[1][1]


def _absurd(given, sympy) -> bool:
  """6 = 5 and x = 6 = 5, of which the library would take the right hand side.
  """
  if not isinstance(given, (sympy.Eq, sympy.And)):
    return False
  sides = [
      side for equation in given.atoms(sympy.Eq) for side in equation.args
      if not side.free_symbols
  ]
  return not all(_agree(sides[0], side, sympy) for side in sides)


def _tighten(library, sympy) -> None:
  """Adds a second rule where Math-Verify 0.9.0 compares two expressions.

  It compares to 15 digits after the point, by which 1/2^99 = 1/2^98, and two
  equations without a solution are equal to it. All its comparisons of sets,
  tuples and relations come down to these functions, or are exact.
  """
  numeric, solve = library.sympy_numeric_eq, library.sympy_solve_and_compare
  agree = functools.partial(_agree, sympy=sympy)

  def percent_agree(a, b):  # 28% = 28, if the gold answer is given so
    return agree(a, b) or agree(library.get_pct_val(a, a),
                                library.get_pct_val(b, b))

  def solvable(a):
    return not isinstance(a, sympy.Eq) or sympy.solve(a, a.free_symbols)

  library.sympy_numeric_eq = (
      lambda a, b, *rest: numeric(a, b, *rest) and percent_agree(a, b))
  library.sympy_solve_and_compare = (
      lambda a, b, *rest: bool(solvable(a)) and solve(a, b, *rest))


def _agree(a, b, sympy) -> bool:
  """No point is known at which the two have clearly different values."""
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


def _value(expression, at):
  """The value at a point, or None where it is not known to all its digits.

  So it is for an exact zero that is a difference of roots: there the library's
  algebra decides.
  """
  try:
    value = expression.subs(at).doit().evalf(_DIGITS, strict=True)
  except Exception:
    return None
  return value if value.is_number and value.is_finite else None


if __name__ == '__main__':
  main()
