"""Problems of a run, with the rubrics that were written for them."""

from collections.abc import Sequence
import dataclasses
import json

from etils import epath

from exprl_jax.config import Config, resolve
from exprl_jax.data import rubrics, sources
from exprl_jax.types import InputError, Problem


def read_problems(path: epath.PathLike, needs: Sequence[str] = (),
                  limit: int = 0) -> Sequence[Problem]:
  """Reads problems and checks every row.

  The prefix of the path, or the suffix of the file, chooses the format
  (data/sources): 'tiny:NAME' is a set of the tiny world, everything else JSONL.

  A row has `question` and, by purpose, `solution` (judge, SFT), `answer`
  (grader) and `rubric` (judge: a text, or a list of {text, points}); `id`
  defaults to the line number, `domain` to 'math'.

  Args:
    path: a file, or PREFIX:NAME.
    needs: fields that must not be empty, for what the run will do.
    limit: number of rows to read; 0: all.

  Raises:
    InputError: no such file, no rows, or a bad row; names file and line.
  """
  source, name = sources.choose(path)
  return source(name, needs, limit)


def training_problems(config: Config,
                      needs: Sequence[str]) -> Sequence[Problem]:
  """Reads the problems of data.train, with the rubrics of data.rubrics.

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


def with_rubrics(problems: Sequence[Problem],
                 path: epath.PathLike) -> list[Problem]:
  """Joins problems and the rubrics that run='rubrics' wrote, by id.

  A problem with a list of rubric items of its own keeps it. One whose rubric
  could not be written stays as it is.

  Args:
    problems: any; those without a rubric in the file stay as they are.
    path: of the rubrics.

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
  """Reads rubrics: by id, FILE:LINE and the rubric."""
  if not path.is_file():
    raise InputError(f"config.data.rubrics={path}: no such file; run='rubrics' "
                     'writes it')
  written: dict[str, tuple[str, rubrics.Written]] = {}
  with path.open(encoding='utf-8') as file:
    for number, line in enumerate(file, 1):
      if line.strip():
        where = f'{path}:{number}'
        try:
          row = rubrics.from_row(json.loads(line))
        except ValueError as e:
          raise InputError(f'{where}: not a rubric ({e})') from None
        if row.id in written:
          raise InputError(f'{where}: id {row.id!r} stands already in '
                           f'{written[row.id][0]}')
        written[row.id] = where, row
  if not written:
    raise InputError(f'{path}: no rubrics in it')
  return written


def _with_rubric(problem: Problem, where: str,
                 rubric: rubrics.Written) -> Problem:
  if problem.rubric_items or rubric.failed:
    return problem
  if rubric.digest != rubrics.digest(problem):
    raise InputError(f'{where}: problem {problem.id} has changed since its '
                     "rubric was written; run='rubrics' again")
  return dataclasses.replace(problem, rubric=rubrics.as_text(rubric.items),
                             rubric_items=rubric.items)
