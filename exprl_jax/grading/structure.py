r"""Compares answers part by part: lists, sets, points, moduli and units.

A list has as many elements as it shows, each as often. Elements of lists and
sets may come in any order, those of points may not. Math-Verify compares the
single elements; by itself it would take all of these for sets.
"""

from collections.abc import Callable, Sequence
import re

from exprl_jax.grading import lists, numerals, units
from exprl_jax.grading.equality import is_decimal, normal_form, number
from exprl_jax.grading.notation import plain

_MOST = 60  # elements that algebra compares with each other

Equal = Callable[[str, str], bool]

_MEMBER = re.compile(
    rf'\s*({lists.NAME}|\(\s*{lists.NAME}(?:\s*,\s*{lists.NAME})*\s*\))\s*(=|\\in(?![A-Za-z]))'
    r'\s*(?=[(\[\]]|\\\{|\\langle|\\emptyset|\\mathbb|\\varnothing)')
_MODULUS = re.compile(
    r'(?:\\pmod(?![A-Za-z])|\(?\s*(?:\\[bp]?mod|\\text\s*\{\s*\(?mod\s*\}'
    r'|\\operatorname\s*\{mod\}|\\mathrm\s*\{mod\}|(?<![A-Za-z\\])mod'
    r'|(?<![A-Za-z\\])modulo)(?![A-Za-z]))\s*(.+?)\s*\)?\s*$')
_VALUE_OF = re.compile(rf"\s*{lists.NAME}'*(?:\([^()=]*\))?\s*=\s*(?=[^=]+$)")
_ANGLES = {(('angle', 1),), (('radian', 1),)}
_UNION = re.compile(r'\\cup(?![A-Za-z])')


def same(gold: str, answer: str, equal: Equal) -> bool:
  """Tells whether two plain formulas are equal.

  Args:
    gold: the right answer.
    answer: the answer to grade.
    equal: compares two formulas that are no lists.
  """
  if numerals.side_by_side(answer) or numerals.side_by_side(gold):
    return False
  if max(gold.count(':'), answer.count(':')) > 1 and '=' not in gold + answer:
    return _proportional(gold.split(':'), answer.split(':'))
  moduli = _modulus(gold), _modulus(answer)
  if any(moduli):
    return _congruent(gold, answer, moduli, equal)
  gold_name, gold = _member(gold)
  name, answer = _member(answer)
  if gold_name and name and normal_form(gold_name) != normal_form(name):
    return False
  a, b = lists.split(gold), lists.split(answer)
  if len(a.items) == len(b.items) == 1:
    if not {a.opened, b.opened} & {r'\{', '['}:
      return _leaf(gold, answer, equal)
    alike = a.opened == b.opened or not ('[' in a.opened + b.opened or
                                         r'\emptyset' in (*a.items, *b.items))
    return alike and same(a.items[0], b.items[0], equal)
  if _is_union(a, b):
    return _in_any_order(_pieces(gold, a), _pieces(answer, b), equal)
  if _is_set_of_numbers(gold, a) != _is_set_of_numbers(answer, b):
    # (1,2) and 1 < x < 2
    return r'\{' not in (a.opened, b.opened) and all(
        len(x.items) == 1 or x.opened or lists.RELATION.search(x.items[0])
        for x in (a, b)) and _leaf(gold, answer, equal)
  return _same_items(a, b, equal)


def parts(text: str) -> list[str]:
  """Splits a plain formula into what algebra must be able to read."""
  text = _member(text)[1]
  if modulus := _modulus(text):
    rest, of = modulus
    residues = re.split(r'\\equiv|=', rest)
    return [of, *(p for r in residues for p in parts(r))]
  found = lists.split(text)
  if len(found.items) == 1 and not found.opened:
    return [units.split(text)[0]]
  return [p for item in found.items for p in parts(item)]


