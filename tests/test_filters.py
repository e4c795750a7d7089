"""Dynamic sampling: which groups of a step train."""

import dataclasses

import numpy as np
import pytest

from exprl_jax.config import Config, Credit, Rollout, Select
from exprl_jax.grading.grader import Grade
from exprl_jax.rl import credit as credit_lib
from exprl_jax.rl import filters, signal
from exprl_jax.rl.scored import ScoredRollouts, Trace, concatenate
from exprl_jax.types import Problem, RunFailure, Scores, Trajectory


def scores(value, valid=None):
  value = np.array(value, np.float32)
  valid = np.ones(value.shape, bool) if valid is None else np.array(valid, bool)
  return Scores(value, valid)


def scored(value, valid=None, correct=None, outcome=False):
  """One group of rows with these step scores, a token a step."""
  found = scores(value, valid)
  rows, steps = found.value.shape
  right = np.zeros(rows) if correct is None else np.array(correct)
  ends = tuple(range(1, steps + 1))
  trajectory = Trajectory(np.zeros(1, np.int32), np.zeros(steps, np.int32),
                          np.zeros(steps, np.float32), 'eos', ends)
  traces = [
      Trace(Problem('p', 'p'), trajectory, '', [''] * steps,
            Grade('correct' if r else 'wrong', '')) for r in right
  ]
  return ScoredRollouts(traces, found, scores(right[:, None]),
                        np.full(rows, outcome), {'reward/mean': 0.0})


NO_LOGPROBS = credit_lib.Logprobs([], [], [])
EQUAL, ALONE = [[0.5, 0.5], [0.5, 0.5]], [[0.2], [0.9]]
ZEROS, STEPS = [[0.0, 0.0], [0.0, 0.0]], [[0.1, 0.4], [0.1, 0.4]]


@pytest.mark.parametrize(
    'credit, value, none',
    [
        (dict(rule='group'), EQUAL, True),
        (dict(rule='group'), ALONE, False),
        (dict(rule='group'), [[0.5], [0.5 + 1e-7]
                             ], True),  # less than tolerance
        (dict(rule='group', min_std=0.5), [[0.5], [0.6]], False),
        (dict(rule='rloo'), EQUAL, True),
        (dict(rule='rloo'), ALONE, False),
        (dict(rule='delta'), EQUAL, True),
        (dict(rule='delta'), ALONE, True),  # different, and yet nothing
        (dict(rule='delta', single='score'), ALONE, False),
        (dict(rule='delta', single='group_centered'), ALONE, False),
        (dict(rule='delta', first='zero'), EQUAL, False),  # s_1 - 0
        (dict(rule='delta', first='zero'), ZEROS, True),
        (dict(rule='delta'), STEPS, False),  # rows are equal, steps are not
        (dict(rule='end'), EQUAL, False),  # A_T = s_T
        (dict(rule='end', last='zero'), EQUAL, True),
        (dict(rule='end', last='zero'), STEPS, False),
        (dict(rule='group_process'), EQUAL, True),
        (dict(rule='group_process'), STEPS, False),
        (dict(rule='group_process', baseline='padded'), EQUAL, False),
        (dict(rule='batch'), EQUAL, True),
        (dict(rule='raw'), EQUAL, False),
        (dict(rule='raw'), ZEROS, True),
    ])
def test_a_group_without_credit_is_found_by_every_rule(credit, value, none):
  config = Config(rollout=Rollout(group_size=2), credit=Credit(**credit))
  assert filters.without_credit(config, scored(value)).tolist() == [none]


