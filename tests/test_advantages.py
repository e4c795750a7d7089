"""Golden numbers by hand, with and without jit."""

import functools

import jax
import numpy as np
import pytest

from exprl_jax.config import Credit
from exprl_jax.rl import advantages
from exprl_jax.types import Scores, Trajectory


def scores(value, valid=None):
  value = np.array(value, np.float32)
  valid = np.ones(value.shape, bool) if valid is None else np.array(valid, bool)
  return Scores(value, valid)


def cut(*ends):
  """Trajectories with steps that end there; the last one ends them."""
  return [
      Trajectory(np.zeros(2, np.int32), np.zeros(e[-1], np.int32),
                 np.zeros(e[-1], np.float32), 'eos', tuple(e)) for e in ends
  ]


def check(f, s, want, **kwargs):
  f = functools.partial(f, **kwargs)
  np.testing.assert_allclose(f(s), want, atol=2e-5)
  np.testing.assert_allclose(jax.jit(f)(s), want, atol=2e-5)


def likert(*scores_1_to_5):
  return [(s - 1) / 4 for s in scores_1_to_5]


def test_group_is_the_z_score_with_the_unbiased_deviation():
  # Mean .5, deviations (-.5, 0, .5), std sqrt(.5 / 2) = .5.
  check(advantages.group, scores([[0.0], [0.5], [1.0]]), [[-1], [0], [1]],
        group_size=3)


def test_group_without_std():
  check(advantages.group, scores([[0.0], [1.0], [0.25], [0.25]]),
        [[-0.5], [0.5], [0], [0]], group_size=2, divide_by_std=False)


def test_group_leaves_unreadable_rows_out_of_the_statistics():
  # (.25, 1, unreadable): mean .625, std .5303; not the (-.32, 1.12) that
  # counting the unreadable one as 0 would give.
  check(advantages.group,
        scores([[0.25], [1.0], [0.0]], [[True], [True], [False]]),
        [[-0.70711], [0.70711], [0]], group_size=3)


@pytest.mark.parametrize('value', [0.1, 0.3, 0.7, 0.8, 0.9])
def test_group_of_equal_scores_has_exactly_no_advantage(value):
  """Though sixteen times 0.7, divided by sixteen, is not 0.7."""
  for rule in (advantages.group, advantages.rloo):
    for n in (2, 10, 16):
      assert not np.any(rule(scores([[value]] * n), group_size=n))


def test_group_of_single_scores_has_no_advantage():
  check(advantages.group, scores([[0.3], [0.9]], [[True], [False]]), [[0], [0]],
        group_size=2)


def test_delta_of_the_paper():
  # Likert (2, 4, 5): (.25, .75, 1) -> (.25 - 1, .5, .25), summing to 0.
  check(advantages.delta, scores([likert(2, 4, 5)]), [[-0.75, 0.5, 0.25]])


def test_delta_of_one_step_by_each_rule():
  one = scores([likert(4) + [0.0]], [[True, False]])
  check(advantages.delta, one, [[0, 0]], single='zero')
  check(advantages.delta, one, [[0.75, 0]], single='score')
  check(advantages.delta, one, [[0.75, 0]], first='zero')


def test_delta_telescopes_to_the_final_score():
  check(advantages.delta, scores([likert(2, 4, 5)]), [[0.25, 0.5, 0.25]],
        first='zero')


def test_delta_skips_an_unreadable_step():
  # The third step is compared with the first, the last readable one.
  value, valid = [likert(2, 5, 4)], [[True, False, True]]
  check(advantages.delta, scores(value, valid), [[-0.5, 0, 0.5]])
  # A first step that failed: the next one takes its place.
  check(advantages.delta, scores(value, [[False, True, True]]),
        [[0, 0.25, -0.25]])


def spread(values, valid, *ends):
  return [
      x.tolist() for x in advantages.spread(np.array(values, np.float32),
                                            np.array(valid, bool), cut(*ends))
  ]


def test_spread_covers_each_step():
  assert spread([[1, -2, 9], [3, 9, 9]], [[1, 1, 0], [1, 0, 0]], (2, 4),
                (3,)) == [[1, 1, -2, -2], [3, 3, 3]]


def test_spread_gives_tokens_of_an_unreadable_step_to_the_next():
  assert spread([[7, 1]], [[0, 1]], (3, 5)) == [[1] * 5]
  assert spread([[7, 1]], [[1, 0]], (3, 5)) == [[7, 7, 7, 0, 0]]


def test_a_row_without_a_score_gets_no_advantage():
  assert not np.any(advantages.delta(scores([[0.5, 0.5]], [[False, False]])))
  assert spread([[1, 1]], [[0, 0]], (2, 5)) == [[0] * 5]


