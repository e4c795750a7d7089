import json
import math

import numpy as np
import pytest
from scipy import stats

from exprl_jax.judge import calibration, calibration_report

# Two problems of four traces. Correct: .75, 1, .5, 0; incorrect: 0, .25, .75,
# .5. Of the correct, .5 and 0 are missed: FNR 2/4; of the incorrect, .75 is
# let through: FPR 1/4; misplacement 3/8. Pairs (correct over incorrect, ties
# half): .75 beats 3 and ties 1, 1 beats 4, .5 beats 2 and ties 1, 0 ties 1:
# AUROC (3.5 + 4 + 2.5 + .5) / 16.
SCORE = np.float32([0.75, 0, 1, 0.25, 0.5, 0.75, 0, 0.5])
CORRECT = np.array([1, 0, 1, 0, 1, 0, 1, 0], bool)
PROBLEM = ['a'] * 4 + ['b'] * 4
NOTHING = {'value': None, 'low': None, 'high': None}


def test_outcome_by_hand():
  found = calibration.outcome(SCORE, CORRECT, PROBLEM)
  assert (found['n'], found['n_correct'], found['problems']) == (8, 4, 2)
  assert {
      k: v['value']
      for k, v in found.items()
      if isinstance(v, dict) and 'value' in v
  } == pytest.approx({
      'misplacement': 3 / 8, 'fnr': 1 / 2, 'fpr': 1 / 4, 'auroc': 10.5 / 16,
      'score_correct': 2.25 / 4, 'score_incorrect': 1.5 / 4
  })
  # Resamples are aa, ab, bb. In a all is right; in b FNR is 1, FPR 1/2.
  assert found['fnr'] == {'value': 0.5, 'low': 0, 'high': 1}
  assert found['misplacement'] == {'value': 0.375, 'low': 0, 'high': 0.75}
  assert [
      (r['level'], r['n'], r['accuracy']['value']) for r in found['reliability']
  ] == [(1, 2, 0.5), (2, 1, 0), (3, 2, 0.5), (4, 2, 0.5), (5, 1, 1)]


def test_auroc_by_hand():
  """Right .9, .5; wrong .5, .1: three wins and a tie of four pairs."""
  score = np.array([.9, .5, .5, .1])
  right = np.array([True, True, False, False])
  assert calibration.auroc(score, right) == 3.5 / 4
  assert math.isnan(calibration.auroc(score, np.ones(4, bool)))


def test_levels_and_histogram():
  # Likert 1.48, 1.5 (up), 4.48, 4.52, 5; a score of 1 is in the last bin.
  score = np.float32([0.12, 0.125, 0.87, 0.88, 1])
  correct = np.array([False, True, False, True, True])
  found = calibration.outcome(score, correct, range(5))
  assert [r['n'] for r in found['reliability']] == [1, 1, 0, 1, 2]
  assert found['reliability'][2]['accuracy'] == NOTHING
  right, wrong = ({i: n
                   for i, n in enumerate(found['histogram'][k])
                   if n}
                  for k in ('correct', 'incorrect'))
  assert right == {2: 1, 17: 1, 19: 1} and wrong == {2: 1, 17: 1}
  assert len(found['histogram']['edges']) == 21


@pytest.mark.parametrize('levels', [5, 1000])
def test_auroc_counts_pairs(rng, levels):
  score = rng.integers(0, levels, 60) / (levels - 1)
  correct = rng.random(60) < 0.3
  x, y = score[correct][:, None], score[~correct]
  assert calibration.outcome(score, correct,
                             range(60))['auroc']['value'] == pytest.approx(
                                 np.mean((x > y) + 0.5 * (x == y)))


def test_intervals_cover_the_truth():
  # Correct scores have the density 2x, incorrect ones are uniform: FNR =
  # .625^2, FPR = .375, AUROC = P(x > y) = E x = 2/3.
  truth = {
      'fnr': 0.390625, 'fpr': 0.375, 'misplacement': 0.3828125, 'auroc': 2 / 3,
      'score_correct': 2 / 3, 'score_incorrect': 0.5
  }
  rng, inside = np.random.default_rng(0), []
  for _ in range(60):
    correct = rng.random(200) < 0.4
    score = np.where(correct, np.sqrt(rng.random(200)), rng.random(200))
    found = calibration.outcome(score, correct, range(200))
    inside.append(
        [found[k]['low'] < v < found[k]['high'] for k, v in truth.items()])
  assert 0.92 < np.mean(inside) < 0.98
  assert np.min(np.mean(inside, axis=0)) > 0.87


