"""Format '.jsonl': one JSON object a line."""

from collections.abc import Iterator
from typing import Any

from etils import epath

from exprl_jax.data import validation
from exprl_jax.data.sources import base


def read(path: epath.Path) -> Iterator[tuple[int, Any]]:
  """Yields line numbers and rows; blank lines are passed over.

  Raises:
    InputError: a line is not JSON.
  """
  name = str(path)  # once: it takes as long as parsing a short line
  for number, line in base.lines(path):
    if not line.isspace():
      yield number, validation.parse_json(line, f'{name}:{number}')


FORMATS = {'.jsonl': read, '.ndjson': read}
