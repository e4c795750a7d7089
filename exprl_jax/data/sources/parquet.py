"""Format '.parquet', by pyarrow."""

from collections.abc import Iterator
from typing import Any

from etils import epath

from exprl_jax.data.sources import base
from exprl_jax.types import InputError

_ROWS = 256  # decoded at a time


def read(path: epath.Path) -> Iterator[tuple[int, Any]]:
  """Yields the numbers of rows, from 1, and the rows.

  Raises:
    InputError: it is not Parquet, or pyarrow is not installed.
  """
  pa = base.pyarrow(path)
  pq = base.pyarrow(path, 'pyarrow.parquet')
  number = 0
  with path.open('rb') as file:
    try:
      # A row group may have millions of rows; without these two arguments its
      # columns are read whole.
      table = pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
      for batch in table.iter_batches(_ROWS):
        batch.validate(full=True)
        for row in batch.to_pylist():
          number += 1
          yield number, row
    except (pa.ArrowException, OSError, ValueError, OverflowError) as e:
      raise InputError(f'{path}: not Parquet, or damaged behind row {number} '
                       f'({base.first_line(e)})') from None


FORMATS = {'.parquet': read}
