"""Problems: rows of a file, checked."""

from collections.abc import Sequence
import dataclasses
import json

from etils import epath

from exprl_jax.config import Config, resolve
from exprl_jax.data import rubrics
from exprl_jax.tiny import world
from exprl_jax.types import InputError, Problem, RubricItem

_FIELDS = ('id', 'question', 'solution', 'answer', 'domain', 'rubric')


def read_problems(path: epath.PathLike, needs: Sequence[str] = (),
                  limit: int = 0) -> Sequence[Problem]:
  """Reads a JSONL file of problems and checks every row.

  'tiny:pretraining' stands for the text that the tiny policy is made from,
  'tiny:SPLIT' for problems of the tiny world.

  A row is an object with `question` and, by purpose, `solution` (judge, SFT),
  `answer` (grader) and `rubric` (judge: a text, or a list of {text, points});
  `id` defaults to the line number, `domain` to 'math'.

  Args:
    path: the file.
    needs: fields that must not be empty, for what the run will do.
    limit: stop after so many rows; 0 reads all.

  Raises:
    InputError: no such file, no rows, or a bad row; names file and line.
  """
  if str(path).startswith('tiny:'):
    return world.named(str(path)[len('tiny:'):], limit)
  path = epath.Path(path)
  if not path.is_file():
    raise InputError(f'{path}: no such problem file (JSONL: one object with '
                     'question, solution, answer a line)')
  problems, seen = [], {}
  with path.open(encoding='utf-8') as file:
    for number, line in enumerate(file, 1):
      if line.strip():
        row = parse_row(line, f'{path}:{number}', number, needs)
        if row.id in seen:
          raise InputError(f'{path}:{number}: id {row.id!r} stands already in '
                           f'line {seen[row.id]}')
        seen[row.id] = number
        problems.append(row)
        if len(problems) == limit:
          break
  if not problems:
    raise InputError(f'{path}: no problems in it')
  return problems


def with_rubrics(problems: Sequence[Problem],
                 path: epath.PathLike) -> list[Problem]:
  """The problems with the rubrics that run='rubrics' has written for them.

  A problem with a list of rubric items keeps it, and one for which nothing
  could be written stays as it is.

  Raises:
    InputError: no such file, a line in it that is no rubric, a rubric that was
      written for another question or solution, or none for these problems;
      names file and line.
  """
  written = _read_rubrics(epath.Path(path))
  out = [
      _with_rubric(p, *written[p.id]) if p.id in written else p
      for p in problems
  ]
  if written.keys().isdisjoint(p.id for p in out):
    raise InputError(f'{path}: none of its {len(written)} rubrics has the id '
                     'of a problem')
  return out


def _read_rubrics(path: epath.Path) -> dict[str, tuple[str, rubrics.Written]]:
  """By id: where it stands, and what."""
  if not path.is_file():
    raise InputError(f"config.data.rubrics={path}: no such file; run='rubrics' "
                     'writes it')
  found = {}
  with path.open(encoding='utf-8') as file:
    for number, line in enumerate(file, 1):
      if line.strip():
        where = f'{path}:{number}'
        try:
          row = rubrics.from_row(json.loads(line))
        except ValueError as e:
          raise InputError(f'{where}: not a rubric ({e})') from None
        if row.id in found:
          raise InputError(f'{where}: id {row.id!r} stands already in '
                           f'{found[row.id][0]}')
        found[row.id] = where, row
  if not found:
    raise InputError(f'{path}: no rubrics in it')
  return found


def _with_rubric(problem: Problem, where: str, row: rubrics.Written) -> Problem:
  if problem.rubric_items or row.failed:
    return problem
  if row.digest != rubrics.digest(problem):
    raise InputError(f'{where}: problem {problem.id} has changed since its '
                     "rubric was written; run='rubrics' again")
  return dataclasses.replace(problem, rubric=rubrics.as_text(row.items),
                             rubric_items=row.items)


def training_problems(config: Config,
                      needs: Sequence[str]) -> Sequence[Problem]:
  """The problems of data.train, with the rubrics of data.rubrics.

  Args:
    config: its `data`.
    needs: fields that must not be empty.

  Raises:
    InputError: as `read_problems` and `with_rubrics`.
  """
  problems = read_problems(resolve(config.data.train), needs, config.data.limit)
  if config.data.rubrics:
    problems = with_rubrics(problems, resolve(config.data.rubrics))
  return problems


def parse_row(line: str, where: str, number: int,
              needs: Sequence[str]) -> Problem:
  """A problem of one line; `where` names it in errors, `number` is its id
  where it has none.

  Raises:
    InputError: it is not a problem, or a field of `needs` is empty.
  """
  try:
    row = json.loads(line)
  except json.JSONDecodeError as e:
    raise InputError(f'{where}: not JSON ({e})') from None
  if not isinstance(row, dict):
    raise InputError(f'{where}: want an object, got {type(row).__name__}')
  values = {k: row[k] for k in _FIELDS if k in row}
  values.setdefault('id', str(number))
  items: tuple[RubricItem, ...] = ()
  if 'rubric' in values and not isinstance(values['rubric'], str):
    try:
      items = rubrics.from_list(values['rubric'])
    except ValueError as e:
      raise InputError(f'{where}: rubric should be text or a list of {{text, '
                       f'points}} ({e})') from None
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
