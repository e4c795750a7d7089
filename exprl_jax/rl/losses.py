"""Losses on token log-probabilities; each function states its formula.

To add a loss, write its function and add it to LOSSES.
"""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from exprl_jax.config import Loss
from exprl_jax.rl import kl as kl_lib
from exprl_jax.runtime.registry import load_function, lookup
from exprl_jax.types import PackedBatch


def token_weights(masks: Sequence[np.ndarray], aggregation: str,
                  max_tokens: int) -> list[np.ndarray]:
  """Weighs each token's loss: the loss of an update is the dot product.

  Made of all rows of the update at once, so that neither micro-batches nor
  packing change it. With N tokens in K trained rows of l_k tokens each:

    token_mean           1 / N
    seq_mean_token_mean  1 / (K l_k)
    seq_mean_token_sum   1 / K
    fixed_length         1 / (K max_tokens)   (Dr. GRPO)

  Args:
    masks: bool[n] for each row, True at the tokens that train.
    aggregation: one of the four.
    max_tokens: rollout.max_new_tokens.

  Returns:
    f32[n] for each row, 0 where nothing trains.
  """
  lengths = [int(mask.sum()) for mask in masks]
  rows, tokens = max(sum(n > 0 for n in lengths), 1), max(sum(lengths), 1)
  weigh = {
      'token_mean': lambda n: 1.0 / tokens,
      'seq_mean_token_mean': lambda n: 1.0 / (rows * max(n, 1)),
      'seq_mean_token_sum': lambda n: 1.0 / rows,
      'fixed_length': lambda n: 1.0 / (rows * max_tokens)
  }[aggregation]
  return [
      (mask * weigh(n)).astype(np.float32) for mask, n in zip(masks, lengths)
  ]


class Terms(NamedTuple):
  """What the loss of a token is made of, f32[R, L] each."""

  logprobs: Float[Array, 'R L']  # under the parameters that train
  log_ratio: Float[Array, 'R L']  # logprobs - old_logprobs, clipped to +-20
  advantages: Float[Array, 'R L']
  mask: Bool[Array, 'R L']  # tokens that train
  segment_ids: Int[Array, 'R L']  # of their sequences


# Per token: the loss, and the ratio that is logged as policy/ratio_max.
TokenLoss = tuple[Float[Array, 'R L'], Float[Array, 'R L']]


def ppo(terms: Terms, cfg: Loss) -> TokenLoss:
  """max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)); r the token's ratio.

  For A < 0 at most -A dual_clip (arXiv 1912.09729).
  """
  ratio = jnp.exp(terms.log_ratio)
  a = terms.advantages
  loss = _clipped(a, ratio, cfg)
  if cfg.dual_clip:
    loss = jnp.where(a < 0, jnp.minimum(loss, -a * cfg.dual_clip), loss)
  return loss, ratio


def gspo(terms: Terms, cfg: Loss) -> TokenLoss:
  """PPO with r = exp of the mean log-ratio of the sequence (GSPO-token).

  The gradient goes to each token's own log-ratio, so that advantages may
  differ along the sequence (arXiv 2507.18071).
  """
  mean = _sequence_mean(terms.log_ratio, terms.mask, terms.segment_ids)
  ratio = jnp.exp(
      jax.lax.stop_gradient(mean - terms.log_ratio) + terms.log_ratio)
  return _clipped(terms.advantages, ratio, cfg), ratio


def cispo(terms: Terms, cfg: Loss) -> TokenLoss:
  """-A sg(clip(r, 1 - clip_low, 1 + clip_high)) logprobs (arXiv 2506.13585)."""
  ratio = jnp.exp(terms.log_ratio)
  weight = jax.lax.stop_gradient(_clip(ratio, cfg))
  return -terms.advantages * weight * terms.logprobs, ratio


def reinforce(terms: Terms, cfg: Loss) -> TokenLoss:
  """-A logprobs."""
  del cfg
  return -terms.advantages * terms.logprobs, jnp.exp(terms.log_ratio)


