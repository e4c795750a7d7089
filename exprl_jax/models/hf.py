"""Hugging Face directories in and out: safetensors <-> sharded parameters."""

import dataclasses
import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from exprl_jax import mesh as mesh_lib
from exprl_jax.models import config, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.types import InputError

# Ours -> theirs. Their matrices are [out, in]; ours are [in, *out], or
# [*in, out] for the attention output.
_TOP = {'embedding': 'model.embed_tokens.weight',
        'final_norm': 'model.norm.weight', 'head': 'lm_head.weight'}
_LAYER = {
    'attention_norm': 'input_layernorm', 'q': 'self_attn.q_proj',
    'k': 'self_attn.k_proj', 'v': 'self_attn.v_proj',
    'q_norm': 'self_attn.q_norm', 'k_norm': 'self_attn.k_norm',
    'o': 'self_attn.o_proj', 'mlp_norm': 'post_attention_layernorm',
    'gate': 'mlp.gate_proj', 'up': 'mlp.up_proj', 'down': 'mlp.down_proj'}
_TOKENIZER_FILES = ('tokenizer.json', 'tokenizer.model', 'chat_template.jinja',
                    'tokenizer_config.json', 'special_tokens_map.json',
                    'generation_config.json')


def load(folder: str | pathlib.Path, mesh, dtype: str = 'float32',
         remat: bool = False, random_key: jax.Array | None = None,
         random_std: float = 0.0):
  """Loads a model onto a mesh.

  Args:
    folder: a Hugging Face model directory.
    mesh: where the parameters go, sharded by their logical axes.
    dtype: of the matrix products ('float32' or 'bfloat16').
    remat: recompute layers in the backward pass.
    random_key: draws new weights; only config.json is read.
    random_std: of the new weights; 0 is 1 / sqrt(fan-in).

  Returns:
    (ModelConfig, parameters in float32).

  Raises:
    InputError: the folder, a tensor or a shape is not as it should be; the
      message names it.
  """
  cfg = config.read_config(folder)
  cfg = dataclasses.replace(cfg, dtype=dtype, remat=remat)
  abstract = transformer.abstract_params(cfg)
  shardings = mesh_lib.shardings(transformer.logical_axes(cfg), abstract, mesh)
  if random_key is not None:
    init = jax.jit(transformer.init, static_argnums=(0, 2),
                   out_shardings=shardings)
    return cfg, init(cfg, random_key, random_std)
  tensors = _Tensors(pathlib.Path(folder))

  def read(path, want, sharding):
    keys = [k.key for k in path]
    if keys[0] == 'layers':
      names = [f'model.layers.{i}.{_LAYER[keys[1]]}.weight'
               for i in range(cfg.num_layers)]
      value = np.stack([_from_hf(keys[1], tensors.get(n), want.shape[1:],
                                 tensors.where(n)) for n in names])
    else:
      name = _TOP[keys[0]]
      value = _from_hf(keys[0], tensors.get(name), want.shape,
                       tensors.where(name))
    return jax.make_array_from_callback(want.shape, sharding,
                                        lambda i: value[i])

  params = jax.tree_util.tree_map_with_path(read, abstract, shardings)
  tensors.check_all_used(cfg)
  return cfg, params


def save(folder: str | pathlib.Path, cfg: ModelConfig, params,
         tokenizer_from: str | pathlib.Path, dtype: str = 'float32') -> None:
  """Writes a directory that `load` and `transformers` open.

  Args:
    folder: created if need be; its model files are overwritten.
    cfg: the model.
    params: its parameters.
    tokenizer_from: a model directory whose tokenizer files are copied.
    dtype: of the stored tensors, 'float32' or 'bfloat16'.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  to = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}[dtype]
  tensors = {}
  for name, value in params.items():
    if name == 'layers':
      for ours, stacked in value.items():
        for i, w in enumerate(np.asarray(stacked)):
          tensors[f'model.layers.{i}.{_LAYER[ours]}.weight'] = _to_hf(ours, w)
    else:
      tensors[_TOP[name]] = _to_hf(name, np.asarray(value))
  # A non-contiguous array would be stored in memory order: silently wrong.
  tensors = {k: np.ascontiguousarray(v.astype(to)) for k, v in tensors.items()}
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors',
                              metadata={'format': 'pt'})
  (folder / 'config.json').write_text(
      json.dumps(config.to_hf(cfg, dtype), indent=2) + '\n')
  for file in _TOKENIZER_FILES:
    source = pathlib.Path(tokenizer_from) / file
    if source.exists() and source.resolve() != (folder / file).resolve():
      shutil.copyfile(source, folder / file)


def _from_hf(name, tensor, shape, where):
  tensor = tensor.astype(np.float32)
  size = int(np.prod(shape))
  if name == 'embedding' or len(shape) == 1:
    theirs = tuple(shape)
  elif name == 'o':
    theirs = (shape[-1], size // shape[-1])
  else:
    theirs = (size // shape[0], shape[0])
  if tensor.shape != theirs:
    raise InputError(f'{where}: shape {tensor.shape}, config.json says '
                     f'{theirs}')
  return tensor if theirs == tuple(shape) else tensor.T.reshape(shape)


def _to_hf(name, value):
  if name == 'embedding' or value.ndim == 1:
    return value
  if name == 'o':
    return value.reshape(-1, value.shape[-1]).T
  return value.reshape(value.shape[0], -1).T


class _Tensors:
  """The tensors of a directory by name, from one file or several."""

  def __init__(self, folder: pathlib.Path):
    self._folder, self._files, self._used = folder, {}, set()
    paths = sorted(folder.glob('*.safetensors'))
    if not paths:
      raise InputError(f'{folder}: no *.safetensors file in it')
    for path in paths:
      try:
        file = safetensors.safe_open(path, framework='np')
      except (safetensors.SafetensorError, OSError) as e:
        raise InputError(
            f'{path}: corrupt or cut short ({e}); copy it again') from None
      self._files |= {name: (path, file) for name in file.keys()}

  def get(self, name: str) -> np.ndarray:
    if name not in self._files:
      raise InputError(f'{self._folder}: tensor {name} is missing')
    self._used.add(name)
    return self._files[name][1].get_tensor(name)

  def where(self, name: str) -> str:
    return f'{self._files[name][0]}: tensor {name}'

  def check_all_used(self, cfg: ModelConfig) -> None:
    # A tied head may be stored beside the embedding; it is the same matrix.
    tied = {'lm_head.weight'} if cfg.tied_embedding else set()
    if extra := sorted(set(self._files) - self._used - tied):
      raise InputError(f'{self._folder}: tensors that the model does not have: '
                       f'{", ".join(extra[:5])}')
