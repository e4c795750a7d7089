"""Compares formulas with Math-Verify, inside of a worker.

`structure` takes lists, units and moduli apart and `notation` rewrites what the
library would misread; here it compares single formulas, and a second rule
rejects pairs that it accepts too easily. docs/grading.md lists what is equal.
"""

from collections.abc import Callable
import dataclasses
import functools
import re
from typing import Any

from exprl_jax.grading import numerals, structure, words
from exprl_jax.grading.equality import meaningless, number

_DIGITS = 30  # to which two values are computed
_EXACT = 1e-20  # relative difference that two exact values may have
_ROUNDED = 1e-4  # the same if one of them is a decimal
_PERCENT = re.compile(r'%|\bper ?cent|\bpct\b', re.I)
_PRIMED = re.compile(r"([A-Za-z])(?:_\{?(\w+)\}?)?\s*(?:('+)|\^\s*\{?\s*"
                     r"((?:\\prime(?![A-Za-z])\s*)+)\}?)")
_DERIVATIVE = re.compile(r"(?<![A-Za-z])([fghyu])\^\{\((\d)\)\}")
# Between two of these the library adds: 2(4) = 6, 3\\binom{10}{3} = 123.
_FACTORS = (re.compile(r'(?<![_\w\\.])((?:\d+(?:\.\d*)?|\.\d+)|\\pi)\s*'
                       r'(?=\(|\\(?:binom|lfloor|lceil)(?![A-Za-z]))'),
            re.compile(r'(\))\s*(?=[\d(]|\\(?:frac|binom|sqrt)(?![A-Za-z]))'),
            re.compile(
                r'(\\binom\{\w+\}\{\w+\})\s*(?=[\w(]|\\(?:frac|binom|sqrt)'
                r'(?![A-Za-z]))'))
_DESCENDING = re.compile(r'(>|\\ge(?![A-Za-z]))')
_NO_VALUE = ('log', 'tan', 'cot', 'sec', 'csc', 'gamma', 'factorial')

_Reply = tuple[str, str, str]  # status, answer, note
_Parse = Callable[[str], Any]
_Equal = Callable[[Any, Any], bool]


def load() -> Callable[..., _Reply]:
  """Imports Math-Verify; returns the grader of formulas, `_grade`."""
  import math_verify
  import sympy
  _tighten(math_verify.grader, sympy)
  config = math_verify.LatexExtractionConfig(boxed_match_priority=0)
  # It would take the variables of 5m and 3t for units.
  unitless = dataclasses.replace(config.normalization_config, units=False)
  configs = [dataclasses.replace(config, normalization_config=unitless)]

  @functools.lru_cache(4096)
  def parse(text: str) -> Any:
    # The worker limits the time, not the library.
    parsed = math_verify.parse(text, configs, 'no_fallback',
                               parsing_timeout=None)
    found = next(iter(parsed), None)
    return None if _has_no_value(found, sympy) else found

  def equal(expected: Any, given: Any) -> bool:
    if _absurd(given, sympy):
      return False
    return math_verify.verify(*_shared_symbols(expected, given, sympy),
                              timeout_seconds=None)

  return functools.partial(_grade, parse, equal)


def _grade(parse: _Parse, equal: _Equal, gold: str, answer: str | None,
           percent: bool) -> _Reply:
  """Compares an answer with the gold answer; None: only parses the gold one.

  Args:
    parse: returns an expression, or None if it cannot read the formula.
    equal: compares the gold expression with another.
    gold: as in the data set.
    answer: content of the box.
    percent: whether the gold answer is in percent. If not, one in percent is
      wrong.
  """
  sentence = _sentence(gold)
  if not sentence:
    gold = structure.comparable(gold)
  if answer is None:
    return ('correct'
            if _readable(parse, gold, sentence) else 'gold_unparsable'), '', ''
  answer = structure.comparable(answer)
  if not _readable(parse, gold, sentence):
    return 'gold_unparsable', '', ''

  def alike(a: str, b: str) -> bool:
    if (right := words.same(a, b)) is not None:
      return right
    expected, given = parse(a if sentence else _anchor(a)), parse(_anchor(b))
    return (expected is not None and given is not None
            and not _other_base(b, a) and equal(expected, given))

  right = (percent or not _PERCENT.search(answer)) and (
      alike(gold, answer) and not numerals.side_by_side(answer) if sentence else
      words.same(gold, answer) or structure.same(gold, answer, alike))
  if right:
    return 'correct', '', ''
  if word := words.word(answer):
    return 'wrong', word, ''
  given = parse(_anchor(answer))
  unread = given is None and any(
      parse(_anchor(part)) is None for part in structure.parts(answer))
  return ('unparsable' if unread else
          'wrong'), str(answer if given is None else given)[:1000], ''


