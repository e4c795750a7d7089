"""Rotary position embedding and the ways to stretch it.

Two kinds depend on the length of the sequence. Prompts, samples and training
must agree on it, so it is a property of the run, `ModelConfig.max_tokens`: the
longest sequence that the run may meet.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from exprl_jax.types import AnyArray


@dataclasses.dataclass(frozen=True)
class Rope:
  """A rotary embedding; which fields matter depends on the kind."""

  theta: float
  kind: str = 'default'  # a key of KINDS
  factor: float = 1.0
  low: float | None = None
  high: float | None = None
  original_length: int = 0  # tokens
  attention_factor: float | None = None
  mscale: float | None = None
  mscale_all_dim: float | None = None
  truncate: bool = True
  short: tuple[float, ...] = ()  # [H / 2] up to the original length,
  long: tuple[float, ...] = ()  # and beyond

  def wrong(self, head_dim: int) -> str:
    """Says what no rope can have; '' if there is nothing."""
    for name in ('theta', 'factor', 'low', 'high', 'original_length',
                 'attention_factor', 'mscale', 'mscale_all_dim'):
      value = getattr(self, name)
      if value is not None and not _is_number(value):
        return f'{name}={value!r} of the rope should be a number'
    if self.theta <= 1 or self.factor <= 0 or (self.low is not None
                                               and self.low == self.high):
      return (f'a rope with theta={self.theta}, factor={self.factor}, '
              f'low={self.low}, high={self.high}')
    if (self.short or self.long) and not all(
        len(x) == head_dim // 2 and all(_is_number(f) and f
                                        for f in x)
        for x in (self.short, self.long)):
      return (f'short_factor and long_factor need {head_dim // 2} numbers, '
              'half of head_dim')
    return ''


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and 0 <= value < math.inf


# (rope, wavelengths f32[H / 2] over 2 pi, longest sequence) -> frequencies
# f32[H / 2] and the factor of sin and cos.
Stretch = Callable[[Rope, np.ndarray, int], tuple[np.ndarray, float]]


class Kind(NamedTuple):
  """A rope_type of config.json.

  Attributes:
    stretch: computes it.
    keys: of config.json -> fields of Rope.
    optional: those of the fields that may be absent.
    needs_length: whether it depends on the longest sequence.
  """

  stretch: Stretch
  keys: Mapping[str, str] = {}
  optional: tuple[str, ...] = ()
  needs_length: bool = False


def frequencies(rope: Rope, head_dim: int,
                max_tokens: int = 0) -> tuple[np.ndarray, float]:
  """Returns radians per position f32[head_dim / 2], and the factor of sin, cos.

  Args:
    rope: the embedding.
    head_dim: H.
    max_tokens: of the longest sequence, for kinds that depend on it.
  """
  exponent = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
  frequency, factor = KINDS[rope.kind].stretch(rope, rope.theta**exponent,
                                               max_tokens)
  return frequency.astype(np.float32), factor


def _default(rope: Rope, wave: np.ndarray,
             max_tokens: int) -> tuple[np.ndarray, float]:
  del rope, max_tokens
  return 1.0 / wave, 1.0


def _linear(rope: Rope, wave: np.ndarray,
            max_tokens: int) -> tuple[np.ndarray, float]:
  del max_tokens
  return 1.0 / wave / np.float32(rope.factor), 1.0


def _llama3(rope: Rope, wave: np.ndarray,
            max_tokens: int) -> tuple[np.ndarray, float]:
  """Stretches long waves, keeps short ones and blends those between."""
  del max_tokens
  assert rope.low is not None and rope.high is not None
  turns = rope.original_length / (2 * math.pi * wave)
  blend = np.clip((turns - rope.low) / (rope.high - rope.low), 0, 1)
  return (1 - blend) / wave / rope.factor + blend / wave, 1.0


def _yarn(rope: Rope, wave: np.ndarray,
          max_tokens: int) -> tuple[np.ndarray, float]:
  """Blends by a linear ramp over dimensions (YaRN, arXiv 2309.00071)."""
  del max_tokens
  head_dim = 2 * len(wave)

  def dimension(rotations: int | float) -> float:
    # The one that rotates so many times within the original length.
    turn = rope.original_length / (rotations * 2 * math.pi)
    return head_dim * math.log(turn) / (2 * math.log(rope.theta))

  first, last = dimension(rope.high or 32), dimension(rope.low or 1)
  if rope.truncate:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, head_dim - 1)
  ramp = np.clip((np.arange(head_dim // 2) - first) / ((last - first) or 0.001),
                 0, 1)
  scaled = (1 - ramp) / wave + ramp / (rope.factor * wave)
  return scaled, _yarn_attention(rope)


def _yarn_attention(rope: Rope) -> float:
  """The factor of sin and cos, which sharpens attention over more tokens."""

  def sharpen(scale: float) -> float:
    return 0.1 * scale * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

  if rope.attention_factor is not None:
    return rope.attention_factor
  if rope.mscale and rope.mscale_all_dim:
    return sharpen(rope.mscale) / sharpen(rope.mscale_all_dim)
  return sharpen(1.0)


def _longrope(rope: Rope, wave: np.ndarray,
              max_tokens: int) -> tuple[np.ndarray, float]:
  """Stretches each dimension by its own factor (LongRoPE, arXiv 2402.13753)."""
  factors = rope.long if max_tokens > rope.original_length else rope.short
  attention = rope.attention_factor
  if attention is None:
    stretched = max(rope.factor, 1.0)
    attention = math.sqrt(1 +
                          math.log(stretched) / math.log(rope.original_length))
  return 1.0 / (np.array(factors, np.float32) * wave), attention


_LENGTH = {'original_max_position_embeddings': 'original_length'}
_YARN_OPTIONAL = {
    'beta_slow': 'low', 'beta_fast': 'high',
    'attention_factor': 'attention_factor', 'mscale': 'mscale',
    'mscale_all_dim': 'mscale_all_dim', 'truncate': 'truncate'
}
KINDS: dict[str, Kind] = {
    'default': Kind(_default),
    'linear': Kind(_linear, {'factor': 'factor'}),
    'llama3': Kind(
        _llama3, {
            'factor': 'factor', 'low_freq_factor': 'low',
            'high_freq_factor': 'high', **_LENGTH
        }),
    'yarn': Kind(_yarn, {'factor': 'factor', **_LENGTH, **_YARN_OPTIONAL},
                 tuple(_YARN_OPTIONAL.values())),
    'longrope': Kind(
        _longrope, {
            'factor': 'factor', 'short_factor': 'short', 'long_factor': 'long',
            'attention_factor': 'attention_factor', **_LENGTH
        }, ('factor', 'attention_factor'), needs_length=True),
    # NTK by the current length: as 'default' up to the original length, which
    # is max_position_embeddings. Longer sequences are refused: each token more
    # would turn all keys before it anew.
    'dynamic': Kind(_default, {'factor': 'factor', **_LENGTH},
                    needs_length=True),
}


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
