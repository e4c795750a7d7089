"""Checks of problems: of a row, and of the ids of all rows."""

from collections.abc import Iterable, Sequence
import json
from typing import Any

from exprl_jax.data import rubrics
from exprl_jax.types import InputError, Problem, RubricItem

_FIELDS = ('id', 'question', 'solution', 'answer', 'domain', 'rubric')


def parse_row(line: str, where: str, number: int,
              needs: Sequence[str]) -> Problem:
  """Reads the problem of a line of JSON.

  Args:
    line: a JSON object.
    where: file and line, for errors.
    number: of the line; the id of a row that has none.
    needs: fields that must not be empty, beside `question`.

  Raises:
    InputError: it is not a problem, or a field of `needs` is empty.
  """
  try:
    row = json.loads(line)
  except json.JSONDecodeError as e:
    raise InputError(f'{where}: not JSON ({e})') from None
  return check_row(row, where, number, needs)


def check_row(row: Any, where: str, number: int,
              needs: Sequence[str]) -> Problem:
  """Makes a problem of an object, whatever file it was read from.

  Other fields are ignored. Numbers are fine as `id` and `answer`.

  Args:
    row: a dict with `question` and perhaps id, solution, answer, domain, and
      rubric (a text, or a list of {text, points}).
    where: as for `parse_row`, like the arguments that follow.
    number: see there.
    needs: see there.

  Raises:
    InputError: it is not a problem, or a field of `needs` is empty.
  """
  if not isinstance(row, dict):
    raise InputError(f'{where}: want an object, got {type(row).__name__}')
  values = {k: row[k] for k in _FIELDS if k in row}
  values.setdefault('id', str(number))
  items: tuple[RubricItem, ...] = ()
  if 'rubric' in values and not isinstance(values['rubric'], str):
    items = _rubric_items(values['rubric'], where)
    values['rubric'] = rubrics.as_text(items)
  for name, value in values.items():
    if isinstance(value, (int, float)) and name in ('id', 'answer'):
      values[name] = str(value)
    elif not isinstance(value, str):
      raise InputError(f'{where}: {name} should be text, it is '
                       f'{type(value).__name__}')
  for name in ('question', *needs):
    if not values.get(name, '').strip():
      raise InputError(f'{where}: row has no {name}; add it or remove the row')
  return Problem(**values, rubric_items=items)


def _rubric_items(value: Any, where: str) -> tuple[RubricItem, ...]:
  try:
    return rubrics.from_list(value)
  except ValueError as e:
    raise InputError(f'{where}: rubric should be text or a list of {{text, '
                     f'points}} ({e})') from None


def distinct(rows: Iterable[tuple[int, Problem]], path: str,
             limit: int = 0) -> list[Problem]:
  """Collects problems and checks that their ids differ.

  Args:
    rows: line numbers and problems; read up to `limit` only.
    path: of the file, for errors.
    limit: number of problems; 0: all.

  Raises:
    InputError: two problems have the same id, or there is no problem.
  """
  problems: list[Problem] = []
  line_of: dict[str, int] = {}
  for number, problem in rows:
    if problem.id in line_of:
      raise InputError(f'{path}:{number}: id {problem.id!r} stands already in '
                       f'line {line_of[problem.id]}')
    line_of[problem.id] = number
    problems.append(problem)
    if len(problems) == limit:
      break
  if not problems:
    raise InputError(f'{path}: no problems in it')
  return problems
