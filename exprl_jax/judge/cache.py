"""Judgments that need not be asked for again, in a folder of parts.

A part is a file of lines, CHECKSUM KEY JUDGMENTS: the key is a hash of all that
a judgment depends on, the checksum one of the line's rest. Every process that
asks writes parts of its own: one file that grows on a disk, an object for each
`put` in a bucket. All parts are read at the start. A damaged line is one that
is not there: its judgments are asked for again.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import contextlib
import hashlib
import json
import os
import time
from typing import Any
import uuid

from etils import epath
import jax

from exprl_jax.judge.readouts import Judgment
from exprl_jax.runtime import failures, files
from exprl_jax.runtime import mesh as mesh_lib

_THREADS = 16  # that read parts
_JOIN = 64  # objects in a bucket that are joined to one


def key(*parts: Any) -> bytes:
  """A name for what JSON-like values describe."""
  return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()


def digest(folder: epath.Path) -> str:
  """A name for the weights in a model folder.

  Of every file its size and sixteen evenly spaced pieces enter: weights that
  training has touched differ everywhere, and 60 GB are not read twice.
  """
  state = hashlib.blake2b(digest_size=16)
  for path in sorted(epath.Path(folder).glob('*.safetensors')):
    size = path.stat().length
    state.update(f'{path.name} {size} '.encode())
    with path.open('rb') as file:
      for i in range(16):
        file.seek(size * i // 16)
        state.update(file.read(2**16))
  return state.hexdigest()


class Cache:
  """Judgments by key. Process 0 has the parts and tells the others."""

  def __init__(self, folder: epath.PathLike | None = None) -> None:
    """Reads the parts of a folder; None keeps judgments in memory only."""
    self._folder = None if folder is None else epath.Path(folder)
    self._known: dict[bytes, bytes] = {}  # JSON by key
    self._waiting: list[bytes] = []  # lines that are not stored yet
    self._name = f'{time.time_ns():020d}-{uuid.uuid4().hex[:8]}'
    self._objects = 0  # written to a bucket
    if self._folder and jax.process_index() == 0:
      self._read(self._folder)

  def _read(self, folder: epath.Path) -> None:
    """Reads all parts; joins those in a bucket if they are many."""
    paths = sorted(folder.glob('*.part')) if folder.exists() else []
    with futures.ThreadPoolExecutor(_THREADS) as pool:
      for data in pool.map(_bytes, paths):
        self._known.update(_entries(data))
    if files.is_remote(folder) and len(paths) >= _JOIN:
      lines = [_line(k, value) for k, value in self._known.items()]
      files.write(folder / f'{self._name}-joined.part', b''.join(lines))
      for path in paths:
        with contextlib.suppress(OSError):  # another run may join them, too
          path.unlink(missing_ok=True)

  def get(self, keys: Sequence[bytes]) -> list[list[Judgment] | None]:
    """Returns the known judgments, in the order of the keys."""
    rows = mesh_lib.broadcast(
        [self._known.get(k, b'').decode('ascii') for k in keys])
    return [_judgments(row) if row else None for row in rows]

  def put(self, items: Iterable[tuple[bytes, list[Judgment]]]) -> None:
    """Remembers judgments, stored before it returns.

    Where that fails they stay in memory, and the next call tries again.
    """
    if jax.process_index():
      return
    for k, judgments in items:
      value = files.dumps(judgments).encode()
      self._known[k] = value
      self._waiting.append(_line(k, value))
    try:
      if self._folder and self._waiting:
        self._store(self._folder, b''.join(self._waiting))
      self._waiting = []
    except Exception as e:
      if not _storage(e):
        raise
      print(
          f'{self._folder}: judgments are not stored, the next ones try again '
          f'({e})', flush=True)

  def _store(self, folder: epath.Path, data: bytes) -> None:
    if files.is_remote(folder):
      files.write(folder / f'{self._name}-{self._objects:08d}.part', data)
      self._objects += 1
      return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f'{self._name}.part', 'ab', buffering=0) as file:
      before = os.fstat(file.fileno()).st_size
      rest = memoryview(b'\n' + data)  # ends what a killed process has left
      try:
        while rest:
          rest = rest[file.write(rest):]
        os.fsync(file.fileno())
      except OSError:
        # All of a call or nothing: a judge that is asked about a part of the
        # traces sums in another order, and a resumed run would differ.
        file.truncate(before)
        raise


def _bytes(path: epath.Path) -> bytes:
  try:
    return path.read_bytes()
  except Exception as e:
    if not _storage(e):
      raise
    print(f'{path}: judgments cannot be read, they are asked for again ({e})',
          flush=True)
    return b''


def _storage(error: Exception) -> bool:
  """Whether storage is to blame; errors of buckets are of many kinds."""
  return (isinstance(error, OSError) or failures.transient(error)
          or failures.refused(error))


def _line(key_: bytes, value: bytes) -> bytes:
  rest = key_.hex().encode() + b' ' + value
  return _checksum(rest) + b' ' + rest + b'\n'


def _checksum(rest: bytes) -> bytes:
  return hashlib.blake2b(rest, digest_size=8).hexdigest().encode()


def _entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
  """Yields (key, value) of a part's lines that are whole."""
  for line in data.split(b'\n'):
    checksum, _, rest = line.partition(b' ')
    if rest and checksum == _checksum(rest):
      name, _, value = rest.partition(b' ')
      yield bytes.fromhex(name.decode()), value


def _judgments(text: str) -> list[Judgment] | None:
  """Reads a value; None where another version has written other fields."""
  try:
    return [Judgment(*row) for row in json.loads(text)]
  except (ValueError, TypeError):
    return None
