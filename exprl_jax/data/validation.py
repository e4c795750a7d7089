"""Checks of problems: of a row, and of the ids of all rows.

An error is one line that names file, line or row, and field.
"""

from collections.abc import Iterable, Sequence
import math
from typing import Any

from exprl_jax.data import rubrics
from exprl_jax.runtime import inputs
from exprl_jax.types import InputError, Problem, RubricItem

FIELDS = ('id', 'question', 'solution', 'answer', 'domain', 'rubric')


def check_row(row: Any, where: str, number: int | str, needs: Sequence[str],
              domain: str = 'math') -> Problem:
  """Makes a problem of an object, whatever file it was read from.

  Other fields are ignored, and null is as if the field were not there. Numbers
  are fine as `id` and `answer`.

  Args:
    row: a dict with `question` and perhaps id, solution, answer, domain, and
      rubric (a text, or a list of {text, points}).
    where: file and line, for errors.
    number: of the line; the id of a row that has none.
    needs: fields that must not be empty, beside `question`.
    domain: of a row that has none.

  Raises:
    InputError: it is not a problem, or a field of `needs` is empty.
  """
  if not isinstance(row, dict):
    raise InputError(f'{where}: want an object, got {type(row).__name__}')
  values = {k: row[k] for k in FIELDS if row.get(k) is not None}
  for name, default in (('id', str(number)), ('domain', domain)):
    if values.get(name, '') == '':
      values[name] = default
  items: tuple[RubricItem, ...] = ()
  if not isinstance(values.get('rubric', ''), str):
    items = _rubric_items(values['rubric'], where)
    values['rubric'] = rubrics.as_text(items)
  for name, value in values.items():
    values[name] = text(value, f'{where}: {name}', name in ('id', 'answer'))
  for name in dict.fromkeys(('question', 'id', 'domain', *needs)):
    if not is_visible(values.get(name, '')):
      own = ', '.join(str(k) for k, v in row.items() if v is not None)
      raise InputError(f'{where}: row has no {name}; add it, remove the row, '
                       f'or name its field in data.fields (it has {own[:200]})')
  return Problem(**values, rubric_items=items)


def is_visible(value: str) -> bool:
  """Whether a text has more than white space and zero-width characters."""
  if value[:1].isalnum():  # most are, and this is fast
    return True
  return any(c.isprintable() and c != ' ' for c in value)


def text(value: Any, where: str, may_be_number: bool = False) -> str:
  """Returns a field as text.

  Raises:
    InputError: it is none, or has a control character or half of a pair.
  """
  if isinstance(value, str):
    if bad := inputs.bad_character(value):
      raise InputError(f'{where} has the {bad}')
    return value
  if not may_be_number or isinstance(
      value, bool) or not isinstance(value, (int, float)):
    hint = ' (nan)' if value != value else ''
    raise InputError(f'{where} should be text, it is '
                     f'{type(value).__name__}{hint}')
  if isinstance(value, float) and not math.isfinite(value):
    raise InputError(f'{where} is not a finite number ({value})')
  return str(value)


def _rubric_items(value: Any, where: str) -> tuple[RubricItem, ...]:
  try:
    return rubrics.from_list(value)
  except ValueError as e:
    raise InputError(f'{where}: rubric should be text or a list of {{text, '
                     f'points}} ({e})') from None


class Rejects:
  """The errors of rows that are left out, up to a limit.

  Attributes:
    limit: number of rows.
    errors: of the rows, each with file and line.
  """

  def __init__(self, limit: int = 0) -> None:
    self.limit = limit
    self.errors: list[str] = []

  def add(self, error: InputError) -> None:
    """Leaves out the row of an error.

    Raises:
      InputError: there are too many.
    """
    if len(self.errors) < self.limit:
      self.errors.append(str(error))
    elif self.limit:
      raise InputError(f'{error}; with this row, more than data.max_bad='
                       f'{self.limit} cannot be read') from None
    else:
      raise error


def distinct(problems: Iterable[tuple[str, Problem]]) -> list[Problem]:
  """Collects problems and checks that their ids differ.

  Args:
    problems: with file and line of each.

  Raises:
    InputError: two problems have the same id.
  """
  out: list[Problem] = []
  places: dict[str, str] = {}
  for where, problem in problems:
    if problem.id in places:
      raise same_id(problem.id, where, places[problem.id])
    places[problem.id] = where
    out.append(problem)
  return out


def same_id(name: str, where: str, before: str) -> InputError:
  """Makes the error of two rows with the same id."""
  return InputError(f'{where}: id {name!r} stands already in {before}; change '
                    "it, or leave ids out by data.fields=('id=',)")