def test_copies_of_traces_add_no_certainty():
  rng = np.random.default_rng(1)
  score, correct = rng.random(50), rng.random(50) < 0.5
  once = calibration.outcome(score, correct, range(50))
  many = calibration.outcome(np.repeat(score, 8), np.repeat(correct, 8),
                             np.repeat(np.arange(50), 8).tolist())
  for key in ('misplacement', 'auroc', 'score_correct'):
    assert many[key] == pytest.approx(once[key])


def test_draws_without_a_class_are_left_out():
  # One of three problems has the correct trace: 8/27 of the draws miss it.
  found = calibration.outcome(np.array([0.9, 0.1, 0.2]),
                              np.array([True, False, False]), 'abc')
  assert found['fnr'] == {'value': 0, 'low': 0, 'high': 0}
  assert found['auroc'] == {'value': 1, 'low': 1, 'high': 1}


def test_undefined_is_none():
  found = calibration.outcome(SCORE, np.zeros(8, bool), PROBLEM)
  for key in ('misplacement', 'fnr', 'auroc', 'score_correct'):
    assert found[key] == NOTHING
  assert found['fpr']['value'] == 3 / 8
  # A single problem has values but no intervals.
  found = calibration.outcome(SCORE, CORRECT, ['a'] * 8)
  assert found['fnr'] == {'value': 0.5, 'low': None, 'high': None}
  constant = calibration.progress(np.full(5, 0.3), np.arange(5) / 4, range(5))
  assert constant['pearson'] == constant['spearman'] == NOTHING
  # (.3 + .05 + .2 + .45 + .7) / 5.
  assert constant['difference']['value'] == pytest.approx(0.34)
  none = np.zeros(0)
  assert calibration.outcome(none, none > 0, [])['auroc'] == NOTHING
  assert calibration.progress(none, none, [])['pearson'] == NOTHING
  same = calibration.agreement({'a': np.ones(3), 'b': np.ones(3)})['a / b']
  assert same == {'n': 3, 'pearson': None, 'difference': 0, 'same_decision': 1}


def test_wrong_input_is_refused():
  for bad in ([0.5, np.nan], [1, 5]):
    with pytest.raises(ValueError, match='in \\[0, 1\\]'):
      calibration.outcome(np.array(bad, float), np.array([True, False]), 'ab')
  with pytest.raises(ValueError, match='lengths differ'):
    calibration.progress(np.full(2, 0.5), np.full(1, 0.5), 'ab')
  with pytest.raises(ValueError, match='lengths differ'):
    calibration.agreement({'a': np.full(1, 0.5), 'b': np.full(2, 0.5)})


def test_progress_by_hand():
  # Scores 0 .5 1, truths 0 1 .5: covariance (sum) .25, variances .5 and .5.
  found = calibration.progress(np.array([0, 0.5, 1]), np.array([0, 1, 0.5]),
                               'abc')
  assert found['pearson']['value'] == pytest.approx(0.5)
  assert found['spearman']['value'] == pytest.approx(0.5)
  assert found['difference']['value'] == pytest.approx(1 / 3)
  assert [(b['low'], b['score'], b['truth']['value'])
          for b in found['bins']
          if b['n']] == [(0, 0, 0), (0.5, 0.5, 1), (0.9, 1, 0.5)]


def test_progress_agrees_with_scipy():
  rng = np.random.default_rng(2)
  truth = rng.integers(0, 9, 300) / 8
  score = np.clip(truth**2 + rng.normal(0, 0.2, 300), 0, 1)
  found = calibration.progress(score, truth, range(300))
  for name, known in ('pearson', stats.pearsonr), ('spearman', stats.spearmanr):
    assert found[name]['value'] == pytest.approx(known(score, truth).statistic)
  low, high = stats.pearsonr(score, truth).confidence_interval()
  assert found['pearson']['low'] == pytest.approx(low, abs=0.02)
  assert found['pearson']['high'] == pytest.approx(high, abs=0.02)
  assert sum(b['n'] for b in found['bins']) == 300


