"""Where a judge's scores see the first wrong step."""

import numpy as np
import pytest

from exprl_jax.judge import calibration, step_calibration
from exprl_jax.judge.step_calibration import Marked


def traces(rng, problems, score):
  """Four traces of each problem: three with a wrong step, one without."""
  out = []
  for problem in range(problems):
    for first in (-1, *rng.integers(0, 6, 3)):
      out.append(Marked(problem, score(rng, 6, first), int(first)))
  return out


def progress(rng, steps, first):
  """Rises by 1/6 with each right step; noise of .02."""
  gain = np.array([first < 0 or i < first for i in range(steps)]) / steps
  return np.clip(np.cumsum(gain) + rng.normal(0, 0.02, steps), 0, 1)


def promise(rng, steps, first):
  """High while all is right, low from the first wrong step on."""
  right = np.array([first < 0 or i < first for i in range(steps)])
  return np.clip(0.2 + 0.6 * right + rng.normal(0, 0.05, steps), 0, 1)


def noise(rng, steps, first):
  del first
  return rng.uniform(size=steps)


@pytest.mark.parametrize('score', [progress, promise])
def test_sound_scores_locate_the_first_wrong_step(score):
  marked = traces(np.random.default_rng(0), 40, score)
  found = step_calibration.first_wrong_step(marked)
  assert (found['n'], found['n_wrong'], found['problems']) == (160, 120, 40)
  assert found['exact']['value'] > 0.95 and found['right']['value'] > 0.95
  assert found['f1']['low'] > 0.9 and found['change_auroc']['value'] > 0.95
  assert found['within_one']['value'] >= found['exact']['value']
  assert step_calibration.rising(marked)['low'] > 0.7


def test_noise_locates_nothing():
  marked = traces(np.random.default_rng(0), 200, noise)
  found = step_calibration.first_wrong_step(marked)
  assert found['f1']['value'] < 0.35
  assert found['change_auroc']['low'] < 0.5 < found['change_auroc']['high']
  # Of two draws the second is lower by more than .05 with .95**2 / 2.
  assert step_calibration.rising(marked)['value'] == pytest.approx(
      1 - 0.95**2 / 2, abs=0.03)


def test_by_hand():
  """1 before and 0 from the wrong step on; in one of nine a step late."""
  marked = []
  for problem in range(8):
    marked += [
        Marked(problem, np.array([1, 1, 0, 0.]), 2),
        Marked(problem, np.array([1, 1, 1.]), -1)
    ]
  marked.append(Marked(0, np.array([1, 1, 0.]), 1))
  found = step_calibration.first_wrong_step(marked)
  value = lambda name: found[name]['value']
  assert value('exact') == 8 / 9 and value('within_one') == value('right') == 1
  assert value('f1') == pytest.approx(16 / 17)
  # First wrong steps change it by -1, and by 0 once; right ones by 0.
  assert value('change_auroc') == pytest.approx(8.5 / 9)
  assert value('score_before') == 1
  assert value('score_from') == pytest.approx(0.5 / 9)
  assert step_calibration.rising(marked)['value'] == 1


def test_without_traces_all_is_undefined():
  found = step_calibration.first_wrong_step([])
  assert found['n'] == 0 and found['f1']['value'] is None
  some = step_calibration.first_wrong_step(
      [Marked('a', np.array([0.5, 0.5]), -1)])
  assert some['exact']['value'] is None and some['f1']['value'] is None


def test_a_written_four_is_correct():
  """A level of 4 with p = .97 has a mean of 3.96: the nearest level counts."""
  score = np.array([(0.97 * 3 + 0.03 * 2) / 4, 0.25])
  found = calibration.outcome(score, np.array([True, False]), 'ab')
  assert score[0] < 0.75 and found['misplacement']['value'] == 0
