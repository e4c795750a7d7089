"""int8 weights of frozen models.

Each layer, expert and output channel of the layers' matrices has a float32
scale. Embedding, head, norms and router stay as `transformer.cast` leaves them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from exprl_jax.models import transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.models.matrices import Int8
from exprl_jax.types import Params

# The layers' matrices and their input axes, counted from the end.
_INPUTS = {
    'q': (-3,), 'k': (-3,), 'v': (-3,), 'o': (-3, -2), 'gate': (-2,),
    'up': (-2,), 'down': (-2,)
}


@functools.partial(jax.jit, static_argnums=0)
def quantize(cfg: ModelConfig, params: Params) -> Params:
  """As `transformer.cast`, but the layers' matrices are in int8."""
  cast = transformer.cast(cfg, params)
  matrices = {k: int8(k, params['layers'][k]) for k in _INPUTS}
  return cast | {'layers': cast['layers'] | matrices}


def int8(key: str, w: jax.Array | Int8) -> Int8:
  """Rounds a matrix of the layers to the nearest multiples of its scales.

  Args:
    key: of the parameter.
    w: [L, *in, *out], or [L, E, *in, *out] of experts. One that is rounded
      already is returned as it is.
  """
  if isinstance(w, Int8):
    return w
  w = w.astype(jnp.float32)
  most = jnp.abs(w).max(axis=_INPUTS[key], keepdims=True)
  scale = jnp.maximum(most, 1e-30) / 127.0
  return Int8(jnp.round(w / scale).astype(jnp.int8), scale)


def logical_axes(cfg: ModelConfig) -> Params:
  """`transformer.logical_axes` of the parameters as `quantize` leaves them."""
  axes = transformer.logical_axes(cfg)
  for key, inputs in _INPUTS.items():
    values = axes['layers'][key]
    scale: Any = tuple(
        None if i - len(values) in inputs else a for i, a in enumerate(values))
    axes['layers'][key] = Int8(values, scale)
  return axes
