"""Drawing tokens: temperature, top-k, top-p, min-p, without sorting.

Every setting is an array with one value per row, so changing one does not
recompile.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from exprl_jax.runtime import mesh as mesh_lib

_BLOCK = 512  # tokens of the vocabulary, in the search for the drawn one

_Bounds = tuple[jax.Array, jax.Array]


class Settings(NamedTuple):
  """How each of B rows is sampled."""

  temperature: Float[Array, ' B']  # 0 is greedy
  top_k: Int[Array, ' B']  # 0 is off
  top_p: Float[Array, ' B']  # 1 is off
  min_p: Float[Array, ' B']  # 0 is off


def draw(logits: Float[Array, 'B V'], keys: Key[Array, ' B'],
         positions: Int[Array, ' B'],
         settings: Settings) -> tuple[Int[Array, ' B'], Float[Array, ' B']]:
  """Draws a token per row.

  One uniform number per row, from fold_in(key, position), is inverted through
  the cumulative distribution: first over blocks of the vocabulary, then within
  one block. (Gumbel noise needs a random number for every token of the
  vocabulary, which takes twenty times as long on a CPU.)

  Args:
    logits: f32[B, V]; -inf is never drawn.
    keys: a typed key per row.
    positions: i32[B], of the tokens to draw.
    settings: per row.

  Returns:
    Tokens i32[B] and their log-probabilities f32[B] under the distribution
    that was sampled from, after temperature and truncation; greedy rows have
    those of softmax(logits).
  """
  greedy = settings.temperature == 0
  scaled = logits / jnp.where(greedy, 1.0, settings.temperature)[:, None]
  truncates = ((settings.top_k > 0) | (settings.top_p < 1) |
               (settings.min_p > 0)) & ~greedy
  scaled = jax.lax.cond(truncates.any(), truncate, lambda x, *_: x, scaled,
                        settings, truncates)
  highest = scaled.max(axis=-1)
  weight = jnp.exp(scaled - highest[:, None])
  u = jax.vmap(lambda k, p: jax.random.uniform(jax.random.fold_in(k, p)))(
      keys, positions)
  drawn, total = _invert(weight, u)
  # jnp.argmax, but ten times as fast on CPUs.
  last = logits.shape[-1] - 1
  likeliest = jnp.min(
      jnp.where(scaled == highest[:, None],
                jnp.arange(last + 1)[None], last), axis=-1)
  token = jnp.where(greedy, likeliest, drawn)
  picked = jnp.take_along_axis(scaled, token[:, None], axis=-1)[:, 0]
  return token.astype(jnp.int32), picked - highest - jnp.log(total)


def _invert(
    weight: Float[Array, 'B V'],
    u: Float[Array, ' B']) -> tuple[Int[Array, ' B'], Float[Array, ' B']]:
  """Finds the first token whose cumulative weight exceeds u times the total.

  Returns:
    The tokens, and the totals.
  """
  b, v = weight.shape
  # Blocks do not cross devices: only their sums and the chosen one do.
  parts = mesh_lib.vocab_parts(v)
  blocks = jnp.pad(weight.reshape(b, parts, -1),
                   ((0, 0), (0, 0), (0, -(v // parts) % _BLOCK)))
  blocks = mesh_lib.constrain(blocks, 'batch', 'vocab', None)
  blocks = blocks.reshape(b, -1, _BLOCK)
  upto = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
  total = upto[:, -1]
  target = _below(u * total, total)
  block = (upto <= target[:, None]).sum(axis=-1)
  before = jnp.take_along_axis(jnp.pad(upto, ((0, 0), (1, 0))), block[:, None],
                               axis=-1)[:, 0]
  inside = jnp.cumsum(
      jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], axis=-1)
  rest = _below(jnp.maximum(target - before, 0.0), inside[:, -1])
  part, block = jnp.divmod(block, blocks.shape[1] // parts)
  first = part * (v // parts) + block * _BLOCK
  return first + (inside <= rest[:, None]).sum(axis=-1), total


def _below(x: jax.Array, bound: jax.Array) -> jax.Array:
  """Clips x below the bound: rounding must not reach past the last token."""
  return jnp.minimum(x, jnp.nextafter(bound, 0.0))


def truncate(logits: Float[Array, 'B V'], settings: Settings,
             rows: Bool[Array, ' B']) -> Float[Array, 'B V']:
  """Sets logits outside of top-k, then top-p, then min-p to -inf.

  Of the tokens that top-k keeps, top-p keeps the smallest set that has at least
  that share of their probability. Ties at a threshold all stay. Thresholds are
  found by bisection over the 32 bits of a float, each step one pass over the
  vocabulary.

  Args:
    logits: f32[B, V], divided by the temperature.
    settings: per row.
    rows: bool[B], rows to truncate; the others are unchanged.
  """
  order = _sortable(logits)
  v = logits.shape[-1]
  k = jnp.where(settings.top_k > 0, settings.top_k, v)
  kept = order >= _largest(lambda t: (order >= t[:, None]).sum(axis=-1) >= k,
                           len(k))[:, None]
  highest = logits.max(axis=-1, keepdims=True)
  weight = jnp.where(kept, jnp.exp(logits - highest), 0.0)
  wanted = settings.top_p * weight.sum(axis=-1)
  nucleus = _largest(
      lambda t: jnp.sum(weight, axis=-1, where=order >= t[:, None]) >= wanted,
      len(k))
  kept &= (settings.top_p >= 1)[:, None] | (order >= nucleus[:, None])
  kept &= logits - highest >= jnp.log(settings.min_p)[:, None]
  return jnp.where(kept | ~rows[:, None], logits, -jnp.inf)


def _sortable(x: Float[Array, 'B V']) -> Int[Array, 'B V']:
  """Maps floats to i32 in the same order."""
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _largest(holds: Callable[[Int[Array, ' B']], Bool[Array, ' B']],
             rows: int) -> Int[Array, ' B']:
  """Finds per row the largest i32 for which a predicate holds.

  Args:
    holds: true up to some number per row, false above it.
    rows: B.
  """
  low = jnp.full(rows, jnp.iinfo(jnp.int32).min)
  high = jnp.full(rows, jnp.iinfo(jnp.int32).max)

  def halve(_: jax.Array, bounds: _Bounds) -> _Bounds:
    low, high = bounds
    middle = (low | high) - ((low ^ high) >> 1)  # rounds up, no overflow
    upper = holds(middle)
    return jnp.where(upper, middle, low), jnp.where(upper, high, middle - 1)

  return jax.lax.fori_loop(0, 32, halve, (low, high))[0]
