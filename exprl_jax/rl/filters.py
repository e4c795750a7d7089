"""Dynamic sampling: which groups of a step train."""

import dataclasses

from jaxtyping import Bool
import numpy as np

from exprl_jax.config import Config
from exprl_jax.rl import credit
from exprl_jax.rl.curriculum import Solved
from exprl_jax.rl.scored import ScoredRollouts, concatenate
from exprl_jax.runtime import metrics
from exprl_jax.types import RunFailure


def without_credit(config: Config,
                   scored: ScoredRollouts) -> Bool[np.ndarray, ' P']:
  """Finds the groups that carry no gradient: their credit is 0 everywhere.

  The rule of the config is asked, not the scores: 'end' gives credit to equal
  scores, 'delta' may give none to different ones. It is asked for credit in
  units of the scores, before any division by their deviation. The KL that
  loss.kl_in='reward' takes off a score is not looked at.
  """
  cfg = dataclasses.replace(config.credit, divide_by_std=False)
  undivided = dataclasses.replace(config, credit=cfg)
  values = credit.of_scores(undivided, scored, scored.scores)
  largest = np.abs(values).max(axis=1, initial=0.0)
  groups = largest.reshape(-1, config.rollout.group_size).max(axis=1)
  return groups <= config.select.tolerance


def solved_metrics(scored: ScoredRollouts, size: int) -> dict[str, float]:
  """What the groups of a rollout have in common.

  'group/unsolved_frac' and 'group/all_solved_frac': problems with no right
  trace, or no wrong one, among those that can be graded (the paper's Figure 3;
  they depend on the group's size). 'group/step_score_std': the deviation of all
  step scores of a problem, mean over problems.
  """
  rates = _solved(scored, size).rates
  shape = (-1, size * scored.scores.value.shape[1])
  value, valid = (np.asarray(x).reshape(shape) for x in scored.scores)
  spreads = [v[ok].std() for v, ok in zip(value, valid) if ok.any()]
  return {
      'group/unsolved_frac': metrics.mean((rates == 0).tolist()),
      'group/all_solved_frac': metrics.mean((rates == 1).tolist()),
      'group/step_score_std': metrics.mean(map(float, spreads))
  }


class Batch:
  """Collects the groups of a step, over one rollout or several.

  With select.drop_zero_variance, groups that carry no gradient are dropped and
  other problems are tried in their place, select.max_refills times; what is
  missing then stays missing.
  """

  def __init__(self, config: Config):
    self._config, self._select = config, config.select
    self._group_size = config.rollout.group_size
    self._parts: list[ScoredRollouts] = []
    self._informative: list[bool] = []  # of each group so far
    self._wanted = 0  # groups

  @property
  def attempts(self) -> int:
    """Rollouts so far."""
    return len(self._parts)

  @property
  def complete(self) -> bool:
    """Whether the batch is full, or will not be refilled."""
    if not self._select.drop_zero_variance:
      return self.attempts == 1
    full = self.attempts and sum(self._informative) >= self._wanted
    return bool(full) or self.attempts > self._select.max_refills

  def add(self, scored: ScoredRollouts) -> None:
    """Adds the groups of a rollout."""
    none = without_credit(self._config, scored)
    shares = {'group/zero_variance_frac': float(none.mean())}
    shares |= solved_metrics(scored, self._group_size)
    self._wanted = self._wanted or len(none)
    self._parts.append(scored._replace(metrics=scored.metrics | shares))
    self._informative += (~none).tolist()

  def result(self) -> tuple[ScoredRollouts, Solved]:
    """The rows that train, and how often each tried problem was solved."""
    scored, size = concatenate(self._parts), self._group_size
    solved = _solved(scored, size)
    if not self._select.drop_zero_variance:
      return scored, solved
    groups = np.flatnonzero(self._informative)[:self._wanted]
    scored = scored.take(self._rows(groups))
    counts = {'data/attempts': self.attempts, 'data/groups': len(groups)}
    return scored._replace(metrics=scored.metrics | counts), solved

  def dropped(self) -> ScoredRollouts:
    """The rows that `result` leaves out."""
    groups = np.array([], int)
    if self._select.drop_zero_variance:
      chosen = np.flatnonzero(self._informative)[:self._wanted]
      groups = np.setdiff1d(np.arange(len(self._informative)), chosen)
    return concatenate(self._parts).take(self._rows(groups))

  def _rows(self, groups: np.ndarray) -> np.ndarray:
    """Numbers of the rows of groups."""
    size = self._group_size
    return (groups[:, None] * size + np.arange(size)[None]).ravel()


def _solved(scored: ScoredRollouts, size: int) -> Solved:
  """Computes solve rates over gradable rows; leaves out groups without any."""
  gradable = scored.gradable.reshape(-1, size)
  right = scored.correct.reshape(-1, size) & gradable
  tried = np.flatnonzero(gradable.any(axis=1))
  return Solved([scored.traces[i * size].problem for i in tried],
                right[tried].sum(axis=1) / gradable[tried].sum(axis=1))


class EmptySteps:
  """Stops a run that has had nothing to train on for too long."""

  def __init__(self, limit: int):
    """Args: `limit` is select.max_empty_steps."""
    self._limit, self._in_a_row = limit, 0

  def state(self) -> int:
    """The empty steps that came last."""
    return self._in_a_row

  def restore(self, state: int) -> None:
    """Takes over what `state` returned."""
    self._in_a_row = state

  def count(self, trains: bool) -> None:
    """Counts a step, which has something to train on or not.

    Raises:
      RunFailure: `limit` steps in a row had not.
    """
    self._in_a_row = 0 if trains else self._in_a_row + 1
    if self._in_a_row >= self._limit:
      raise RunFailure(
          f'{self._in_a_row} steps in a row without a row to train on '
          '(select.max_empty_steps): all rewards of a group are equal, traces '
          'have one step, or rows have no valid score; credit/*, reward/*, '
          'length/* and grade/* in metrics.jsonl say which')
