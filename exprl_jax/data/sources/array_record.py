"""Format '.array_record': records with one JSON object each."""

from collections.abc import Iterator
import contextlib
from typing import Any

from etils import epath

from exprl_jax.data.sources import base
from exprl_jax.runtime import inputs
from exprl_jax.types import InputError

_RECORDS = 256  # read at a time


def read(path: epath.Path) -> Iterator[tuple[int, Any]]:
  """Yields the numbers of records, from 1, and what they hold.

  Raises:
    InputError: it is on gs://, is no such file, or a record is not JSON.
  """
  from array_record.python import array_record_module

  if '://' in str(path):
    raise InputError(f'{path}: array_record reads local files only; copy it')
  try:
    with contextlib.closing(array_record_module.ArrayRecordReader(
        str(path))) as reader:
      total = reader.num_records()
      for start in range(0, total, _RECORDS):
        records = reader.read(start, min(start + _RECORDS, total))
        for number, record in enumerate(records, start + 1):
          yield number, inputs.parse(record, f'{path}:{number}')
  except (RuntimeError, IndexError) as e:
    raise InputError(f'{path}: not an ArrayRecord file ('
                     f'{base.first_line(e)})') from None


FORMATS = {'.array_record': read, '.arrayrecord': read}
