"""Losses on token log-probabilities; each function states its formula."""

import jax
import jax.numpy as jnp

from exprl_jax.models import transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.types import Experience


def token_logprobs(cfg: ModelConfig, params, tokens: jax.Array,
                   segment_ids: jax.Array, temperature: float = 1.0,
                   chunk: int = 512) -> tuple[jax.Array, jax.Array]:
  """Log-probability of every token given the ones before it, and entropy.

  The one place that shifts by one. The vocabulary is projected for `chunk`
  columns at a time, in float32, and recomputed in the backward pass, so that
  [B, T, V] never exists.

  Args:
    cfg: the model.
    params: its parameters.
    tokens: i32[B, T].
    segment_ids: i32[B, T]: several sequences packed into a row have ids of
      their own, each in neighbouring columns; 0 is padding. A row of one
      sequence may give bool: what is not padding.
    temperature: logits are divided by it, as the sampler does; nats.
    chunk: columns per projection.

  Returns:
    logprobs f32[B, T] and entropy f32[B, T] of the distribution that each
    token was drawn from; both 0 in the first column of a sequence and at
    padding.
  """
  b, t = tokens.shape
  segment_ids = segment_ids.astype(jnp.int32)
  goes_on = jnp.pad(segment_ids[:, 1:] == segment_ids[:, :-1],
                    ((0, 0), (1, 0)))
  column = jnp.broadcast_to(jnp.arange(t), (b, t))
  start = jax.lax.cummax(jnp.where(goes_on, 0, column), axis=1)
  hidden = transformer.forward(cfg, params, tokens, column - start,
                                  segment_ids=segment_ids)
  n = max(-(-(t - 1) // chunk), 1)
  width = max(-(-(t - 1) // n), 1)
  pad = n * width - (t - 1)

  def split(x):  # [B, T - 1, ...] -> [n, B, width, ...]
    x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(b, n, width, *x.shape[2:]).swapaxes(0, 1)

  @jax.checkpoint
  def one_chunk(_, inputs):
    h, target = inputs
    logits = transformer.project(cfg, params, h) / temperature
    lse = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    expected = jnp.sum(jnp.exp(logits - lse[..., None]) * logits, axis=-1)
    return None, (picked - lse, lse - expected)

  _, out = jax.lax.scan(one_chunk, None,
                        (split(hidden[:, :-1]), split(tokens[:, 1:])))

  def join(x):  # [n, B, width] -> [B, T]
    x = x.swapaxes(0, 1).reshape(b, -1)[:, :t - 1]
    return jnp.where(goes_on & (segment_ids > 0),
                     jnp.pad(x, ((0, 0), (1, 0))), 0.0)

  return join(out[0]), join(out[1])


def k3(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
  """The k3 estimate of KL(policy || reference), e^d - d - 1 per token.

  d = ref - policy is clipped to [-20, 20] and the estimate to 10 (METHOD:
  the authors' clamps); never negative.
  """
  d = jnp.clip(ref_logprobs - logprobs, -20.0, 20.0)
  return jnp.minimum(jnp.exp(d) - d - 1.0, 10.0)


def policy_gradient(
    logprobs: jax.Array, batch: Experience, num_tokens: jax.Array, *,
    clip_low: float, clip_high: float, dual_clip: float, kl_coef: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Clipped policy gradient with a k3 KL penalty, summed over tokens.

  With r = exp(logprobs - old_logprobs), A the advantage, per token
    L = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)),
    L = min(L, -A dual_clip) where A < 0,
    loss = sum(loss_mask * (L + kl_coef * k3)) / num_tokens.

  Args:
    logprobs: f32[B, T] under the parameters being trained.
    batch: the rows.
    num_tokens: trained tokens of the whole optimiser step. A micro-batch
      divides by it too, so that micro-batching does not change the gradient
      (aggregation 'token_mean').
    clip_low: epsilon below.
    clip_high: epsilon above.
    dual_clip: the bound c > 1 for negative advantages; 0 turns it off.
    kl_coef: beta.

  Returns:
    The loss, and sums over tokens (to be divided by num_tokens) to log.
  """
  mask = batch.loss_mask
  a = batch.advantages
  log_ratio = jnp.clip(logprobs - batch.old_logprobs, -20.0, 20.0)
  ratio = jnp.exp(log_ratio)
  clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
  loss = jnp.maximum(-a * ratio, -a * clipped)
  if dual_clip:
    loss = jnp.where(a < 0, jnp.minimum(loss, -a * dual_clip), loss)
  kl = k3(logprobs, batch.ref_logprobs)

  def total(x):
    return jnp.sum(x, where=mask)

  sums = {
      'policy/loss': total(loss),
      'policy/ref_kl': total(kl),
      'policy/approx_kl': total(jnp.exp(-log_ratio) + log_ratio - 1.0),
      'policy/clip_frac_low': total((ratio < 1.0 - clip_low) & (a < 0)),
      'policy/clip_frac_high': total((ratio > 1.0 + clip_high) & (a > 0)),
  }
  return total(loss + kl_coef * kl) / num_tokens, sums


def nll(logprobs: jax.Array, mask: jax.Array, num_tokens: jax.Array
        ) -> jax.Array:
  """Negative log-likelihood: -sum(mask * logprobs) / num_tokens, in nats."""
  return -jnp.sum(logprobs, where=mask) / num_tokens
