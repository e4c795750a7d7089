"""JSON Lines that a run appends to and resumes from.

On a disk they are one file. An object of a bucket cannot be appended to, so
there they are parts, each written once and named by the number of its first
line: NAME.jsonl-00000120 stands behind 120 lines. `close` and `keep` join
them: the joined object is written first, then its parts are deleted, and parts
that a joined object covers are not read.
"""

from collections.abc import Callable
from concurrent import futures
import contextlib
import json
import os
import time
from typing import Any, NamedTuple, TextIO

from etils import epath
import jax

from exprl_jax.runtime import files
from exprl_jax.runtime import mesh as mesh_lib

Row = dict[str, Any]
Keep = Callable[[Row], bool]

_SECONDS = 30.0  # between parts; rows that are younger may be lost with the run
_THREADS = 16  # that read parts


class Content(NamedTuple):
  """What JSON Lines hold, damaged or not."""

  rows: list[Row]
  lines: list[bytes]  # of the rows, without line feeds
  bad: list[bytes]  # lines that are no rows
  tail: bytes  # a last line that was cut short
  data: bytes  # all of it, joined
  parts: list[epath.Path]  # beside the file itself


def read(path: epath.PathLike, is_row: Keep = lambda row: True) -> Content:
  """Reads all that is whole, in a file or its parts.

  Args:
    path: NAME.jsonl; it need not exist.
    is_row: whether an object is a row; else its line is a bad one.
  """
  path = epath.Path(path)
  data, parts = _whole(path), []
  if files.is_remote(path):
    parts = sorted(path.parent.glob(path.name + '-' + '[0-9]' * 8))
    with futures.ThreadPoolExecutor(_THREADS) as pool:
      for part, more in zip(parts, pool.map(_whole, parts)):
        start = int(part.name.rpartition('-')[2])
        if start + more.count(b'\n') > data.count(b'\n'):  # else it is joined
          data += more
  return parse(data, is_row)._replace(parts=parts)


def parse(data: bytes, is_row: Keep = lambda row: True) -> Content:
  """Sorts the lines of a file; see `read`."""
  *lines, tail = data.split(b'\n')
  if _parse(tail) is not None:  # it may just lack its line feed
    lines, tail = [*lines, tail], b''
  out = Content([], [], [], tail, data, [])
  for line in filter(None, lines):
    row = _parse(line)
    if row is not None and is_row(row):
      out.rows.append(row)
      out.lines.append(line)
    else:
      out.bad.append(line)
  return out


def _whole(path: epath.Path) -> bytes:
  try:
    return path.read_bytes()
  except FileNotFoundError:
    return b''


def _parse(line: bytes) -> Row | None:
  """A line's object; None of anything else."""
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):  # not UTF-8, not JSON, not in our life
    return None
  return row if isinstance(row, dict) else None


class Lines:
  """Appends rows, and drops them; only one process at a time may."""

  def __init__(self, path: epath.PathLike, is_row: Keep = lambda row: True):
    """Opens nothing yet; see `read`."""
    self._path, self._is_row = epath.Path(path), is_row
    self._file: TextIO | None = None
    self._unsynced = False  # rows are with the system, not on the disk
    self._waiting: list[str] = []  # rows of the next part
    self._written = -1  # lines in the bucket; -1: not counted yet
    self._time = time.monotonic()  # of the last part

  def __del__(self) -> None:  # of a run that ended by an error
    if self._file:
      with contextlib.suppress(OSError):  # a full disk, which was said
        self._file.close()

  def rows(self) -> list[Row]:
    """Reads the rows that are written."""
    return read(self._path, self._is_row).rows

  def keep(self, wanted: Keep = lambda row: True) -> list[Row]:
    """Drops all other rows, and what a kill or damage has left of some.

    A line cut short at the end is dropped. Lines elsewhere that are no rows
    are kept in NAME.bad-N, which is said.

    Returns:
      The rows that are left.
    """
    self.close(join=False)
    found = read(self._path, self._is_row)
    return self.replace(found, [wanted(row) for row in found.rows])

  def replace(self, found: Content, wanted: list[bool]) -> list[Row]:
    """Does what `keep` does, for content that was just read."""
    if found.bad:
      aside = files.set_aside(self._path, _joined(found.bad))
      print(
          f'{self._path}: {len(found.bad)} damaged lines, kept in '
          f'{aside.name}; the {len(found.lines)} others are read', flush=True)
    kept = [line for line, good in zip(found.lines, wanted) if good]
    if found.parts:  # all of it first: a kill in between loses nothing
      files.write(self._path, found.data)
      for part in found.parts:
        part.unlink(missing_ok=True)
    if _joined(kept) != found.data:
      files.write(self._path, _joined(kept))
    self._written = len(kept)
    return [row for row, good in zip(found.rows, wanted) if good]

  def open(self) -> None:
    """Makes the file, where there is none."""
    if self._file is None and not files.is_remote(self._path):
      self._path.parent.mkdir(parents=True, exist_ok=True)
      self._file = open(self._path, 'a', encoding='utf-8')

  def append(self, row: Row) -> None:
    """Adds a row: on a disk at once, in a bucket with the next part."""
    line = files.dumps(row) + '\n'
    if files.is_remote(self._path):
      self._waiting.append(line)
      if time.monotonic() - self._time > _SECONDS:
        self.flush()
      return
    self.open()
    assert self._file
    with files.naming(self._path):
      self._file.write(line)
      self._file.flush()
    self._unsynced = True

  def flush(self) -> None:
    """Returns when all rows are where they survive the machine."""
    if self._file and self._unsynced:
      with files.naming(self._path):
        os.fsync(self._file.fileno())
      self._unsynced = False
    if self._waiting:
      if self._written < 0:
        found = read(self._path)
        self._written = len(found.lines) + len(found.bad)
      files.write(
          self._path.with_name(f'{self._path.name}-{self._written:08d}'),
          ''.join(self._waiting))
      self._written += len(self._waiting)
      self._waiting = []
      self._time = time.monotonic()

  def close(self, join: bool = True) -> None:
    """Writes what is left, and joins parts to one file."""
    self.flush()
    if self._file:
      self._file.close()
      self._file = None
    if join and files.is_remote(self._path):
      found = read(self._path, self._is_row)
      if found.parts:
        self.replace(found, [True] * len(found.rows))


def _joined(lines: list[bytes]) -> bytes:
  return b''.join(line + b'\n' for line in lines)


def resume(path: epath.Path, keep: Keep = lambda row: True) -> list[Row]:
  """Reads the rows that `keep` accepts and removes all others.

  Every process must call it.

  Raises:
    ValueError: the file has no row, but something else.
  """
  found = read(path)
  if not found.rows and (found.bad or found.tail[:1] not in (b'', b'{')):
    raise ValueError('its lines are not JSON objects')
  wanted = [keep(row) for row in found.rows]
  mesh_lib.barrier('resume')  # all have read it
  if jax.process_index() == 0 and found.data:
    Lines(path).replace(found, wanted)
  return [row for row, good in zip(found.rows, wanted) if good]


class Writer:
  """Appends rows, in process 0: `with Writer(path) as write: write(row)`."""

  def __init__(self, path: epath.Path) -> None:
    self._lines = Lines(path)

  def __enter__(self) -> Callable[[Row], None]:
    if jax.process_index():
      return lambda row: None
    self._lines.open()
    return self._lines.append

  def __exit__(self, *_: object) -> None:
    if jax.process_index() == 0:
      self._lines.close()
