"""Hugging Face directories in and out: safetensors <-> sharded parameters."""

from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
import dataclasses
import functools
import itertools
import os
from typing import Any, NamedTuple

from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import tqdm

from exprl_jax.models import config, quantization, safetensors, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.models.matrices import Int8
from exprl_jax.models.stored import Part, open_model, stored_parts
from exprl_jax.runtime import files, inputs
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import Params

_OTHER_FILES = ('tokenizer.json', 'tokenizer.model', 'chat_template.jinja',
                'tokenizer_config.json', 'special_tokens_map.json',
                'added_tokens.json', 'generation_config.json')
_THREADS = 4  # that read files


def load(folder: epath.PathLike, mesh: Mesh, dtype: str = 'float32', *,
         remat: str = 'none', attention: str = 'auto', frozen: bool = False,
         weights: str = '', random_key: jax.Array | None = None,
         random_std: float = 0.0) -> tuple[ModelConfig, Params]:
  """Loads a model onto a mesh.

  Every byte of the files is read once, by one process: the rows of a stored
  tensor are split over all devices, and the devices turn them into their
  final layout and sharding. The host holds two layers at most.

  Args:
    folder: a Hugging Face model directory, on disk or gs://.
    mesh: where the parameters go, sharded by their logical axes.
    dtype: of the matrix products ('float32' or 'bfloat16').
    remat: what the backward pass recomputes, a key of transformer.REMAT.
    attention: auto, einsum, dot_product or splash (attention.choose).
    frozen: keep the matrices in `dtype`; otherwise all is float32.
    weights: 'int8': hold the layers' matrices of a frozen model in int8
      (quantization.quantize); they are rounded layer by layer as they are read.
    random_key: draws new weights; only config.json is read.
    random_std: of the new weights; 0 is 1 / sqrt(fan-in).

  Returns:
    (ModelConfig, parameters).

  Raises:
    InputError: the folder, a tensor or a shape is not as it should be; the
      message names it.
    ValueError: int8 weights of a model that is not frozen.
  """
  if weights and (weights != 'int8' or not frozen):
    raise ValueError(f'weights={weights!r}: only int8, of a frozen model')
  folder = epath.Path(folder)
  cfg = dataclasses.replace(config.read_config(folder), dtype=dtype,
                            remat=remat, attention=attention)
  cast = _cast_for(cfg, frozen, weights)
  abstract = jax.eval_shape(cast, transformer.abstract_params(cfg))
  shardings = mesh_lib.shardings(
      (quantization if weights else transformer).logical_axes(cfg), abstract,
      mesh)
  if random_key is not None:
    init = jax.jit(lambda key: cast(transformer.init(cfg, key, random_std)),
                   out_shardings=shardings)
    return cfg, init(random_key)
  return cfg, _read(folder, cfg, mesh, abstract, shardings)


def _cast_for(cfg: ModelConfig, frozen: bool,
              weights: str) -> Callable[[Params], Params]:
  """Returns the change from float32 parameters to those that are held."""
  if not frozen:
    return lambda params: params
  return functools.partial(
      quantization.quantize if weights else transformer.cast, cfg)


def _read(folder: epath.Path, cfg: ModelConfig, mesh: Mesh, abstract: Params,
          shardings: Params) -> Params:
  """Reads the parameters `abstract` from files; see `load`."""
  # 1. What is to be read. Nothing is, where a tensor is missing.
  parts, tensors = open_model(folder, cfg, abstract)
  # 2. Programs: stacked layers of zeros, and to write one layer into them.
  zeros = jax.jit(
      lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract[
          'layers']), out_shardings=shardings['layers']).lower()
  place = jax.jit(_place, donate_argnums=0, out_shardings=shardings['layers'])
  progress = tqdm.tqdm(desc=folder.name,
                       total=sum(p.nbytes(tensors) for p in parts), unit='B',
                       unit_scale=True, delay=2,
                       disable=None if jax.process_index() == 0 else True)
  with (progress, jax.set_mesh(mesh), futures.ThreadPoolExecutor(_THREADS + 1)
        as pool):
    compiled = pool.submit(zeros.compile)  # while the first files are read
    # 3. The parameters outside of the layers come first, then layer by layer.
    for unit in _read_ahead(parts, tensors, mesh, pool):
      if unit.layer is None:
        params = {
            k: jax.device_put(v.astype(abstract[k].dtype), shardings[k])
            for k, v in unit.arrays.items()
        }
        params['layers'] = compiled.result()()
      else:
        # Waits, or layers that are read but not placed would pile up.
        params['layers'] = jax.block_until_ready(
            place(params['layers'], unit.arrays, unit.layer))
      progress.update(unit.nbytes)
  return params


