"""Which groups teach something, and which problems are drawn."""

import collections

import numpy as np
import pytest

from exprl_jax.config import Config, Data, Select
from exprl_jax.rl import filters as selection
from exprl_jax.types import Problem, Scores

PROBLEMS = [Problem(str(i), f'question {i}') for i in range(20)]


def scores(value, valid=None):
  value = np.array(value, np.float32)
  valid = np.ones(value.shape, bool) if valid is None else np.array(valid, bool)
  return Scores(value, np.zeros(value.shape, np.int32), valid)


def test_a_group_has_a_spread_if_any_two_scores_differ():
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
  np.testing.assert_array_equal(selection.zero_spread(s, 2),
                                [True, False, True, True])
  np.testing.assert_array_equal(selection.zero_spread(s, 2, tolerance=0.2),
                                [True, True, True, True])


def config(**select):
  return Config(seed=3, data=Data(batch=4), select=Select(**select))


def test_the_batch_of_a_step_is_a_function_of_step_and_attempt():
  draws = [selection.drawing(PROBLEMS, config(), None) for _ in range(2)]
  draws[1](0, 0), draws[1](7, 2)  # whatever was drawn before
  for step, attempt in ((0, 0), (3, 0), (3, 1), (9, 2)):
    a, b = (draw(step, attempt) for draw in draws)
    assert a == b and len(a) == 4
  assert draws[0](3, 0) != draws[0](3, 1) != draws[0](4, 1)
  epoch = [p.id for step in range(5) for p in draws[0](step, 0)]
  assert sorted(epoch) == sorted(p.id for p in PROBLEMS)


def test_rates_move_towards_what_is_seen():
  table = selection.SolveRates(PROBLEMS, config(memory=0.5))
  table.update(PROBLEMS[:2], np.array([1.0, 0.0]))
  assert table.save() == {'0': 1.0, '1': 0.0}
  table.update(PROBLEMS[:1], np.array([0.5]))
  assert table.save()['0'] == 0.75
  assert table.metrics() == {
      'data/tried_frac': 0.1, 'data/never_solved_frac': 0.5,
      'data/always_solved_frac': 0.0
  }
  other = selection.SolveRates(PROBLEMS, config())
  other.restore(table.save())
  assert other.draw(4, (1, 2)) == table.draw(4, (1, 2))


def test_problems_of_middling_rate_are_drawn_more_often():
  """Weights: 0.1 of never or always solved, 1 at one half, .1 + .9 * .36."""
  table = selection.SolveRates(PROBLEMS[:4], config())
  table.restore({'0': 0.0, '1': 1.0, '2': 0.5, '3': 0.1})
  count = collections.Counter(
      table.draw(1, (seed,))[0].id for seed in range(4000))
  weight = np.array([0.1, 0.1, 1.0, 0.1 + 0.9 * 0.36])
  np.testing.assert_allclose([count[str(i)] / 4000 for i in range(4)],
                             weight / weight.sum(), atol=0.03)


@pytest.mark.parametrize('size', [4, 30])
def test_a_batch_repeats_problems_only_where_there_are_too_few(size):
  table = selection.SolveRates(PROBLEMS, config(curriculum=True))
  ids = [p.id for p in table.draw(size, (0,))]
  assert len(ids) == size
  assert len(set(ids)) == size or size > len(PROBLEMS)
