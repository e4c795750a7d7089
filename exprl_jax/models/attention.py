"""Attention, in three implementations that compute the same.

einsum: the reference, for every mask, cache and platform.
dot_product: `jax.nn.dot_product_attention`, which on GPUs is a fused kernel.
splash: the Pallas kernel for TPUs that ships with jax; its mask is causal
  within segments (packed rows), so it serves training and scoring.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from exprl_jax.models.config import ModelConfig
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import AnyArray

SAVED = 'attention'  # the name under which remat='save_attention' keeps it
_LANES, _BLOCK = 128, 512  # of a TPU register; of the splash kernel


class View(NamedTuple):
  """Which keys each query attends to: causal within segments, or a mask.

  Attributes:
    positions: i32[B, T].
    segment_ids: i32[B, T]; queries attend to earlier columns of their segment.
      Segment 0 is padding. None where a mask is given.
    mask: bool[B, T, T], or None where segments are given.
  """

  positions: AnyArray
  segment_ids: AnyArray | None
  mask: AnyArray | None


def choose(cfg: ModelConfig, view: View) -> str:
  """Chooses the implementation for a model, a view and this platform."""
  chosen = cfg.attention
  if chosen == 'auto':
    chosen = {'tpu': 'splash',
              'gpu': 'dot_product'}.get(jax.default_backend(), 'einsum')
  if chosen == 'splash' and view.segment_ids is None:
    return 'einsum'  # a mask, which the kernel does not take
  if chosen == 'dot_product' and cfg.attention_softcap:
    return 'einsum'
  return chosen


def attend(cfg: ModelConfig, q: Float[Array, 'B T N H'],
           k: Float[Array, 'B T K H'], v: Float[Array, 'B T K H'], view: View,
           kind: Int[AnyArray, ''] | int) -> Float[Array, 'B T N H']:
  """Computes grouped-query attention; scores and softmax in float32.

  Args:
    cfg: soft-cap and windows.
    q: [B, T, N, H], with the scale of the scores in them.
    k: [B, T, K, H].
    v: [B, T, K, H].
    view: which keys each query attends to.
    kind: index into `cfg.kinds`, the layer's window.

  Returns:
    [B, T, N, H] in q's dtype.
  """
  chosen = choose(cfg, view)
  if chosen == 'splash':  # names what it saves itself
    assert view.segment_ids is not None
    return _splash(cfg, q, k, v, view.segment_ids, kind)
  mask = visible(cfg, view, kind)
  if chosen == 'dot_product':
    fused = _cudnn_supports(q, k)
    out = jax.nn.dot_product_attention(
        q, k, v, mask=mask[:, None], scale=1.0,
        implementation='cudnn' if fused else 'xla')
  else:
    out = _einsum(q, k, v, mask, cfg.attention_softcap)
  return checkpoint_name(out, SAVED)


def _cudnn_supports(q: jax.Array, k: jax.Array) -> bool:
  """Whether cuDNN's fused attention has an implementation for these."""
  mesh = jax.sharding.get_abstract_mesh()
  unsplit = mesh.empty or mesh.shape['tensor'] == 1
  return (jax.default_backend() == 'gpu' and q.dtype != jnp.float32
          and q.shape[1] % 2 == 0 and q.shape[-1] <= 128
          and (unsplit or k.shape[2] % mesh.shape['tensor'] == 0))


def causal_mask(segment_ids: Int[AnyArray, 'B T']) -> Bool[Array, 'B T T']:
  """Marks for each query the same and earlier tokens of its segment.

  Segment 0 is padding: nothing but padding attends to it.
  """
  t = segment_ids.shape[1]
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  return same & jnp.tril(jnp.ones((1, t, t), bool))


