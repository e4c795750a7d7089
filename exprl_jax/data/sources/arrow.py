"""Format '.arrow', by pyarrow: the files that `datasets` saves."""

from collections.abc import Iterator
from typing import Any

from etils import epath

from exprl_jax.data.sources import base
from exprl_jax.types import InputError


def read(path: epath.Path) -> Iterator[tuple[int, Any]]:
  """Yields the numbers of rows, from 1, and the rows.

  Raises:
    InputError: it is not Arrow's format of files or streams, or pyarrow is not
      installed.
  """
  pa = base.pyarrow(path)
  ipc = base.pyarrow(path, 'pyarrow.ipc')
  number = 0
  with path.open('rb') as file:
    try:
      for batch in _batches(pa, ipc, file):
        batch.validate(full=True)  # bad offsets would end the process
        for i in range(len(batch)):  # a row at a time: batches may be large
          number += 1
          yield number, batch.slice(i, 1).to_pylist()[0]
    except (pa.ArrowException, OSError, ValueError, OverflowError) as e:
      raise InputError(f'{path}: not Arrow, or damaged behind row {number} '
                       f'({base.first_line(e)})') from None


def _batches(pa: Any, ipc: Any, file: Any) -> Iterator[Any]:
  try:
    table = ipc.open_file(file)
  except pa.ArrowInvalid:
    file.seek(0)
    yield from ipc.open_stream(file)
    return
  for i in range(table.num_record_batches):
    yield table.get_batch(i)


FORMATS = {'.arrow': read}