class Kind(NamedTuple):
  """An entry of LOSSES.

  Attributes:
    per_token: (Terms, config.Loss) -> TokenLoss.
    keys: the keys of config.Loss that it reads, besides those that all do.
    needs_ratio: False: it has no ratio to an older policy, so the update takes
      one optimizer step per batch.
    teacher: the loss is the exact KL to a teacher, which needs the teacher's
      forward pass; `per_token` is logged only.
  """

  per_token: Callable[[Terms, Loss], TokenLoss]
  keys: tuple[str, ...] = ()
  needs_ratio: bool = True
  teacher: bool = False


_CLIP = ('clip_low', 'clip_high')
LOSSES: dict[str, Kind] = {
    'ppo': Kind(ppo, (*_CLIP, 'dual_clip', 'entropy_coef')),
    'gspo': Kind(gspo, (*_CLIP, 'entropy_coef')),
    'cispo': Kind(cispo, (*_CLIP, 'entropy_coef')),
    'reinforce': Kind(reinforce, ('entropy_coef',), needs_ratio=False),
    'exact_kl': Kind(ppo, needs_ratio=False, teacher=True),
}


@functools.cache
def kind(name: str) -> Kind:
  """The entry of LOSSES, or a function `FILE.py:FUNCTION`, `MODULE:FUNCTION`.

  Such a function takes (Terms, config.Loss) and returns a TokenLoss.

  Raises:
    InputError: there is no such loss.
  """
  if ':' in name:
    return Kind(load_function(name, 'loss.kind'), (*_CLIP, 'entropy_coef'))
  return lookup(LOSSES, name, 'loss.kind')


def only_credit_trains(cfg: Loss) -> bool:
  """Whether tokens without an advantage have no gradient either."""
  built_in = LOSSES.get(cfg.kind)
  in_loss = cfg.kl_coef if cfg.kl_in == 'loss' else 0.0
  return bool(built_in and not built_in.teacher and not in_loss
              and not cfg.entropy_coef)


def policy_loss(logprobs: Float[Array, 'R L'], entropy: Float[Array, 'R L'],
                batch: PackedBatch,
                cfg: Loss) -> tuple[Float[Array, ''], tuple[dict, dict]]:
  """The loss of a policy gradient, and what is logged of its tokens.

  loss = sum(loss_weight * (w L + kl_coef KL - entropy_coef H)), with L by
  cfg.kind. w corrects for what the sampler computes differently
  (`sampler_weight`).

  Args:
    logprobs: under the parameters that train.
    entropy: of the same distributions.
    batch: packed rows; `loss_weight` is `token_weights`.
    cfg: see config.Loss.

  Returns:
    The loss, and metrics: (sums over tokens, largest values).
  """
  mask = batch.loss_weight > 0
  log_ratio = jnp.clip(logprobs - batch.old_logprobs, -20.0, 20.0)
  loss, ratio = kind(cfg.kind).per_token(
      Terms(logprobs, log_ratio, batch.advantages, mask, batch.segment_ids),
      cfg)
  mismatch = jnp.clip(batch.old_logprobs - batch.rollout_logprobs, -20.0, 20.0)
  if cfg.tis_cap:
    loss *= sampler_weight(mismatch, mask, batch.segment_ids, cfg)
  kl = jnp.asarray(
      kl_lib.estimate(logprobs, batch.ref_logprobs, cfg.kl_estimator,
                      cfg.kl_clamp))
  in_loss = cfg.kl_coef if cfg.kl_in == 'loss' else 0.0
  regularized = loss + in_loss * kl - cfg.entropy_coef * entropy
  metrics = _metrics(batch, cfg, loss, entropy, kl, log_ratio, ratio, mismatch)
  return jnp.sum(batch.loss_weight * regularized, where=mask), metrics