def _readable(parse: _Parse, gold: str, sentence: bool) -> bool:
  """Tells whether some answer can meet the gold one."""
  if sentence:
    return parse(gold) is not None
  if meaningless(gold) or numerals.side_by_side(gold) or numerals.endless(gold):
    return False
  if re.fullmatch(r'\d{1,2}:\d\d', gold):
    return True  # a time of day
  return bool(words.word(gold)) or all(
      number(part) is not None or bool(words.word(part)) or r'\ldots' == part
      or parse(_anchor(part)) is not None for part in structure.parts(gold))


def _anchor(text: str) -> str:
  """Makes one formula of a text; the library must read all of it or nothing."""
  text = re.sub(r'(?<!\\)\$|(?<!\\)\\[()\[\]]', ' ', text)
  # Upright e, i and d are constants. The library takes them for words, and
  # would read 1-1/e and 1+1/e alike.
  text = re.sub(r'\\(?:mathrm|text|operatorname)\s*\{([eid])\}', r'{\1}', text)
  # It drops primes, so f' gets a name of its own.
  text = _DERIVATIVE.sub(lambda m: m[1] + "'" * int(m[2]), text)
  text = _PRIMED.sub(_named, text)
  for factor in _FACTORS:
    text = factor.sub(r'\1\\cdot ', text)
  sides = _DESCENDING.split(text)
  if len(sides) == 5 and not re.search(r'[<=,]', text):  # 3 > x > 1
    text = ''.join(sides[::-1]).replace('>', '<').replace(r'\ge', r'\le')
  # It sees the imaginary unit only where i stands alone.
  text = re.sub(r'(?<![A-Za-z\\])([a-z]?)i(?![A-Za-z])', r'\1 i ', text)
  return f'${" ".join(text.split())}$'


def _named(match: re.Match[str]) -> str:
  letter, index, primes, commands = match.groups()
  count = len(primes) if primes else commands.count('prime')
  return f'{letter}_{{{index or ""}{1000 + count}}}'


def _sentence(gold: str) -> bool:
  """True for a gold answer of words with a formula among them."""
  if not re.search(r'(?<!\\)\$[^$]*[^$\s][^$]*\$|\\\(|\\\[', gold):
    return False
  bare = gold.strip().rstrip('. ')
  for opened, closed in (('$$', '$$'), ('$', '$'), (r'\(', r'\)'), (r'\[',
                                                                    r'\]')):
    inside = bare[len(opened):-len(closed)]
    if bare.startswith(opened) and bare.endswith(closed) and (
        opened not in inside and '$' not in inside):
      return False
  return bool(re.search('[A-Za-z]{2}', re.sub(r'\$[^$]*\$', ' ', gold)))


def _has_no_value(found: Any, sympy: Any) -> bool:
  """True for 1/0 and log 0, which equal nothing."""
  if not isinstance(found, sympy.Basic):
    return False
  if found.has(sympy.nan, sympy.zoo):
    return True
  bases = [
      p.base
      for p in found.atoms(sympy.Pow)
      if p.exp.could_extract_minus_sign()
  ]
  if any(b.is_number and not b.has(sympy.Pow) and len(str(b)) < 40
         and b.doit() == 0 for b in bases):
    return True
  if found.is_number and found.has(sympy.oo) and found.doit() is sympy.nan:
    return True
  functions = [getattr(sympy, name) for name in _NO_VALUE]
  return any(not atom.free_symbols and atom.args[0].is_number
             and len(str(atom)) < 40 and atom.doit() in (sympy.zoo, sympy.nan)
             for atom in found.atoms(*functions))


def _shared_symbols(a: Any, b: Any, sympy: Any) -> tuple[Any, Any]:
  """Reads i as the imaginary unit; then both sides have the same variables.

  The library reads a letter i, and makes the variables beside it complex.
  """
  sides = a, b
  if not all(isinstance(x, (sympy.Basic, sympy.MatrixBase)) for x in sides):
    return sides
  if not any(s.name == 'i' for x in sides for s in x.free_symbols):
    return sides

  def read(x: Any) -> Any:
    return x.subs({
        s: sympy.I if s.name == 'i' else sympy.Symbol(s.name)
        for s in x.free_symbols
    })

  return read(a), read(b)


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
