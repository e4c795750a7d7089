"""Safetensors files by byte ranges, on disk and on gs://.

  8 bytes: length of the header | JSON header: dtype, shape and byte range of
  each tensor | the tensors

Reading ranges, rather than mapping the file into memory, keeps the memory small
and works on gs:// as well.
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import json
import math
import re
from typing import Any

from etils import epath
import numpy as np

from exprl_jax.models import safetensors_header
from exprl_jax.runtime import inputs
from exprl_jax.types import InputError

_DTYPES = safetensors_header.DTYPES
# The name of a file in the folder or below it: no /NAME, C:NAME or gs://NAME.
_IN_FOLDER = re.compile(r'[^/\\:\x00-\x1f][^\\:\x00-\x1f]{0,250}')
_POINTER = b'version https://git-lfs'
_NAMES = {np.dtype(v): k for k, v in _DTYPES.items()}
# Bits of an exponent: with all of them set, a number is infinite or none.
_EXPONENT = {'F32': 0x7f800000, 'F16': 0x7c00, 'BF16': 0x7f80}
_CHUNK = 2**16  # numbers that are checked at a time, within a core's cache


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One stored tensor, not yet read."""

  name: str
  path: epath.Path
  shape: tuple[int, ...]
  dtype: np.dtype
  start: int  # its first byte in the file

  def rows(self, start: int, stop: int) -> np.ndarray:
    """Reads rows [start, stop) of the first axis.

    Raises:
      InputError: the file is shorter than it says, or a number is not finite.
    """
    row = math.prod(self.shape[1:]) * self.dtype.itemsize
    # Aligned, so that JAX on CPUs takes the memory as it is, without a copy.
    data = np.empty((stop - start) * row + 64, np.uint8)
    data = data[-data.ctypes.data % 64:][:(stop - start) * row]
    with self.path.open('rb') as file:
      file.seek(self.start + start * row)
      if file.readinto(data) != data.size:
        raise InputError(f'{self}: cut short; copy the file again')
    self._require_finite(data)
    return data.view(self.dtype).reshape(stop - start, *self.shape[1:])

  def _require_finite(self, data: np.ndarray) -> None:
    mask = _EXPONENT[_NAMES[self.dtype]]
    bits = data.view(f'u{self.dtype.itemsize}')
    for start in range(0, bits.size, _CHUNK):
      if (bits[start:start + _CHUNK] & mask).max() == mask:
        raise InputError(f'{self}: a weight is NaN or infinite; copy the file '
                         'again, or take weights from before training failed')

  def __str__(self) -> str:
    return f'{self.path}: tensor {self.name}'


def open_folder(folder: epath.Path) -> dict[str, Tensor]:
  """Reads which tensors a model directory has, by name; not their data.

  model.safetensors.index.json says which files belong to the model; without
  one it is model.safetensors, else all *.safetensors files.

  Raises:
    InputError: there is no file, a file or tensor that the index names is
      missing or in several files, or a file is corrupt or cut short; says how
      to convert other formats.
  """
  index = folder / 'model.safetensors.index.json'
  files = _read_index(index) if index.exists() else {}  # of each tensor
  paths = ([folder / name for name in sorted(set(files.values()))]
           if index.exists() else _unindexed(folder))
  tensors: dict[str, Tensor] = {}
  for path in paths:
    found = open_file(path)
    if twice := tensors.keys() & found.keys():
      name = min(twice)
      raise InputError(f'{tensors[name]} is in {path.name}, too; remove the '
                       'file that is not of the model')
    tensors |= found
  for name, file in files.items():
    if name not in tensors or tensors[name].path != folder / file:
      raise InputError(f'{folder / file}: tensor {name} is missing, which '
                       f'{index.name} says is in it')
  return tensors


def _read_index(path: epath.Path) -> dict[str, str]:
  """Reads the file of each tensor from model.safetensors.index.json."""
  files = inputs.read_object(path, unique=True).get('weight_map')
  if not files or not isinstance(files, dict):
    raise InputError(f'{path}: not an index of tensors (no weight_map); copy '
                     'it again')
  for tensor, name in files.items():
    # Links are fine: the Hub's cache is made of them.
    if (not isinstance(name, str) or not _IN_FOLDER.fullmatch(name)
        or '..' in name.split('/')):
      raise InputError(f'{path}: tensor {tensor} is in {name!r}, which is no '
                       'file of this folder; copy the index again')
  return files


def _unindexed(folder: epath.Path) -> list[epath.Path]:
  """Lists the files of a model without an index."""
  if (folder / 'model.safetensors').exists():
    return [folder / 'model.safetensors']  # what else is there is not the model
  paths = sorted(folder.glob('*.safetensors'))
  if not paths:
    raise InputError(f'{folder}: no *.safetensors file in it' + _remedy(folder))
  for path in paths:
    part = re.fullmatch(r'.*-of-(\d+)\.safetensors', path.name)
    if part and int(part[1]) != len(paths):
      raise InputError(f'{folder}: {len(paths)} of {int(part[1])} '
                       '*.safetensors files; copy the others, and the index')
  return paths


