"""Dynamic sampling: which groups of a step train."""

from jaxtyping import Bool
import numpy as np

from exprl_jax.config import Config
from exprl_jax.rl.curriculum import Solved
from exprl_jax.rl.scored import ScoredRollouts, concatenate
from exprl_jax.types import RunFailure, Scores


def zero_variance(scores: Scores, group_size: int,
                  tolerance: float = 1e-6) -> Bool[np.ndarray, ' P']:
  """Finds the groups whose scores, of all rows and steps, are all equal.

  Advantages compare scores, so these groups carry no gradient. Nor do groups
  without a valid score.
  """
  shape = (-1, group_size * scores.value.shape[1])
  valid = np.asarray(scores.valid).reshape(shape)
  value = np.asarray(scores.value).reshape(shape)
  high = np.max(value, axis=1, where=valid, initial=-np.inf)
  low = np.min(value, axis=1, where=valid, initial=np.inf)
  return high - low <= tolerance


class Batch:
  """Collects the groups of a step, over one rollout or several.

  With select.drop_zero_variance, groups that carry no gradient are dropped and
  other problems are tried in their place, select.max_refills times; what is
  missing then stays missing.
  """

  def __init__(self, config: Config):
    self._select, self._group_size = config.select, config.rollout.group_size
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
    equal = zero_variance(scored.scores, self._group_size,
                          self._select.tolerance)
    share = {'group/zero_variance_frac': float(equal.mean())}
    self._wanted = self._wanted or len(equal)
    self._parts.append(scored._replace(metrics=scored.metrics | share))
    self._informative += (~equal).tolist()

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

  def count(self, scored: ScoredRollouts) -> bool:
    """Whether a step's rows train.

    Raises:
      RunFailure: none did in `limit` steps in a row.
    """
    trains = bool(scored.trains.any())
    self._in_a_row = 0 if trains else self._in_a_row + 1
    if self._in_a_row >= self._limit:
      raise RunFailure(
          f'{self._in_a_row} steps in a row without a row to train on '
          '(select.max_empty_steps): all rewards of a group are equal and it '
          'is dropped by select.drop_zero_variance, or rows have no valid '
          'score; reward/*, length/* and grade/* in metrics.jsonl say which')
    return trains
