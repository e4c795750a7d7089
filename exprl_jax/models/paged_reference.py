"""Attention over pages in plain JAX, page by page, for every platform."""

import functools

import jax
import jax.numpy as jnp

from exprl_jax.models import paged_pool
from exprl_jax.models.config import ModelConfig
from exprl_jax.models.paged_pool import Layout, Pool
from exprl_jax.types import AnyArray

# Largest score, sum of weights and weighted values, so far.
_Softmax = tuple[jax.Array, jax.Array, jax.Array]

_SPAN = 256  # tokens of pages at a time, for more than one query


def attend(cfg: ModelConfig, layout: Layout, q: jax.Array, k: jax.Array,
           v: jax.Array, pool: Pool, table: AnyArray, positions: AnyArray,
           layer: AnyArray | int,
           kind: AnyArray | int) -> tuple[jax.Array, Pool]:
  """Attends page by page, with a running softmax.

  A tile of rows walks over pages until its longest row ends. Rows are sorted
  into tiles by length, so that short ones do not wait for long ones.
  """
  b, t, n, h = q.shape
  heads = k.shape[2]
  # 1. [B, T, N, H] -> [B, K, G * T, H], the G = N / K queries of a kv head.
  pool = _write(pool, k, v, *paged_pool.slots(layout, table, positions, layer))
  q = q.reshape(b, t, heads, n // heads, h).transpose(0, 2, 3, 1, 4)
  q = q.reshape(b, heads, -1, h)
  if pool.keys.dtype == jnp.float32:
    q = q.astype(jnp.float32)  # rather than all keys and values to its type
  attend_to = functools.partial(_walk, cfg, layout, pool, layer, kind)
  # 2. Tile by tile, where many rows decode on CPUs.
  size = layout.kernel.tile
  if t == 1 and 0 < size < b:
    order = jnp.argsort(jnp.max(positions, axis=1))
    order = jnp.pad(order, (0, -b % size), mode='edge')

    def tile(i: jax.Array, out: jax.Array) -> jax.Array:
      rows = jax.lax.dynamic_slice(order, (i * size,), (size,))
      return out.at[rows].set(attend_to(q[rows], table[rows], positions[rows]))

    out = jax.lax.fori_loop(0, len(order) // size, tile, jnp.zeros(q.shape))
  else:
    out = attend_to(q, table, positions)
  # 3. And back to [B, T, N, H].
  out = out.reshape(b, heads, n // heads, t, h).transpose(0, 3, 1, 2, 4)
  return out.reshape(b, t, n, h).astype(k.dtype), pool


def _walk(cfg: ModelConfig, layout: Layout, pool: Pool, layer: AnyArray | int,
          kind: AnyArray | int, q: jax.Array, table: AnyArray,
          positions: AnyArray) -> jax.Array:
  """Computes attention of queries [B, K, G * T, H] over their rows' pages."""
  window = jnp.array(cfg.kinds)[kind]
  precision = 'highest' if q.dtype == jnp.float32 else None
  # Long runs of queries take several pages at a time: the sums are read and
  # written once for all of them.
  most = _SPAN // layout.page if positions.shape[1] > 1 else 1
  span = min(max(most, 1), table.shape[1])

  def visit(i: jax.Array, state: _Softmax) -> _Softmax:
    highest, total, out = state
    # 1. Scores [B, K, G * T, span * page] of the next pages of each row.
    columns = i * span + jnp.arange(span)  # behind the last: masked
    index = table[:, columns] + layer * layout.pages
    keys = _joined(pool.keys[0, index], 3)
    values = _joined(_present(pool.values)[0, index], 2)
    scores = jnp.einsum('bkqh,bkhp->bkqp', q, keys.astype(q.dtype),
                        precision=precision, preferred_element_type=jnp.float32)
    if pool.key_scales is not None:
      scores *= _joined(pool.key_scales[0, index], 2)[:, :, None]
    if cfg.attention_softcap:
      scores = cfg.attention_softcap * jnp.tanh(scores / cfg.attention_softcap)
    seen = _visible(cfg, i, span * layout.page, q.shape[2], positions, window)
    scores = jnp.where(seen, scores, -1e30)
    # 2. What was summed so far, relative to the new largest score.
    new = jnp.maximum(highest, scores.max(axis=-1))
    weight = jnp.where(seen, jnp.exp(scores - new[..., None]), 0.0)
    decay = jnp.exp(highest - new)
    # 3. Add these pages' weights and weighted values.
    total = total * decay + weight.sum(axis=-1)
    if pool.value_scales is not None:
      weight *= _joined(pool.value_scales[0, index], 2)[:, :, None]
    out = out * decay[..., None] + jnp.einsum(
        'bkqp,bkph->bkqh', weight.astype(q.dtype), values.astype(q.dtype),
        precision=precision, preferred_element_type=jnp.float32)
    return new, total, out

  shape = q.shape[:3]
  last = jnp.max(positions) // (span * layout.page) + 1
  _, total, out = jax.lax.fori_loop(
      0, last, visit,
      (jnp.full(shape, -1e30), jnp.zeros(shape), jnp.zeros(q.shape)))
  return out / jnp.maximum(total, 1e-30)[..., None]


def _joined(x: jax.Array, axis: int) -> jax.Array:
  """Pages [B, span, K, ...] side by side: [B, K, ...], longer in an axis."""
  x = jnp.moveaxis(x, 1, axis)
  return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2:])


def _visible(cfg: ModelConfig, i: jax.Array, width: int, queries: int,
             positions: AnyArray, window: jax.Array) -> jax.Array:
  """Marks what queries [G * T] see of the i-th `width` tokens of a row.

  Returns:
    bool[B, 1, G * T, width].
  """
  ago = positions[:, :, None] - (i * width +
                                 jnp.arange(width))[None, None]  # [B, T, width]
  seen = ago >= 0
  if any(cfg.kinds):
    seen &= (window == 0) | (ago < window)
  return jnp.tile(seen[:, None], (1, 1, queries // positions.shape[1], 1))


def _write(pool: Pool, k: jax.Array, v: jax.Array, index: jax.Array,
           offset: jax.Array) -> Pool:
  """Writes k and v [B, T, K, H] to their slots [B, T]."""
  values = _present(pool.values)
  if pool.key_scales is None:
    return pool._replace(
        keys=pool.keys.at[0, index, :, :,
                          offset].set(paged_pool.narrow(k, pool.keys.dtype)),
        values=values.at[0, index, :,
                         offset].set(paged_pool.narrow(v, values.dtype)))
  (k, key_scale), (v, value_scale) = _quantize(k), _quantize(v)
  return Pool(
      pool.keys.at[0, index, :, :, offset].set(k), values.at[0, index, :,
                                                             offset].set(v),
      pool.key_scales.at[0, index, :, offset].set(key_scale),
      _present(pool.value_scales).at[0, index, :, offset].set(value_scale))


def _present(x: jax.Array | None) -> jax.Array:
  """Returns an array that this kind of pool has."""
  assert x is not None
  return x


def _quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Rounds [B, T, K, H] to int8, with scales [B, T, K]."""
  x = x.astype(jnp.float32)
  scale = jnp.maximum(jnp.abs(x).max(axis=-1), 1e-30) / 127.0
  return jnp.round(x / scale[..., None]).astype(jnp.int8), scale
