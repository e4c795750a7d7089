"""Rotary position embedding and the ways to stretch it."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from exprl_jax.types import AnyArray

_LENGTH = {'original_max_position_embeddings': 'original_length'}
# rope_type of config.json -> its keys -> fields of Rope.
ROPE_KEYS: dict[str, dict[str, str]] = {
    'default': {},
    'linear': {'factor': 'factor'},
    'llama3': {
        'factor': 'factor', 'low_freq_factor': 'low',
        'high_freq_factor': 'high', **_LENGTH
    },
    'yarn': {
        'factor': 'factor', 'beta_slow': 'low', 'beta_fast': 'high',
        'attention_factor': 'attention_factor', **_LENGTH
    },
}
OPTIONAL_ROPE_KEYS: dict[str, tuple[str, ...]] = {
    'default': (), 'linear': (), 'llama3': (),
    'yarn': ('low', 'high', 'attention_factor')
}


@dataclasses.dataclass(frozen=True)
class Rope:
  """A rotary embedding; which fields matter depends on the kind."""

  theta: float
  kind: str = 'default'
  factor: float = 1.0
  low: float | None = None
  high: float | None = None
  original_length: int = 0
  attention_factor: float | None = None


def frequencies(rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
  """Returns radians per position f32[head_dim / 2], and the factor of sin, cos.
  """
  exponent = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
  frequency = (1.0 / rope.theta**exponent).astype(np.float32)
  if rope.kind == 'linear':
    return frequency / np.float32(rope.factor), 1.0
  if rope.kind == 'llama3':
    return _llama3(rope, frequency), 1.0
  if rope.kind == 'yarn':
    return _yarn(rope, frequency, head_dim)
  return frequency, 1.0


def _llama3(rope: Rope, frequency: np.ndarray) -> np.ndarray:
  """Stretches long waves, keeps short ones and blends those between."""
  assert rope.low is not None and rope.high is not None
  length = rope.original_length
  wave = 2 * math.pi / frequency
  blend = np.clip((length / wave - rope.low) / (rope.high - rope.low), 0, 1)
  return ((1 - blend) * frequency / rope.factor + blend * frequency).astype(
      np.float32)


def _yarn(rope: Rope, frequency: np.ndarray,
          head_dim: int) -> tuple[np.ndarray, float]:
  """Blends by a linear ramp over dimensions (YaRN, arXiv 2309.00071)."""

  def dimension(rotations: int | float) -> float:
    # The one that rotates so many times within the original length.
    wave = rope.original_length / (rotations * 2 * math.pi)
    return head_dim * math.log(wave) / (2 * math.log(rope.theta))

  first = max(math.floor(dimension(rope.high or 32)), 0)
  last = min(math.ceil(dimension(rope.low or 1)), head_dim - 1)
  ramp = np.clip((np.arange(head_dim // 2) - first) / max(last - first, 0.001),
                 0, 1)
  scaled = frequency * (1 - ramp) + frequency / rope.factor * ramp
  factor = rope.attention_factor
  if factor is None:
    factor = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
  return scaled.astype(np.float32), factor


def rotate(x: Float[Array, 'B T N H'], positions: Int[AnyArray, 'B T'],
           frequency: Float[AnyArray, ' half'],
           factor: Float[AnyArray, ''] | float) -> Float[Array, 'B T N H']:
  """Rotates pairs (i, i + H / 2) of each head by the positions, in float32.

  Args:
    x: queries or keys [B, T, N, H].
    positions: i32[B, T].
    frequency: f32[H / 2], radians per position.
    factor: multiplies sin and cos.
  """
  angle = positions[:, :, None, None] * frequency[None, None, None]
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  sin, cos = factor * jnp.sin(angle), factor * jnp.cos(angle)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin],
                         axis=-1).astype(x.dtype)
