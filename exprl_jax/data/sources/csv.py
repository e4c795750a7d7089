"""Format '.csv': a header and rows, separated by commas."""

from collections.abc import Iterator
import csv
from typing import Any

from etils import epath

from exprl_jax.data.sources import base
from exprl_jax.types import InputError

_LONGEST = 2**27  # characters of a field; the csv module's limit is 2**17


def read(path: epath.Path) -> Iterator[tuple[int, Any]]:
  """Yields the number of the line where a row begins, and the row.

  All fields are text; empty ones are left out.

  Raises:
    InputError: a row has other columns than the header, or bad quotes.
  """
  csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
  rows = csv.reader((line for _, line in base.lines(path)), strict=True)
  header: list[str] | None = None
  number = 1
  try:
    for row in rows:
      where = f'{path}:{number}'
      if row and header is None:
        header = _header(row, where)
      elif row:
        assert header is not None
        if len(row) != len(header):
          raise InputError(f'{where}: {len(row)} columns, the header has '
                           f'{len(header)}')
        yield number, {k: v for k, v in zip(header, row) if v}
      number = rows.line_num + 1
  except csv.Error as e:
    raise InputError(f'{path}:{number}: not CSV ({e})') from None


def _header(row: list[str], where: str) -> list[str]:
  if len(set(row)) < len(row):
    raise InputError(f'{where}: two columns have the same name')
  return [name.strip() for name in row]


FORMATS = {'.csv': read}