def sampler_weight(mismatch: Float[Array, 'R L'], mask: Bool[Array, 'R L'],
                   segment_ids: Int[Array,
                                    'R L'], cfg: Loss) -> Float[Array, 'R L']:
  """The importance weight of each token, by loss.tis_mode; without gradient.

  With the ratio r = exp(old_logprobs - rollout_logprobs) of a token, or the
  product of them over the sequence's tokens that train: 'truncate' is min(r,
  tis_cap) (TIS), 'mask' is r where r <= tis_cap, else 0 (MIS). Names are those
  of TRL's vllm_importance_sampling_mode; verl has rollout_is = token or
  sequence, and rejection for the masks.

  Args:
    mismatch: log r of every token; both sides are given.
    mask: tokens that train.
    segment_ids: of their sequences.
    cfg: its tis_cap and tis_mode.
  """
  if cfg.tis_mode.startswith('sequence'):
    mismatch = _of_sequences(mismatch, mask, segment_ids)[0]
    mismatch = jnp.clip(mismatch, -20.0, 20.0)
  ratio = jnp.exp(mismatch)
  if cfg.tis_mode.endswith('mask'):
    return jnp.where(ratio <= cfg.tis_cap, ratio, 0.0)
  return jnp.minimum(ratio, cfg.tis_cap)


def _metrics(batch: PackedBatch, cfg: Loss, loss: Array, entropy: Array,
             kl: Array, log_ratio: Array, ratio: Array,
             mismatch: Array) -> tuple[dict[str, Array], dict[str, Array]]:
  """Sums over the tokens that train, and largest values."""
  mask, a = batch.loss_weight > 0, batch.advantages
  weight = jnp.exp(mismatch)

  def total(x: Array) -> Array:
    return jnp.sum(x, where=mask)

  sums = {
      'policy/loss': jnp.sum(batch.loss_weight * loss, where=mask),
      'policy/entropy': total(entropy),
      'policy/approx_kl': total(jnp.exp(log_ratio) - log_ratio - 1.0),
      'policy/clip_frac_low': total((ratio < 1.0 - cfg.clip_low) & (a < 0)),
      'policy/clip_frac_high': total((ratio > 1.0 + cfg.clip_high) & (a > 0)),
      'mismatch/logprob_abs_diff': total(jnp.abs(mismatch)),
      'mismatch/kl': total(-mismatch + jnp.exp(mismatch) - 1.0),
      'mismatch/ratio': total(weight),
      'mismatch/ratio_square': total(weight**2),
      'mismatch/is_clipped_frac': total(weight > (cfg.tis_cap or np.inf)),
      'tokens': total(jnp.ones(mask.shape)),
  }
  if cfg.kl_coef:  # without it there is no reference
    sums['policy/ref_kl'] = total(kl)
  largest = {
      'policy/ratio_max': jnp.max(ratio, where=mask, initial=0.0),
      'mismatch/ratio_max': jnp.max(weight, where=mask, initial=0.0)
  }
  return sums, largest


def _clip(ratio: Array, cfg: Loss) -> Array:
  return jnp.clip(ratio, 1.0 - cfg.clip_low, 1.0 + cfg.clip_high)


def _clipped(advantages: Array, ratio: Array, cfg: Loss) -> Array:
  """PPO's pessimistic surrogate."""
  return jnp.maximum(-advantages * ratio, -advantages * _clip(ratio, cfg))


def _sequence_mean(x: Array, mask: Array, segment_ids: Array) -> Array:
  """Gives each token its sequence's mean of x over the mask."""
  total, count = _of_sequences(x, mask, segment_ids)
  return total / jnp.maximum(count, 1.0)


def _of_sequences(x: Array, mask: Array,
                  segment_ids: Array) -> tuple[Array, Array]:
  """Gives each token its sequence's sum of x over the mask, and its count."""
  rows, columns = x.shape
  ids = (segment_ids + (columns + 1) * jnp.arange(rows)[:, None]).ravel()

  def total(y: Array) -> Array:
    return jax.ops.segment_sum(
        jnp.where(mask, y, 0.0).ravel(), ids, rows * (columns + 1))

  return tuple(
      total(y)[ids].reshape(x.shape)  # type: ignore[return-value]
      for y in (x, jnp.ones_like(x)))


def nll(logprobs: Float[Array, 'R L'],
        loss_weight: Float[Array, 'R L']) -> Float[Array, '']:
  """Negative log-likelihood: -sum(loss_weight * logprobs), in nats."""
  return -jnp.sum(loss_weight * logprobs, where=loss_weight > 0)
