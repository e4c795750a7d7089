r"""Credit: from scores per row or step to an advantage per token.

One small pure function per rule. `Scores.valid` is a mask everywhere: a
missing or unreadable score neither trains its row nor enters a statistic.
Rules return f32[B, S], 0 where a step is not valid; `spread` gives each token
the value of its step. Golden numbers are in tests/test_advantages.py; equations
are those of the ExpRL paper, arXiv 2606.17024.

With s_t the score of step t of T, s_T the last one of the row, and K rows per
group:

  group          (s_T - mean_g) / std_g, the same for the whole row
  rloo           s_T - the mean of the other rows of the group
  delta          A_1 = s_1 - s_T,  A_t = s_t - s_{t-1}          (Eq. 2 and 5)
  end            A_t = s_t - s_T,  A_T = s_T                    (Eq. 4)
  group_process  A_t = s_t - (1/K) sum_k (1/T_k) sum_u s_ku     (Eq. 6)
  batch          A_t = s_t - the mean score of the tokens of the batch
  raw, token     A_t = s_t

To add a rule, write its function and add it to RULES at the end of this file.
"""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from exprl_jax.config import Credit
from exprl_jax.rl.scored import ScoredRollouts
from exprl_jax.types import AnyArray, Scores, Trajectory


class Layout(NamedTuple):
  """What a rule may need to know about the rows besides their scores."""

  group_size: int  # G; rows of a group are neighbors
  step_tokens: Float[AnyArray, 'B S']  # tokens of each valid step
  padded_tokens: int  # prompt and token budget, for the authors' baseline


@functools.partial(jax.jit,
                   static_argnames=('cfg', 'group_size', 'padded_tokens'))
def assign(scores: Scores, graded: Scores, outcome_rows: Bool[AnyArray, ' B'],
           step_tokens: Float[AnyArray, 'B S'], *, cfg: Credit, group_size: int,
           padded_tokens: int) -> Float[Array, 'B S']:
  """Computes the advantage of every step by the config's rule.

  Args:
    scores: one per row or per step; rows of a group are neighbors.
    graded: the grader's 0 or 1 per row, S = 1, for cfg.sparse_weight. Dense
      and sparse advantages are normalized separately, then added.
    outcome_rows: rows among stepwise ones that have a single score for the
      whole trace: they get rule 'group'. A group is one or the other.
    step_tokens: see `step_tokens`.
    cfg: the rule, its options, and what is mixed in.
    group_size: G.
    padded_tokens: see Layout.

  Returns:
    The advantages, 0 in steps without a valid score.
  """
  layout = Layout(group_size, step_tokens, padded_tokens)
  stepwise = scores._replace(valid=scores.valid & ~outcome_rows[:, None])
  values = RULES[cfg.rule].apply(stepwise, cfg, layout)
  values += group(scores._replace(valid=scores.valid & outcome_rows[:, None]),
                  group_size, cfg.divide_by_std, cfg.min_std)
  if cfg.sparse_weight:
    trains = scores.valid.any(axis=1, keepdims=True)
    sparse = group(graded._replace(valid=graded.valid & trains), group_size,
                   cfg.divide_by_std, cfg.min_std)
    values += jnp.where(scores.valid, cfg.sparse_weight * sparse, 0.0)
  return values


def step_tokens(valid: Bool[np.ndarray, 'B S'],
                trajectories: Sequence[Trajectory]) -> Float[np.ndarray, 'B S']:
  """Counts the tokens of each valid step; see `spread` for which are its."""
  out = np.zeros(valid.shape, np.float32)
  for row, mask, trajectory in zip(out, valid, trajectories):
    steps = np.flatnonzero(mask)
    ends = np.take(trajectory.step_ends, steps)
    row[steps] = np.diff(ends, prepend=0)
  return out