class _Unit(NamedTuple):
  """One layer as it is stored, on the devices."""

  layer: int | None  # None: the parameters outside of the layers
  arrays: dict[str, jax.Array]
  nbytes: int  # in the files


def _read_ahead(parts: list[Part], tensors: Mapping[str, safetensors.Tensor],
                mesh: Mesh, pool: futures.Executor) -> Iterator[_Unit]:
  """Yields layer after layer, while other threads read the next one."""

  def submit(layer: list[Part]) -> dict[str, futures.Future[jax.Array]]:
    return {p.key: pool.submit(_read_part, p, tensors, mesh) for p in layer}

  layers = [list(g) for _, g in itertools.groupby(parts, lambda p: p.layer)]
  # 1. One layer is being read before the first is asked for.
  ahead = submit(layers[0])
  for i, layer in enumerate(layers):
    # 2. The next layer's reads are queued behind those of this one,
    reading = ahead
    if i + 1 < len(layers):
      ahead = submit(layers[i + 1])
    # 3. and go on while the caller places this one: two layers at most are on
    # the host.
    yield _Unit(layer[0].layer, {k: f.result() for k, f in reading.items()},
                sum(part.nbytes(tensors) for part in layer))


def _read_part(part: Part, tensors: Mapping[str, safetensors.Tensor],
               mesh: Mesh) -> jax.Array:
  """Reads a part onto the devices, split along the axis that files can be cut.

    a vector         [n]                  by n
    embedding        [V, D]               by V
    a matrix         [out, in]            -> [in, out], by out
    experts' matrix  E times [out, in]    -> [E, in, out], by E

  The host transposes matrices on their way: XLA:CPU's own transpose is several
  times slower, and on TPUs it saves the devices a pass.
  """
  experts, flip = part.has_experts, part.is_transposed
  shape = part.stored_shape[::-1] if flip else part.stored_shape
  shape = (len(part.names), *shape) if experts else shape
  axis = 1 if flip and not experts else 0

  @functools.cache  # devices that hold the same rows share one read
  def block(start: int, stop: int) -> np.ndarray:
    names = part.names[start:stop] if experts else part.names
    rows = (0, part.stored_shape[0]) if experts else (start, stop)
    stored = [tensors[name].rows(*rows) for name in names]
    stored = [x.T if flip else x for x in stored]
    return np.stack(stored) if experts else stored[0]

  def read(index: Any) -> np.ndarray:  # a tuple of slices
    start, stop, _ = index[axis].indices(shape[axis])
    return block(start, stop)

  return jax.make_array_from_callback(shape, mesh_lib.split(shape, axis, mesh),
                                      read)


def _place(layers: Params, arrays: dict[str, jax.Array],
           layer: jax.Array) -> Params:
  """Writes one layer into the stacked parameters, in place."""

  def write(stacked: jax.Array, value: jax.Array) -> jax.Array:
    value = value.astype(stacked.dtype)
    # As bits: XLA:CPU would convert all of a bfloat16 stack to float32 and back
    # to update it.
    bits = f'uint{8 * stacked.dtype.itemsize}'
    return jax.lax.dynamic_update_slice_in_dim(stacked.view(bits),
                                               value.view(bits), layer,
                                               0).view(stacked.dtype)

  def place(key: str, stacked: Params) -> Params:
    value: Params = arrays[key].reshape(1, *stacked.shape[1:])
    if isinstance(stacked, Int8):
      value = quantization.int8(key, value)
    return jax.tree.map(write, stacked, value)

  return {k: place(k, stacked) for k, stacked in layers.items()}


