"""Format '.jsonl': one JSON object a line."""

from collections.abc import Iterator
from typing import Any

from etils import epath

from exprl_jax.data import validation
from exprl_jax.data.sources import base
from exprl_jax.types import InputError


def read(path: epath.Path) -> Iterator[tuple[int, Any]]:
  """Yields line numbers and rows; blank lines are passed over.

  In place of a row that is not JSON there is its error.
  """
  name = str(path)  # once: it takes as long as parsing a short line
  for number, line in base.lines(path):
    if not line.isspace():
      try:
        row = validation.parse_json(line, f'{name}:{number}')
      except InputError as e:
        row = e
      yield number, row


FORMATS = {'.jsonl': read, '.ndjson': read}