def spread(values: Float[np.ndarray, 'B S'], valid: Bool[np.ndarray, 'B S'],
           trajectories: Sequence[Trajectory]) -> list[np.ndarray]:
  """Gives every token of the completions the value of its step.

  A token belongs to the first valid step that ends behind it, so the tokens of
  a step without a score go to the next one.

  Args:
    values: an advantage per step.
    valid: steps with a score.
    trajectories: B of them, cut into steps.

  Returns:
    f32[T] for each, 0 behind the last valid step.
  """
  out = []
  for row, mask, trajectory in zip(values, valid, trajectories):
    steps = np.flatnonzero(mask)
    ends = np.take(trajectory.step_ends, steps).astype(int)
    tokens = np.zeros(len(trajectory.completion), np.float32)
    for start, end, step in zip([0, *ends], ends, steps):
      tokens[start:end] = row[step]
    out.append(tokens)
  return out


def at_step_ends(tokens: Sequence[np.ndarray],
                 scored: ScoredRollouts) -> Float[np.ndarray, 'B S']:
  """Reads values per token at the last token of each step, to log them."""
  out = np.zeros(scored.scores.value.shape, np.float32)
  for row, values, trajectory in zip(out, tokens, scored.trajectories):
    ends = np.asarray(trajectory.step_ends, int)
    row[:len(ends)] = values[ends - 1]
  return out


def final(scores: Scores) -> tuple[Array, Array]:
  """The last valid score of each row f32[B, 1], and whether there is one."""
  index = _last_valid(scores.valid)[:, -1:]
  value = jnp.take_along_axis(scores.value, jnp.maximum(index, 0), axis=1)
  return jnp.where(index >= 0, value, 0.0), index >= 0


def _last_valid(valid: AnyArray) -> Array:
  """i32[B, S]: the index of the last valid step up to each; -1: none."""
  index = jnp.where(valid, jnp.arange(valid.shape[1])[None], -1)
  return jax.lax.cummax(index, axis=1)


