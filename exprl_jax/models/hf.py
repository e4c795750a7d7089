"""Hugging Face directories in and out: safetensors <-> sharded parameters."""

from collections.abc import Iterator
from concurrent import futures
import dataclasses
import functools
import itertools
import json
import math

from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import tqdm

from exprl_jax.models import config, safetensors, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError

# Ours -> theirs. Their matrices are [out, in]; ours are [in, *out], or
# [*in, out] for the attention output.
_TOP = {
    'embedding': 'model.embed_tokens.weight', 'final_norm': 'model.norm.weight',
    'head': 'lm_head.weight'
}
_LAYER = {
    'attention_norm': 'input_layernorm.weight', 'q': 'self_attn.q_proj.weight',
    'q_bias': 'self_attn.q_proj.bias', 'k': 'self_attn.k_proj.weight',
    'k_bias': 'self_attn.k_proj.bias', 'v': 'self_attn.v_proj.weight',
    'v_bias': 'self_attn.v_proj.bias', 'q_norm': 'self_attn.q_norm.weight',
    'k_norm': 'self_attn.k_norm.weight', 'o': 'self_attn.o_proj.weight',
    'mlp_norm': 'post_attention_layernorm.weight', 'router': 'mlp.gate.weight',
    'gate': 'mlp.gate_proj.weight', 'up': 'mlp.up_proj.weight',
    'down': 'mlp.down_proj.weight'
}
_POST_NORMS = {
    'attention_post_norm': 'post_attention_layernorm.weight',
    'mlp_norm': 'pre_feedforward_layernorm.weight',
    'mlp_post_norm': 'post_feedforward_layernorm.weight'
}
_EXPERTS = ('gate', 'up', 'down')
_OTHER_FILES = ('tokenizer.json', 'tokenizer.model', 'chat_template.jinja',
                'tokenizer_config.json', 'special_tokens_map.json',
                'added_tokens.json', 'generation_config.json')
_THREADS = 4  # that read files


def load(folder: epath.PathLike, mesh: jax.sharding.Mesh,
         dtype: str = 'float32', *, remat: str = 'none',
         attention: str = 'auto', frozen: bool = False, weights: str = '',
         random_key: jax.Array | None = None, random_std: float = 0.0):
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
    weights: 'int8': the layers' matrices of a frozen model in that instead
      (transformer.quantise), layer by layer as they are read.
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
  cast = transformer.quantise if weights else transformer.cast
  cast = functools.partial(cast, cfg) if frozen else lambda x: x
  abstract = jax.eval_shape(cast, transformer.abstract_params(cfg))
  shardings = mesh_lib.shardings(transformer.logical_axes(cfg, weights),
                                 abstract, mesh)
  if random_key is not None:
    init = jax.jit(lambda key: cast(transformer.init(cfg, key, random_std)),
                   out_shardings=shardings)
    return cfg, init(random_key)
  tensors = safetensors.open_folder(folder)
  parts = list(stored_parts(cfg, abstract))
  _check(folder, cfg, tensors, parts)
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
    zeros = pool.submit(zeros.compile)  # while the first files are read
    for layer, raw, nbytes in _read_ahead(parts, tensors, mesh, pool):
      if layer is None:
        params = {
            k: jax.device_put(v.astype(abstract[k].dtype), shardings[k])
            for k, v in raw.items()
        }
        params['layers'] = zeros.result()()
      else:
        # Waits, or layers that are read but not placed would pile up.
        params['layers'] = jax.block_until_ready(
            place(params['layers'], raw, layer))
      progress.update(nbytes)
  return cfg, params


@dataclasses.dataclass(frozen=True)
class _Part:
  """A parameter, or one layer of it, and the tensors that it is stored as."""

  key: str
  layer: int | None
  names: tuple[str, ...]  # one, or one for each expert
  theirs: tuple[int, ...]  # shape of each
  ours: tuple[int, ...]

  def nbytes(self, tensors) -> int:
    one = tensors[self.names[0]]
    return len(self.names) * math.prod(self.theirs) * one.dtype.itemsize


