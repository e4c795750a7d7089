"""Rollouts with what a reward makes of them."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from exprl_jax.data import steps as steps_lib
from exprl_jax.grading import grader as grading
from exprl_jax.runtime import metrics
from exprl_jax.types import Problem, Scores, Trajectory


class Trace(NamedTuple):
  """A trajectory as judges and graders read it: without EOS, cut into steps."""

  problem: Problem
  trajectory: Trajectory
  text: str
  steps: list[str]  # texts; one, the text, for rewards without steps
  grade: grading.Grade  # of the final answer
  gold_readable: bool = True  # by the grader
  cut: steps_lib.Cut = steps_lib.Cut([])  # how it was cut; no ends: it was not

  @property
  def correct(self) -> bool:
    """Whether the final answer is right."""
    return self.grade.correct

  @property
  def gradable(self) -> bool:
    """Whether `correct` says anything: a gold answer is optional."""
    return self.gold_readable and self.grade.status not in ('error',
                                                            'gold_unparsable')


class ScoredRollouts(NamedTuple):
  """Groups with what the reward makes of them; B = P * G rows."""

  traces: list[Trace]  # B, rows of a group are neighbors
  scores: Scores
  graded: Scores  # 0 or 1 of the final answer, S = 1; invalid: not gradable
  outcome_rows: np.ndarray  # bool[B] judged by one score among stepwise rows
  metrics: dict[str, float]

  @property
  def trajectories(self) -> list[Trajectory]:
    """B of them."""
    return [t.trajectory for t in self.traces]

  @property
  def correct(self) -> np.ndarray:
    """bool[B] final answers; for sparse rewards and logs."""
    return np.array([t.correct for t in self.traces])

  @property
  def gradable(self) -> np.ndarray:
    """bool[B] rows whose final answer can be graded."""
    return np.array([t.gradable for t in self.traces])

  @property
  def trains(self) -> np.ndarray:
    """bool[B] rows with a valid score."""
    return np.any(self.scores.valid, axis=1)

  def take(self, rows: np.ndarray) -> 'ScoredRollouts':
    """Selects rows. reward/mean and reward/std become theirs; the other
    metrics, and reward/unfiltered_mean, stay those of all rows.
    """
    out = ScoredRollouts([self.traces[i] for i in rows],
                         Scores(self.scores.value[rows],
                                self.scores.valid[rows]),
                         Scores(self.graded.value[rows],
                                self.graded.valid[rows]),
                         self.outcome_rows[rows], {})
    own = {}
    if len(rows):
      own = {
          k: v
          for k, v in summary(out).items()
          if k in ('reward/mean', 'reward/std')
      }
    unfiltered = {'reward/unfiltered_mean': self.metrics['reward/mean']}
    return out._replace(metrics=self.metrics | unfiltered | own)


def concatenate(parts: Sequence[ScoredRollouts]) -> ScoredRollouts:
  """Several as one; metrics are averaged."""
  if len(parts) == 1:
    return parts[0]

  def stack(scores: Sequence[Scores]) -> Scores:
    return Scores(np.concatenate([s.value for s in scores]),
                  np.concatenate([s.valid for s in scores]))

  names = set.intersection(*(set(p.metrics) for p in parts))
  return ScoredRollouts(
      [t for p in parts for t in p.traces], stack([p.scores for p in parts]),
      stack([p.graded for p in parts]),
      np.concatenate([p.outcome_rows for p in parts]),
      {k: metrics.mean(p.metrics[k] for p in parts) for k in sorted(names)})


def summary(scored: ScoredRollouts) -> dict[str, float]:
  """Metrics of any reward; a row's reward is its last valid score."""
  value, valid = scored.scores.value, np.asarray(scored.scores.valid)
  rows = valid.any(axis=1)
  last = valid.shape[1] - 1 - np.argmax(valid[:, ::-1], axis=1)
  reward = value[np.arange(len(value)), last][rows]
  return {
      'reward/mean': metrics.mean(reward.tolist()),
      'reward/std': float(reward.std()) if len(reward) else float('nan'),
      'reward/accuracy': metrics.mean(scored.correct[scored.gradable].tolist()),
      'grade/gradable_frac': metrics.mean(scored.gradable.tolist()),
      'length/steps_mean': metrics.mean(
          len(t.trajectory.step_ends) for t in scored.traces),
      'length/truncated_frac': metrics.mean(
          not t.trajectory.finished for t in scored.traces)
  }


def add_to_last(scores: Scores, change: Float[np.ndarray, ' B']) -> Scores:
  """Adds a number per row to the last valid score of the row."""
  valid = np.asarray(scores.valid)
  last = valid & (np.cumsum(valid[:, ::-1], axis=1)[:, ::-1] == 1)
  return scores._replace(
      value=np.where(last, scores.value +
                     change[:, None], scores.value).astype(np.float32))