def save(folder: epath.PathLike, cfg: ModelConfig, params: Params,
         base: epath.PathLike, dtype: str = 'float32',
         max_bytes: int = 5 * 10**9) -> None:
  """Writes a directory that `load` and `transformers` open.

  All processes call it, process 0 writes; the host holds one tensor at a
  time. On a disk the files are written beside the folder, which then takes the
  place of an older one. In a bucket config.json is deleted first and written
  last: a folder without it is one that was not finished.

  Args:
    folder: on disk or gs://; created, its model files are replaced.
    cfg: the model.
    params: its parameters.
    base: a directory of the same model; its config.json, tokenizer and
      generation files are copied.
    dtype: of the stored tensors, 'float32' or 'bfloat16'.
    max_bytes: of one file.

  Raises:
    ValueError: `base` is another model.
    OSError: process 0 could not write, in the others; in process 0 its error.
  """
  folder, base = epath.Path(folder), epath.Path(base)
  # 1. The config says the same model, up to what only a run decides.
  raw = config.text_part(inputs.read_object(base / 'config.json'), str(base))
  raw |= {'dtype': dtype, 'torch_dtype': dtype}  # new and old readers
  stored_cfg = dataclasses.replace(config.parse_config(dict(raw), str(base)),
                                   dtype=cfg.dtype, remat=cfg.remat,
                                   attention=cfg.attention,
                                   max_tokens=cfg.max_tokens)
  if stored_cfg != cfg:
    raise ValueError(f'{base}/config.json is not of the model to be saved')
  # 2. Process 0 writes tensor after tensor as they come from the devices.
  stored_dtype = np.dtype(
      {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}[dtype])
  parts = list(stored_parts(cfg, params))
  arrays = _fetch(parts, params, stored_dtype)
  error: Exception | None = None
  if jax.process_index() == 0:
    shapes = {name: p.stored_shape for p in parts for name in p.names}
    try:
      _write(folder, base, raw, shapes, stored_dtype, arrays, max_bytes)
    except Exception as e:  # pylint: disable=broad-exception-caught
      error = e
  for _ in arrays:  # a process's part in the collectives
    pass
  # Or the others would wait for ever.
  if why := mesh_lib.broadcast(error and f'{folder}: {error}'):
    raise error or OSError(why)


def _write(folder: epath.Path, base: epath.Path, raw: dict,
           shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype,
           arrays: Iterator[tuple[str, np.ndarray]], max_bytes: int) -> None:
  """Writes the files of a model directory; config.json is the last."""
  remote = files.is_remote(folder)
  new = folder if remote else folder.with_name(f'.{folder.name}.new')
  if not remote:
    new.rmtree(missing_ok=True)  # of a process that was killed
  new.mkdir(parents=True, exist_ok=True)
  for old in (new / 'config.json', *new.glob('*.safetensors*')):
    old.unlink(missing_ok=True)  # an interrupted save is no model
  safetensors.write_folder(new, shapes, dtype, arrays, max_bytes)
  for file in _OTHER_FILES:
    if (base / file).exists() and base != new:
      files.write(new / file, (base / file).read_bytes())
  files.write_json(new / 'config.json', raw, indent=2)
  if not remote:
    _replace_folder(folder, new)


def _replace_folder(folder: epath.Path, new: epath.Path) -> None:
  """Renames a local folder; files of the old one that are no model's stay."""
  old = folder.with_name(f'.{folder.name}.old')
  old.rmtree(missing_ok=True)
  if folder.exists():
    for file in folder.iterdir():
      if not (new / file.name).exists() and '.safetensors' not in file.name:
        os.rename(file, new / file.name)
    os.rename(folder, old)
  os.rename(new, folder)
  files.sync_folder(folder.parent)
  old.rmtree(missing_ok=True)


def _fetch(parts: list[Part], params: Params,
           dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (name, stored array) one by one, from all processes' devices."""
  for part in parts:
    tree = params if part.layer is None else params['layers']
    value = tree[part.key]
    sharding = (NamedSharding(value.sharding.mesh, PartitionSpec())
                if isinstance(value.sharding, NamedSharding) else None)
    shape = part.stored_shape
    if part.has_experts:
      shape = (len(part.names), *shape)
    take = _taker(sharding, shape, dtype, part.is_transposed)
    stored = np.asarray(take(value, part.layer))
    yield from zip(part.names, stored if part.has_experts else [stored])


@functools.cache
def _taker(sharding: NamedSharding | None, shape: tuple[int, ...],
           dtype: np.dtype, transposed: bool) -> Callable[..., jax.Array]:
  """Returns (parameter, layer) -> the stored array, on every device."""

  def take(param: jax.Array, layer: jax.Array | None) -> jax.Array:
    value = (param if layer is None else param[layer]).astype(dtype)
    if not transposed:
      return value.reshape(shape)
    return value.reshape(*shape[:-2], shape[-1], shape[-2]).swapaxes(-1, -2)

  return jax.jit(take, out_shardings=sharding)
