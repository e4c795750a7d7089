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
import ml_dtypes
import numpy as np

from exprl_jax.types import InputError

_DTYPES = {'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16}
_POINTER = b'version https://git-lfs'
_NAMES = {np.dtype(v): k for k, v in _DTYPES.items()}


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
      InputError: the file is shorter than it says.
    """
    row = math.prod(self.shape[1:]) * self.dtype.itemsize
    # Aligned, so that JAX on CPUs takes the memory as it is, without a copy.
    data = np.empty((stop - start) * row + 64, np.uint8)
    data = data[-data.ctypes.data % 64:][:(stop - start) * row]
    with self.path.open('rb') as file:
      file.seek(self.start + start * row)
      if file.readinto(data) != data.size:
        raise InputError(f'{self}: cut short; copy the file again')
    return data.view(self.dtype).reshape(-1, *self.shape[1:])

  def __str__(self) -> str:
    return f'{self.path}: tensor {self.name}'


def open_folder(folder: epath.Path) -> dict[str, Tensor]:
  """Reads which tensors a model directory has, by name; not their data.

  model.safetensors.index.json says which files belong to the model; without
  one it is model.safetensors, else all *.safetensors files.

  Raises:
    InputError: there is no file, a file or tensor that the index names is
      missing, or a file is corrupt or cut short; says how to convert other
      formats.
  """
  index = folder / 'model.safetensors.index.json'
  files: dict[str, str] = {}  # of each tensor
  if index.exists():
    try:
      files = json.loads(index.read_text())['weight_map']
    except (json.JSONDecodeError, KeyError, TypeError) as e:
      raise InputError(f'{index}: not an index of tensors ({e})') from None
    paths = [folder / name for name in sorted(set(files.values()))]
  else:
    paths = _unindexed(folder)
  tensors: dict[str, Tensor] = {}
  for path in paths:
    tensors |= open_file(path)
  for name, file in files.items():
    if name not in tensors:
      raise InputError(f'{folder / file}: tensor {name} is missing, which '
                       f'{index.name} says is in it')
  return tensors


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
    size = path.stat().length
    _refuse_pointer(path)
    with path.open('rb') as file:
      length = int.from_bytes(file.read(8), 'little')
      if length > size - 8:
        raise ValueError(f'a header of {length} bytes in {size}')
      header = json.loads(file.read(length))
    header.pop('__metadata__', None)
    end = 8 + length + max(
        (v['data_offsets'][1] for v in header.values()), default=0)
    if end != size:
      raise ValueError(f'{size} bytes, should be {end}')
    return {
        name: _tensor(path, name, 8 + length, v) for name, v in header.items()
    }
  except FileNotFoundError:
    raise InputError(f'{path}: no such file; the index names it') from None
  except (ValueError, KeyError, TypeError) as e:
    if isinstance(e, InputError):
      raise
    raise InputError(
        f'{path}: corrupt or cut short ({e}); copy it again') from None


def _tensor(path: epath.Path, name: str, offset: int,
            entry: dict[str, Any]) -> Tensor:
  """Parses an entry of a header; data begins at `offset` of the file."""
  if entry['dtype'] not in _DTYPES:
    raise InputError(f'{path}: tensor {name} is stored as {entry["dtype"]}; '
                     f'only {", ".join(_DTYPES)} are implemented')
  start, stop = entry['data_offsets']
  shape, dtype = tuple(entry['shape']), np.dtype(_DTYPES[entry['dtype']])
  if stop - start != math.prod(shape) * dtype.itemsize:
    raise InputError(f'{path}: tensor {name}: {stop - start} bytes for '
                     f'{entry["dtype"]}{list(shape)}')
  return Tensor(name, path, shape, dtype, offset + start)


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
