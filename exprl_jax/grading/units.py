r"""Units behind a number: `5\text{ m/s}`, `50 people`, `3 \mathrm{cm}^2`."""

from fractions import Fraction
import re
from typing import NamedTuple

_LENGTH, _MASS, _TIME, _MONEY = 'length', 'mass', 'time', 'money'
# name: (what it measures, its power, how many base units)
_TABLE: dict[str, tuple[str, int, str]] = {}
for _names, _what, _power, _factor in (
    ('m meter meters metre metres', _LENGTH, 1, '1'),
    ('km kilometer kilometers kilometre kilometres', _LENGTH, 1, '1000'),
    ('cm centimeter centimeters centimetre centimetres', _LENGTH, 1, '1/100'),
    ('mm millimeter millimeters millimetre millimetres', _LENGTH, 1, '1/1000'),
    ('dm decimeter decimeters', _LENGTH, 1, '1/10'),
    ('in inch inches', _LENGTH, 1, '127/5000'),
    ('ft foot feet', _LENGTH, 1, '381/1250'),
    ('yd yard yards', _LENGTH, 1, '1143/1250'),
    ('mi mile miles', _LENGTH, 1, '201168/125'),
    ('l liter liters litre litres', _LENGTH, 3, '1/1000'),
    ('ml milliliter milliliters millilitre millilitres cc', _LENGTH, 3,
     '1/1000000'),
    ('ha hectare hectares', _LENGTH, 2, '10000'),
    ('kg kilogram kilograms', _MASS, 1, '1'),
    ('g gram grams', _MASS, 1, '1/1000'),
    ('mg milligram milligrams', _MASS, 1, '1/1000000'),
    ('t ton tons tonne tonnes', _MASS, 1, '1000'),
    ('lb lbs pound pounds', _MASS, 1, '45359237/100000000'),
    ('oz ounce ounces', _MASS, 1, '45359237/1600000000'),
    ('s sec secs second seconds', _TIME, 1, '1'),
    ('ms millisecond milliseconds', _TIME, 1, '1/1000'),
    ('min mins minute minutes', _TIME, 1, '60'),
    ('h hr hrs hour hours', _TIME, 1, '3600'),
    ('day days', _TIME, 1, '86400'),
    ('week weeks', _TIME, 1, '604800'),
    ('dollar dollars usd', _MONEY, 1, '1'),
    ('cent cents', _MONEY, 1, '1/100'),
    ('euro euros eur', 'euro', 1, '1'),
    ('degree degrees deg', 'angle', 1, '1'),
    ('rad radian radians', 'radian', 1, '1'),
    ('n newton newtons', 'newton', 1, '1'),
    ('j joule joules', 'joule', 1, '1'),
    ('kj', 'joule', 1, '1000'),
    ('w watt watts', 'watt', 1, '1'),
    ('kw', 'watt', 1, '1000'),
    ('v volt volts', 'volt', 1, '1'),
    ('pa pascal pascals', 'pascal', 1, '1'),
    ('hz hertz', _TIME, -1, '1'),
):
  for _name in _names.split():
    _TABLE[_name] = _what, _power, _factor

# Without a space, `5m` and `5min` are products; these are units even so.
_CLOSE = frozenset('km cm mm kg mg ml mph lb lbs oz ft hr hrs usd'.split())
# With a space, `5 m` has a unit, and `5 x` has none.
_LETTERS = frozenset('msghlLJNWV')
# Words that say more than what is counted.
_NO_UNITS = frozenset(
    'a about all and approx approximately are at be both but by each either '
    'except for from if in infinity is least less mod more most neither never '
    'no none nor not of only or otherwise over plus minus some than then times '
    'to under unless until when where with without wrong false true maybe '
    'million billion thousand hundred dozen'.split())
_SPLIT = re.compile(
    r'(?:(?<=[\d})!])|(?<=\\circ)|(?<=\\pi)|(?<=[\d})!] )|(?<=\\pi ))\s*'
    r'(?P<unit>(?=[A-Za-z]|\\(?!cdot))(?:\\(?:text|mathrm|textrm|mbox|textit'
    r'|mathit|textbf|mathbf|operatorname)\s*\{[^{}]*\}|[A-Za-z]|\.(?=\s|$)'
    r'|\^\s*\{?-?\d\}?|/|\\cdot|-|\s)+)$')
_WRAPPED = re.compile(
    r'\\(?:text|mathrm|textrm|mbox|textit|mathit|textbf|mathbf|operatorname)'
    r'\s*\{([^{}]*)\}')