def _remedy(folder: epath.Path) -> str:
  """Says what to do with weights in another format."""
  if any(folder.glob('*.gguf')):
    return _gguf_remedy(folder, next(iter(folder.glob('*.gguf'))).name)
  for pattern in ('*.bin', '*.pt', '*.pth'):
    if files := sorted(f.name for f in folder.glob(pattern)):
      return (f"; convert {files[0]} with transformers: AutoModelForCausalLM."
              f"from_pretrained('{folder}').save_pretrained(OUT, "
              'safe_serialization=True)')
  return ''


def _gguf_remedy(folder: epath.Path, name: str) -> str:
  """Says how to convert a GGUF file."""
  return ("; convert GGUF with transformers: AutoModelForCausalLM."
          f"from_pretrained('{folder}', gguf_file='{name}')"
          '.save_pretrained(OUT), and its tokenizer likewise')


def _refuse_pointer(path: epath.Path) -> None:
  """Refuses what git leaves in place of a file that git-lfs holds."""
  inputs.require_file(path)
  with path.open('rb') as file:
    if file.read(len(_POINTER)) == _POINTER:
      raise InputError(f'{path}: a pointer of git-lfs, not the file; run '
                       f'`git lfs pull` in {path.parent}')


def refuse_formats(folder: epath.Path) -> None:
  """Refuses what looks like a model folder and is none: GGUF, and what git
  leaves of a tokenizer.

  Raises:
    InputError: it is that; says how to convert it.
  """
  if folder.suffix == '.gguf':
    raise InputError(f'{folder}: not a model folder' +
                     _gguf_remedy(folder.parent, folder.name))
  if not (folder / 'config.json').is_file():
    if files := sorted(folder.glob('*.gguf')):
      raise InputError(f'{folder}: no config.json' +
                       _gguf_remedy(folder, files[0].name))
  for name in ('tokenizer.json', 'tokenizer.model'):
    if (folder / name).is_file():
      _refuse_pointer(folder / name)


def open_file(path: epath.Path) -> dict[str, Tensor]:
  """Reads which tensors one file has, by name; not their data.

  Raises:
    InputError: there is no such file, or it is corrupt or cut short.
  """
  try:
    size = inputs.require_file(path)
    size = path.stat().length if size is None else size
    _refuse_pointer(path)
    start, entries = safetensors_header.read(path, size)
  except FileNotFoundError:
    raise InputError(f'{path}: no such file; the index names it') from None
  return {
      name: Tensor(name, path, tuple(entry['shape']),
                   np.dtype(_DTYPES[entry['dtype']]),
                   start + entry['data_offsets'][0])
      for name, entry in entries.items()
  }


def write_folder(folder: epath.Path, shapes: Mapping[str, tuple[int, ...]],
                 dtype: np.dtype, arrays: Iterable[tuple[str, np.ndarray]],
                 max_bytes: int) -> None:
  """Writes tensors one after the other, into files of `max_bytes`.

  Args:
    folder: exists.
    shapes: the tensors' shapes, in the order in which they come.
    dtype: of all of them.
    arrays: (name, array) in that order; only one is held at a time.
    max_bytes: of a file, unless one tensor is larger.
  """
  # 1. Which tensors go into which file.
  files: list[list[str]] = [[]]
  size = {k: math.prod(v) * dtype.itemsize for k, v in shapes.items()}
  for name in shapes:
    if files[-1] and sum(size[n] for n in files[-1]) + size[name] > max_bytes:
      files.append([])
    files[-1].append(name)
  names = ['model.safetensors'] if len(files) == 1 else [
      f'model-{i + 1:05d}-of-{len(files):05d}.safetensors'
      for i in range(len(files))
  ]
  # 2. The files, each as its tensors come; then the index.
  arrays = iter(arrays)
  for file, tensors in zip(names, files):
    write_file(folder / file, {n: shapes[n] for n in tensors}, dtype, arrays)
  if len(files) > 1:
    (folder / 'model.safetensors.index.json').write_text(
        json.dumps(
            {
                'metadata': {'total_size': sum(size.values())}, 'weight_map': {
                    n: file
                    for file, tensors in zip(names, files)
                    for n in tensors
                }
            }, indent=2) + '\n')


def write_file(path: epath.Path, shapes: Mapping[str, tuple[int, ...]],
               dtype: np.dtype, arrays: Iterator[tuple[str,
                                                       np.ndarray]]) -> None:
  """Writes tensors into one file; arguments as those of `write_folder`."""
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  end = 0
  for name, shape in shapes.items():
    start, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {
        'dtype': _NAMES[dtype], 'shape': list(shape),
        'data_offsets': [start, end]
    }
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)  # the tensors start aligned
  with path.open('wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for name in shapes:
      given, array = next(arrays)
      assert (given, array.shape, array.dtype) == (name, shapes[name], dtype)
      file.write(np.ascontiguousarray(array).tobytes())