@pytest.mark.parametrize('seed', range(5))
def test_delta_with_final_baseline_sums_to_zero(seed):
  rng = np.random.default_rng(seed)
  steps = rng.integers(1, 7, 16)
  valid = np.arange(6)[None, :] < steps[:, None]
  s = scores(rng.random((16, 6)), valid)
  np.testing.assert_allclose(advantages.delta(s).sum(axis=1), 0, atol=1e-6)


def test_group_scores_a_row_by_its_last_step():
  s = scores([[0.0, 0.2], [0.5, 0.9], [0.9, 1.0]],
             [[True, False], [True, False], [True, True]])
  check(advantages.group, s, [[-1, 0], [0, 0], [1, 1]], group_size=3)


def test_group_with_a_least_deviation():
  # Deviations -.05, .05, std .0707; with the floor .5: -.1, .1.
  check(advantages.group, scores([[0.5], [0.6]]), [[-0.1], [0.1]], group_size=2,
        min_std=0.5)
  check(advantages.group, scores([[0.0], [1.0]]), [[-0.70711], [0.70711]],
        group_size=2, min_std=0.5)


def test_rloo_leaves_each_row_out_of_its_baseline():
  # .0 - (.5 + 1) / 2, .5 - (0 + 1) / 2, 1 - (0 + .5) / 2.
  check(advantages.rloo, scores([[0.0], [0.5], [1.0]]), [[-0.75], [0], [0.75]],
        group_size=3)
  check(advantages.rloo, scores([[0.0], [9.0], [1.0]],
                                [[True], [False], [True]]), [[-1], [0], [1]],
        group_size=3)
  check(advantages.rloo, scores([[0.3]]), [[0]], group_size=1)


def test_delta_of_one_step_against_the_group():
  """s_1 minus the mean of all the group's final scores, (.75 + .25) / 2."""
  s = scores([[0.75, 0.0], [0.5, 0.25]], [[True, False], [True, True]])
  check(advantages.delta, s, [[0.25, 0], [0.25, -0.25]],
        single='group_centered', group_size=2)


def test_end_of_the_paper_and_of_the_authors():
  # Likert (2, 4, 5): s_t - s_T, and s_T or 0 for the last step.
  s = scores([likert(2, 4, 5)])
  check(advantages.end, s, [[-0.75, -0.25, 1.0]])
  check(advantages.end, s, [[-0.75, -0.25, 0.0]], last='zero')
  s = scores([likert(2, 4, 5)], [[True, True, False]])
  check(advantages.end, s, [[-0.5, 0.75, 0]])


def process_group():
  """Two rows, (.25, .75, 1) with 2, 2, 4 tokens and (.5) with 4."""
  s = scores([likert(2, 4, 5), likert(3, 1, 1)],
             [[True] * 3, [True, False, False]])
  trajectories = cut((2, 4, 8), (4,))
  return s, trajectories, advantages.step_tokens(s.valid, trajectories)


def test_tokens_of_steps():
  np.testing.assert_array_equal(process_group()[2], [[2, 2, 4], [4, 0, 0]])
  # Those of an unreadable step count for the next one.
  np.testing.assert_array_equal(
      advantages.step_tokens(np.array([[False, True]]), cut((2, 5))), [[0, 5]])


@pytest.mark.parametrize(
    'baseline, mean',
    [
        ('steps', (2 / 3 + 0.5) / 2),  # Eq. 6
        ('tokens', ((0.5 + 1.5 + 4) / 8 + 0.5) / 2),
        ('padded', ((0.5 + 1.5 + 4) / 8 + 0.5) / 2 / 12)
    ])  # nearly none
def test_group_process_by_each_baseline(baseline, mean):
  s, _, tokens = process_group()
  check(advantages.group_process, s, np.where(s.valid, s.value - mean, 0),
        group_size=2, baseline=baseline, step_tokens=tokens, padded_tokens=12)


def test_batch_and_raw():
  s, _, tokens = process_group()
  check(advantages.batch, s, np.where(s.valid, s.value - 0.625, 0),
        step_tokens=tokens)
  check(advantages.raw, s, np.where(s.valid, s.value, 0))


def assign(s, outcome_rows=None, graded=None, group_size=2, step_tokens=None,
           **credit):
  rows = len(s.value)
  outcome_rows = np.zeros(
      rows, bool) if outcome_rows is None else np.array(outcome_rows)
  graded = scores(np.zeros((rows, 1))) if graded is None else graded
  if step_tokens is None:
    step_tokens = np.ones(s.value.shape, np.float32)
  return np.asarray(
      advantages.assign(s, graded, outcome_rows, step_tokens,
                        cfg=Credit(**credit), group_size=group_size,
                        padded_tokens=12))


