r"""Credit: from scores per row or step to an advantage per token.

One small pure function per rule. `Scores.valid` is a mask everywhere: a
missing or unreadable score neither trains its row nor enters a statistic.
Rules return f32[B, S], 0 where a step is not valid; `spread` gives each token
the value of its step. Golden numbers are in tests/test_advantages.py; equations
are those of the ExpRL paper, arXiv 2606.17024.

With s_t the score of step t of T, s_T the row's last one, and K rows a group:

  group          (s_T - mean_g) / std_g on the whole row
  rloo           s_T - the mean of the group's other rows
  delta          A_1 = s_1 - s_T,  A_t = s_t - s_{t-1}          (Eq. 2 and 5)
  end            A_t = s_t - s_T,  A_T = s_T                    (Eq. 4)
  group_process  A_t = s_t - (1/K) sum_k (1/T_k) sum_u s_ku     (Eq. 6)
  batch          A_t = s_t - the mean score of the batch's tokens
  raw, token     A_t = s_t
"""

import functools

import jax
import jax.numpy as jnp

from exprl_jax.config import Credit
from exprl_jax.types import Scores


@functools.partial(jax.jit, static_argnums=(1, 2))
def assign(scores: Scores, cfg: Credit, group_size: int, completion: jax.Array,
           whole: jax.Array, graded: Scores) -> jax.Array:
  """The advantage of every token, by the config's rule.

  Args:
    scores: one a row, a step or (rule 'token', S = T) a token.
    cfg: rule, its options, and what is mixed.
    group_size: G; rows of a group are neighbours.
    completion: bool[B, T] sampled tokens.
    whole: bool[B] rows among those of steps that have one score for all of
      it: they get rule 'group'. A group is whole or is not.
    graded: the grader's 0 or 1 of each row, S = 1, for cfg.sparse_weight.
      Dense and sparse advantages are normalised each for itself, then added.

  Returns:
    f32[B, T], 0 outside the completion and in rows without a valid score.
  """
  if cfg.rule == 'token':
    return jnp.where(completion & scores.valid, scores.value, 0.0)
  grouped = functools.partial(group, group_size=group_size, min_std=cfg.min_std,
                              divide_by_std=cfg.divide_by_std)
  stepwise = scores._replace(valid=scores.valid & ~whole[:, None])
  values = _RULES[cfg.rule](stepwise, cfg, group_size,
                            step_lengths(stepwise, completion),
                            completion.shape[1])
  values += grouped(scores._replace(valid=scores.valid & whole[:, None]))
  if cfg.sparse_weight:
    trains = scores.valid.any(axis=1, keepdims=True)
    extra = grouped(graded._replace(valid=graded.valid & trains))
    values += jnp.where(scores.valid, cfg.sparse_weight * extra, 0.0)
  return spread(values, scores, completion)


_RULES = {
    'group': lambda s, cfg, g, *_: group(s, g, cfg.divide_by_std, cfg.min_std),
    'rloo': lambda s, cfg, g, *_: rloo(s, g),
    'delta': lambda s, cfg, g, *_: delta(s, cfg.first, cfg.single, g),
    'end': lambda s, cfg, *_: end(s, cfg.last),
    'group_process': lambda s, cfg, g, lengths, padded: group_process(
        s, g, cfg.baseline, lengths, padded),
    'batch': lambda s, cfg, g, lengths, _: batch(s, lengths),
    'raw': lambda s, *_: raw(s),
}


def final(scores: Scores) -> tuple[jax.Array, jax.Array]:
  """The last valid score of each row f32[B, 1], and whether there is one."""
  index = _last_valid(scores.valid)[:, -1:]
  value = jnp.take_along_axis(scores.value, jnp.maximum(index, 0), axis=1)
  return jnp.where(index >= 0, value, 0.0), index >= 0


def _last_valid(valid: jax.Array) -> jax.Array:
  """i32[B, S]: the index of the last valid step up to each; -1: none."""
  index = jnp.where(valid, jnp.arange(valid.shape[1])[None], -1)
  return jax.lax.cummax(index, axis=1)


