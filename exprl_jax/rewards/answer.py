"""The sparse reward: 1 for a right final answer, else 0 (GRPO, stage 2)."""

import numpy as np

from exprl_jax.rewards.base import Reward, Scored, Trace


def sparse(traces: list[Trace]) -> Scored:
  """Scores rows by the grader; what it could not grade has no valid score."""
  value = np.array([[t.correct] for t in traces], np.float32)
  valid = np.array(
      [[t.grade.status not in ('error', 'gold_unparsable')] for t in traces])
  return value, valid, {}


REWARDS = {
    'sparse': Reward('row', lambda config, judge: sparse, needs=('answer',)),
}
