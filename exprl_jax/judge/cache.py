"""Judgments that need not be asked for again, in an SQLite file."""

from collections.abc import Iterable, Sequence
import hashlib
import json
import os
import sqlite3
from typing import Any

from etils import epath
import jax

from exprl_jax.judge.readouts import Judgment
from exprl_jax.runtime import mesh as mesh_lib


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
  """Judgments by key. Process 0 holds the file and tells the others."""

  def __init__(self, path: str | os.PathLike = ':memory:'):
    """Opens or makes the file."""
    self._db = None
    if jax.process_index() == 0:
      self._db = sqlite3.connect(str(path))
      self._db.execute('create table if not exists judgments '
                       '(key blob primary key, judgments text) without rowid')

  def get(self, keys: Sequence[bytes]) -> list[list[Judgment] | None]:
    """Returns the known judgments, in the order of the keys."""
    rows = []
    if self._db:
      for k in keys:
        row = self._db.execute('select judgments from judgments where key = ?',
                               (k,)).fetchone()
        rows.append(row and row[0])
    rows = mesh_lib.broadcast(rows)
    return [row and [Judgment(*r) for r in json.loads(row)] for row in rows]

  def put(self, items: Iterable[tuple[bytes, list[Judgment]]]) -> None:
    """Remembers judgments, on disk before it returns."""
    if self._db:
      with self._db:
        self._db.executemany('insert or replace into judgments values (?, ?)',
                             ((k, json.dumps(r)) for k, r in items))
