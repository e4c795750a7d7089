"""Golden numbers by hand, with and without jit."""

import functools

import jax
import numpy as np
import pytest

from exprl_jax import advantages
from exprl_jax.types import Scores


def scores(value, valid=None, step_end=None):
  value = np.array(value, np.float32)
  valid = np.ones(value.shape, bool) if valid is None else np.array(valid, bool)
  step_end = (np.zeros(value.shape, np.int32) if step_end is None
              else np.array(step_end, np.int32))
  return Scores(value, step_end, valid)


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


def test_group_of_equal_or_single_scores_has_no_advantage():
  check(advantages.group, scores([[0.3], [0.3]]), [[0], [0]], group_size=2)
  check(advantages.group, scores([[0.3], [0.9]], [[True], [False]]),
        [[0], [0]], group_size=2)


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


def test_spread_covers_each_step_and_only_the_completion():
  s = scores([[0.0, 0.0, 0.0]], [[True, True, False]], [[3, 5, 0]])
  completion = np.array([[0, 0, 1, 1, 1, 1, 0]], bool)
  np.testing.assert_allclose(
      advantages.spread(np.array([[1.0, -2.0, 9.0]]), s, completion),
      [[0, 0, 1, 1, -2, -2, 0]])


def test_spread_gives_tokens_of_an_unreadable_step_to_the_next():
  s = scores([[0.0, 0.0]], [[False, True]], [[2, 4]])
  np.testing.assert_allclose(
      advantages.spread(np.array([[7.0, 1.0]]), s, np.ones((1, 5), bool)),
      [[1, 1, 1, 1, 1]])


def test_a_row_without_a_score_gets_no_advantage():
  s = scores([[0.5, 0.5]], [[False, False]], [[2, 4]])
  assert not np.any(advantages.delta(s))
  ones = np.ones((1, 5), bool)
  assert not np.any(advantages.spread(np.ones((1, 2)), s, ones))


@pytest.mark.parametrize('seed', range(5))
def test_delta_with_final_baseline_sums_to_zero(seed):
  rng = np.random.default_rng(seed)
  steps = rng.integers(1, 7, 16)
  valid = np.arange(6)[None, :] < steps[:, None]
  s = scores(rng.random((16, 6)), valid)
  np.testing.assert_allclose(advantages.delta(s).sum(axis=1), 0, atol=1e-6)
