"""What sources and formats of problems are, and how their files are opened."""

import codecs
from collections.abc import Iterator, Sequence
import contextlib
import gzip
import importlib
import io
import itertools
from typing import Any, BinaryIO, Protocol, cast
import zlib

from etils import epath

from exprl_jax.runtime import failures, inputs
from exprl_jax.types import InputError, Problem

COMPRESSED = ('.gz', '.zst')


class Format(Protocol):
  """An entry of FORMATS: how files with a suffix are read.

  It yields rows as they are; data/fields.py and data/validation.py make
  problems of them.
  """

  def __call__(self, path: epath.Path) -> Iterator[tuple[int, Any]]:
    """Yields the rows of a file in order, holding few of them at a time.

    Args:
      path: of the file, local or on gs://.

    Yields:
      The number of the line or row, from 1, and the row: a dict, or the
      InputError of a row that cannot be read while those after it can.

    Raises:
      InputError: it is not such a file; names file and line.
    """


class Source(Protocol):
  """An entry of SOURCES: problems that a prefix names and a program makes."""

  def __call__(self, name: str, needs: Sequence[str],
               limit: int) -> Sequence[Problem]:
    """Makes problems.

    Args:
      name: what stands behind the prefix.
      needs: fields that must not be empty, beside `question`.
      limit: number of problems; 0: all.

    Returns:
      At least one problem, each with an id of its own. A sequence whose items
      are made on access is fine.

    Raises:
      InputError: there are no such problems.
    """


@contextlib.contextmanager
def open_bytes(path: epath.Path) -> Iterator[BinaryIO]:
  """Opens a file, decompressed if its name ends in .gz or .zst.

  Raises:
    InputError: it is no file, not compressed so, or ends in the middle.
  """
  inputs.require_file(path)
  with path.open('rb') as file:
    try:
      if path.suffix == '.gz':
        with gzip.open(file) as plain:
          yield cast(BinaryIO, plain)
      elif path.suffix == '.zst':
        pa = pyarrow(path)
        yield cast(BinaryIO,
                   io.BufferedReader(pa.CompressedInputStream(file, 'zstd')))
      else:
        yield cast(BinaryIO, file)
    except (EOFError, OSError, zlib.error) as e:
      if failures.unreachable(e):
        raise
      raise InputError(f'{path}: cannot be read ({first_line(e)})') from None


def raw_lines(path: epath.Path) -> Iterator[tuple[int, bytes]]:
  """Yields the lines of a file with their numbers, from 1.

  A byte-order mark at the start is dropped.

  Raises:
    InputError: a line is longer than inputs.LONGEST.
  """
  with open_bytes(path) as file:
    if not isinstance(file, (io.BufferedReader, gzip.GzipFile)):
      # Of a bucket: its own readline knows no limit.
      file = cast(BinaryIO, io.BufferedReader(cast(Any, file), 2**20))
    for number in itertools.count(1):
      line = file.readline(inputs.LONGEST + 1)
      if not line:
        return
      if len(line) > inputs.LONGEST:
        raise InputError(f'{path}:{number}: longer than {inputs.LONGEST} bytes;'
                         ' rows are lines')
      yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def lines(path: epath.Path) -> Iterator[tuple[int, str]]:
  """As `raw_lines`, as text.

  Raises:
    InputError: a line is not UTF-8.
  """
  for number, line in raw_lines(path):
    yield number, inputs.decode(line, f'{path}:{number}')


def pyarrow(path: epath.Path, module: str = 'pyarrow') -> Any:
  """Imports a module of pyarrow, which is not installed by default.

  Raises:
    InputError: it is not installed; says what `path` needs.
  """
  try:
    return importlib.import_module(module)
  except ImportError:
    raise InputError(
        f"{path}: needs pyarrow; pip install 'exprl_jax[data]'") from None


def first_line(error: Exception) -> str:
  """Returns the first line of an error's message, or the error's name."""
  return (str(error) or type(error).__name__).splitlines()[0]
