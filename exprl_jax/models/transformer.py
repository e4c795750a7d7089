"""The decoder. Flax NNX defines its parameters, `lax.scan` runs its layers.

Outside this file a model is a `ModelConfig` and a plain nested dict of
arrays; NNX modules are built from them inside jit, where that costs nothing.
"""

import functools
import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from exprl_jax import mesh as mesh_lib
from exprl_jax.models.config import ModelConfig


class Cache(NamedTuple):
  """Keys and values of the tokens so far; L layers, K kv heads, H wide."""

  k: jax.Array  # [L, B, T, K, H]
  v: jax.Array  # [L, B, T, K, H]


class _Layer(nnx.Module):

  def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, std: float):
    d, n, k, h, f = (cfg.embed_dim, cfg.num_heads, cfg.num_kv_heads,
                     cfg.head_dim, cfg.mlp_dim)
    param = functools.partial(_param, rngs, std)
    self.cfg = cfg
    self.attention_norm = param((d,), ('norm',))
    self.q = param((d, n, h), ('embed', 'heads', 'head_dim'))
    self.k = param((d, k, h), ('embed', 'kv_heads', 'head_dim'))
    self.v = param((d, k, h), ('embed', 'kv_heads', 'head_dim'))
    self.q_norm = param((h,), ('norm',))
    self.k_norm = param((h,), ('norm',))
    self.o = param((n, h, d), ('heads', 'head_dim', 'embed'))
    self.mlp_norm = param((d,), ('norm',))
    self.gate = param((d, f), ('embed', 'mlp'))
    self.up = param((d, f), ('embed', 'mlp'))
    self.down = param((f, d), ('mlp', 'embed'))

  def __call__(self, x, positions, mask, cache=None):
    """One layer; with a cache, x is the one new token of each row."""
    eps = self.cfg.norm_eps
    with jax.named_scope('attention'):
      y = rms_norm(x, self.attention_norm[...], eps)
      q = rms_norm(dense(y, self.q[...]), self.q_norm[...], eps)
      k = rms_norm(dense(y, self.k[...]), self.k_norm[...], eps)
      q = rope(q, positions, self.cfg.rope_theta)
      kv = (rope(k, positions, self.cfg.rope_theta), dense(y, self.v[...]))
      if cache is not None:
        rows = jnp.arange(x.shape[0])[:, None]
        kv = jax.tree.map(lambda c, new: c.at[rows, positions].set(new),
                          cache, kv)
      y = attend(q, *kv, mask)
      n, h, d = self.o.shape
      x = x + dense(y.reshape(*y.shape[:2], n * h),
                    self.o[...].reshape(n * h, d))
    with jax.named_scope('mlp'):
      y = rms_norm(x, self.mlp_norm[...], eps)
      y = jax.nn.silu(dense(y, self.gate[...])) * dense(y, self.up[...])
      return x + dense(y, self.down[...]), kv


class _Decoder(nnx.Module):

  def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, std: float = 0.0):
    self.embedding = _param(rngs, std, (cfg.vocab_size, cfg.embed_dim),
                            ('vocab', 'embed'))

    @nnx.split_rngs(splits=cfg.num_layers)
    @nnx.vmap(in_axes=(0,), out_axes=0,
              transform_metadata={nnx.PARTITION_NAME: 'layers'})
    def layers(rngs):
      return _Layer(cfg, rngs, std)

    self.layers = layers(rngs)
    self.final_norm = _param(rngs, std, (cfg.embed_dim,), ('norm',))
    if not cfg.tied_embedding:
      self.head = _param(rngs, std, (cfg.embed_dim, cfg.vocab_size),
                         ('embed', 'vocab'))


def _param(rngs, std, shape, axes):
  """Ones for norms, normal for the rest; std 0 is 1 / sqrt(fan-in)."""
  if axes == ('norm',):
    return nnx.Param(jnp.ones(shape), out_sharding=axes)
  fan_in = {'vocab': shape[-1], 'heads': math.prod(shape[:-1])}.get(
      axes[0], shape[0])
  value = jax.random.normal(rngs.params(), shape) * (std or fan_in**-0.5)
  return nnx.Param(value, out_sharding=axes)


@functools.cache
def _define(cfg: ModelConfig):
  """The graph definition and the abstract parameters of a model."""
  with nnx.use_eager_sharding(False):
    return jax.eval_shape(lambda: nnx.split(_Decoder(cfg, nnx.Rngs(0))))


def abstract_params(cfg: ModelConfig):
  """A nested dict of ShapeDtypeStructs, float32."""
  return nnx.to_pure_dict(_define(cfg)[1])