def _leaf(gold: str, answer: str, equal: Equal) -> bool:
  """Compares two single values, with their units."""
  form, gold_form = normal_form(answer), normal_form(gold)
  if form == gold_form:
    return True
  if is_decimal(answer) and is_decimal(gold):
    return False
  if '=' not in answer and (named := _VALUE_OF.match(gold)):
    gold = gold[named.end():]
  (gold, unit), (answer, other) = units.split(gold), units.split(answer)
  gold = units.in_degrees(gold, unit, other)
  answer = units.in_degrees(answer, other, unit)
  if unit and other and unit.measures and other.measures:
    angles = {unit.measures, other.measures} == _ANGLES
    if unit.measures != other.measures and not angles:
      return False
    ratio = other.factor / unit.factor
    if ratio != 1:
      over, under = ratio.as_integer_ratio()
      answer = rf'({answer})\cdot\frac{{{over}}}{{{under}}}'
  if normal_form(gold) == normal_form(answer):
    return True
  if is_decimal(answer) and is_decimal(gold):
    return False
  return equal(gold, answer)


def _proportional(gold: Sequence[str], answer: Sequence[str]) -> bool:
  """Compares 1:2:3 with 2:4:6; the library would divide from the left."""
  a, b = list(map(number, gold)), list(map(number, answer))
  if len(a) != len(b):
    return False
  numbers = [(x, y) for x, y in zip(a, b) if x is not None and y is not None]
  if len(numbers) < len(a):
    return list(map(normal_form, gold)) == list(map(normal_form, answer))
  first, other = numbers[0]
  return any(y for _, y in numbers) and all(
      x * other == y * first for x, y in numbers)


def _member(text: str) -> tuple[str, str]:
  r"""Splits x \in (1,2) and (x,y)=(1,2) into a name and the rest."""
  found = _MEMBER.match(text)
  if not found or not _is_bracketed(text[found.end():]):
    return '', text
  return found[1], text[found.end():]


def _is_bracketed(text: str) -> bool:
  return bool(lists.split(text).opened) or bool(
      re.match(r'\s*(?:\\emptyset|\\mathbb)|.*\\cup', text))


def _is_union(a: lists.Items, b: lists.Items) -> bool:
  """True for the inequalities x < 1, x > 3 beside a union of intervals."""
  few, many = sorted((a, b), key=lambda x: len(x.items))
  return len(few.items) == 1 and len(
      many.items) > 1 and (not many.opened and bool(_UNION.search(few.items[0]))
                           and all(
                               lists.RELATION.search(i) and not _UNION.search(i)
                               for i in many.items))


def _pieces(text: str, found: lists.Items) -> list[str]:
  if len(found.items) > 1:
    return found.items
  return [part.strip() for part in _UNION.split(text)]


def _is_set_of_numbers(text: str, found: lists.Items) -> bool:
  r"""True for 1 < x < 2 and unions of intervals, which are no lists."""
  return len(found.items) == 1 and bool(lists.RELATION.search(text)) or (
      len(found.items) > 1 and not found.opened
      and all(lists.RELATION.search(i) for i in found.items))


def _same_items(a: lists.Items, b: lists.Items, equal: Equal) -> bool:
  """Compares two lists, of which one at least has two elements."""
  gold, answer = a.items, b.items
  ends, other_ends = (x.opened.replace(r'\langle', '(') +
                      x.closed.replace(r'\rangle', ')') for x in (a, b))
  if a.ordered and b.ordered and len(gold) == 2 and ends != other_ends:
    return False  # intervals with other ends
  if a.ordered != b.ordered and r'\{' in (a.opened, b.opened):
    return False  # a set and a point
  if len(gold) == 2 and a.opened != b.opened and '' in (
      a.opened,
      b.opened) and ({*'[]'} & {a.opened, b.opened, a.closed, b.closed}):
    return False  # (1,2] and 1, 2
  points = all(lists.split(x).ordered for x in (*gold, *answer))
  if a.opened == b.opened == r'\{' or points:
    gold, answer = _distinct(gold), _distinct(answer)
  if len(gold) != len(answer):
    return False
  names, others = _labels(gold), _labels(answer)
  if names and not others or others and not names:
    if others and a.ordered:
      answer = [x for _, x in sorted(zip(others, answer))]
    return _in_order(gold, answer, equal)
  if a.ordered or b.ordered:
    return _in_order(gold, answer, equal)
  return _in_any_order(gold, answer, equal)


