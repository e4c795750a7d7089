"""Rubrics: lists of items with points, in files and as models write them."""

from collections.abc import Mapping, Sequence
import hashlib
import json
import re
from typing import Any, NamedTuple

from exprl_jax.runtime import inputs
from exprl_jax.types import Problem, RubricItem

TEXTS = ('text', 'title', 'desc')  # keys of an item's text
MIN_ITEMS, MAX_ITEMS = 2, 10
MAX_POINTS, MAX_CHARACTERS = 100, 400  # of one item that a model wrote
_MOST_POINTS = 1e9  # of one item that anyone wrote: sums stay finite

_NUMBER = r'([-+]?\d+(?:\.\d+)?)'
_UNIT = r'(?:points?|pts?\b\.?|marks?)'
_BRACKETED = rf'[(\[]\s*{_NUMBER}\s*{_UNIT}\s*[)\]]'
# '- ', '1. ', '(1) ', '- 1) ', 'Checkpoint 1: '; '[1] ' before '(2 points)'.
_MARK = re.compile(
    rf'(?:[-*+•]\s+)?(?:\(?\d+[.):]\)?\s+|\[\d+\]\s+(?={_BRACKETED})'
    r'|checkpoint\s+\d+\b[.):]?\s*)?', re.IGNORECASE)
# '(2 points)', '[2 pts]', '[2]', '2 pts:'
_FIRST = re.compile(
    rf'(?:{_BRACKETED}|\[\s*{_NUMBER}\s*\]|{_NUMBER}\s*{_UNIT}\s*(?=[:–—-]))'
    r'\s*(?::|[.–—-](?=\s|$))?', re.IGNORECASE)
_ANYWHERE = re.compile(rf'\s*{_BRACKETED}', re.IGNORECASE)
_BOLD = re.compile(r'(?<!\w)\*\*(?=\S)(.+?)(?<=\S)\*\*(?!\w)')
# A heading, a code fence or a rule.
_ORNAMENT = re.compile(r'#|```|[-*_=]+$')
_TOTAL = re.compile(
    rf'(?:total|sum)\b(?:[\W\d_]|\b(?:{_UNIT}|score|possible|max(?:imum)?|of)'
    r'\b)*$', re.IGNORECASE)


class Written(NamedTuple):
  """One line of a file of run='rubrics': a rubric, or why there is none."""

  id: str
  digest: str  # of the problem that it was written for
  items: tuple[RubricItem, ...] = ()
  failed: str = ''  # why there is no rubric

  def row(self) -> dict[str, Any]:
    """Returns the JSON object of the line."""
    if self.failed:
      return {'id': self.id, 'digest': self.digest, 'failed': self.failed}
    return {
        'id': self.id, 'digest': self.digest,
        'items': [{'text': item.text, 'points': _shortest(item.points)}
                  for item in self.items]
    }


def from_row(row: Any) -> Written:
  """Reads the object of a line that run='rubrics' wrote.

  Raises:
    ValueError: it is not such an object, or has the old key `checkpoints`.
  """
  if not (isinstance(row, dict) and set(row) in (
      {'id', 'digest', 'items'}, {'id', 'digest', 'failed'}) and all(
          isinstance(row.get(k, ''), str) for k in ('id', 'digest', 'failed'))):
    if isinstance(row, dict) and 'checkpoints' in row:
      raise ValueError('`checkpoints` was renamed to `items`')
    raise ValueError('not an object of id, digest and items, as '
                     "run='rubrics' writes them")
  if 'failed' in row:
    return Written(row['id'], row['digest'], failed=row['failed'] or '?')
  return Written(row['id'], row['digest'], from_list(row['items']))


def from_list(rows: Any) -> tuple[RubricItem, ...]:
  """Reads rubric items from a list of {text, points}.

  `text` may be given as `title`, as `desc`, or as both of them.

  Raises:
    ValueError: it is not such a list, or an entry has no text, a control
      character in it, or no points.
  """
  if not isinstance(rows, list) or not rows:
    raise ValueError('want a list of {text, points}')
  return tuple(_from_entry(i, row) for i, row in enumerate(rows, 1))