def _previous(x: AnyArray, valid: AnyArray, first: AnyArray) -> Array:
  """x at the valid step before each; `first` [B, 1] where there is none."""
  last = _last_valid(valid)
  last = jnp.pad(last[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  before = jnp.take_along_axis(x, jnp.maximum(last, 0), axis=1)
  return jnp.where(last < 0, first, before)


def _group_mean(value: AnyArray, valid: AnyArray,
                group_size: int) -> tuple[Array, Array]:
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
  return (jnp.repeat(mean, group_size,
                     axis=0), jnp.repeat(n, group_size, axis=0))


def group(scores: Scores, group_size: int, divide_by_std: bool = True,
          min_std: float = 0.0, epsilon: float = 1e-6) -> Float[Array, 'B S']:
  """Group-normalized advantage (GRPO): (s_T - mean_g) / (std_g + epsilon).

  Args:
    scores: rows of a group are neighbors.
    group_size: G.
    divide_by_std: False leaves the centered score (Dr. GRPO, stage 2).
    min_std: a smaller standard deviation counts as this one: noise of a judge
      is not blown up.
    epsilon: added to the unbiased (n - 1) standard deviation.

  Returns:
    f32[B, S]. Groups with fewer than two valid rows get 0.
  """
  value, valid = final(scores)
  mean, n = _group_mean(value, valid, group_size)
  centered = jnp.where(valid & (n > 1), value - mean, 0.0)
  if divide_by_std:
    mean_square, _ = _group_mean(centered**2, valid, group_size)
    std = jnp.sqrt(mean_square * n / jnp.maximum(n - 1, 1))
    centered = centered / (jnp.maximum(std, min_std) + epsilon)
  return jnp.where(scores.valid, centered, 0.0)


def rloo(scores: Scores, group_size: int) -> Float[Array, 'B S']:
  """Leave one out: s_T - the mean of the group's other valid rows.

  Returns:
    f32[B, S]. Groups with fewer than two valid rows get 0.
  """
  value, valid = final(scores)
  mean, n = _group_mean(value, valid, group_size)
  out = jnp.where(n > 1, (value - mean) * n / jnp.maximum(n - 1, 1), 0.0)
  return jnp.where(scores.valid, out, 0.0)


def delta(scores: Scores, first: str = 'final', single: str = 'zero',
          group_size: int = 1) -> Float[Array, 'B S']:
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
      'score' (A_1 = s_1, the authors' code) or 'group_centered' (A_1 = s_1 -
      the group's mean s_T). Only meaningful with first='final'.
    group_size: G, for 'group_centered'.

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
    elif single == 'group_centered':
      mean, _ = _group_mean(start, exists, group_size)
      start = jnp.where(alone, mean, start)
  return jnp.where(valid, value - _previous(value, valid, start), 0.0)


def end(scores: Scores, last: str = 'score') -> Float[Array, 'B S']:
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
                  step_tokens: Float[AnyArray, 'B S'],
                  padded_tokens: int) -> Float[Array, 'B S']:
  """Steps against the mean step of the group (GroupNorm, Eq. 6).

  Args:
    scores: a score for every step.
    group_size: K.
    baseline: 'steps' is Eq. 6: the mean over rows of the mean over steps;
      'tokens' weighs the steps of a row by their tokens; 'padded' is what the
      authors' code computes: 'tokens' divided by the padded length, about 0.
    step_tokens: f32[B, S].
    padded_tokens: see Layout; for 'padded'.
  """
  weight = scores.valid if baseline == 'steps' else step_tokens
  row, exists = _row_mean(scores, weight)
  mean, _ = _group_mean(row, exists, group_size)
  if baseline == 'padded':
    mean /= padded_tokens
  return jnp.where(scores.valid, scores.value - mean, 0.0)


def batch(scores: Scores, step_tokens: Float[Array | np.ndarray,
                                             'B S']) -> Float[Array, 'B S']:
  """Steps against the mean over the batch's rows of their tokens' score.

  Args:
    scores: a score for every step.
    step_tokens: f32[B, S].
  """
  row, exists = _row_mean(scores, step_tokens)
  mean = jnp.sum(row, where=exists) / jnp.maximum(exists.sum(), 1)
  return jnp.where(scores.valid, scores.value - mean, 0.0)


def raw(scores: Scores) -> Float[Array, 'B S']:
  """The scores themselves."""
  return jnp.where(scores.valid, scores.value, 0.0)


def _row_mean(scores: Scores, weight: AnyArray) -> tuple[Array, AnyArray]:
  """The weighted mean score of each row f32[B, 1], and whether it has any."""
  weight = jnp.where(scores.valid, weight, 0.0)
  total = weight.sum(1, keepdims=True)
  mean = jnp.sum(scores.value * weight, 1, keepdims=True)
  return (mean / jnp.maximum(total, 1e-9),
          jnp.any(scores.valid, 1, keepdims=True))


class Rule(NamedTuple):
  """An entry of RULES.

  Attributes:
    granularity: the scores it takes: one per 'row', 'step' or 'token'.
    apply: (scores, config.Credit, Layout) -> f32[B, S].
    keys: the keys of config.Credit that it reads.
  """

  granularity: tuple[str, ...]
  apply: Callable[[Scores, Credit, Layout], Array]
  keys: tuple[str, ...] = ()


RULES: dict[str, Rule] = {
    'group': Rule(
        ('row',),
        lambda s, c, x: group(s, x.group_size, c.divide_by_std, c.min_std),
        ('divide_by_std', 'min_std')),
    'rloo': Rule(('row',), lambda s, c, x: rloo(s, x.group_size)),
    'delta': Rule(('step',),
                  lambda s, c, x: delta(s, c.first, c.single, x.group_size),
                  ('first', 'single')),
    'end': Rule(('step',), lambda s, c, x: end(s, c.last), ('last',)),
    'group_process': Rule(('step',), lambda s, c, x: group_process(
        s, x.group_size, c.baseline, x.step_tokens, x.padded_tokens),
                          ('baseline',)),
    'batch': Rule(('row', 'step'), lambda s, c, x: batch(s, x.step_tokens)),
    'raw': Rule(('row', 'step'), lambda s, c, x: raw(s)),
    'token': Rule(('token',), lambda s, c, x: raw(s)),
}
