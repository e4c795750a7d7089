"""Files of JSON lines that a run adds to, and goes on with when called again.
"""

from collections.abc import Callable
import json
from typing import Any

from etils import epath
import jax

from exprl_jax.runtime import mesh as mesh_lib


def resume(
    path: epath.Path,
    keep: Callable[[dict], bool] = lambda row: True) -> list[dict[str, Any]]:
  """The rows that are there and that `keep` wants.

  All others leave the file, as does a last line that was cut short. All
  processes call it.

  Raises:
    ValueError: a line is not an object.
  """
  text = path.read_text(encoding='utf-8') if path.exists() else ''
  *lines, cut = text.split('\n')
  try:  # it may just lack its line feed
    json.loads(cut)
    lines, cut = [*lines, cut], ''
  except json.JSONDecodeError:
    pass
  rows = [json.loads(line) for line in lines if line]
  if not all(isinstance(row, dict) for row in rows) or cut[:1] not in ('', '{'):
    raise ValueError('its lines are not JSON objects')
  keeping = [keep(row) for row in rows]
  mesh_lib.barrier('resume')  # all have read it
  kept = ''.join(
      f'{line}\n' for line, good in zip(filter(None, lines), keeping) if good)
  if kept != text and jax.process_index() == 0:
    fresh = path.with_name(path.name + '.new')
    fresh.write_text(kept, encoding='utf-8')
    fresh.replace(path)
  return [row for row, good in zip(rows, keeping) if good]


class Writer:
  """Appends rows, in process 0; on gs:// they appear at the end."""

  def __init__(self, path: epath.Path):
    self._path = path

  def __enter__(self) -> Callable[[dict], None]:
    self._file = None
    if jax.process_index() == 0:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      remote = str(self._path).startswith('gs://')  # which cannot append
      old = ''
      if remote and self._path.exists():
        old = self._path.read_text(encoding='utf-8')
      self._file = self._path.open('w' if remote else 'a', encoding='utf-8')
      self._file.write(old)
    return self._write

  def _write(self, row: dict) -> None:
    if self._file:
      self._file.write(json.dumps(row, ensure_ascii=False) + '\n')
      self._file.flush()

  def __exit__(self, *_):
    if self._file:
      self._file.close()
