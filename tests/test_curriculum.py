"""Which problems are drawn."""

import collections

import numpy as np
import pytest

from exprl_jax.config import Config, Data, Select
from exprl_jax.rl.curriculum import Curriculum, Solved
from exprl_jax.types import Problem

PROBLEMS = [Problem(str(i), f'question {i}') for i in range(20)]


def curriculum(problems=PROBLEMS, **select):
  return Curriculum(problems,
                    Config(seed=3, data=Data(batch=4), select=Select(**select)))


def test_the_batch_of_a_step_is_a_function_of_step_and_attempt():
  one, other = curriculum(), curriculum()
  other.draw(0, 0), other.draw(7, 2)  # whatever was drawn before
  for step, attempt in ((0, 0), (3, 0), (3, 1), (9, 2)):
    a, b = one.draw(step, attempt), other.draw(step, attempt)
    assert a == b and len(a) == 4
  assert one.draw(3, 0) != one.draw(3, 1) != one.draw(4, 1)
  epoch = [p.id for step in range(5) for p in one.draw(step, 0)]
  assert sorted(epoch) == sorted(p.id for p in PROBLEMS)


def test_rates_move_towards_what_is_seen():
  table = curriculum(curriculum_memory=0.5, curriculum=True)
  table.update(Solved(PROBLEMS[:2], np.array([1.0, 0.0])))
  assert table.state() == {'0': 1.0, '1': 0.0}
  metrics = table.update(Solved(PROBLEMS[:1], np.array([0.5])))
  assert table.state()['0'] == 0.75
  assert metrics == {
      'data/tried_frac': 0.1, 'data/never_solved_frac': 0.5,
      'data/always_solved_frac': 0.0
  }
  other = curriculum(curriculum=True)
  other.restore(table.state())
  assert other.draw(1, 2) == table.draw(1, 2)


def test_problems_of_medium_rate_are_drawn_more_often():
  """Weights: 0.1 of never or always solved, 1 at one half, .1 + .9 * .36."""
  table = curriculum(PROBLEMS[:4])
  table.restore({'0': 0.0, '1': 1.0, '2': 0.5, '3': 0.1})
  count = collections.Counter(
      table.weighted(1, (seed,))[0].id for seed in range(4000))
  weight = np.array([0.1, 0.1, 1.0, 0.1 + 0.9 * 0.36])
  np.testing.assert_allclose([count[str(i)] / 4000 for i in range(4)],
                             weight / weight.sum(), atol=0.03)


@pytest.mark.parametrize('size', [4, 30])
def test_a_batch_repeats_problems_only_where_there_are_too_few(size):
  ids = [p.id for p in curriculum(curriculum=True).weighted(size, (0,))]
  assert len(ids) == size
  assert len(set(ids)) == size or size > len(PROBLEMS)
