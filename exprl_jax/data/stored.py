"""Problems in a file of the cache folder: many rows, little memory.

The rows of a large data set, checked and with our field names, are written once
into the folder `problems` of the cache ($EXPRL_CACHE, by default
~/.cache/exprl_jax), under a name that stands for everything they depend on:
NAME.jsonl, one problem a line, and NAME.npy, where each line ends. A file that
was begun and not ended has another name.
"""

import array
from collections.abc import Callable, Iterable, Iterator, Sequence
import itertools
import json
import pathlib
import tempfile
from typing import IO

import numpy as np

from exprl_jax.data import validation
from exprl_jax.data.lazy import Lazy
from exprl_jax.runtime import files
from exprl_jax.types import InputError, Problem, RubricItem

IN_MEMORY = 4096  # so many problems, or fewer, become a list
# (FILE:LINE, problem) of all rows, from the start.
Entries = Callable[[], Iterator[tuple[str, Problem]]]


class Stored(Lazy):
  """The problems of a file that `store` has written."""

  def __init__(self, path: pathlib.Path, digest: str) -> None:
    self.digest, self._path = digest, path
    self._ends = np.load(path.with_suffix('.npy'))  # i64[N]

  def __len__(self) -> int:
    return len(self._ends)

  def get(self, i: int) -> Problem:
    """See Lazy."""
    start = int(self._ends[i - 1]) if i else 0
    with self._path.open('rb') as file:
      file.seek(start)
      return _parse(file.read(int(self._ends[i]) - start))

  def __iter__(self) -> Iterator[Problem]:
    with self._path.open('rb') as file:
      for line in file:
        yield _parse(line)


def store(entries: Entries, digest: str) -> Sequence[Problem]:
  """Keeps few problems in a list and many in the cache folder.

  Args:
    entries: the problems; not asked for if they are in the folder already.
    digest: of all that they are made from.

  Raises:
    InputError: two have the same id, or the folder cannot be written.
  """
  path = files.cache_folder('problems') / f'{digest}.jsonl'
  if not path.with_suffix('.npy').is_file():
    rows = entries()
    few = list(itertools.islice(rows, IN_MEMORY + 1))
    if len(few) <= IN_MEMORY:
      return validation.distinct(few)
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      _write(path, itertools.chain(few, rows), entries)
    except OSError as e:
      raise InputError(f'{path.parent}: cannot be written ({e.strerror}); set '
                       'EXPRL_CACHE to a folder with space') from None
  return Stored(path, digest)


def remember(errors: list[str], digest: str) -> list[str]:
  """Keeps the errors of rows that were left out beside the stored problems.

  Returns:
    The errors; those of the first time if the problems were not read again.
  """
  path = files.cache_folder('problems') / f'{digest}.json'
  if not path.with_suffix('.npy').is_file():
    return errors  # few problems, which are always read
  if not path.is_file():
    write_whole(path, json.dumps(errors))
  return json.loads(path.read_text())


def write_whole(path: pathlib.Path, text: str) -> None:
  """Writes a file that is there as a whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile('w', dir=path.parent, suffix='.part',
                                   delete=False) as file:
    file.write(text)
  pathlib.Path(file.name).replace(path)


def _write(path: pathlib.Path, rows: Iterable[tuple[str, Problem]],
           again: Entries) -> None:
  ends, hashes = array.array('q'), array.array('q')
  with tempfile.NamedTemporaryFile(dir=path.parent, suffix='.part',
                                   delete=False) as file:
    part = pathlib.Path(file.name)
    try:
      _write_lines(file, rows, ends, hashes)
      order = np.sort(np.frombuffer(hashes, np.int64))
      if (twice := order[1:][order[1:] == order[:-1]]).size:
        _name_twins(again(), set(twice.tolist()))
      file.flush()
      part.replace(path)
      # Last, as it says that the other is complete.
      ends_part = part.with_suffix('.npy')
      np.save(ends_part, np.frombuffer(ends, np.int64))
      ends_part.replace(path.with_suffix('.npy'))
    except BaseException:
      part.unlink(missing_ok=True)
      raise


def _write_lines(file: IO[bytes], rows: Iterable[tuple[str, Problem]],
                 ends: array.array, hashes: array.array) -> None:
  end = 0
  for _, p in rows:
    fields = (p.id, p.question, p.solution, p.answer, p.domain, p.rubric,
              p.rubric_items)
    line = json.dumps(fields, ensure_ascii=False).encode() + b'\n'
    file.write(line)
    end += len(line)
    ends.append(end)
    hashes.append(hash(p.id))


def _name_twins(rows: Iterable[tuple[str, Problem]], hashes: set[int]) -> None:
  """Raises InputError for the first two rows with the same id."""
  validation.distinct((where, p) for where, p in rows if hash(p.id) in hashes)


def _parse(line: bytes) -> Problem:
  row = json.loads(line)
  row[-1] = tuple(RubricItem(*item) for item in row[-1])
  return Problem(*row)