def test_credit_of_graders_and_of_whole_traces_counts():
  """The judge ties and the grader does not; a step-wise rule that is not
  asked; rows without a valid score."""
  config = Config(rollout=Rollout(group_size=2),
                  credit=Credit(rule='group', sparse_weight=0.1))
  assert not filters.without_credit(config, scored(EQUAL, correct=[1, 0]))[0]
  assert filters.without_credit(config, scored(EQUAL, correct=[1, 1]))[0]
  invalid = scored(ALONE, [[0], [0]], correct=[1, 0])
  assert filters.without_credit(config, invalid)[0]
  config = Config(rollout=Rollout(group_size=2),
                  credit=Credit(rule='delta', outcome_domains=('math',)))
  assert not filters.without_credit(config, scored(ALONE, outcome=True))[0]


def test_what_the_groups_of_a_rollout_have_in_common():
  found = filters.solved_metrics(
      rollouts(('a', (0, 0)), ('b', (0, 1)), ('c', (1, 1)), ('d', (0, 0))), 2)
  assert found == {
      'group/unsolved_frac': 0.5, 'group/all_solved_frac': 0.25,
      'group/step_score_std': 0.125
  }


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
  steps = filters.EmptySteps(2)
  for trains in (False, True, False):
    steps.count(trains)
  resumed = filters.EmptySteps(2)
  resumed.restore(steps.state())
  steps = resumed
  with pytest.raises(RunFailure, match='2 steps in a row .*max_empty_steps'):
    steps.count(False)


@pytest.mark.parametrize('credit, overlong, reason, value, valid, cause', [
    (dict(rule='delta'), 'keep', 'eos', ALONE, None, 'one_step'),
    (dict(rule='delta', first='zero'), 'keep', 'eos', ZEROS, None, 'equal'),
    (dict(rule='group'), 'keep', 'eos', EQUAL, None, 'equal'),
    (dict(rule='group'), 'keep', 'eos', ALONE, [[0], [0]], 'unreadable'),
    (dict(rule='delta'), 'zero', 'length', ZEROS, None, 'unfinished'),
    (dict(rule='group'), 'mask', 'length', ALONE, [[0], [0]], 'unfinished'),
])
def test_a_batch_without_credit_is_explained(credit, overlong, reason, value,
                                             valid, cause):
  config = Config(rollout=Rollout(group_size=2, overlong=overlong),
                  credit=Credit(**credit))
  batch = scored(value, valid)
  batch = batch._replace(traces=[
      t._replace(trajectory=t.trajectory._replace(finish_reason=reason))
      for t in batch.traces
  ])
  values = signal.metrics(config, batch,
                          credit_lib.assign(config, batch, NO_LOGPROBS))
  assert values.pop('credit/zero_frac') == 1
  assert {k: v for k, v in values.items() if v
         } == {f'credit/zero_{cause}_frac': 1}
  text = signal.explain(values | {'credit/zero_frac': 1})
  assert text.startswith('100% of the rows have no credit')
  assert signal._CAUSES[cause] in text and text.count('%') == 2
  assert not signal.explain({'credit/zero_frac': 0.5})


def test_half_of_the_rows_have_credit():
  config = Config(rollout=Rollout(group_size=2))
  batch = concatenate([scored(ALONE), scored([[0.5], [0.5]])])
  found = signal.metrics(config, batch,
                         credit_lib.assign(config, batch, NO_LOGPROBS))
  assert found['credit/zero_frac'] == found['credit/zero_equal_frac'] == 0.5


def test_noise_of_a_judge_is_not_made_large():
  """Ten traces that are all judged 1, read as expectations: the floor of the
  presets leaves them about 0, and a written digit as it was."""
  noise = np.linspace(0.009, 0.018, 10)[:, None]
  digits = np.array([0.25] + [0.0] * 9)[:, None]  # one trace is one level up
  config = Config(rollout=Rollout(group_size=10))

  def largest(value, min_std):
    cfg = dataclasses.replace(config, credit=Credit(rule='group',
                                                    min_std=min_std))
    batch = scored(value)
    return np.abs(credit_lib.of_scores(cfg, batch, batch.scores)).max()

  assert largest(noise, 0.0) > 1.4 and largest(noise, 0.05) < 0.1
  assert largest(digits, 0.05) == largest(digits, 0.0) > 2.8
