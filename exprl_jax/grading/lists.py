r"""Splits answers that are lists, sets, points or intervals into elements."""

from collections.abc import Sequence
import re
from typing import NamedTuple

# A variable, with its index or argument.
NAME = (r'(?:[A-Za-z]|\\vec\s*\{\w\}|\\[A-Za-z]+)'
        r'(?:_(?:\w|\{\w+\}))?(?:\([A-Za-z]\))?')
_SEPARATOR = re.compile(
    r'(?P<open>\\\{|\\langle(?![A-Za-z])|[{(\[])'
    r'|(?P<close>\\\}|\\rangle(?![A-Za-z])|[})\]])'
    r'|(?P<sep>[,;]|\\(?:text|mathrm|mbox)\s*\{\s*,?\s*(?:and|or)\s*\}'
    r'|\\lor(?![A-Za-z])|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))')
_OPENING = ('(', '[', r'\{', r'\langle')
LABEL = re.compile(rf'\s*({NAME})\s*=\s*(?=\S)')
RELATION = re.compile(r'[<>]|\\(?:le|ge|ne|in|cup|cap|setminus|mathbb|lt|gt)'
                      r'(?![A-Za-z])')


class Items(NamedTuple):
  """A list, with its brackets."""

  opened: str  # '' for a list without brackets
  items: list[str]
  closed: str

  @property
  def ordered(self) -> bool:
    """True for points, vectors and intervals."""
    return self.opened not in ('', r'\{')


def split(text: str) -> Items:
  """Splits a list at its outer commas, without its brackets."""
  text = text.strip().rstrip('.').strip()
  if text[:1] == '{' and (ends := _ends_of(text)) and ends[1] == len(text):
    return split(text[1:-1])  # braces that only group
  for opened in _OPENING:
    if text.startswith(opened) and len(text) > len(opened):
      ends = _ends_of(text)
      if ends and ends[1] == len(text):
        inside, last = text[ends[0]:ends[2]], text[ends[2]:].strip()
        items = elements(inside)
        if len(items) > 1 or (opened == r'\{' and inside.strip()):
          return Items(opened, items, last)
  if outward := re.fullmatch(r'([\[\]])([^\[\](){}]*)([\[\]])', text):
    items = elements(outward[2])
    if len(items) == 2:  # ]1,2[ is (1,2)
      return Items('(['[outward[1] == '['], items, ')]'[outward[3] == ']'])
  items = elements(text)
  return Items('', _shared_label(items), '')


def _ends_of(text: str) -> tuple[int, int, int] | None:
  """Ends of the first opening bracket, of its closing one, and its start."""
  depth, first = 0, 0
  for found in _SEPARATOR.finditer(text):
    if found['open']:
      depth += 1
      first = first or found.end()
    elif found['close']:
      depth -= 1
      if not depth:
        return first, found.end(), found.start()
  return None


def elements(text: str) -> list[str]:
  """Splits at commas, semicolons, `and` and `or` outside of brackets."""
  if r'\begin' in text:
    return [text.strip()]
  depth, at, items = 0, 0, []
  groups = _has_groups(text)
  for found in _SEPARATOR.finditer(text):
    if found['sep']:
      if depth == 0 and (not groups or found['sep'] == ';'):
        items.append(text[at:found.start()])
        at = found.end()
    else:
      depth += 1 if found['open'] else -1
  items.append(text[at:])
  kept = [item.strip() for item in items if item.strip()]
  return [x for item in kept for x in _signs(item)] or ['']


def _has_groups(text: str) -> bool:
  """True for p = 5, q = 2; p = 7, q = 2."""
  return ';' in text and any(
      text.count(',', 0, i)
      for i in (text.index(';'),
                len(text))) and '=' in text and not re.search(r'[(\[]', text)


def _signs(item: str) -> list[str]:
  r"""Splits \pm into its two values."""
  if not re.search(r'\\(?:pm|mp)(?![A-Za-z])', item):
    return [item]
  plus = re.sub(r'\\pm(?![A-Za-z])', '+', item)
  minus = re.sub(r'\\pm(?![A-Za-z])', '-', item)
  return [
      re.sub(r'\\mp(?![A-Za-z])', other,
             x).replace('=+', '=').replace('= +', '= ').lstrip('+')
      for x, other in ((plus, '-'), (minus, '+'))
  ]


def _shared_label(items: Sequence[str]) -> list[str]:
  """Drops the name of `x = 1, 2`, which all elements share."""
  first = LABEL.match(items[0])
  if len(items) > 1 and first and not any('=' in item or RELATION.search(item)
                                          for item in items[1:]):
    return [items[0][first.end():], *items[1:]]
  return list(items)
