"""Format '.jsonl': one JSON object a line. All such files are read here."""

from collections.abc import Iterator
from typing import Any

from etils import epath

from exprl_jax.data.sources import base
from exprl_jax.runtime import inputs
from exprl_jax.types import InputError


def read(path: epath.Path) -> Iterator[tuple[int, Any]]:
  """Yields line numbers and rows; blank lines are passed over.

  In place of a row that is not JSON there is its error.
  """
  name = str(path)  # once: it takes as long as parsing a short line
  for number, line in base.raw_lines(path):
    if not line.isspace():
      try:
        row = inputs.parse(line.rstrip(b'\r\n'), f'{name}:{number}')
      except InputError as e:
        row = e
      yield number, row


def objects(path: epath.Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
  """Yields line numbers, FILE:LINE and objects; blank lines are passed over.

  Raises:
    InputError: a line is not a JSON object, or beyond a limit of `inputs`.
  """
  for number, row in read(path):
    where = f'{path}:{number}'
    if isinstance(row, InputError):
      raise row
    if not isinstance(row, dict):
      raise InputError(f'{where}: want an object, got {type(row).__name__}')
    yield number, where, row


FORMATS = {'.jsonl': read, '.ndjson': read}
