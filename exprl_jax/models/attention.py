"""Attention, in three implementations that compute the same.

einsum: the reference, for every mask, cache and platform.
dot_product: `jax.nn.dot_product_attention`, which on GPUs is a fused kernel.
splash: the Pallas kernel for TPUs that ships with jax; its mask is causal
  within segments (packed rows), so it serves training and scoring.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from exprl_jax.models import splash
from exprl_jax.models.config import ModelConfig
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import AnyArray

SAVED = 'attention'  # the name under which remat='save_attention' keeps it

# Queries in a block of the reference, and how many blocks there are at most.
_BLOCK = 128
_BLOCKS = 16


class View(NamedTuple):
  """Which keys each query attends to: causal within segments, or a mask.

  Attributes:
    positions: i32[B, T].
    segment_ids: i32[B, T]; queries attend to earlier columns of their segment.
      Segment 0 is padding. None where a mask is given.
    mask: bool[B, T, T], False for all later columns, or None where segments
      are given.
  """

  positions: AnyArray
  segment_ids: AnyArray | None
  mask: AnyArray | None


def for_platform(cfg: ModelConfig, platform: str) -> ModelConfig:
  """Replaces attention='auto' by the implementation for a platform.

  Args:
    cfg: the model.
    platform: of the devices that run it: 'tpu', 'gpu' or another.
  """
  if cfg.attention != 'auto':
    return cfg
  chosen = {'tpu': 'splash', 'gpu': 'dot_product'}.get(platform, 'einsum')
  return dataclasses.replace(cfg, attention=chosen)


def choose(cfg: ModelConfig, view: View) -> str:
  """Chooses the implementation for a model, a view and the devices."""
  chosen = for_platform(cfg, mesh_lib.platform()).attention
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
  k, v = _spread(q, k), _spread(q, v)
  if chosen == 'splash':  # names what it saves itself
    assert view.segment_ids is not None
    return splash.attend(cfg, q, k, v, view.segment_ids, kind, SAVED)
  mask = visible(cfg, view, kind)
  if chosen == 'dot_product':
    fused = _cudnn_supports(q, k)
    out = jax.nn.dot_product_attention(
        q, k, v, mask=mask[:, None], scale=1.0,
        implementation='cudnn' if fused else 'xla')
  else:
    out = _einsum(q, k, v, mask, cfg.attention_softcap)
  return checkpoint_name(out, SAVED)


def _spread(q: jax.Array, k: jax.Array) -> jax.Array:
  """Repeats kv heads until the mesh's 'tensor' axis divides them.

  Otherwise each of its devices would compute all heads. Nothing is repeated if
  the axis does not divide the query heads either.

  Args:
    q: [B, T, N, H].
    k: [B, T, K, H], keys or values.

  Returns:
    [B, T, K', H], where K' is a multiple of K that divides N.
  """
  mesh = jax.sharding.get_abstract_mesh()
  heads, kv_heads = q.shape[2], k.shape[2]
  tensor = 1 if mesh.empty else mesh.shape['tensor']
  if kv_heads % tensor == 0 or heads % tensor:
    return k
  wanted = math.lcm(kv_heads, tensor)
  if heads % wanted:
    wanted = heads
  return mesh_lib.constrain(jnp.repeat(k, wanted // kv_heads, axis=2), 'batch',
                            None, 'kv_heads', None)


def _cudnn_supports(q: jax.Array, k: jax.Array) -> bool:
  """Whether cuDNN's fused attention has an implementation for these."""
  mesh = jax.sharding.get_abstract_mesh()
  unsplit = mesh.empty or mesh.shape['tensor'] == 1
  return (mesh_lib.platform() == 'gpu' and q.dtype != jnp.float32
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
  """The reference, a block of queries at a time against the keys up to its end.

  With G = N / K query heads to a kv head, which share a matrix product:

    q [B, K, G t, H], k [B, K, S, H]  ->  scores [B, K, G t, S]
    scores, v [B, K, S, H]            ->  [B, K, G t, H]

  Later keys are hidden by every mask, so they are half of the work saved.
  """
  b, t, n, h = q.shape
  heads = k.shape[2]
  groups = n // heads
  q = q.reshape(b, t, heads, groups, h).transpose(0, 2, 3, 1, 4)
  k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
  size = max(_BLOCK, -(-t // _BLOCKS))
  outs = []
  for start in range(0, t, size):
    end = min(start + size, t)
    scores = _matmul(q[:, :, :, start:end].reshape(b, heads, -1, h),
                     k[:, :, :end], 3, jnp.float32)
    if softcap:
      scores = softcap * jnp.tanh(scores / softcap)
    scores = scores.reshape(b, heads, groups, end - start, end)
    scores = jnp.where(mask[:, None, None, start:end, :end], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = _matmul(weights.reshape(b, heads, -1, end), v[:, :, :end], 2, v.dtype)
    outs.append(out.reshape(b, heads, groups, end - start, h))
  return jnp.concatenate(outs, axis=3).transpose(0, 3, 1, 2,
                                                 4).reshape(b, t, n, h)


def _matmul(a: jax.Array, b: jax.Array, axis: int,
            dtype: DTypeLike) -> jax.Array:
  """Multiplies a [B, K, R, X] by b over X, which is b's `axis`."""
  precision = 'highest' if a.dtype == jnp.float32 else None
  return jax.lax.dot_general(a, b, (((3,), (axis,)), ((0, 1), (0, 1))),
                             precision=precision, preferred_element_type=dtype)
