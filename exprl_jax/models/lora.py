"""Low-rank adapters: W + scale * A B, with W frozen (LoRA, arXiv 2106.09685).

Adapters are a tree of their own: {'layers': {'q': {'a': f32[L, in, r], 'b':
f32[L, r, out]}, ...}}, the only thing that is trained and checkpointed.
"""

import functools
import math

import jax
import jax.numpy as jnp

from exprl_jax.config import Model
from exprl_jax.models.config import ModelConfig
from exprl_jax.models.matrices import Adapted
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


def attach(params: Params, adapters: Params, scale: float) -> Params:
  """Returns parameters with which `transformer.forward` applies the adapters.
  """
  layers = dict(params['layers'])
  for name, ab in adapters['layers'].items():
    layers[name] = Adapted(layers[name], ab['a'], ab['b'] * scale)
  return params | {'layers': layers}


@functools.partial(jax.jit, static_argnums=(2, 3))
def merge(params: Params, adapters: Params, scale: float,
          dtype: str = '') -> Params:
  """Adds the adapters to the matrices, to sample from and to export.

  Args:
    params: the frozen parameters.
    adapters: see above.
    scale: of A B.
    dtype: of the matrices that change; '': as they are. bfloat16 loses a change
      of less than half a percent of an entry.
  """
  layers = dict(params['layers'])
  for name, ab in adapters['layers'].items():
    w = layers[name]
    change = jnp.einsum('lir,lro->lio', ab['a'], ab['b'], precision='highest')
    layers[name] = (w + scale * change.reshape(w.shape)).astype(dtype
                                                                or w.dtype)
  return params | {'layers': layers}
