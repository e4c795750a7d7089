"""Source '.jsonl': a file with one JSON object a line."""

from collections.abc import Iterator, Sequence

from etils import epath

from exprl_jax.data import validation
from exprl_jax.types import InputError, Problem


def read(name: str, needs: Sequence[str], limit: int) -> Sequence[Problem]:
  """Reads a JSONL file, local or on gs://, up to the last row that counts.

  Raises:
    InputError: no such file, no rows, or a bad row; names file and line.
  """
  path = epath.Path(name)
  if not path.is_file():
    raise InputError(f'{path}: no such problem file (JSONL: one object with '
                     'question, solution, answer a line)')
  return validation.distinct(_rows(path, needs), str(path), limit)


def _rows(path: epath.Path,
          needs: Sequence[str]) -> Iterator[tuple[int, Problem]]:
  """Yields line numbers and problems; blank lines are passed over."""
  with path.open(encoding='utf-8') as file:
    for number, line in enumerate(file, 1):
      if line.strip():
        yield number, validation.parse_row(line, f'{path}:{number}', number,
                                           needs)


SOURCES = {'.jsonl': read}
