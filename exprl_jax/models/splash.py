"""Splash attention over packed rows: the Pallas kernel that ships with jax.

The kernel visits blocks of queries and keys. Which of them hold a pair of a
query and a key of one segment depends on the row, so the arrays that steer the
kernel are computed from its segment ids: a row pays for its segments, not for
the triangle of the whole row.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from exprl_jax.models.config import ModelConfig
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import AnyArray

_LANES = 128  # of a TPU register
_NO_ID = 2**31 - 1


def attend(cfg: ModelConfig, q: Float[Array, 'B T N H'],
           k: Float[Array, 'B T K H'], v: Float[Array, 'B T K H'],
           segment_ids: Int[AnyArray, 'B T'], kind: Int[AnyArray, ''] | int,
           saved: str, block: int = 0) -> Float[Array, 'B T N H']:
  """Computes causal attention within segments, on each device of the mesh.

  Args:
    cfg: soft-cap and windows.
    q: [B, T, N, H], with the scale of the scores in them.
    k: [B, T, K, H].
    v: [B, T, K, H].
    segment_ids: i32[B, T]; equal in a segment, 0 for padding. Outputs of
      padding are finite and have no meaning.
    kind: index into `cfg.kinds`, the layer's window.
    saved: name of the residuals, for policies of rematerialization.
    block: tokens of a block, a multiple of 128; 0: `block_size`.

  Returns:
    [B, T, N, H] in q's dtype.
  """
  branches = [
      functools.partial(
          _local, cfg.attention_softcap, window, saved, block
          or block_size(q.shape[1], q.shape[3], q.dtype, window))
      for window in cfg.kinds
  ]

  def run(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array,
          kind: jax.Array) -> jax.Array:
    if len(branches) == 1:
      return branches[0](q, k, v, ids)
    return jax.lax.switch(kind, branches, q, k, v, ids)

  mesh: Any = jax.sharding.get_abstract_mesh()
  if not mesh.empty:
    rows = mesh_lib.spec(('batch', None), segment_ids.shape, mesh)
    heads = mesh_lib.spec(('batch', None, 'kv_heads', None), k.shape, mesh)
    run = jax.shard_map(run, in_specs=(heads, heads, heads, rows, jax.P()),
                        out_specs=heads, check_vma=False)
  return run(q, k, v, jnp.asarray(segment_ids), jnp.int32(kind))


def block_size(tokens: int, head_dim: int, dtype: Any, window: int) -> int:
  """Chooses the block of a row: at most 1,024 tokens, or 512.

  Larger blocks have fewer steps, smaller ones skip more between segments and
  outside of windows (docs/performance.md). Blocks of 1,024 fit into the memory
  of all generations for heads of up to 128 in bfloat16.

  Args:
    tokens: T of the row.
    head_dim: H.
    dtype: of queries and keys.
    window: of the layer; 0: all.

  Returns:
    A multiple of 128 that splits the row evenly: it is padded by less than 128
    tokens for each block.
  """
  wide = head_dim > 128 or jnp.dtype(dtype).itemsize > 2
  most = 512 if wide or 0 < window < 2048 else 1024
  count = -(-tokens // most)
  return -(-tokens // (count * _LANES)) * _LANES


def needed(segment_ids: Int[Array, 'B T'], block: int,
           window: int) -> tuple[Int[Array, 'B M'], Int[Array, 'B M']]:
  """Finds the blocks that attention within segments cannot do without.

  Block i of the queries needs block j <= i of the keys if a query's window
  reaches it, and if the ranges of ids in the two overlap. It always needs its
  own, so that no query is without a key.

  Args:
    segment_ids: i32[B, T], T = M * block; padding, 0, is in no range.
    block: tokens of a block.
    window: tokens that a query looks back, itself included; 0: all.

  Returns:
    For each block of queries the first block of keys: with the blocks up to
    its own, they hold all it needs. For each block of keys the last block of
    queries that needs it. Both count within the row.
  """
  ids = segment_ids.reshape(len(segment_ids), -1, block)
  low, high = jnp.where(ids > 0, ids, _NO_ID).min(2), ids.max(2)
  index = jnp.arange(ids.shape[1])
  ago = index[:, None] - index[None, :]
  reached = (ago > 0) & (ago < _width(len(index), block, window))
  shared = ((low[:, :, None] <= high[:, None, :]) &
            (low[:, None, :] <= high[:, :, None]))
  use = shared & reached[None] | (ago == 0)[None]
  return use.argmax(2), index[-1] - use[:, ::-1].argmax(1)


def _width(count: int, block: int, window: int) -> int:
  """Counts the blocks that a block's window reaches, its own included."""
  return min(count, -(-(window - 1) // block) + 1) if window else count


def _local(softcap: float, window: int, saved: str, block: int, q: jax.Array,
           k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """Pads T to a multiple of the block, and runs the kernel on one device.

  It takes the G query heads of one kv head. Rows follow one another, since no
  block needs one of another row:
    q [B, T, N, H] -> [K, G, B * T, H];  k, v [B, T, K, H] -> [K, B * T, H]
  """
  b, t, n, h = q.shape
  kv = k.shape[2]
  pad = ((0, 0), (0, -t % block))
  ids = jnp.pad(segment_ids, pad)
  q, k, v = (jnp.pad(x, (*pad, (0, 0), (0, 0))) for x in (q, k, v))
  q = q.reshape(b, -1, kv, n // kv, h).transpose(2, 3, 0, 1, 4)
  k, v = (x.transpose(2, 0, 1, 3).reshape(kv, -1, h) for x in (k, v))

  def run(interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array,
          ids: jax.Array) -> jax.Array:
    kernel = _kernel(ids, softcap, window, saved, block, interpret)
    # Under an axis of one, XLA slices the logsumexp [K, G, B * T, 128] without
    # a copy of it.
    return jax.vmap(jax.vmap(kernel))(q[None], k[None], v[None])[0]

  q = q.reshape(kv, n // kv, -1, h)
  out = jax.lax.platform_dependent(q, k, v, ids,
                                   tpu=functools.partial(run, False),
                                   default=functools.partial(run, True))
  out = out.reshape(kv, n // kv, b, -1, h).transpose(2, 3, 0, 1, 4)
  return out.reshape(b, -1, n, h)[:, :t]


def _kernel(ids: jax.Array, softcap: float, window: int, saved: str, block: int,
            interpret: bool) -> Any:
  """Makes the kernel (q, k, v) of rows of ids: it visits what they need."""
  # Imported here: loading Pallas costs a second that no other platform needs.
  from jax.experimental.pallas.ops.tpu import splash_attention
  splash = splash_attention.splash_attention_kernel
  sizes = splash.BlockSizes(block_q=block, block_kv=block,
                            block_kv_compute=block, block_q_dkv=block,
                            block_kv_dkv=block, block_kv_dkv_compute=block,
                            block_q_dq=block, block_kv_dq=block)
  by_query, by_key = schedules(ids, block, window)
  kernel = splash.SplashAttentionKernel(
      by_query, by_query, by_key, block_sizes=sizes, is_mqa=True,
      save_residuals=False, mask_value=splash.DEFAULT_MASK_VALUE,
      attn_logits_soft_cap=softcap or None, residual_checkpoint_name=saved,
      mask_function=_visible(window), interpret=interpret)
  flat = ids.reshape(-1)
  return functools.partial(kernel, segment_ids=splash.SegmentIds(flat, flat))


@functools.cache  # the kernel is compiled for the identity of this function
def _visible(window: int) -> Any:
  """Returns the mask within a block, of positions of queries and keys."""

  def visible(q: jax.Array, k: jax.Array) -> jax.Array:
    return (q >= k) & (q - k < window) if window else q >= k

  return visible


def schedules(ids: Int[Array, 'B T'], block: int,
              window: int) -> tuple[Any, Any]:
  """Makes the MaskInfo of what the kernel visits.

  Args:
    ids: i32[B, T], as in `needed`.
    block: tokens of a block.
    window: tokens that a query looks back, itself included; 0: all.

  Returns:
    By queries [1, m, W], by keys [1, W, m].

  With m blocks in all rows: step w of block i of the queries takes block
  first[i] + w of the keys, up to i; step w of block j of the keys takes block
  j + w of the queries, up to last[j]. The steps that are left do nothing, and
  name the block that is loaded, so that no other is.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention
  rows, count = len(ids), ids.shape[1] // block
  start = count * jnp.arange(rows)[:, None]
  first, last = ((x + start).reshape(-1) for x in needed(ids, block, window))
  own = jnp.arange(rows * count)
  step = jnp.arange(_width(count, block, window))
  small = jnp.int8 if rows * count <= 128 else jnp.int16  # scarce memory
  positions: Any = jnp.arange(ids.size)

  def schedule(wanted: jax.Array, end: jax.Array) -> Any:
    return splash_attention.splash_attention_mask_info.MaskInfo(
        data_next=jnp.minimum(wanted, end).astype(small)[None], mask_next=None,
        block_mask=(wanted <= end).astype(small)[None],
        partial_mask_blocks=None, q_sequence=positions)

  return (schedule(first[:, None] + step[None, :], own[:, None]),
          schedule(own[None, :] + step[:, None], last[None, :]))