_FACTOR = re.compile(r'([A-Za-z]+)\.?\s*(?:\^\s*\{?\s*(-?\d)\s*\}?)?')
_ORDINAL = re.compile(
    r'(?<=\d)\s*\^?\s*\{?\s*(?:\\(?:text|mathrm)\s*\{)?(?:st|nd|rd|th)\}?\}?$')
_NAMED = re.compile(
    r'\s*(?:[A-Za-z]|\\(?!text|sqrt|frac)[A-Za-z]+|\\text\s*\{[^{}]*\})'
    r'(?:_(?:\w|\{\w+\}))?\s*=\s*')
_SIMPLE = re.compile(r'(?:[^A-Za-z]|\\(?:frac|sqrt|pi|times|cdot|circ|pm)'
                     r'(?![A-Za-z]))*')


class Unit(NamedTuple):
  """A unit; `measures` is empty where the table lacks one of its words."""

  measures: tuple[tuple[str, int], ...]  # what, power
  factor: Fraction


def split(text: str) -> tuple[str, Unit | None]:
  """Splits a plain formula into a number and the unit behind it, or None."""
  text = text.strip().rstrip('.')
  bare = _ORDINAL.sub('', text)
  if bare != text and bare.strip().isdigit():
    return bare, None
  if text.endswith(r'^\circ') or text.endswith(r'^{\circ}'):
    value = re.sub(r'\s*\^\{?\\circ\}?$', '', text)
    return (value, Unit(
        (('angle', 1),), Fraction(1))) if value else (text, None)
  found = _SPLIT.search(text[-80:])
  if not found:
    return text, None
  start = found.start('unit') + max(0, len(text) - 80)
  value = text[:start].strip()
  named = found['unit']
  if value.endswith(r'\circ') and _WRAPPED.sub(r'\1', named).strip() in 'CFK':
    named = 'degrees' + _WRAPPED.sub(r'\1', named).strip()
  elif not _SIMPLE.fullmatch(_NAMED.sub('', value, count=1)) or not _is_unit(
      named, text[start - 1] == ' '):
    return text, None
  value = re.sub(r'\s*\^\{?\\circ\}?$', '', value)  # 25 degrees C
  return value, _read(_WRAPPED.sub(r' \1', named))


def in_degrees(text: str, unit: Unit | None, other: Unit | None) -> str:
  """Turns radians, which may stay unsaid beside pi, into degrees.

  Only where the other side is in degrees. Its own unit then is degrees, too.
  """
  degrees, radians = (('angle', 1),), (('radian', 1),)
  if other is None or other.measures != degrees:
    return text
  if unit and unit.measures == radians or not unit and r'\pi' in text:
    return rf'({text})\cdot\frac{{180}}{{\pi}}'
  return text


def _is_unit(named: str, spaced: bool) -> bool:
  """Tells whether words behind a number count something."""
  wrapped = bool(_WRAPPED.search(named))
  words = re.findall('[A-Za-z]+', _WRAPPED.sub(r' \1', named))
  if not 1 <= len(words) <= 4 or _NO_UNITS & {w.lower() for w in words}:
    return words == ['in']
  bare = re.findall('[A-Za-z]+', _WRAPPED.sub(' ', named))
  spaced = spaced or named[:1].isspace()
  if wrapped and len(bare) == 0:
    return all(len(w) > 1 or w.lower() in _TABLE or w in 'CFKAV' for w in words)
  if not spaced and bare:
    return bare[0] in _CLOSE or len(bare[0]) > 2 and bare[0].lower() in _TABLE
  return all(
      len(w) > 2 or w.lower() in _TABLE and (len(w) > 1 or w in _LETTERS)
      for w in words)


def _read(named: str) -> Unit:
  """Multiplies the units of `m/s^2`, `km per hour`, `square feet`."""
  named = re.sub(r'\bmph\b', 'mi/h', named)
  named = re.sub(r'\bkm/?ph\b|\bkmh\b', 'km/h', named)
  named = re.sub(r'\bper\b', '/', named)
  powers: dict[str, int] = {}
  factor, raised, sign = Fraction(1), 1, 1
  for part in re.finditer(rf'/|{_FACTOR.pattern}', named):
    if part[0] == '/':
      sign = -1
      continue
    name = part[1].lower()
    if name in ('square', 'sq', 'cubic', 'cu'):
      raised = 2 if name[0] == 's' else 3
      continue
    if name == 'squared' and powers:
      return Unit((), Fraction(1))
    if name not in _TABLE:
      return Unit((), Fraction(1))
    what, power, size = _TABLE[name]
    times = sign * raised * int(part[2] or 1)
    powers[what] = powers.get(what, 0) + power * times
    factor *= Fraction(size)**times
    raised = 1
  return Unit(tuple(sorted((k, v) for k, v in powers.items() if v)), factor)
