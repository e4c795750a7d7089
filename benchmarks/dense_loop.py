"""A plain sampler as a baseline: one batch, one while_loop, a dense cache.

Every row is prefilled, the whole cache is read at every token under a mask,
and the batch decodes until its last row has ended. It is a good one of its
kind: the layers are taken apart before the loop, each has its own part of the
cache, and nothing is copied from one step to the next. It has its own forward
pass, for models like Qwen3 without windows, over the parameters of
exprl_jax.models.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from exprl_jax.models.config import ModelConfig
from exprl_jax.types import Params

Cache = list[tuple[jax.Array, jax.Array]]  # keys and values of each layer
Draw = Callable[[jax.Array, jax.Array], jax.Array]  # key, logits -> tokens
Carry = tuple[jax.Array | int, jax.Array, jax.Array, Cache, jax.Array]


def gumbel(key: jax.Array, logits: jax.Array) -> jax.Array:
  """Draws tokens i32[B] with noise for every token of the vocabulary."""
  return jax.random.categorical(key, logits).astype(jnp.int32)


def inverse(key: jax.Array, logits: jax.Array) -> jax.Array:
  """Draws tokens i32[B] with one number per row, by cumulative weights."""
  upto = jnp.cumsum(jnp.exp(logits - logits.max(-1, keepdims=True)), axis=-1)
  u = jax.random.uniform(key, (len(upto), 1)) * upto[:, -1:]
  return jnp.minimum((upto <= u).sum(-1), upto.shape[-1] - 1)


@functools.partial(jax.jit, static_argnums=(0, 5, 6), static_argnames='draw')
def generate(cfg: ModelConfig, params: Params, prompts: jax.Array,
             budgets: jax.Array, key: jax.Array, size: int, steps: int,
             temperature: float = 1.0, end: int = -1,
             draw: Draw = gumbel) -> jax.Array:
  """Continues every prompt.

  Args:
    cfg: the decoder.
    params: float32.
    prompts: i32[B, P].
    budgets: i32[B], the most new tokens of each row.
    key: a typed PRNG key.
    size: tokens of a row that the cache can hold.
    steps: the largest of the budgets, or more.
    temperature: above 0.
    end: the token that ends a row.
    draw: gumbel or inverse.

  Returns:
    New tokens i32[B, steps]; -1 behind the end of a row.
  """
  params = params | {
      'layers': [
          jax.tree.map(lambda w, i=i: w[i], params['layers'])
          for i in range(cfg.num_layers)
      ]
  }
  b, p = prompts.shape
  blank = jnp.zeros((b, cfg.num_kv_heads, size, cfg.head_dim))
  cache = [(blank, blank)] * cfg.num_layers
  logits, cache = _forward(cfg, params, prompts, 0, cache)

  def pick(i: jax.Array | int, logits: jax.Array) -> jax.Array:
    return draw(jax.random.fold_in(key, i), logits / temperature)

  def step(carry: Carry) -> Carry:
    i, token, alive, cache, out = carry
    logits, cache = _forward(cfg, params, token[:, None], p + i - 1, cache)
    token = jnp.where(alive, pick(i, logits), -1)
    alive &= (token != end) & (i + 1 < budgets)
    return i + 1, token, alive, cache, out.at[:, i].set(token)

  def goes_on(carry: Carry) -> jax.Array:
    i, _, alive, *_ = carry
    return (i < steps) & alive.any()

  token = pick(0, logits)
  out = jnp.full((b, steps), -1, jnp.int32).at[:, 0].set(token)
  first: Carry = (1, token, (token != end) & (1 < budgets), cache, out)
  return jax.lax.while_loop(goes_on, step, first)[-1]


def _forward(cfg: ModelConfig, params: Params, tokens: jax.Array,
             start: jax.Array | int, cache: Cache) -> tuple[jax.Array, Cache]:
  """Computes logits f32[B, V] behind tokens i32[B, T], and the new cache."""
  x = params['embedding'][tokens]
  positions = start + jnp.arange(tokens.shape[1])
  size = cache[0][0].shape[2]
  visible = jnp.arange(size)[None] <= positions[:, None]  # [T, S]
  new = []
  for w, (keys, values) in zip(params['layers'], cache):
    y = _norm(cfg, x, w['attention_norm'])
    q, k, v = (jnp.einsum('btd,dnh->btnh', y, w[name]) for name in 'qkv')
    q = _rotate(cfg, _norm(cfg, q, w['q_norm']), positions)
    k = _rotate(cfg, _norm(cfg, k, w['k_norm']), positions)
    keys, values = (jax.lax.dynamic_update_slice(old, x.transpose(0, 2, 1, 3),
                                                 (0, 0, start, 0))
                    for old, x in ((keys, k), (values, v)))
    new.append((keys, values))
    q = q.reshape(*q.shape[:2], cfg.num_kv_heads, -1, cfg.head_dim)
    scores = jnp.einsum('btkgh,bksh->bkgts', q, keys) * cfg.head_dim**-0.5
    weight = jax.nn.softmax(jnp.where(visible, scores, -1e30))
    y = jnp.einsum('bkgts,bksh->btkgh', weight, values)
    x += jnp.einsum('btnh,nhd->btd', y.reshape(*v.shape[:2], -1, cfg.head_dim),
                    w['o'])
    y = _norm(cfg, x, w['mlp_norm'])
    x += (jax.nn.silu(y @ w['gate']) * (y @ w['up'])) @ w['down']
  return _norm(cfg, x[:, -1], params['final_norm']) @ params['head'], new


def _norm(cfg: ModelConfig, x: jax.Array, weight: jax.Array) -> jax.Array:
  return x * jax.lax.rsqrt(
      jnp.mean(x * x, axis=-1, keepdims=True) + cfg.norm_eps) * weight


def _rotate(cfg: ModelConfig, x: jax.Array, positions: jax.Array) -> jax.Array:
  """Rotates the halves of x[B, T, N, H]."""
  half = cfg.head_dim // 2
  angle = positions[:, None] * cfg.rope.theta**(
      -jnp.arange(half, dtype=jnp.float32) / half)
  sin, cos = jnp.sin(angle)[:, None], jnp.cos(angle)[:, None]
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
