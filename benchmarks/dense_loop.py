"""A plain sampler, to compare with: one batch, one while_loop, a dense cache.

Every row is prefilled, the whole cache is read at every token under a mask,
and the batch decodes until its last row has ended. Of that it is a good one:
the layers are taken apart before the loop, each has its own part of the
cache, and nothing is copied from one step to the next. It has its own
forward pass, of models like Qwen3 without windows, over the parameters of
exprl_jax.models.
"""

import functools

import jax
import jax.numpy as jnp


def gumbel(key, logits):
  """Tokens i32[B]: noise for every token of the vocabulary."""
  return jax.random.categorical(key, logits).astype(jnp.int32)


def inverse(key, logits):
  """Tokens i32[B]: one number per row, through the cumulative weights."""
  upto = jnp.cumsum(jnp.exp(logits - logits.max(-1, keepdims=True)), axis=-1)
  u = jax.random.uniform(key, (len(upto), 1)) * upto[:, -1:]
  return jnp.minimum((upto <= u).sum(-1), upto.shape[-1] - 1)


@functools.partial(jax.jit, static_argnums=(0, 5, 6), static_argnames='draw')
def generate(cfg, params, prompts, budgets, key, size: int, steps: int,
             temperature=1.0, end=-1, draw=gumbel):
  """Continues every prompt.

  Args:
    cfg: ModelConfig.
    params: float32.
    prompts: i32[B, P].
    budgets: i32[B], the most new tokens of each row.
    key: a typed PRNG key.
    size: tokens of a row that the cache has room for.
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

  def pick(i, logits):
    return draw(jax.random.fold_in(key, i), logits / temperature)

  def step(carry):
    i, token, live, cache, out = carry
    logits, cache = _forward(cfg, params, token[:, None], p + i - 1, cache)
    token = jnp.where(live, pick(i, logits), -1)
    live &= (token != end) & (i + 1 < budgets)
    return i + 1, token, live, cache, out.at[:, i].set(token)

  def going(carry):
    i, _, live, *_ = carry
    return (i < steps) & live.any()

  token = pick(0, logits)
  out = jnp.full((b, steps), -1, jnp.int32).at[:, 0].set(token)
  return jax.lax.while_loop(going, step,
                            (1, token,
                             (token != end) & (1 < budgets), cache, out))[-1]


def _forward(cfg, params, tokens, start, cache):
  """Logits f32[B, V] behind the last of tokens i32[B, T], and the cache."""
  x = params['embedding'][tokens]
  positions = start + jnp.arange(tokens.shape[1])
  size = cache[0][0].shape[2]
  seen = jnp.arange(size)[None] <= positions[:, None]  # [T, S]
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
    weight = jax.nn.softmax(jnp.where(seen, scores, -1e30))
    y = jnp.einsum('bkgts,bksh->btkgh', weight, values)
    x += jnp.einsum('btnh,nhd->btd', y.reshape(*v.shape[:2], -1, cfg.head_dim),
                    w['o'])
    y = _norm(cfg, x, w['mlp_norm'])
    x += (jax.nn.silu(y @ w['gate']) * (y @ w['up'])) @ w['down']
  return _norm(cfg, x[:, -1], params['final_norm']) @ params['head'], new


def _norm(cfg, x, weight):
  return x * jax.lax.rsqrt(
      jnp.mean(x * x, axis=-1, keepdims=True) + cfg.norm_eps) * weight


def _rotate(cfg, x, positions):
  """Rotates the halves of x[B, T, N, H]."""
  half = cfg.head_dim // 2
  angle = positions[:, None] * cfg.rope.theta**(
      -jnp.arange(half, dtype=jnp.float32) / half)
  sin, cos = jnp.sin(angle)[:, None], jnp.cos(angle)[:, None]
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
