r"""Credit: from scores per row or step to an advantage per token.

One small pure function per rule. `Scores.valid` is a mask everywhere: a
missing or unreadable score neither trains its row nor enters a statistic.
Golden numbers are in tests/test_advantages.py; equations are those of the
ExpRL paper, arXiv 2606.17024.
"""

import jax
import jax.numpy as jnp

from exprl_jax.types import Scores


def group(scores: Scores, group_size: int, divide_by_std: bool = True,
          epsilon: float = 1e-6) -> jax.Array:
  """Group-normalised advantage (GRPO): (s - mean_g) / (std_g + epsilon).

  Args:
    scores: one score a row (S = 1); rows of a group are neighbours.
    group_size: G.
    divide_by_std: False leaves the centred score (Dr. GRPO, stage 2).
    epsilon: added to the unbiased (n - 1) standard deviation.

  Returns:
    f32[B, 1]. Groups with fewer than two valid rows get 0.
  """
  value = scores.value.reshape(-1, group_size)
  valid = scores.valid.reshape(-1, group_size)
  n = valid.sum(axis=1, keepdims=True)
  mean = jnp.sum(value, 1, where=valid, keepdims=True) / jnp.maximum(n, 1)
  centred = jnp.where(valid & (n > 1), value - mean, 0.0)
  if divide_by_std:
    variance = jnp.sum(centred**2, 1, keepdims=True) / jnp.maximum(n - 1, 1)
    centred = centred / (jnp.sqrt(variance) + epsilon)
  return centred.reshape(-1, 1)


def delta(scores: Scores, first: str = 'final', single: str = 'zero'
          ) -> jax.Array:
  """Score differences between steps (DeltaNorm, Eq. 2 and 5).

  A_t = s_t - s_{t-1} for t > 1. The difference after an unreadable step is
  taken against the last readable one.

  Args:
    scores: a score for every step.
    first: 'final' is the paper's A_1 = s_1 - s_T, for scores that say how
      promising a prefix is; 'zero' is A_1 = s_1 - 0, the telescoping form,
      for scores that say how much has been reached (with these, 'final'
      punishes the early steps of good traces and the policy collapses).
    single: for rows of one step: 'zero' (the paper's A_1 = s_1 - s_1) or
      'score' (A_1 = s_1). Only meaningful with first='final'.

  Returns:
    f32[B, S], 0 where the step is not valid.
  """
  value, valid = scores.value, scores.valid
  num_steps = value.shape[1]
  index = jnp.where(valid, jnp.arange(num_steps)[None], -1)
  last_valid = jax.lax.cummax(index, axis=1)  # at or before each step
  previous = jnp.pad(last_valid[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  before = jnp.take_along_axis(value, jnp.maximum(previous, 0), axis=1)
  if first == 'final':
    final = jnp.take_along_axis(
        value, jnp.maximum(last_valid[:, -1:], 0), axis=1)
    if single == 'score':
      final = jnp.where(valid.sum(1, keepdims=True) == 1, 0.0, final)
    before = jnp.where(previous < 0, final, before)
  else:
    before = jnp.where(previous < 0, 0.0, before)
  return jnp.where(valid, value - before, 0.0)


def spread(values: jax.Array, scores: Scores, completion: jax.Array
           ) -> jax.Array:
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
  reached = scores.valid[:, None, :] & (
      scores.step_end[:, None, :] >= columns[None, :, None])  # [B, T, S]
  step = jnp.argmax(reached, axis=-1)  # the first one
  out = jnp.take_along_axis(values, step, axis=1)
  return jnp.where(completion & reached.any(axis=-1), out, 0.0)