def visible(cfg: ModelConfig, view: View,
            kind: Int[AnyArray, ''] | int) -> Bool[Array, 'B T T']:
  """Cuts a view to the window of a kind of layer."""
  mask = (causal_mask(view.segment_ids)
          if view.segment_ids is not None else jnp.asarray(view.mask))
  if not any(cfg.kinds):
    return mask
  window = jnp.array(cfg.kinds)[kind]
  ago = view.positions[:, :, None] - view.positions[:, None, :]
  return mask & ((window == 0) | (ago < window))


def _einsum(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array,
            softcap: float) -> jax.Array:
  """The reference. With G = N / K query heads to a kv head:

    q [B, T, K, G, H], k [B, S, K, H]  ->  scores [B, K, G, T, S]
    scores, v [B, S, K, H]             ->  [B, T, K, G, H]
  """
  b, t, n, h = q.shape
  q = q.reshape(b, t, k.shape[2], n // k.shape[2], h)
  precision = 'highest' if q.dtype == jnp.float32 else None
  scores = jnp.einsum('btkgh,bskh->bkgts', q, k, precision=precision,
                      preferred_element_type=jnp.float32)
  if softcap:
    scores = softcap * jnp.tanh(scores / softcap)
  scores = jnp.where(mask[:, None, None], scores, -1e30)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  out = jnp.einsum('bkgts,bskh->btkgh', weights, v, precision=precision)
  return out.reshape(b, t, n, h)


def _splash(cfg: ModelConfig, q: jax.Array, k: jax.Array, v: jax.Array,
            segment_ids: AnyArray, kind: AnyArray | int) -> jax.Array:
  """Pads T to a multiple of the block, and runs the kernel on each device."""
  t = q.shape[1]
  block = min(_BLOCK, -(-t // _LANES) * _LANES)
  pad = -t % block

  def padded(x: AnyArray) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))

  q, k, v, ids = (padded(x) for x in (q, k, v, segment_ids))
  branches = [
      functools.partial(_splash_local, cfg, window, block)
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


def _splash_local(cfg: ModelConfig, window: int, block: int, q: jax.Array,
                  k: jax.Array, v: jax.Array,
                  segment_ids: jax.Array) -> jax.Array:
  """Runs the kernel on one device's arrays; T is a multiple of the block.

  It takes the G query heads of one kv head, in one row:
    q [B, T, N, H] -> [B, K, G, T, H];  k, v [B, T, K, H] -> [B, K, T, H]
  """
  # Imported here: loading Pallas costs a second that no other platform needs.
  from jax.experimental.pallas.ops.tpu import splash_attention
  splash = splash_attention.splash_attention_kernel
  masks = splash_attention.splash_attention_mask
  b, t, n, h = q.shape
  kv, group = k.shape[2], n // k.shape[2]
  mask = (masks.LocalMask(
      (t, t), (window - 1, 0), 0) if window else masks.CausalMask((t, t)))
  sizes = splash.BlockSizes(block_q=block, block_kv=block,
                            block_kv_compute=block, block_q_dkv=block,
                            block_kv_dkv=block, block_kv_dkv_compute=block,
                            block_q_dq=block, block_kv_dq=block)

  def run(interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array,
          ids: jax.Array) -> jax.Array:
    kernel = splash.make_splash_mqa_single_device(
        masks.MultiHeadMask([mask] * group), block_sizes=sizes,
        attn_logits_soft_cap=cfg.attention_softcap or None,
        residual_checkpoint_name=SAVED, interpret=interpret)

    def row(q: jax.Array, k: jax.Array, v: jax.Array,
            ids: jax.Array) -> jax.Array:
      return jax.vmap(lambda q, k, v: kernel(
          q, k, v, segment_ids=splash.SegmentIds(ids, ids)))(q, k, v)

    return jax.vmap(row)(q, k, v, ids)

  q = q.reshape(b, t, kv, group, h).transpose(0, 2, 3, 1, 4)
  k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
  out = jax.lax.platform_dependent(q, k, v, segment_ids,
                                   tpu=functools.partial(run, False),
                                   default=functools.partial(run, True))
  return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)