def _labels(items: Sequence[str]) -> list[str]:
  """Names of x = 1, y = 2 if all have one and they differ; else none."""
  found = [lists.LABEL.match(item) for item in items]
  names = [m[1] for m in found if m]
  return names if len(set(names)) == len(items) > 1 else []


def _distinct(items: Sequence[str]) -> list[str]:
  return list({normal_form(item): item for item in items}.values())


def _in_order(gold: Sequence[str], answer: Sequence[str], equal: Equal) -> bool:
  return all(_same_item(g, a, equal) for g, a in zip(gold, answer))


def _in_any_order(gold: Sequence[str], answer: Sequence[str],
                  equal: Equal) -> bool:
  """Finds for each element one of its own, first those of equal texts."""
  left = list(answer)
  open_ = []
  forms = [normal_form(a) for a in left]
  for g in gold:
    form = normal_form(g)
    if form in forms:
      i = forms.index(form)
      del forms[i], left[i]
    else:
      open_.append(g)
  if len(open_) > _MOST:
    return False
  for g in open_:
    met = next((i for i, a in enumerate(left) if _same_item(g, a, equal)), None)
    if met is None:
      return False
    del left[met]
  return True


def _same_item(gold: str, answer: str, equal: Equal) -> bool:
  if r'\ldots' in gold or r'\ldots' in answer:
    return normal_form(gold) == normal_form(answer)
  return same(gold, answer, equal)


def _modulus(text: str) -> tuple[str, str] | None:
  """Splits n = 1 (mod 4) into what stands before, and 4."""
  found = _MODULUS.search(text)
  if not found:
    return None
  of = re.sub(
      r'^\{(.*)\}$', r'\1', found[1].strip().rstrip(')}.').strip()
      if found[1].count('{') < found[1].count('}') else found[1].strip())
  return text[:found.start()].strip().rstrip(',(').strip(), of


def _congruent(gold: str, answer: str, moduli: tuple[tuple[str, str] | None,
                                                     tuple[str, str] | None],
               equal: Equal) -> bool:
  """Compares residues of one modulus, as classes."""
  expected, given = moduli
  if expected is None or given is None:
    # 3 mod 7 is the number 3; n = 3 (mod 7) is a class.
    class_ = expected or given
    assert class_
    rest, of = (x.replace(' ', '') for x in class_)
    if not (re.fullmatch(r'\d{1,99}', rest)
            and re.fullmatch(r'[1-9]\d{0,99}', of)):
      return False
    number = str(int(rest) % int(of))
    return same(number, answer, equal) if expected else same(
        gold, number, equal)
  (rest, of), (other_rest, other_of) = expected, given
  if not same(of, other_of, equal):
    return False
  name, residues = _residues(rest)
  other_name, others = _residues(other_rest)
  if name and other_name and normal_form(name) != normal_form(other_name):
    return False
  if re.fullmatch(r'[1-9]\d{0,99}', of):
    residues, others = _reduced(residues, int(of)), _reduced(others, int(of))
  return len(residues) == len(others) and _in_any_order(residues, others, equal)


def _residues(text: str) -> tuple[str, list[str]]:
  name, equiv, rest = text.rpartition(r'\equiv')
  if not equiv:
    name, _, rest = text.rpartition('=')
  return name.strip(), lists.elements(rest)


def _reduced(residues: Sequence[str], of: int) -> list[str]:
  return [
      str(int(r.replace(' ', '')) %
          of) if re.fullmatch(r'- ?\d{1,999}|\d{1,999}', r) else r
      for r in residues
  ]


def comparable(text: str) -> str:
  """The plain form of an answer, without what only ornaments it."""
  return plain(text).rstrip('.').strip()
