"""Attention over pages by jax's Pallas kernel for TPUs.

The kernel multiplies rows of 128 lanes (or a multiple). Where a row holds
several kv heads, a query stands in the lanes of its own head, with zeros in
those of the others. Its scores are exact, and of the output, where they weight
the values of all heads of the row, it keeps its own lanes.
"""

import functools

import jax
import jax.numpy as jnp

from exprl_jax.models import paged_pool
from exprl_jax.models.config import ModelConfig
from exprl_jax.models.paged_kernels import Kernel
from exprl_jax.models.paged_pool import Layout, Pool
from exprl_jax.types import AnyArray

_LANES = 128
_TABLE_BYTES = 2**19  # of page tables in scalar memory, which has 1 MiB


def attend(cfg: ModelConfig, layout: Layout, q: jax.Array, k: jax.Array,
           v: jax.Array, pool: Pool, table: AnyArray, positions: AnyArray,
           layer: AnyArray | int,
           kind: AnyArray | int) -> tuple[jax.Array, Pool]:
  """Writes keys and values, then runs the kernel; see paged.attend."""
  b, t, n, h = q.shape
  kernel, heads = layout.kernel, k.shape[2]
  # 1. Write rows [B, T, groups, 2 * rows, lanes]: key, value, key, ... Groups
  # are indexed as pages are: otherwise XLA copies the pool into another order.
  both = jnp.stack([_rows(kernel, k), _rows(kernel, v)], axis=3)
  both = both.reshape(b, t, kernel.groups, -1, kernel.lanes)
  index, offset = paged_pool.slots(layout, table, positions, layer)
  groups = jnp.arange(kernel.groups)[None, None]
  pages = pool.keys.reshape(-1, *pool.keys.shape[3:])
  pages = pages.at[index[..., None] * kernel.groups + groups,
                   offset[..., None]].set(paged_pool.narrow(both, pages.dtype))
  # 2. Attend. The window of a layer is static in the kernel.
  start = jnp.maximum(positions[:, 0], 0)
  table = jnp.asarray(table) + layer * layout.pages
  q = _queries(kernel, q, heads)
  branches = [
      functools.partial(_run, cfg, layout, window) for window in cfg.kinds
  ]
  args = q, pages, table, start
  out = (branches[0](
      *args) if len(branches) == 1 else jax.lax.switch(kind, branches, *args))
  return _own(kernel, out, heads,
              h)[:, :, :n], pool._replace(keys=pages.reshape(pool.keys.shape))


