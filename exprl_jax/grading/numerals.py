r"""Numbers in many notations: 10 000, 1.5e3, 11 5/6, 0.\overline{3}.

Every one becomes a decimal or a fraction. Numbers that stand side by side
without a sign are none.
"""

from fractions import Fraction
import re

_BIGGEST = 300  # exponent of ten that is written out

_BRACKETS = re.compile(r'\\[{}]|[()\[\]]')
_COMMAS = re.compile(r'(?<![\d.,\w])\d{1,3}(?:,\d{3})+(?![\d,])'
                     r'|(?<![\d.,\w])\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])')
_SPACES = re.compile(
    r"(?<![\d.,_^\w] )(?<![\d.,_\w^])[1-9]\d{0,2}"
    r"(?:(?: \d{3})+|(?:'\d{3})+|(?:\\_\d{3})+|(?:\.\d{3}){2,})"
    r"(?! ?[\d'])")
_DECIMALS = re.compile(r'(?<=\.)\d{3}(?: \d{3})+(?: \d{1,2})?(?! ?\d)')
_TENS = re.compile(
    r'(?<![\w.}/^])(\d+(?:\.\d*)?|\.\d+)(?:[eE]([-+]?\d+)(?![\w.])'
    r'|\s*(?:\\times|\\cdot|[xX](?= ?10\^))\s*10\s*\^\s*'
    r'(?:\{\s*([-+]?\d+)\s*\}|([-+]?\d+))(?![\d.!^]))')
_MIXED = re.compile(
    r'(?<![\w.}/^,])(?<!\d )(\d{1,9})(?:\s*\\frac\{(\d{1,9})\}\{(\d{1,9})\}'
    r'| +(\d{1,9}) ?/ ?(\d{1,9})(?![\d.]|\s*[\w^(]))(?!\s*\d)')
_REPEATED = re.compile(
    r'(?<![\w.])(\d*)\.(\d*)(?:\\overline\s*\{\s*(\d+)\s*\}|\\bar\s*\{?(\d+)\}?'
    r'|\((\d+)\)(?![\d.(^!])|\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?)'
    r'(?:\\ldots|\.\.\.)?')
_ENDLESS = re.compile(r'(?<![\w.])(\d*)\.(\d+) ?(?:\\ldots|\.{3,})(?!\s*,)')
_POWER = re.compile(r'\^\{\s*(-?)\s*(\d{0,9}\.\d{1,9})\s*\}')
_JUXTAPOSED = re.compile(
    r'(?<![\w^.\\])\d+(?:\.\d*)?(?:\s+\.?\d|\s*\\frac\{\d+\}\{\d+\}|\{\d'
    r"|'+\s*\d)|\\frac\{[^{}]*\}\{[^{}]*\}\s*\.?\d|\d\s*\.\s*\d+\s*\.\s*\d"
    r'|\d,\s*,|\.\d+\.\d')


def rewrite(text: str) -> str:
  """Writes all numbers of a formula as decimals and fractions of digits."""
  text = re.sub(r'\.{3,}', r'\\ldots', text)
  text = _SPACES.sub(lambda m: re.sub(r"\D", '', m[0]), text)
  text = _DECIMALS.sub(lambda m: m[0].replace(' ', ''), text)
  text = _without_commas(text)
  text = _TENS.sub(_tens, text)
  text = _REPEATED.sub(_repeated, text)
  text = _ENDLESS.sub(_endless, text)
  text = _POWER.sub(lambda m: '^{' + m[1] + _fraction(Fraction(m[2])) + '}',
                    text)
  return _MIXED.sub(_mixed, text)


def side_by_side(text: str) -> bool:
  r"""True if numbers stand side by side without a sign: 5 3, 3 \frac{7}{2}."""
  return bool(_JUXTAPOSED.search(text))


def endless(text: str) -> bool:
  """True for decimals that go on and do not say how: 3.14..."""
  return bool(re.search(r'\.\d+ ?\\ldots', text))


def _without_commas(text: str) -> str:
  """Joins 1,000, but not within brackets, where (1,200) is a point."""
  if ',' not in text:
    return text
  depth, at, out = 0, 0, []
  for bracket in _BRACKETS.finditer(text):
    part = text[at:bracket.start()]
    out += [_joined(part) if depth <= 0 else part, bracket[0]]
    depth += 1 if bracket[0] in (r'\{', '(', '[') else -1
    at = bracket.end()
  return ''.join(out) + (_joined(text[at:]) if depth <= 0 else text[at:])


def _joined(text: str) -> str:
  return _COMMAS.sub(lambda m: m[0].replace(',', ''), text)


def _tens(match: re.Match[str]) -> str:
  """Writes out a power of ten."""
  power = match[2] or match[3] or match[4]
  if len(power) > 4 or abs(int(power)) > _BIGGEST:
    base = match[1]
    return rf'{base}\cdot 10^{{{power.lstrip("+")}}}'
  whole, _, decimals = match[1].partition('.')
  shift = int(power)
  digits = whole + decimals
  point = len(whole) + shift
  if point <= 0:
    digits, point = '0' * (1 - point) + digits, 1
  digits = digits.ljust(point, '0')
  whole, decimals = digits[:point].lstrip('0') or '0', digits[point:]
  return f'{whole}.{decimals}' if decimals.strip('0') else whole


def _fraction(value: Fraction) -> str:
  if value.denominator == 1:
    return str(value.numerator)
  return rf'\frac{{{value.numerator}}}{{{value.denominator}}}'


def _repeating(whole: str, fixed: str, period: str) -> str:
  if len(whole + fixed + period) > _BIGGEST:
    return f'{whole}.{fixed}' + r'\overline' + f'{{{period}}}'
  scale = 10**len(fixed)
  value = Fraction(int((whole + fixed) or '0'), scale)
  return _fraction(value + Fraction(int(period), scale * (10**len(period) - 1)))


def _repeated(match: re.Match[str]) -> str:
  whole, fixed, *periods, first, middle, last = match.groups()
  period = next((p for p in periods if p), None)
  if period is None:
    period = first + (middle or '') + (last or '')
  return _repeating(whole, fixed, period)


def _endless(match: re.Match[str]) -> str:
  """Reads 0.333... and 0.1212... where the digits show the period."""
  whole, digits = match.groups()
  for size in range(1, min(12, len(digits) // 2) + 1):
    period = digits[-size:]
    count, left = 0, digits
    while left.endswith(period):
      count, left = count + 1, left[:-size]
    if count >= 3 or count == 2 and not left:
      return _repeating(whole, left, period)
  return match[0]


def _mixed(match: re.Match[str]) -> str:
  whole, *parts = match.groups()
  over, under = (int(p) for p in parts if p)
  if not 0 < over < under or whole.startswith('0'):
    return match[0]
  return _fraction(int(whole) + Fraction(over, under))