def _from_entry(number: int, row: Any) -> RubricItem:
  if not isinstance(row, Mapping):
    raise ValueError(f'item {number} is not an object of text and points')
  parts = [row[k] for k in TEXTS if row.get(k)]
  if not parts or not all(isinstance(p, str) and p.strip() for p in parts):
    raise ValueError(f'item {number} has no text')
  if bad := next(filter(None, map(inputs.bad_character, parts)), ''):
    raise ValueError(f'item {number} has the {bad}')
  points = row.get('points')
  if isinstance(points, bool) or not isinstance(
      points, int | float) or not 0 < points <= _MOST_POINTS:
    shown = f'{points!r}'[:40]
    raise ValueError(f'item {number}: points={shown}, want a positive number '
                     f'of at most {_MOST_POINTS:g}')
  return RubricItem(_line(': '.join(parts)), float(points))


def digest(problem: Problem) -> str:
  """Hashes what a rubric is written from: question and solution."""
  text = json.dumps([problem.question, problem.solution])
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def as_text(items: Sequence[RubricItem]) -> str:
  """Writes the items as the numbered lines that a judge is shown."""
  return '\n'.join(
      f'{i}. ({_shortest(item.points)} point{"s" * (item.points != 1)}) '
      f'{item.text}' for i, item in enumerate(items, 1))


def parse(text: str) -> tuple[RubricItem, ...]:
  """Reads a rubric that a model wrote.

  An item is a list item ('-', '*', '1.', '(1)', 'Checkpoint 1:') or any line
  that begins with points. Its points come first, as '(2 points)', '[2 pts]',
  '[2]' or '2 pts:', or once anywhere in it, in brackets with their unit. The
  lines directly below an item, and indented ones, continue it. Bold marks are
  removed. There may be other lines before the first item and after the list;
  headings, code fences, rules and a total are ignored, and so is everything up
  to the last '</think>'.

  Raises:
    ValueError: an item has no points, or `check` refuses the rubric.
  """
  texts: list[str] = []
  below = False
  for line in text.rpartition('</think>')[2].splitlines():
    plain = _BOLD.sub(r'\1', line.strip())
    if not plain or _ORNAMENT.match(plain):
      below = False
      continue
    match = _MARK.match(plain)
    assert match, 'it matches the empty string'
    mark = match.end()
    item = plain[mark:]
    if _TOTAL.match(item):
      below = False
    elif mark or _FIRST.match(item):
      texts.append(item)
      below = True
    elif texts and (below or line[0].isspace()):
      texts[-1] += ' ' + plain
  if not texts:
    raise ValueError('no item in it, no line such as `- (2 points) ...`')
  items = tuple(_parse_item(i, x) for i, x in enumerate(texts, 1))
  check(items)
  return items


def _parse_item(number: int, item: str) -> RubricItem:
  match = _FIRST.match(item)
  if not match:
    places = list(_ANYWHERE.finditer(item))
    if len(places) != 1:
      raise ValueError(f'item {number} has '
                       f'{"no" if not places else "several"} points: '
                       f'{item[:60]!r}')
    match = places[0]
  points = next(filter(None, match.groups()))
  return RubricItem(_line(item[:match.start()] + item[match.end():]),
                    float(points))


def check(items: Sequence[RubricItem]) -> None:
  """Checks a rubric that a model wrote.

  Raises:
    ValueError: it has too few or too many items, two of them are alike, or an
      item has points or a text outside the limits.
  """
  if not MIN_ITEMS <= len(items) <= MAX_ITEMS:
    raise ValueError(f'{len(items)} item'
                     f'{"s" * (len(items) != 1)}, want '
                     f'{MIN_ITEMS} to {MAX_ITEMS}')
  first_with: dict[str, int] = {}
  for i, (text, points) in enumerate(items, 1):
    if not 0 < points <= MAX_POINTS:
      raise ValueError(f'item {i} has {points:g} points, want more than '
                       f'0 and at most {MAX_POINTS}')
    if not any(c.isalnum() for c in text):
      raise ValueError(f'item {i} has no text')
    if len(text) > MAX_CHARACTERS:
      raise ValueError(f'item {i} has {len(text)} characters, at most '
                       f'{MAX_CHARACTERS}')
    if (first := first_with.setdefault(text.casefold(), i)) != i:
      raise ValueError(f'item {i} repeats item {first}')


def _line(text: str) -> str:
  """Joins lines and runs of blanks."""
  return ' '.join(text.split())


def _shortest(points: float) -> int | float:
  """Returns 2 for 2.0."""
  return int(points) if points == int(points) else points