def stored_parts(cfg: ModelConfig, abstract) -> Iterator[_Part]:
  """How a model is stored: every parameter, layer by layer."""
  names = _LAYER | (_POST_NORMS if cfg.post_norms else {})
  for key, name in _TOP.items():
    if key in abstract:
      shape = abstract[key].shape
      yield _Part(key, None, (name,), _theirs(key, shape), shape)
  for i in range(cfg.num_layers):
    prefix = f'model.layers.{i}.'
    for key, stacked in abstract['layers'].items():
      ours = stacked.shape[1:]
      if cfg.num_experts and key in _EXPERTS:
        paths = tuple(prefix + names[key].replace('mlp.', f'mlp.experts.{e}.')
                      for e in range(cfg.num_experts))
        yield _Part(key, i, paths, _theirs(key, ours[1:]), ours)
      else:
        yield _Part(key, i, (prefix + names[key],), _theirs(key, ours), ours)


def _theirs(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The stored shape of a parameter."""
  size = math.prod(shape)
  if key == 'embedding' or len(shape) == 1:
    return shape
  if key.endswith('_bias'):
    return (size,)
  if key == 'o':
    return (shape[-1], size // shape[-1])
  return (size // shape[0], shape[0])


def _check(folder, cfg, tensors, parts) -> None:
  """All tensors are there in the right shape, and no others."""
  for part in parts:
    for name in part.names:
      if name not in tensors:
        raise InputError(f'{folder}: tensor {name} is missing')
      if tensors[name].shape != part.theirs:
        raise InputError(f'{tensors[name]}: shape {tensors[name].shape}, '
                         f'config.json says {part.theirs}')
  used = {name for part in parts for name in part.names}
  # A tied head may be stored beside the embedding; it is the same matrix.
  tied = {_TOP['head']} if cfg.tied_embedding else set()
  # Older files store the frequencies of the rotary embedding, too.
  known = tied | {n for n in tensors if n.endswith('.rotary_emb.inv_freq')}
  if extra := sorted(set(tensors) - used - known):
    raise InputError(f'{tensors[extra[0]]}: the model of config.json does not '
                     f'have it ({len(extra)} such tensors)')


def _read_ahead(parts, tensors, mesh, pool):
  """Yields (layer, its arrays on the devices, bytes); None is the top.

  Other threads read a layer while the one before it is placed.

  The rows of a stored matrix, or the experts of a layer, are split over the
  devices. The host transposes matrices on their way: XLA:CPU's own transpose
  is several times slower, and on TPUs it saves the devices a pass.
  """

  def read(part):
    experts, flip = len(part.names) > 1, _transposed(part)
    shape = part.theirs[::-1] if flip else part.theirs
    shape = (len(part.names), *shape) if experts else shape
    axis = 1 if flip and not experts else 0
    sharding = mesh_lib.split(shape, axis, mesh)

    @functools.cache
    def block(start, stop):
      names = part.names[start:stop] if experts else part.names
      rows = (0, part.theirs[0]) if experts else (start, stop)
      stored = [tensors[name].rows(*rows) for name in names]
      stored = [x.T if flip else x for x in stored]
      return np.stack(stored) if experts else stored[0]

    return jax.make_array_from_callback(
        shape, sharding, lambda i: block(*i[axis].indices(shape[axis])[:2]))

  units = [
      list(group)
      for _, group in itertools.groupby(parts, key=lambda part: part.layer)
  ]
  submit = lambda unit: {p.key: pool.submit(read, p) for p in unit}
  following = submit(units[0])
  for i, unit in enumerate(units):
    reading = following
    if i + 1 < len(units):
      following = submit(units[i + 1])
    yield (unit[0].layer, {k: f.result() for k, f in reading.items()},
           sum(part.nbytes(tensors) for part in unit))


def _place(layers, raw, layer):
  """Writes one layer into the stacked parameters, in place."""

  def put(whole, part):
    part = part.astype(whole.dtype)
    # As bits: XLA:CPU updates bfloat16 by way of the whole in float32.
    bits = f'uint{8 * whole.dtype.itemsize}'
    return jax.lax.dynamic_update_slice_in_dim(whole.view(bits),
                                               part.view(bits), layer,
                                               0).view(whole.dtype)

  def one(key, whole):
    part = raw[key].reshape(1, *whole.shape[1:])
    if isinstance(whole, transformer.Int8):
      part = transformer.int8(key, part)
    return jax.tree.map(put, whole, part)

  return {k: one(k, whole) for k, whole in layers.items()}


def save(folder: epath.PathLike, cfg: ModelConfig, params, base: epath.PathLike,
         dtype: str = 'float32', max_bytes: int = 5 * 10**9) -> None:
  """Writes a directory that `load` and `transformers` open.

  All processes call it, process 0 writes; the host holds one tensor at a
  time. config.json goes first and comes last: a folder without it was cut
  short.

  Args:
    folder: on disk or gs://; created, its model files are overwritten.
    cfg: the model.
    params: its parameters.
    base: a directory of the same model; its config.json, tokenizer and
      generation files are copied.
    dtype: of the stored tensors, 'float32' or 'bfloat16'.
    max_bytes: of one file.

  Raises:
    ValueError: `base` is another model.
  """
  folder, base = epath.Path(folder), epath.Path(base)
  raw = json.loads((base / 'config.json').read_text())
  raw |= {'dtype': dtype, 'torch_dtype': dtype}  # new and old readers
  same = {'dtype': cfg.dtype, 'remat': cfg.remat, 'attention': cfg.attention}
  if dataclasses.replace(config.parse_config(dict(raw), str(base)),
                         **same) != cfg:
    raise ValueError(f'{base}/config.json is not of the model to be saved')
  to = np.dtype({'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}[dtype])
  parts = list(stored_parts(cfg, params))
  shapes = {name: p.theirs for p in parts for name in p.names}
  arrays = _fetch(parts, params, to)
  if jax.process_index() == 0:
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / 'config.json', *folder.glob('*.safetensors*')):
      old.unlink(missing_ok=True)  # an interrupted save is no model
    safetensors.write_folder(folder, shapes, to, arrays, max_bytes)
    for file in _OTHER_FILES:
      if (base / file).exists() and base != folder:
        (folder / file).write_bytes((base / file).read_bytes())
    (folder / 'config.json').write_text(json.dumps(raw, indent=2) + '\n')
  else:
    for _ in arrays:  # its part in the collectives
      pass
  mesh_lib.barrier('save')


def _fetch(parts, params, dtype) -> Iterator[tuple[str, np.ndarray]]:
  """(name, stored array) one after the other, from all processes' devices."""
  for part in parts:
    tree = params if part.layer is None else params['layers']
    value = tree[part.key]
    sharding = (NamedSharding(value.sharding.mesh, PartitionSpec())
                if isinstance(value.sharding, NamedSharding) else None)
    experts = len(part.names) > 1
    shape = (len(part.names), *part.theirs) if experts else part.theirs
    out = np.asarray(
        _taker(sharding, shape, dtype, _transposed(part))(value, part.layer))
    yield from zip(part.names, out if experts else [out])


@functools.cache
def _taker(sharding: NamedSharding | None, shape: tuple[int, ...],
           dtype: np.dtype, transposed: bool):
  """(parameter, layer) -> the stored array, on every device."""

  def take(whole, layer):
    value = (whole if layer is None else whole[layer]).astype(dtype)
    if not transposed:
      return value.reshape(shape)
    return value.reshape(*shape[:-2], shape[-1], shape[-2]).swapaxes(-1, -2)

  return jax.jit(take, out_shardings=sharding)


def _transposed(part: _Part) -> bool:
  return len(part.theirs) == 2 and part.key != 'embedding'