def _previous(x: jax.Array, valid: jax.Array, first: jax.Array) -> jax.Array:
  """x at the valid step before each; `first` [B, 1] where there is none."""
  last = _last_valid(valid)
  last = jnp.pad(last[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  before = jnp.take_along_axis(x, jnp.maximum(last, 0), axis=1)
  return jnp.where(last < 0, first, before)


def _group_mean(value: jax.Array, valid: jax.Array, group_size: int):
  """Mean over the valid rows of each row's group f32[B, 1], and their number.
  """
  value, valid = (x.reshape(-1, group_size) for x in (value, valid))
  n = valid.sum(axis=1, keepdims=True)
  # From the lowest on: the mean of equal values is exactly that value, or
  # rounding, divided by a deviation of nearly 0, would be an advantage.
  low = jnp.min(value, 1, where=valid, initial=jnp.inf, keepdims=True)
  low = jnp.where(n > 0, low, 0.0)
  mean = low + jnp.sum(value - low, 1, where=valid,
                       keepdims=True) / jnp.maximum(n, 1)
  back = lambda x: jnp.repeat(x, group_size, axis=0)
  return back(mean), back(n)


def group(scores: Scores, group_size: int, divide_by_std: bool = True,
          min_std: float = 0.0, epsilon: float = 1e-6) -> jax.Array:
  """Group-normalised advantage (GRPO): (s_T - mean_g) / (std_g + epsilon).

  Args:
    scores: rows of a group are neighbours.
    group_size: G.
    divide_by_std: False leaves the centred score (Dr. GRPO, stage 2).
    min_std: a smaller standard deviation counts as this one: noise of a judge
      is not blown up.
    epsilon: added to the unbiased (n - 1) standard deviation.

  Returns:
    f32[B, S]. Groups with fewer than two valid rows get 0.
  """
  value, valid = final(scores)
  mean, n = _group_mean(value, valid, group_size)
  centred = jnp.where(valid & (n > 1), value - mean, 0.0)
  if divide_by_std:
    mean_square, _ = _group_mean(centred**2, valid, group_size)
    std = jnp.sqrt(mean_square * n / jnp.maximum(n - 1, 1))
    centred = centred / (jnp.maximum(std, min_std) + epsilon)
  return jnp.where(scores.valid, centred, 0.0)


def rloo(scores: Scores, group_size: int) -> jax.Array:
  """Leave one out: s_T - the mean of the group's other valid rows.

  Returns:
    f32[B, S]. Groups with fewer than two valid rows get 0.
  """
  value, valid = final(scores)
  mean, n = _group_mean(value, valid, group_size)
  out = jnp.where(n > 1, (value - mean) * n / jnp.maximum(n - 1, 1), 0.0)
  return jnp.where(scores.valid, out, 0.0)


def delta(scores: Scores, first: str = 'final', single: str = 'zero',
          group_size: int = 1) -> jax.Array:
  """Score differences between steps (DeltaNorm, Eq. 2 and 5).

  A_t = s_t - s_{t-1} for t > 1. The difference after an unreadable step is
  taken against the last readable one.

  Args:
    scores: a score for every step.
    first: 'final' is the paper's A_1 = s_1 - s_T, for scores that say how
      promising a prefix is; 'zero' is A_1 = s_1 - 0, the telescoping form,
      for scores that say how much has been reached (with these, 'final'
      punishes the early steps of good traces and the policy collapses).
    single: for rows of one step: 'zero' (the paper's A_1 = s_1 - s_1),
      'score' (A_1 = s_1, the authors' code) or 'group_centred' (A_1 = s_1 -
      the group's mean s_T). Only meaningful with first='final'.
    group_size: G, for 'group_centred'.

  Returns:
    f32[B, S], 0 where the step is not valid.
  """
  value, valid = scores.value, scores.valid
  start = jnp.zeros((len(value), 1))
  if first == 'final':
    start, exists = final(scores)
    alone = valid.sum(1, keepdims=True) == 1
    if single == 'score':
      start = jnp.where(alone, 0.0, start)
    elif single == 'group_centred':
      mean, _ = _group_mean(start, exists, group_size)
      start = jnp.where(alone, mean, start)
  return jnp.where(valid, value - _previous(value, valid, start), 0.0)


def end(scores: Scores, last: str = 'score') -> jax.Array:
  """Steps against the end (EndNorm, Eq. 4): A_t = s_t - s_T, A_T = s_T.

  Args:
    scores: a score for every step.
    last: 'score', or 'zero': A_T = 0, as the authors' code has it.
  """
  value, _ = final(scores)
  out = scores.value - value
  if last == 'score':
    index = jnp.arange(scores.value.shape[1])[None]
    is_last = index == _last_valid(scores.valid)[:, -1:]
    out = jnp.where(is_last, scores.value, out)
  return jnp.where(scores.valid, out, 0.0)


def group_process(scores: Scores, group_size: int, baseline: str,
                  lengths: jax.Array, padded: int) -> jax.Array:
  """Steps against the mean step of the group (GroupNorm, Eq. 6).

  Args:
    scores: a score for every step.
    group_size: K.
    baseline: 'steps' is Eq. 6: the mean over rows of the mean over steps;
      'tokens' weighs the steps of a row by their tokens; 'padded' is what the
      authors' code computes: 'tokens' divided by the padded length, about 0.
    lengths: f32[B, S] tokens of the steps.
    padded: T, for 'padded'.
  """
  weight = scores.valid if baseline == 'steps' else lengths
  row, exists = _row_mean(scores, weight)
  mean, _ = _group_mean(row, exists, group_size)
  if baseline == 'padded':
    mean /= padded
  return jnp.where(scores.valid, scores.value - mean, 0.0)


def batch(scores: Scores, lengths: jax.Array) -> jax.Array:
  """Steps against the mean over the batch's rows of their tokens' score.

  Args:
    scores: a score for every step.
    lengths: f32[B, S] tokens of the steps.
  """
  row, exists = _row_mean(scores, lengths)
  mean = jnp.sum(row, where=exists) / jnp.maximum(exists.sum(), 1)
  return jnp.where(scores.valid, scores.value - mean, 0.0)


def raw(scores: Scores) -> jax.Array:
  """The scores themselves."""
  return jnp.where(scores.valid, scores.value, 0.0)


def _row_mean(scores: Scores, weight: jax.Array):
  """The weighted mean score of each row f32[B, 1], and whether it has any."""
  weight = jnp.where(scores.valid, weight, 0.0)
  total = weight.sum(1, keepdims=True)
  mean = jnp.sum(scores.value * weight, 1, keepdims=True)
  return mean / jnp.maximum(total, 1e-9), scores.valid.any(1, keepdims=True)


def step_lengths(scores: Scores, completion: jax.Array) -> jax.Array:
  """f32[B, S]: the tokens of each valid step; see `spread` for which."""
  start = jnp.argmax(completion, axis=1)[:, None] - 1
  before = _previous(scores.step_end, scores.valid, start)
  return jnp.where(scores.valid, scores.step_end - before,
                   0).astype(jnp.float32)


def spread(values: jax.Array, scores: Scores,
           completion: jax.Array) -> jax.Array:
  """Gives every completion token the value of the step that it is in.

  Args:
    values: f32[B, S], an advantage for each step.
    scores: where the steps end. Steps of a row are in order, and the valid
      ones cover the row: a token belongs to the first valid step that ends
      at or after it.
    completion: bool[B, T].

  Returns:
    f32[B, T], 0 outside the completion.
  """
  columns = jnp.arange(completion.shape[1])
  reached = scores.valid[:, None, :] & (scores.step_end[:, None, :]
                                        >= columns[None, :, None])  # [B, T, S]
  step = jnp.argmax(reached, axis=-1)  # the first one
  out = jnp.take_along_axis(values, step, axis=1)
  return jnp.where(completion & reached.any(axis=-1), out, 0.0)