def logical_axes(cfg: ModelConfig):
  """A nested dict of tuples that name each parameter's axes."""
  return jax.tree.map(
      lambda v: v.get_metadata()['out_sharding'],
      nnx.to_pure_dict(_define(cfg)[1], extract_fn=lambda v: v),
      is_leaf=lambda v: isinstance(v, nnx.Variable))


def init(cfg: ModelConfig, key: jax.Array, std: float = 0.0):
  """Random parameters, float32; std 0 is 1 / sqrt(fan-in)."""
  with nnx.use_eager_sharding(False):
    return nnx.to_pure_dict(nnx.split(_Decoder(cfg, nnx.Rngs(key), std))[1])


def forward(cfg: ModelConfig, params, tokens: jax.Array, positions: jax.Array,
            mask: jax.Array, cache: Cache | None = None):
  """Runs the layers.

  Args:
    cfg: the model.
    params: its parameters.
    tokens: i32[B, T]; T = 1 with a cache.
    positions: i32[B, T], for the rotary embedding and the place in the cache.
    mask: bool[B, T, S]: may query t look at key s? S = T without a cache,
      else the cache's length.
    cache: keys and values so far; the new ones are written at `positions`.

  Returns:
    Hidden states [B, T, D] after the final norm, and the Cache: the updated
    one, or the keys and values of `tokens`.
  """
  model = nnx.merge(_define(cfg)[0], params)
  dtype = jnp.dtype(cfg.dtype)
  x = model.embedding[...][tokens].astype(dtype)
  # Without this XLA rematerialises the whole gather on a sharded mesh.
  x = mesh_lib.constrain(x, 'batch', None, None)
  graphdef, layers = nnx.split(model.layers)

  def body(x, scanned):
    weights, layer_cache = scanned
    layer = nnx.merge(graphdef, jax.tree.map(
        lambda w: w.astype(dtype) if w.ndim > 1 else w, weights))
    return layer(x, positions, mask, layer_cache)

  if cfg.remat:
    body = jax.checkpoint(body)
  x, kv = jax.lax.scan(body, x, (layers, cache and tuple(cache)))
  return rms_norm(x, model.final_norm[...], cfg.norm_eps), Cache(*kv)


def project(cfg: ModelConfig, params, hidden: jax.Array) -> jax.Array:
  """Logits f32[..., V] of hidden states [..., D]."""
  head = params['embedding'].T if cfg.tied_embedding else params['head']
  return dense(hidden, head.astype(hidden.dtype), jnp.float32)


def causal_mask(segment_ids: jax.Array) -> jax.Array:
  """bool[B, T, T] from i32[B, T]: earlier or same token of the same segment.

  Segment 0 is padding: nothing but padding looks at it.
  """
  t = segment_ids.shape[1]
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  return same & jnp.tril(jnp.ones((1, t, t), bool))


def dense(x, w, dtype=None):
  """x[..., D] times w[D, ...]: flattened, which XLA:CPU runs twice as fast."""
  out = jax.lax.dot(x.reshape(-1, x.shape[-1]), w.reshape(w.shape[0], -1),
                    preferred_element_type=dtype)
  return out.reshape(*x.shape[:-1], *w.shape[1:])


def rms_norm(x, weight, eps):
  """Root-mean-square norm in float32, returned in x's dtype."""
  y = x.astype(jnp.float32)
  y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  return (y * jnp.broadcast_to(weight, y.shape)).astype(x.dtype)


def rope(x, positions, theta):
  """Rotates the halves of x[B, T, N, H] by its positions, in float32."""
  h = x.shape[-1] // 2
  frequency = theta ** -(jnp.arange(h, dtype=jnp.float32) / h)
  angle = positions[:, :, None, None] * frequency[None, None, None]
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin],
                         axis=-1).astype(x.dtype)


def attend(q, k, v, mask):
  """Grouped-query attention, softmax in float32.

  Shapes: q [B, T, N, H]; k, v [B, S, K, H]; mask [B, T, S] -> [B, T, N, H].
  """
  b, t, n, h = q.shape
  q = q.reshape(b, t, k.shape[2], n // k.shape[2], h)
  scores = jnp.einsum('btkgh,bskh->bkgts', q, k,
                      preferred_element_type=jnp.float32) * h**-0.5
  scores = jnp.where(mask[:, None, None], scores, -1e30)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return jnp.einsum('bkgts,bskh->btkgh', weights, v).reshape(b, t, n, h)
