"""Splash attention over packed rows: the Pallas kernel that ships with jax.

The kernel visits blocks of queries and keys. Which of them hold a pair of a
query and a key of one segment depends on the row, so the arrays that steer the
kernel are computed from its segment ids: a row pays for its segments, not for
the triangle of the whole row.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from exprl_jax.models.config import ModelConfig
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import AnyArray

_LANES = 128  # of a TPU register
_NO_ID = 2**31 - 1


class Blocks(NamedTuple):
  """Tokens of a block of queries, and of one of keys, in each pass."""

  forward: int
  backward: int


def attend(cfg: ModelConfig, q: Float[Array, 'B T N H'],
           k: Float[Array, 'B T K H'], v: Float[Array, 'B T K H'],
           segment_ids: Int[AnyArray, 'B T'], kind: Int[AnyArray, ''] | int,
           saved: str, blocks: Blocks | None = None) -> Float[Array, 'B T N H']:
  """Computes causal attention within segments, on each device of the mesh.

  Args:
    cfg: soft-cap and windows.
    q: [B, T, N, H], with the scale of the scores in them.
    k: [B, T, K, H].
    v: [B, T, K, H].
    segment_ids: i32[B, T]. Padding, 0, costs nothing beyond its own blocks:
      its outputs are finite and of no meaning.
    kind: index into `cfg.kinds`, the layer's window.
    saved: name of the residuals, for policies of rematerialization.
    blocks: of the kernel; None: chosen for the length.

  Returns:
    [B, T, N, H] in q's dtype.
  """
  t = q.shape[1]
  blocks = blocks or Blocks(block_size(t), block_size(t))
  pad = -t % math.lcm(*blocks)

  def padded(x: AnyArray) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))

  q, k, v, ids = (padded(x) for x in (q, k, v, segment_ids))
  branches = [
      functools.partial(_local, cfg.attention_softcap, window, blocks, saved)
      for window in cfg.kinds
  ]

  def run(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array,
          kind: jax.Array) -> jax.Array:
    if len(branches) == 1:
      return branches[0](q, k, v, ids)
    return jax.lax.switch(kind, branches, q, k, v, ids)

  mesh: Any = jax.sharding.get_abstract_mesh()
  if not mesh.empty:
    rows = mesh_lib.spec(('batch', None), ids.shape, mesh)
    heads = mesh_lib.spec(('batch', None, 'kv_heads', None), k.shape, mesh)
    run = jax.shard_map(run, in_specs=(heads, heads, heads, rows, jax.P()),
                        out_specs=heads, check_vma=False)
  return run(q, k, v, ids, jnp.int32(kind))[:, :t]


def block_size(tokens: int, most: int = 512) -> int:
  """Splits a row evenly into blocks of at most `most` tokens.

  Returns:
    A multiple of the lanes of a register. The row is padded to a multiple of
    it, by less than 128 tokens for each of its blocks.
  """
  count = -(-tokens // most)
  return -(-tokens // (count * _LANES)) * _LANES


def needed(segment_ids: Int[Array, 'T'], block: int,
           window: int) -> tuple[Int[Array, 'n'], Int[Array, 'n']]:
  """Finds the blocks that attention within segments cannot do without.

  Block i of the queries needs block j <= i of the keys if a query's window
  reaches it, and if the ranges of ids in the two overlap. It always needs its
  own, so that no query is without a key.

  Args:
    segment_ids: i32[T], T = n * block; padding, 0, is in no range.
    block: tokens of a block.
    window: tokens that a query looks back, itself included; 0: all.

  Returns:
    For each block of queries the first block of keys: with the blocks up to
    its own, they hold all it needs. For each block of keys the last block of
    queries that needs it.
  """
  ids = segment_ids.reshape(-1, block)
  low = jnp.where(ids > 0, ids, _NO_ID).min(1)
  high = ids.max(1)
  index = jnp.arange(ids.shape[0])
  ago = index[:, None] - index[None, :]
  use = (low[:, None] <= high[None, :]) & (low[None, :] <= high[:, None])
  use &= (ago >= 0) & (ago < _width(ids.shape[0], block, window))
  use |= ago == 0
  first = jnp.argmax(use, axis=1)
  last = index[-1] - jnp.argmax(use[::-1], axis=0)
  return first, last


def _width(count: int, block: int, window: int) -> int:
  """Counts the blocks that a block's window reaches, its own included."""
  return min(count, -(-(window - 1) // block) + 1) if window else count


def _local(softcap: float, window: int, blocks: Blocks, saved: str,
           q: jax.Array, k: jax.Array, v: jax.Array,
           segment_ids: jax.Array) -> jax.Array:
  """Runs the kernel on one device's arrays; T is a multiple of the blocks.

  It takes the G query heads of one kv head, in one row:
    q [B, T, N, H] -> [B, K, G, T, H];  k, v [B, T, K, H] -> [B, K, T, H]
  """
  b, t, n, h = q.shape
  kv, group = k.shape[2], n // k.shape[2]

  def run(interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array,
          ids: jax.Array) -> jax.Array:

    def row(q: jax.Array, k: jax.Array, v: jax.Array,
            ids: jax.Array) -> jax.Array:
      kernel = _kernel(ids, softcap, window, blocks, saved, interpret)
      return jax.vmap(functools.partial(kernel, segment_ids=_pair(ids)))(q, k,
                                                                         v)

    return jax.vmap(row)(q, k, v, ids)

  q = q.reshape(b, t, kv, group, h).transpose(0, 2, 3, 1, 4)
  k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
  out = jax.lax.platform_dependent(q, k, v, segment_ids,
                                   tpu=functools.partial(run, False),
                                   default=functools.partial(run, True))
  return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


def _pair(ids: jax.Array) -> Any:
  """The ids of a row's queries and keys, as the kernel takes them."""
  from jax.experimental.pallas.ops.tpu.splash_attention import (
      splash_attention_kernel as splash)
  return splash.SegmentIds(ids, ids)


def _kernel(ids: jax.Array, softcap: float, window: int, blocks: Blocks,
            saved: str, interpret: bool) -> Any:
  """Makes the kernel of one row: it visits the blocks that the row needs."""
  # Imported here: loading Pallas costs a second that no other platform needs.
  from jax.experimental.pallas.ops.tpu.splash_attention import (
      splash_attention_kernel as splash)
  f, b = blocks
  sizes = splash.BlockSizes(block_q=f, block_kv=f, block_kv_compute=f,
                            block_q_dkv=b, block_kv_dkv=b,
                            block_kv_dkv_compute=b, block_q_dq=b, block_kv_dq=b)
  forward, _ = _schedules(ids, f, window)
  dq, dkv = _schedules(ids, b, window)
  return splash.SplashAttentionKernel(
      forward, dq, dkv, block_sizes=sizes, is_mqa=True, save_residuals=False,
      mask_value=splash.DEFAULT_MASK_VALUE,
      attn_logits_soft_cap=softcap or None, residual_checkpoint_name=saved,
      mask_function=_visible(window), interpret=interpret)


@functools.cache  # the kernel is compiled for the identity of this function
def _visible(window: int) -> Any:
  """Returns the mask within a block, of positions of queries and keys."""

  def visible(q: jax.Array, k: jax.Array) -> jax.Array:
    return (q >= k) & (q - k < window) if window else q >= k

  return visible


def _schedules(ids: jax.Array, block: int, window: int) -> tuple[Any, Any]:
  """Makes what the kernel visits: by queries [1, n, W], by keys [1, W, n].

  Step w of block i of the queries takes block first[i] + w of the keys, up to
  i; step w of block j of the keys takes block j + w of the queries, up to
  last[j]. The steps that are left do nothing, and name the block that is
  loaded, so that no other is.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import (
      splash_attention_mask_info as info)
  first, last = needed(ids, block, window)
  own = jnp.arange(len(first))
  step = jnp.arange(_width(len(first), block, window))
  small = jnp.int8 if len(first) <= 127 else jnp.int32  # scarce memory

  def schedule(wanted: jax.Array, end: jax.Array) -> Any:
    return info.MaskInfo(
        data_next=jnp.minimum(wanted, end).astype(small)[None], mask_next=None,
        block_mask=(wanted <= end).astype(small)[None],
        partial_mask_blocks=None, q_sequence=jnp.arange(len(ids)))

  return (schedule(first[:, None] + step[None, :], own[:, None]),
          schedule(own[None, :] + step[:, None], last[None, :]))
