"""The header of a safetensors file, by the rules of the safetensors library.

A file is read only if the library would read it: the tensors follow each other
without gap or overlap and fill the file. Offsets that break this rule would
load silently as other weights.
"""

import math
from typing import Any

from etils import epath
import ml_dtypes
import numpy as np

from exprl_jax.runtime import inputs
from exprl_jax.types import InputError

DTYPES = {'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16}
_LONGEST = 10**8  # bytes; the library's limit
_MAX_AXES = 8  # of a tensor


def read(path: epath.Path, size: int) -> tuple[int, dict[str, Any]]:
  """Reads and checks the header of a file.

  Args:
    path: of the file.
    size: its bytes.

  Returns:
    The byte where the tensors begin, and dtype, shape and data_offsets of each.

  Raises:
    InputError: the file is corrupt or cut short; names the tensor, if it is
      about one.
  """
  with path.open('rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    if size < 8 or not 2 <= length <= min(size - 8, _LONGEST):
      raise _corrupt(path, f'a header of {length} bytes in {size}')
    data = file.read(length)
  try:
    header = inputs.parse(data, f'{path}: header', unique=True)
  except InputError as e:
    raise InputError(f'{e}; corrupt or cut short, copy it again') from None
  if not data.startswith(b'{') or not isinstance(header, dict):
    raise _corrupt(path, 'the header is not an object')
  metadata = header.pop('__metadata__', None)
  if metadata is not None and not (isinstance(metadata, dict) and all(
      isinstance(v, str) for v in metadata.values())):
    raise _corrupt(path, '__metadata__ are not texts')
  end = 8 + length + _check_layout(path, header)
  if end != size:
    raise _corrupt(path, f'{size} bytes, should be {end}')
  return 8 + length, header


def _corrupt(path: epath.Path, why: str) -> InputError:
  return InputError(f'{path}: corrupt or cut short ({why}); copy it again')


def _check_layout(path: epath.Path, header: dict[str, Any]) -> int:
  """Checks that the tensors of a header follow each other, without a gap.

  Returns:
    Where the last one ends, in bytes behind the header.

  Raises:
    InputError: names file and tensor.
  """
  for name, entry in header.items():
    _check_entry(path, name, entry)
  end = 0
  for name, entry in sorted(header.items(), key=lambda x: x[1]['data_offsets']):
    start, stop = entry['data_offsets']
    if start != end:
      what = 'overlaps the tensor before it' if start < end else (
          'leaves a gap before it')
      raise _corrupt(path, f'tensor {name} {what}: byte {start}, not {end}')
    end = stop
  return end


def _check_entry(path: epath.Path, name: str, entry: Any) -> None:
  """Checks one tensor's dtype, shape and number of bytes."""
  if not (isinstance(entry, dict) and isinstance(entry.get('dtype'), str)
          and _are_sizes(entry.get('shape')) and _are_sizes(
              entry.get('data_offsets')) and len(entry['data_offsets']) == 2):
    raise _corrupt(
        path, f'tensor {name} lacks a dtype, a shape or offsets, or '
        'one of them is not as it should be')
  if entry['dtype'] not in DTYPES:
    raise InputError(f'{path}: tensor {name} is stored as {entry["dtype"]}; '
                     f'only {", ".join(DTYPES)} are implemented')
  start, stop = entry['data_offsets']
  itemsize = np.dtype(DTYPES[entry['dtype']]).itemsize
  if stop - start != math.prod(entry['shape']) * itemsize:
    raise _corrupt(
        path, f'tensor {name} has {stop - start} bytes for '
        f'{entry["dtype"]}{entry["shape"]}')


def _are_sizes(value: Any) -> bool:
  """Whether a value of JSON is a list of a few numbers that count something."""
  return isinstance(value, list) and len(value) <= _MAX_AXES and all(
      type(x) is int and 0 <= x < 2**63 for x in value)
