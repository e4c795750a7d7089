import itertools

import numpy as np
import pytest

from exprl_jax import evaluate


@pytest.mark.parametrize('n, c, k', [
    (5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 4), (7, 5, 3), (4, 1, 4)])
def test_pass_at_k_is_the_enumeration(n, c, k):
  right = [i < c for i in range(n)]
  draws = list(itertools.combinations(right, k))
  assert evaluate.pass_at_k(n, c, k) == pytest.approx(
      sum(map(any, draws)) / len(draws))


def test_pass_at_k_needs_k_samples():
  with pytest.raises(ValueError, match='at least 5'):
    evaluate.pass_at_k(4, 1, 5)


def test_summary_by_hand():
  correct = np.array([[True, False], [False, False]])
  values = evaluate.summary(correct, (1, 2))
  assert values['eval/pass@1'] == 0.25 and values['eval/pass@2'] == 0.5


def test_bootstrap_covers_the_mean_and_shrinks_with_more_problems(rng):
  few, many = (rng.random(n) for n in (20, 2000))
  low, high = evaluate.bootstrap(few)
  assert low < few.mean() < high
  assert np.subtract(*evaluate.bootstrap(many)[::-1]) < (high - low) / 5
  # The interval of a mean of n uniform draws: +- 1.96 / sqrt(12 n).
  low, high = evaluate.bootstrap(many)
  assert high - low == pytest.approx(2 * 1.96 / np.sqrt(12 * 2000), rel=0.1)