def _run(cfg: ModelConfig, layout: Layout, window: int, q: jax.Array,
         pages: jax.Array, table: jax.Array, start: jax.Array) -> jax.Array:
  """Runs the kernel over each group of each row as a sequence of its own.

  Args:
    cfg: the model.
    layout: of the pool.
    window: tokens that a query looks back; 0: all.
    q: [B, groups, T, N, lanes], N of a group.
    pages: [L * pages * groups, page, 2 * rows, lanes].
    table: i32[B, M], indices into `pages`.
    start: i32[B], the first position of each row.
  """
  b, groups, t = q.shape[:3]
  if window:
    table, start = _window(layout, t, window, table, start)
  # 1. Groups as sequences.
  table = table[:, None] * groups + jnp.arange(groups)[None, :, None]
  table, lengths = table.reshape(b * groups, -1), jnp.repeat(start + t, groups)
  q = q.reshape(b * groups, *q.shape[2:])
  # 2. As many of them at a time as the scalar memory has room for: the kernel
  # keeps the page table there, in rows of a multiple of 128 columns.
  row = 4 * _LANES * -(-table.shape[1] // _LANES)
  most = max(1, _TABLE_BYTES // row)
  out = [
      _call(cfg, layout, window, q[i:i + most], pages, table[i:i + most],
            lengths[i:i + most]) for i in range(0, b * groups, most)
  ]
  return jnp.concatenate(out).reshape(b, groups, *q.shape[1:])


def _call(cfg: ModelConfig, layout: Layout, window: int, q: jax.Array,
          pages: jax.Array, table: jax.Array, lengths: jax.Array) -> jax.Array:
  """Calls the kernel for sequences of T queries each.

  It is given block sizes: to choose them it would query a TPU, which a
  compilation ahead of time does not have.

  Args:
    cfg: the model.
    layout: of the pool.
    window: tokens that a query looks back; 0: all.
    q: [sequences, T, N, lanes].
    pages: [pages, page, 2 * rows, lanes].
    table: i32[sequences, M], indices into `pages`.
    lengths: i32[sequences], with the queries' own positions.
  """
  from jax.experimental.pallas.ops.tpu import ragged_paged_attention as pallas
  count, t = q.shape[:2]
  kernel = layout.kernel
  blocks = kernel.decode if t == 1 else kernel.prefill
  # With a scale, fp8 keys are cast to the queries' dtype, as they must be.
  scale = 1.0 if pages.dtype.itemsize == 1 else None
  out = pallas.ragged_paged_attention(
      q.reshape(-1, *q.shape[2:]), pages, lengths, table,
      jnp.arange(count + 1, dtype=jnp.int32) * t, jnp.array([count], jnp.int32),
      sm_scale=1.0, k_scale=scale, v_scale=scale, sliding_window=window or None,
      soft_cap=cfg.attention_softcap or None,
      num_kv_pages_per_block=min(blocks.pages, table.shape[1]),
      num_queries_per_block=min(blocks.queries, count if t == 1 else t),
      vmem_limit_bytes=kernel.vmem)
  return out.reshape(q.shape)


def _window(layout: Layout, tokens: int, window: int, table: jax.Array,
            start: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cuts a page table to what queries of a window see, and moves `start`.

  The kernel would read all pages before the window, too.

  Args:
    layout: of the pool.
    tokens: T.
    window: tokens that a query looks back.
    table: [B, M].
    start: i32[B], the first position of each row.
  """
  columns = min(table.shape[1], -(-(tokens + window) // layout.page) + 1)
  first = jnp.maximum(start - window + 1, 0) // layout.page
  first = jnp.minimum(first, table.shape[1] - columns)
  index = first[:, None] + jnp.arange(columns)[None]
  return (jnp.take_along_axis(table, index,
                              axis=1), start - first * layout.page)


def _rows(kernel: Kernel, x: jax.Array) -> jax.Array:
  """Lays kv heads [B, T, K, H] side by side in [B, T, groups * rows, lanes]."""
  b, t, k, h = x.shape
  rows = kernel.groups * kernel.rows
  x = jnp.pad(x, ((0, 0), (0, 0), (0, rows * kernel.heads_per_row - k), (0, 0)))
  x = x.reshape(b, t, rows, kernel.heads_per_row * h)
  return _widen(x, kernel.lanes)


def _queries(kernel: Kernel, q: jax.Array, heads: int) -> jax.Array:
  """Puts queries [B, T, N, H] into lanes: [B, groups, T, N of a group, lanes].
  """
  b, t, n, h = q.shape
  groups, f = kernel.groups, kernel.heads_per_row
  # 1. Queries of heads that only fill a row up.
  missing = groups * kernel.rows * f - heads
  q = jnp.pad(q, ((0, 0), (0, 0), (0, missing * (n // heads)), (0, 0)))
  # 2. [.., row, head of the row, G, H] -> [.., row, head, G, place, H].
  q = q.reshape(b, t, groups, kernel.rows, f, n // heads, h)
  place = jnp.eye(f, dtype=q.dtype).reshape(1, 1, 1, 1, f, 1, f, 1)
  q = q[..., None, :] * place
  q = _widen(q.reshape(b, t, groups, -1, f * h), kernel.lanes)
  return q.transpose(0, 2, 1, 3, 4)


def _own(kernel: Kernel, out: jax.Array, heads: int, h: int) -> jax.Array:
  """Picks each query's lanes of [B, groups, T, N of a group, lanes].

  Returns:
    [B, T, N, H], with the queries that fill rows up at the end.
  """
  b, groups, t = out.shape[:3]
  f = kernel.heads_per_row
  out = out[..., :f * h].transpose(0, 2, 1, 3, 4)
  out = out.reshape(b, t, groups * kernel.rows, f, -1, f, h)
  own = [out[:, :, :, i, :, i] for i in range(f)]
  return jnp.stack(own, axis=3).reshape(b, t, -1, h)


def _widen(x: jax.Array, lanes: int) -> jax.Array:
  """Pads the last axis with zeros."""
  return jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, lanes - x.shape[-1])))
