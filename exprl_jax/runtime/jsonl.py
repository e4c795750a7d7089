"""JSON Lines files that a run appends to and resumes from."""

from collections.abc import Callable
import json
from typing import Any, TextIO

from etils import epath
import jax

from exprl_jax.runtime import mesh as mesh_lib


def resume(
    path: epath.Path, keep: Callable[[dict[str, Any]], bool] = lambda row: True
) -> list[dict[str, Any]]:
  """Reads the rows that `keep` accepts and removes all others from the file.

  An incomplete last line is removed too. Every process must call it.

  Raises:
    ValueError: a line is not an object.
  """
  text = path.read_text(encoding='utf-8') if path.exists() else ''
  *lines, last = text.split('\n')
  try:  # it may just lack its line feed
    json.loads(last)
    lines, last = [*lines, last], ''
  except json.JSONDecodeError:
    pass
  rows = [json.loads(line) for line in lines if line]
  if not all(isinstance(row, dict) for row in rows) or last[:1] not in ('',
                                                                        '{'):
    raise ValueError('its lines are not JSON objects')
  keeping = [keep(row) for row in rows]
  mesh_lib.barrier('resume')  # all have read it
  kept = ''.join(
      f'{line}\n' for line, good in zip(filter(None, lines), keeping) if good)
  if kept != text and jax.process_index() == 0:
    replacement = path.with_name(path.name + '.new')
    replacement.write_text(kept, encoding='utf-8')
    replacement.replace(path)
  return [row for row, good in zip(rows, keeping) if good]


class Writer:
  """Appends rows, in process 0; on gs:// they appear when it closes."""

  def __init__(self, path: epath.Path) -> None:
    self._path = path
    self._file: TextIO | None = None

  def __enter__(self) -> Callable[[dict[str, Any]], None]:
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

  def _write(self, row: dict[str, Any]) -> None:
    if self._file:
      self._file.write(json.dumps(row, ensure_ascii=False) + '\n')
      self._file.flush()

  def __exit__(self, *_: object) -> None:
    if self._file:
      self._file.close()
