"""The parts of the decoder as Flax NNX modules: layers, embedding, head.

Modules are built inside jit from plain parameters, where that costs nothing;
`transformer` runs them. What the model families differ in is a field of
`ModelConfig`, each read at one place below.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from exprl_jax.models import moe
from exprl_jax.models.config import ModelConfig
from exprl_jax.models.matrices import dense
from exprl_jax.models.rope import rotate

# (q, k, v) -> attention's output [B, T, N, H], and a state to hand on.
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]

_ACTIVATIONS: dict[str, moe.Activation] = {
    'silu': jax.nn.silu, 'gelu_tanh': functools.partial(jax.nn.gelu,
                                                        approximate=True)
}


class Layer(nnx.Module):
  """One layer; the config decides which parameters it has."""

  def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, std: float) -> None:
    d, n, k, h = cfg.embed_dim, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
    param = functools.partial(_param, rngs, std)
    norm = functools.partial(_constant, 0.0 if cfg.norm_offset else 1.0)
    self.cfg = cfg
    self.attention_norm = norm((d,), ('norm',))
    self.q = param((d, n, h), ('embed', 'heads', 'head_dim'))
    self.k = param((d, k, h), ('embed', 'kv_heads', 'head_dim'))
    self.v = param((d, k, h), ('embed', 'kv_heads', 'head_dim'))
    self.o = param((n, h, d), ('heads', 'head_dim', 'embed'))
    if cfg.qkv_bias:
      self.q_bias = _constant(0.0, (n, h), ('heads', 'head_dim'))
      self.k_bias = _constant(0.0, (k, h), ('kv_heads', 'head_dim'))
      self.v_bias = _constant(0.0, (k, h), ('kv_heads', 'head_dim'))
    if cfg.qk_norm:
      self.q_norm = norm((h,), ('norm',))
      self.k_norm = norm((h,), ('norm',))
    self.mlp_norm = norm((d,), ('norm',))
    if cfg.post_norms:
      self.attention_post_norm = norm((d,), ('norm',))
      self.mlp_post_norm = norm((d,), ('norm',))
    self._define_mlp(cfg, param)

  def _define_mlp(self, cfg: ModelConfig, param: Callable[...,
                                                          nnx.Param]) -> None:
    d, f, e = cfg.embed_dim, cfg.mlp_dim, cfg.num_experts
    if e:
      self.router = param((d, e), ('embed', 'router'))
      self.gate = param((e, d, f), ('experts', 'embed', 'mlp'))
      self.up = param((e, d, f), ('experts', 'embed', 'mlp'))
      self.down = param((e, f, d), ('experts', 'mlp', 'embed'))
    else:
      self.gate = param((d, f), ('embed', 'mlp'))
      self.up = param((d, f), ('embed', 'mlp'))
      self.down = param((f, d), ('mlp', 'embed'))

  def __call__(self, x: jax.Array, positions: jax.Array, rope: tuple[jax.Array,
                                                                     jax.Array],
               attend: Attend) -> tuple[jax.Array, Any]:
    """Runs the layer.

    Args:
      x: [B, T, D], the residual stream before it.
      positions: i32[B, T].
      rope: frequencies and factor of this layer's rotary embedding.
      attend: computes attention of q, k and v.

    Returns:
      The residual stream [B, T, D] after it, and the state of `attend`.
    """
    with jax.named_scope('attention'):
      q, k, v = self._project(self._norm(x, 'attention_norm'), positions, rope)
      y, state = attend(q, k, v)
      n, h, d = self.o.shape
      # [B, T, N, H] -> [B, T, N * H] -> [B, T, D]
      y = dense(y.reshape(*y.shape[:2], n * h), self.o[...].reshape(n * h, d))
      x += self._norm(y, 'attention_post_norm') if self.cfg.post_norms else y
    with jax.named_scope('mlp'):
      y = self._mlp(self._norm(x, 'mlp_norm'))
      x += self._norm(y, 'mlp_post_norm') if self.cfg.post_norms else y
    return x, state

  def _norm(self, x: jax.Array, name: str) -> jax.Array:
    return rms_norm(self.cfg, x, getattr(self, name)[...])

  def _project(
      self, x: jax.Array, positions: jax.Array,
      rope: tuple[jax.Array,
                  jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[B, T, D] -> q [B, T, N, H], k and v [B, T, K, H]."""
    cfg = self.cfg
    q, k, v = (dense(x, w[...]) for w in (self.q, self.k, self.v))
    if cfg.qkv_bias:
      q, k, v = (y + b[...][None, None]
                 for y, b in ((q, self.q_bias), (k, self.k_bias),
                              (v, self.v_bias)))
    if cfg.qk_norm:
      q, k = self._norm(q, 'q_norm'), self._norm(k, 'k_norm')
    # The scale of the scores enters here, in float32, not after the rounding.
    frequency, factor = rope
    scale = cfg.attention_scale or cfg.head_dim**-0.5
    return (rotate(q, positions, frequency,
                   factor * scale), rotate(k, positions, frequency, factor), v)

  def _mlp(self, x: jax.Array) -> jax.Array:
    activation = _ACTIVATIONS[self.cfg.activation]
    if self.cfg.num_experts:
      return moe.mixture(self.cfg, x, self.router[...], self.gate[...],
                         self.up[...], self.down[...], activation)
    return dense(
        activation(dense(x, self.gate[...])) * dense(x, self.up[...]),
        self.down[...])


class Decoder(nnx.Module):
  """All parameters of a model; its layers are stacked along a first axis."""

  def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs,
               std: float = 0.0) -> None:
    self.embedding = _param(rngs, std, (cfg.vocab_size, cfg.embed_dim),
                            ('vocab', 'embed'))

    @nnx.split_rngs(splits=cfg.num_layers)
    @nnx.vmap(in_axes=(0,), out_axes=0,
              transform_metadata={nnx.PARTITION_NAME: 'layers'})
    def layers(rngs: nnx.Rngs) -> Layer:
      return Layer(cfg, rngs, std)

    self.layers = layers(rngs)
    self.final_norm = _constant(0.0 if cfg.norm_offset else 1.0,
                                (cfg.embed_dim,), ('norm',))
    if not cfg.tied_embedding:
      self.head = _param(rngs, std, (cfg.embed_dim, cfg.vocab_size),
                         ('embed', 'vocab'))


def _param(rngs: nnx.Rngs, std: float, shape: tuple[int, ...],
           axes: tuple[str, ...]) -> nnx.Param:
  """Draws from a normal distribution; std 0 is 1 / sqrt(fan-in)."""
  fan_in = {
      'vocab': shape[-1], 'heads': math.prod(shape[:-1]), 'experts': shape[-2]
  }.get(axes[0], shape[0])
  value = jax.random.normal(rngs.params(), shape) * (std or fan_in**-0.5)
  return nnx.Param(value, out_sharding=axes)


def _constant(value: float, shape: tuple[int, ...],
              axes: tuple[str, ...]) -> nnx.Param:
  return nnx.Param(jnp.full(shape, value, jnp.float32), out_sharding=axes)


def rms_norm(cfg: ModelConfig, x: jax.Array, weight: jax.Array) -> jax.Array:
  """Root-mean-square norm (arXiv 1910.07467) in float32, in x's dtype.

  Args:
    cfg: `norm_eps` and `norm_offset`.
    x: [..., D].
    weight: f32[D].
  """
  y = x.astype(jnp.float32)
  y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + cfg.norm_eps)
  y *= jnp.broadcast_to(weight + 1.0 if cfg.norm_offset else weight, y.shape)
  return y.astype(x.dtype)