def test_agreement_by_hand():
  # Decisions a: no no yes yes; b: no yes yes yes.
  found = calibration.agreement({
      'a': np.array([0, 0.5, 0.75, 1]), 'b': np.array([0, 0.75, 0.75, 1]),
      'c': np.array([1, 0.5, 0.25, 0])
  })
  assert list(found) == ['a / b', 'a / c', 'b / c']
  assert found['a / b']['same_decision'] == 0.75
  assert found['a / b']['difference'] == 0.0625
  assert found['a / c']['pearson'] == pytest.approx(-1)


def test_report_is_json_table_and_plots(tmp_path):
  own = calibration.outcome(SCORE, CORRECT, PROBLEM)
  none = calibration.outcome(SCORE, np.zeros(8, bool), PROBLEM)
  report = {
      'conditions': {'none': none, 'own': own},
      'progress': calibration.progress(SCORE, SCORE, PROBLEM),
      'agreement': calibration.agreement({'x': SCORE, 'y': SCORE})
  }
  assert json.loads(json.dumps(report, allow_nan=False)) == report
  head, first, second, *rest = calibration_report.table(report).splitlines()
  assert len(head) == len(first) == len(second)
  assert first.split() == [
      'own', '8', '0.375', '[0.000,', '0.750]', '0.500', '0.250', '0.656',
      '0.562', '0.375'
  ]
  assert second.split()[:6] == ['none', '8', '-', '[-,', '-]', '-']
  assert 'Pearson 1.000' in rest[1] and rest[2].startswith('x / y (n 8)')
  empty = calibration.outcome(np.zeros(0), np.zeros(0, bool), [])
  for some in (report, {}, {'conditions': {'wrong': empty}},
               {'progress': report['progress']}):
    calibration_report.plots(some, tmp_path / 'plot.png')
    assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG')
  assert calibration_report.table({}) == ''


UP, FLAT, DOWN = [0.3, 0.4, 0.5, 0.6], [0.5] * 4, [0.5, 0.4, 0.3, 0.2]


@pytest.mark.parametrize(
    'judge, accuracy, fires',
    [
        (UP, FLAT, True),
        (UP, DOWN, True),
        (UP, UP, False),
        (FLAT, FLAT, False),
        (FLAT, DOWN, False),
        (DOWN, DOWN, False),
        ([0.9, *UP], [0, *FLAT], True),  # only the last four count
        (UP[1:], FLAT[1:], False),  # too few
        ([0.3, 0.4, 0.5, np.nan], FLAT, False),
        # Of the judge's gain of .3 a quarter is .075.
        (UP, np.linspace(0.5, 0.574, 4), True),
        (UP, np.linspace(0.5, 0.576, 4), False)
    ])
def test_divergence(judge, accuracy, fires):
  assert calibration.divergence(judge, accuracy, 4, 0.1) is fires


def test_divergence_by_the_standard_errors():
  # Weights of the fitted change -.9 -.3 .3 .9, their squares sum to 1.8: with
  # s for every evaluation of both, SE = s sqrt(3.6); .3 > 2 SE for s < .0791.
  for s, fires in (0.078, True), (0.080, False):
    assert calibration.divergence(UP, FLAT, 4, 0.1, [s] * 4, [s] * 4) is fires
  assert not calibration.divergence(UP, FLAT, 4, 0.31)
  assert not calibration.divergence(UP, FLAT, 4, 0.1, se_judge=[np.nan] * 4)
  with pytest.raises(ValueError, match='lengths differ'):
    calibration.divergence(UP, FLAT, 4, 0.1, se_judge=[0.1])
  with pytest.raises(ValueError, match='window'):
    calibration.divergence(UP, FLAT, 1, 0.1)


def test_divergence_is_quiet_in_noise():
  rng, se = np.random.default_rng(0), [0.03] * 6
  judge, accuracy = 0.5 + 0.03 * rng.normal(size=(2, 500, 6))
  calls = [(calibration.divergence(j, a, 6, 0.02),
            calibration.divergence(j, a, 6, 0.02, se, se))
           for j, a in zip(judge, accuracy)]
  without, with_errors = np.mean(calls, axis=0)
  assert with_errors < 0.01 < 0.1 < without