@pytest.mark.parametrize(
    'rule', ['group', 'rloo', 'delta', 'end', 'raw', 'group_process', 'batch'])
def test_every_rule_reaches_the_tokens(rule):
  s, trajectories, tokens = process_group()
  got = assign(s, rule=rule, step_tokens=tokens)
  args = {
      'group': (s, 2), 'rloo': (s, 2),
      'group_process': (s, 2, 'steps', tokens, 12), 'batch': (s, tokens)
  }.get(rule, (s,))
  want = getattr(advantages, rule)(*args)
  np.testing.assert_allclose(got, want, atol=1e-6)
  for row, trajectory, values in zip(
      advantages.spread(got, s.valid, trajectories), trajectories, got):
    ends = np.array(trajectory.step_ends)
    np.testing.assert_array_equal(row[ends - 1], values[:len(ends)])


def test_outcome_rows_among_stepwise_ones_are_normalized_in_their_group():
  """The first group has steps, the second one score per row."""
  s = scores([[0.25, 1.0], [0.5, 0.5], [0.0, 0.0], [1.0, 0.0]],
             [[True, True], [True, True], [True, False], [True, False]])
  z, outcome = 0.70711, [False, False, True, True]
  np.testing.assert_allclose(assign(s, outcome, rule='delta'),
                             [[-0.75, 0.75], [0, 0], [-z, 0], [z, 0]],
                             atol=1e-5)
  # Rules with a mean over the batch do not see the outcome rows' scores.
  steps = assign(Scores(s.value[:2], s.valid[:2]), rule='batch')
  both = assign(s, outcome, rule='batch')
  np.testing.assert_allclose(both[:2], steps, atol=1e-6)


def test_sparse_and_dense_are_normalized_separately():
  s, z = scores([[0.2], [0.4]]), 0.70711
  graded = scores([[1.0], [0.0]])
  got = assign(s, graded=graded, rule='group', sparse_weight=0.5)
  np.testing.assert_allclose(got, [[-z / 2], [z / 2]], atol=1e-4)
  # A row that cannot be graded has the dense part only.
  graded = scores([[1.0], [0.0]], [[True], [False]])
  got = assign(s, graded=graded, rule='group', sparse_weight=0.5)
  np.testing.assert_allclose(got, [[-z], [z]], atol=1e-4)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize(
    'rule', ['group', 'rloo', 'delta', 'group_process', 'batch', 'end'])
def test_unreadable_rows_neither_move_nor_are_moved(rule, seed):
  """Whatever stands in them, the others get what they get."""
  rng = np.random.default_rng(seed)
  value = rng.random((8, 3))
  valid = np.repeat(rng.random((8, 1)) < 0.6, 3, axis=1)
  a = assign(scores(value, valid), rule=rule, group_size=4)
  value[~valid] = 1e6 * rng.random(value[~valid].shape)
  b = assign(scores(value, valid), rule=rule, group_size=4)
  np.testing.assert_array_equal(a, b)
  assert not np.any(a[~valid[:, 0]])


@pytest.mark.parametrize('seed', range(5))
def test_grpo_is_an_independent_numpy_version(seed):
  """Rewards of 0 and 1, groups of rows, the same value on all tokens."""
  rng = np.random.default_rng(seed)
  reward = (rng.random((6, 5)) < 0.4).astype(float)
  trajectories = cut(*rng.integers(1, 7, (30, 1)))
  s = scores(reward.reshape(30, 1))
  values = assign(s, rule='group', group_size=5)
  rows = advantages.spread(values, s.valid, trajectories)
  for g in range(6):
    mean = sum(reward[g]) / 5
    std = (sum((r - mean)**2 for r in reward[g]) / 4)**0.5
    for k in range(5):
      row = rows[5 * g + k]
      assert len(row) == len(trajectories[5 * g + k].completion)
      np.testing.assert_allclose(row, (reward[g, k] - mean) / (std + 1e-6),
                                 atol=1e-5)


def test_every_rule_says_which_of_its_keys_it_reads():
  """No rule changes with a key of another."""
  s, _, tokens = process_group()
  other = {
      'divide_by_std': False, 'min_std': 0.7, 'first': 'zero',
      'single': 'score', 'last': 'zero', 'baseline': 'tokens'
  }
  for name, rule in advantages.RULES.items():
    if 'token' in rule.granularity:
      continue
    with jax.disable_jit():
      base = assign(s, rule=name, step_tokens=tokens)
      for key in other.keys() - set(rule.keys):
        got = assign(s, rule=name, step_tokens=tokens, **{key: other[key]})
        np.testing.assert_array_equal(got, base, err_msg=f'{name} {key}')
