"""Dynamic sampling: which groups of a step train."""

import numpy as np
import pytest

from exprl_jax.config import Config, Rollout, Select
from exprl_jax.grading.grader import Grade
from exprl_jax.rl import filters
from exprl_jax.rl.scored import ScoredRollouts, Trace
from exprl_jax.types import Problem, RunFailure, Scores, Trajectory


def scores(value, valid=None):
  value = np.array(value, np.float32)
  valid = np.ones(value.shape, bool) if valid is None else np.array(valid, bool)
  return Scores(value, valid)


def test_a_group_has_variance_if_any_two_scores_differ():
  s = scores(
      [
          [0.5, 0.5],
          [0.5, 0.5],  # equal
          [0.5, 0.5],
          [0.5, 0.6],  # one step differs
          [0.5, 9.0],
          [0.5, 9.0],  # only what is not valid differs
          [0.1, 0.2],
          [0.3, 0.4]
      ],  # nothing is valid
      [[1, 1], [1, 1], [1, 1], [1, 1], [1, 0], [1, 0], [0, 0], [0, 0]])
  np.testing.assert_array_equal(filters.zero_variance(s, 2),
                                [True, False, True, True])
  np.testing.assert_array_equal(filters.zero_variance(s, 2, tolerance=0.2),
                                [True, True, True, True])


def rollouts(*groups):
  """Groups of two rows with these scores; a score of 1 is a right answer."""
  traces, value = [], []
  for name, pair in groups:
    for score in pair:
      trajectory = Trajectory(np.zeros(1, np.int32), np.zeros(3, np.int32),
                              np.zeros(3, np.float32), 'eos', (3,))
      grade = Grade('correct' if score == 1 else 'wrong', '')
      traces.append(Trace(Problem(name, name), trajectory, '', [''], grade))
      value.append([score])
  s = scores(value)
  return ScoredRollouts(traces, s, s, np.zeros(len(value), bool),
                        {'reward/mean': float(s.value.mean()), 'reward/std': 0})


def batch(**select):
  return filters.Batch(
      Config(rollout=Rollout(group_size=2), select=Select(**select)))


def names(scored):
  return [t.problem.id for t in scored.traces[::2]]


def test_without_dynamic_sampling_one_rollout_is_the_batch():
  b = batch()
  b.add(rollouts(('a', (0, 0)), ('b', (0, 1))))
  assert b.complete
  scored, solved = b.result()
  assert names(scored) == ['a', 'b']
  assert scored.metrics['group/zero_variance_frac'] == 0.5
  assert [p.id for p in solved.problems] == ['a', 'b']
  assert solved.rates.tolist() == [0, 0.5]


def test_groups_without_variance_are_refilled_in_order():
  b = batch(drop_zero_variance=True, max_refills=3)
  assert not b.complete
  b.add(rollouts(('a', (0, 0)), ('b', (0, 1)), ('c', (1, 1))))
  assert not b.complete and b.attempts == 1
  b.add(rollouts(('d', (1, 0)), ('e', (1, 1)), ('f', (0, 1))))
  assert b.complete
  scored, solved = b.result()
  assert names(scored) == ['b', 'd', 'f']
  assert [p.id for p in solved.problems] == list('abcdef')
  assert scored.metrics['data/attempts'] == 2
  assert scored.metrics['data/groups'] == 3
  assert scored.metrics['reward/mean'] == 0.5
  np.testing.assert_allclose(scored.metrics['reward/unfiltered_mean'],
                             (3 / 6 + 4 / 6) / 2)


def test_refills_end_and_what_is_missing_stays_missing():
  b = batch(drop_zero_variance=True, max_refills=1)
  b.add(rollouts(('a', (0, 0)), ('b', (0, 1))))
  b.add(rollouts(('c', (1, 1)), ('d', (1, 1))))
  assert b.complete
  scored, _ = b.result()
  assert names(scored) == ['b']


def test_empty_steps_end_a_run_when_they_come_in_a_row():
  full = rollouts(('a', (0, 1)))
  empty = full._replace(scores=scores([[0], [0]], [[0], [0]]))
  steps = filters.EmptySteps(2)
  assert not steps.count(empty) and steps.count(full)
  assert not steps.count(empty)
  with pytest.raises(RunFailure, match='2 steps in a row .*max_empty_steps'):
    steps.count(empty)
