"""Problems of a run, with the rubrics that were written for them."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import itertools
from typing import Any

from absl import logging
from etils import epath
import jax

from exprl_jax import __version__
from exprl_jax.config import Config, resolve
from exprl_jax.data import fields as fields_lib
from exprl_jax.data import files as files_lib
from exprl_jax.data import mixture, rubrics, sources, stored, validation
from exprl_jax.data.lazy import Lazy, Mapped, digest
from exprl_jax.data.sources import jsonl
from exprl_jax.data.validation import Rejects
from exprl_jax.types import InputError, Problem

_FORMAT = 1  # of stored problems; another one means that they are read again


def read_problems(path: epath.PathLike, needs: Sequence[str] = (),
                  limit: int = 0, fields: fields_lib.Fields = fields_lib.OURS,
                  domain: str = 'math',
                  rejects: Rejects | None = None) -> Sequence[Problem]:
  """Reads problems and checks every row.

  A row has `question` and, by purpose, `solution` (judge, SFT), `answer`
  (grader) and `rubric` (judge: a text, or a list of {text, points}); `id`
  defaults to the number of the line or row, with the name of the file if there
  are several.

  Few problems become a list; of many, the rows are kept in the cache folder
  (stored.py) and read when they are asked for.

  Args:
    path: files (files.py), or PREFIX:NAME of data/sources, such as 'tiny:test'.
    needs: fields that must not be empty, for what the run will do.
    limit: number of problems; 0: all.
    fields: how rows get our field names.
    domain: of rows that have none.
    rejects: collects the errors of rows, which are left out; by default, the
      first one is raised.

  Raises:
    InputError: no such file, no rows, or a bad row; names file and line.
  """
  if chosen := sources.choose(str(path)):
    if fields.convert or fields.fields or fields.answer_from:
      raise InputError(f'{path}: {fields.key}.convert, fields and answer_from '
                       'are for files')
    source, name = chosen
    return source(name, needs, limit)
  files = files_lib.find(str(path))
  key = digest(_FORMAT,
               __version__, [(str(f.path), f.size, f.modified) for f in files],
               fields.name(), sorted(needs), limit, domain,
               bool(rejects and rejects.limit))
  found = Rejects(rejects.limit if rejects else 0)
  problems = stored.store(
      lambda: _entries(files, fields, needs, limit, domain, found), key)
  if rejects:
    rejects.errors += stored.remember(found.errors, key)
  if not problems:
    raise InputError(f'{path}: no problems in it')
  return problems


def _entries(files: Sequence[files_lib.File], fields: fields_lib.Fields,
             needs: Sequence[str], limit: int, domain: str,
             rejects: Rejects) -> Iterator[tuple[str, Problem]]:
  """Yields FILE:LINE and problem of all rows that are used."""
  rejects.errors.clear()  # of an earlier pass
  read = used = 0
  for file in files:
    path = str(file.path)
    for number, row in sources.format_of(path)(file.path):
      where = f'{path}:{number}'
      name = number if len(files) == 1 else f'{file.name}:{number}'
      try:
        problem = _problem(row, fields, where, name, needs, domain)
      except InputError as e:
        rejects.add(e)
        continue
      read += 1
      if problem:
        used += 1
        yield where, problem
        if used == limit:
          return
  if used < read and jax.process_index() == 0:
    logging.warning('%s.convert=%s uses %d of %d rows', fields.key,
                    fields.convert, used, read)


def _problem(row: Any, fields: fields_lib.Fields, where: str, name: int | str,
             needs: Sequence[str], domain: str) -> Problem | None:
  """Makes the problem of a row; None: it is not used."""
  if isinstance(row, InputError):
    raise row
  if not isinstance(row, dict):  # null, too: only a converter may say None
    raise InputError(f'{where}: want an object, got {type(row).__name__}')
  row = fields.apply(row, where)
  if row is None:
    return None
  return validation.check_row(row, where, name, needs, domain)


def training_problems(config: Config, needs: Sequence[str],
                      rejects: Rejects | None = None) -> Sequence[Problem]:
  """Reads the problems of data.train or data.mixture, with data.rubrics.

  Args:
    config: its `data`.
    needs: fields that must not be empty.
    rejects: as of `read_problems`.

  Raises:
    InputError: as `read_problems` and `with_rubrics`.
  """
  cfg = config.data
  if not cfg.mixture:
    problems = read_problems(cfg.train, needs, cfg.limit, fields_lib.of(cfg),
                             rejects=rejects)
    return with_rubrics(problems, cfg.rubrics) if cfg.rubrics else problems
  sets = mixture.parse(cfg.mixture)
  names = [s.name for s in sets]
  parts: list[Lazy] = [
      Mapped(
          read_problems(s.files, needs, cfg.limit,
                        fields_lib.of(cfg, names, s.name), s.name, rejects),
          functools.partial(_prefixed, s.name), s.name) for s in sets
  ]
  if cfg.rubrics:
    written = _Written(resolve(cfg.rubrics))
    parts = [written.join(part) for part in parts]
    written.check(itertools.chain(*parts))
  return mixture.Mixture(parts, [s.weight for s in sets])


def _prefixed(name: str, problem: Problem) -> Problem:
  """Sets may use the same ids."""
  return dataclasses.replace(problem, id=f'{name}/{problem.id}')


def with_rubrics(problems: Sequence[Problem],
                 path: epath.PathLike) -> Sequence[Problem]:
  """Joins problems and the rubrics that run='rubrics' wrote, by id.

  A problem with a list of rubric items of its own keeps it. One whose rubric
  could not be written stays as it is.

  Args:
    problems: any; those without a rubric in the file stay as they are.
    path: of the rubrics.

  Returns:
    A list for a list; for another sequence, one that joins on access and raises
    then where a rubric was written for another question or solution.

  Raises:
    InputError: no such file, a line in it that is no rubric, a rubric that was
      written for another question or solution, or none for these problems;
      names file and line.
  """
  written = _Written(resolve(str(path)))
  out = written.join(problems)
  written.check(problems)
  return list(out) if isinstance(problems, list) else out


class _Written:
  """The rubrics of a file, by id."""

  def __init__(self, path: epath.Path) -> None:
    self._path, self._rubrics = path, _read_rubrics(path)

  def join(self, problems: Sequence[Problem]) -> Lazy:
    """Returns the problems, each with its rubric."""
    stat = self._path.stat()
    return Mapped(problems, self._joined, str(self._path), stat.length,
                  stat.mtime)

  def check(self, problems: Any) -> None:
    """Raises InputError if none of the rubrics is of one of the problems."""
    if not any(p.id in self._rubrics for p in problems):
      raise InputError(f'{self._path}: none of its {len(self._rubrics)} rubrics'
                       ' has the id of a problem')

  def _joined(self, problem: Problem) -> Problem:
    if problem.id not in self._rubrics:
      return problem
    return _with_rubric(problem, *self._rubrics[problem.id])


def _read_rubrics(path: epath.Path) -> dict[str, tuple[str, rubrics.Written]]:
  """Reads rubrics: by id, FILE:LINE and the rubric."""
  if not path.is_file():
    raise InputError(f"config.data.rubrics={path}: no such file; run='rubrics' "
                     'writes it')
  written: dict[str, tuple[str, rubrics.Written]] = {}
  for _, where, line in jsonl.objects(path):
    try:
      row = rubrics.from_row(line)
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
