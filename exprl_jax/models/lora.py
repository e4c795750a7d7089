"""Low-rank adapters: W + scale * A B, with W frozen (LoRA, arXiv 2106.09685).

Adapters are a tree of their own: {'layers': {'q': {'a': f32[L, in, r], 'b':
f32[L, r, out]}, ...}}, the only thing that is trained and checkpointed.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from exprl_jax.config import Model
from exprl_jax.models.config import ModelConfig
from exprl_jax.models.matrices import Adapted, Int8
from exprl_jax.types import Params

# Matrices that get adapters: how many of their axes are inputs.
INPUTS = {'q': 1, 'k': 1, 'v': 1, 'o': 2, 'gate': 1, 'up': 1, 'down': 1}


def scale(cfg: Model) -> float | None:
  """lora_alpha / lora_rank of config.policy; None: there are no adapters."""
  return cfg.lora_alpha / cfg.lora_rank if cfg.lora_rank else None


def _names(cfg: ModelConfig) -> list[str]:
  """Returns the matrices that get adapters; experts get none."""
  return [
      n for n in INPUTS if not (cfg.num_experts and n in ('gate', 'up', 'down'))
  ]


@functools.partial(jax.jit, static_argnums=(0, 2))
def init(cfg: ModelConfig, params: Params, rank: int, key: jax.Array) -> Params:
  """Draws adapters that change nothing yet: A is normal / sqrt(in), B is 0."""
  out: dict[str, Params] = {}
  for name in _names(cfg):
    layers, *shape = params['layers'][name].shape
    inputs = math.prod(shape[:INPUTS[name]])
    outputs = math.prod(shape[INPUTS[name]:])
    a = jax.random.normal(jax.random.fold_in(key, len(out)),
                          (layers, inputs, rank)) * inputs**-0.5
    out[name] = {'a': a, 'b': jnp.zeros((layers, rank, outputs))}
  return {'layers': out}


def attach(params: Params, adapters: Params, scale: float = 1.0) -> Params:
  """Returns parameters with which the model applies the adapters.

  The matrices of `params` stay as they are, also in int8; the adapters' bytes
  come on top. A change is not rounded to the matrix's dtype, as `merge` does.
  """
  layers = dict(params['layers'])
  for name, ab in adapters['layers'].items():
    b = ab['b'] if scale == 1.0 else ab['b'] * scale
    layers[name] = Adapted(layers[name], ab['a'], b)
  return params | {'layers': layers}


def detach(params: Params) -> tuple[Params, Params]:
  """Takes apart what `attach` has made: parameters, and adapters of scale 1.

  Parameters without adapters come back with {'layers': {}}.
  """
  adapted = {
      name: w for name, w in params['layers'].items() if isinstance(w, Adapted)
  }
  if not adapted:
    return params, {'layers': {}}
  plain = {name: w.base for name, w in adapted.items()}
  adapters = {name: {'a': w.a, 'b': w.b} for name, w in adapted.items()}
  return (params | {'layers': params['layers'] | plain}, {'layers': adapters})


def shardings(params: Params, adapters: Params) -> Params:
  """Returns NamedShardings of adapters that go with those of their matrices.

  The inputs of A are split as the matrix's first input axis, the outputs of B
  as its first output axis; the rank is not.

  Args:
    params: arrays, or ShapeDtypeStructs with shardings.
    adapters: of some of the matrices; only the names count.
  """

  def one(name: str) -> Params:
    w = params['layers'][name]
    sharding = (w.values if isinstance(w, Int8) else w).sharding
    assert isinstance(sharding, NamedSharding)
    axes = (*sharding.spec, *[None] * len(w.shape))
    of = functools.partial(NamedSharding, sharding.mesh)
    return {
        'a': of(PartitionSpec(None, axes[1], None)),
        'b': of(PartitionSpec(None, None, axes[1 + INPUTS[name]]))
    }

  return {'layers': {name: one(name) for name in adapters['layers']}}


@functools.partial(jax.jit, static_argnums=(2, 3))
def merge(params: Params, adapters: Params, scale: float,
          dtype: str = 'float32') -> Params:
  """Adds the adapters to the matrices, to export or to train further.

  Args:
    params: the frozen parameters.
    adapters: see above.
    scale: of A B.
    dtype: of the matrices that change. bfloat16 loses a change of less than
      half a percent of an entry.
  """
  layers = dict(params['layers'])
  for name, ab in adapters['layers'].items():
    w = layers[name]
    change = jnp.einsum('lir,lro->lio', ab['a'], ab['b'], precision='highest')
    layers[name] = (w + scale * change.reshape(w.shape)).astype(dtype)
  return params | {'layers': layers}
