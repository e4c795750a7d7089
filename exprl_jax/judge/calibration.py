"""How far to trust the judge: statistics of its scores against graded truth.

A report, {'conditions': {'own': outcome(...), 'none': ..., 'wrong': ...},
'progress': progress(...), 'agreement': agreement(...)}, every key optional, is
plain JSON; judge/calibration_report.py prints and plots it. A statistic with a
95 % interval is an Estimate.

Shapes: N traces or prefixes, V distinct scores; inside, D bootstrap draws and K
statistics. Row d of `weights` says how often draw d has each of the N rows.
"""

from collections.abc import Callable, Hashable, Sequence
import itertools
import math
from typing import Any

from jaxtyping import Bool, Float, Int
import numpy as np

# The judge says 'correct' from here on, where the nearest Likert level is 4: a
# mean of levels is rounded, so that read-outs can be compared.
CORRECT_FROM = 0.625
_DRAWS = 1000  # of the bootstrap
_WEIGHTS = 500_000  # held in memory at a time

# {'value', 'low', 'high'}: None where undefined.
Estimate = dict[str, float | None]
Series = Sequence[float] | np.ndarray  # a number per evaluation
# Statistics, f64[D K], of weights, f64[D N]; nan where undefined.
Statistic = Callable[[np.ndarray], np.ndarray]


def outcome(score: Float[np.ndarray, ' N'], correct: Bool[np.ndarray, ' N'],
            problem: Sequence[Hashable], seed: int = 0) -> dict[str, Any]:
  """Computes how well scores of complete traces tell right from wrong ones.

  Args:
    score: in [0, 1], (Likert - 1) / 4.
    correct: by the grader.
    problem: N ids; the bootstrap resamples problems, with all their traces.
    seed: of the bootstrap; equal seeds and problems, equal resamples.

  Returns:
    Counts `n`, `n_correct` and `problems`; Estimates `misplacement` (the mean
    of `fnr` and `fpr`; 'correct' is a nearest Likert level of 4 or 5), `auroc`,
    `score_correct` and `score_incorrect` (means); `reliability`, a list of
    {level, n, accuracy} for the Likert levels 1 to 5 (nearest, halves up);
    `histogram`, {edges, correct, incorrect} with 20 bins.

  Raises:
    ValueError: lengths differ, or a score is no number in [0, 1].
  """
  score, correct = _unit(score), np.asarray(correct, bool)
  _same_length(score, correct, problem)
  # 1. Columns, each a share or a mean: FNR, FPR, mean scores of right and of
  # wrong traces, accuracy at each level.
  accepts = score >= CORRECT_FROM
  at_level = np.floor(score * 4 + 0.5)[:, None] == np.arange(5)
  among = np.column_stack([correct, ~correct, correct, ~correct,
                           at_level]).astype(float)
  values = among * np.column_stack([~accepts, accepts, score, score] +
                                   [correct] * 5)
  # 2. Their intervals, with those of misplacement and AUROC.
  levels, level_of = np.unique(score, return_inverse=True)

  def statistic(weights: np.ndarray) -> np.ndarray:
    shares = means(weights, values, among)
    auroc_ = _auroc(_grouped(weights * correct, level_of, len(levels)),
                    _grouped(weights * ~correct, level_of, len(levels)))
    return np.column_stack([shares[:, :2].mean(axis=1), auroc_, shares])

  (misplacement, auroc_, fnr, fpr, score_correct, score_incorrect,
   *accuracy) = estimates(statistic, problem, seed)
  return {
      'n': len(score), 'n_correct': int(correct.sum()),
      'problems': len(set(problem)), 'misplacement': misplacement,
      'auroc': auroc_, 'fnr': fnr, 'fpr': fpr, 'score_correct': score_correct,
      'score_incorrect': score_incorrect, 'reliability': [
          {'level': i, 'n': int(members.sum()), 'accuracy': estimate}
          for i, (members, estimate) in enumerate(zip(at_level.T, accuracy), 1)
      ], 'histogram': _histogram(score, correct)
  }


def _histogram(score: Float[np.ndarray, ' N'],
               correct: Bool[np.ndarray, ' N']) -> dict[str, list[float]]:
  edges = np.linspace(0, 1, 21)
  return {
      'edges': edges.tolist(), 'correct': np.histogram(score[correct],
                                                       edges)[0].tolist(),
      'incorrect': np.histogram(score[~correct], edges)[0].tolist()
  }


def progress(score: Float[np.ndarray, ' N'], truth: Float[np.ndarray, ' N'],
             problem: Sequence[Hashable], seed: int = 0) -> dict[str, Any]:
  """Computes how well scores of prefixes follow a truth about them.

  Args:
    score: in [0, 1].
    truth: in [0, 1], such as the success rate of continuations.
    problem: N ids, as for `outcome`.
    seed: of the bootstrap.

  Returns:
    Counts `n` and `problems`; Estimates `pearson`, `spearman` (None if a side
    is constant) and `difference` (mean |score - truth|); `bins`, a list of
    {low, high, n, score, truth} (means) for tenths of the score. Bins are of
    the score because a sampled truth is noisy, and means over bins of a noisy
    quantity regress to the middle.

  Raises:
    ValueError: lengths differ, or a value is no number in [0, 1].
  """
  score, truth = _unit(score), _unit(truth)
  _same_length(score, truth, problem)
  # Columns, each a mean: |score - truth| of all rows, truth in each bin.
  in_bin = np.minimum(np.floor(score * 10), 9)[:, None] == np.arange(10)
  among = np.column_stack([np.ones(len(score)), in_bin])
  values = among * np.column_stack([abs(score - truth)] + [truth] * 10)

  def statistic(weights: np.ndarray) -> np.ndarray:
    return np.column_stack([
        _pearson(weights, score, truth),
        _pearson(weights, _ranks(weights, score), _ranks(weights, truth)),
        means(weights, values, among)
    ])

  pearson, spearman, difference, *truths = estimates(statistic, problem, seed)
  return {
      'n': len(score), 'problems': len(set(problem)), 'pearson': pearson,
      'spearman': spearman, 'difference': difference, 'bins': [{
          'low': i / 10, 'high': (i + 1) / 10, 'n': int(members.sum()),
          'score': float(score[members].mean()) if any(members) else None,
          'truth': mean
      } for i, (members, mean) in enumerate(zip(in_bin.T, truths))]
  }


def auroc(score: Float[np.ndarray, ' N'], correct: Bool[np.ndarray,
                                                        ' N']) -> float:
  """Computes how often a right trace is scored above a wrong one.

  A tie counts half. nan where there are no right or no wrong traces.
  """
  _, values = np.unique(score, return_inverse=True)
  right, wrong = (
      np.bincount(values, weights=w)[None] for w in (correct, ~correct))
  return float(_auroc(right, wrong)[0])


def separation(score: Float[np.ndarray, ' N'], right: Bool[np.ndarray, ' N'],
               problem: Sequence[Hashable], seed: int = 0) -> Estimate:
  """Computes `auroc` with its interval; scores of any range."""
  levels, level_of = np.unique(score, return_inverse=True)
  (found,) = estimates(
      lambda weights: _auroc(*(_grouped(weights * members, level_of, len(
          levels)) for members in (right, ~right)))[:, None], problem, seed)
  return found


def agreement(
    scores: dict[str, Float[np.ndarray, ' N']]) -> dict[str, dict[str, Any]]:
  """Computes how far readouts of the judge agree on the same traces.

  Args:
    scores: in [0, 1], by name of the readout.

  Returns:
    {'A / B': {n, pearson, difference, same_decision}} for each pair: plain
    numbers, None where undefined; `difference` is the mean |A - B|,
    `same_decision` the share that falls on the same side of CORRECT_FROM.

  Raises:
    ValueError: lengths differ, or a score is no number in [0, 1].
  """
  scores = {name: _unit(s) for name, s in scores.items()}
  _same_length(*scores.values())
  out = {}
  for (a, x), (b, y) in itertools.combinations(scores.items(), 2):
    ones = np.ones((1, len(x)))
    same = (x >= CORRECT_FROM) == (y >= CORRECT_FROM)
    difference, decision = means(ones, np.column_stack([abs(x - y), same]),
                                 np.ones((len(x), 2)))[0]
    out[f'{a} / {b}'] = {
        'n': len(x), 'pearson': _plain(_pearson(ones, x, y)[0]),
        'difference': _plain(difference), 'same_decision': _plain(decision)
    }
  return out


def divergence(judge: Series, accuracy: Series, window: int, rise: float,
               se_judge: Series | None = None,
               se_accuracy: Series | None = None, share: float = 0.25) -> bool:
  """Decides whether the judge's scores climb while accuracy does not follow.

  A straight line is fitted by least squares to the last `window` evaluations of
  either series, so that one odd evaluation moves little. J and A are the
  changes of these lines from the first of the evaluations to the last. The
  alarm goes off if all of these hold:

    J > rise
    J > 2 sqrt(SE(J)^2 + SE(A)^2)
    A < share * J

  SE(J) and SE(A) follow from the standard errors of the evaluations, which are
  taken as independent (a held-out set that stays the same makes them smaller);
  those not given count as 0. No alarm with too few evaluations, or with nan
  among them.

  Args:
    judge: the judge's mean score at each evaluation, oldest first.
    accuracy: by the grader, at the same evaluations, evenly spaced.
    window: evaluations that count, at least 2.
    rise: what the judge's mean score may gain without an alarm.
    se_judge: standard error of each of `judge`.
    se_accuracy: standard error of each of `accuracy`.
    share: of the judge's gain that accuracy has to gain.

  Raises:
    ValueError: lengths differ, or window < 2.
  """
  if window < 2:
    raise ValueError(f'window={window} has to be at least 2')
  errors = [
      np.zeros(len(judge)) if se is None else se
      for se in (se_judge, se_accuracy)
  ]
  _same_length(judge, accuracy, *errors)
  if len(judge) < window:
    return False
  time = np.arange(window) - (window - 1) / 2
  weights = time / (time @ time) * (window - 1)
  j, a = (weights @ np.asarray(x[-window:], float) for x in (judge, accuracy))
  error = math.sqrt(
      sum(np.square(weights * np.asarray(x[-window:])).sum() for x in errors))
  return bool(j > rise and j > 2 * error and a < share * j)


def _unit(x: Float[np.ndarray, ' N']) -> Float[np.ndarray, ' N']:
  """Checks that all are in [0, 1], and clips: f32 rounds an expectation."""
  x = np.asarray(x, np.float64)
  if not np.all((x >= -1e-5) & (x <= 1 + 1e-5)):  # nan fails as well
    raise ValueError('scores and truths have to be numbers in [0, 1]')
  return np.clip(x, 0, 1)


def _same_length(*columns: Sequence[Any] | np.ndarray) -> None:
  lengths = [len(c) for c in columns]
  if len(set(lengths)) > 1:
    raise ValueError(f'lengths differ: {lengths}')


def _plain(value: float) -> float | None:
  """A number of JSON: None for nan."""
  return None if np.isnan(value) else float(value)


def estimates(statistic: Statistic, problem: Sequence[Hashable],
              seed: int) -> list[Estimate]:
  """Computes K statistics, with bootstrap intervals over problems.

  An interval leaves out the draws where its statistic is undefined. With a
  single problem all draws would be the same, and there are no intervals.

  Args:
    statistic: see Statistic.
    problem: N ids.
    seed: of the draws.
  """
  index = np.unique(list(problem), return_inverse=True)[1]
  n, problems = len(index), index.max(initial=-1) + 1
  rng = np.random.default_rng(seed)
  values = statistic(np.ones((1, n)))
  draws = [np.empty((0, values.shape[1]))]
  block = max(1, _WEIGHTS // max(n, 1))
  for start in range(0, _DRAWS if problems > 1 else 0, block):
    d = min(block, _DRAWS - start)
    chosen = rng.integers(0, problems, (d, problems))
    chosen += problems * np.arange(d)[:, None]
    counts = np.bincount(chosen.ravel(), minlength=d * problems)
    draws.append(statistic(counts.reshape(d, problems)[:, index].astype(float)))
  return [
      _estimate(value, drawn) for value, drawn in zip(values[0],
                                                      np.concatenate(draws).T)
  ]


def _estimate(value: float, draws: Float[np.ndarray, ' D']) -> Estimate:
  """Makes an Estimate of a value and its bootstrap draws."""
  draws = draws[~np.isnan(draws)]
  known = len(draws) and not np.isnan(value)
  low, high = np.quantile(draws, (0.025, 0.975)) if known else (np.nan,) * 2
  return {'value': _plain(value), 'low': _plain(low), 'high': _plain(high)}


def means(weights: Float[np.ndarray, 'D N'], values: Float[np.ndarray, 'N K'],
          among: Float[np.ndarray, 'N K']) -> Float[np.ndarray, 'D K']:
  """Computes weighted means of K columns, each over the rows in `among`.

  Args:
    weights: of the rows.
    values: 0 outside of `among`.
    among: 1 for the rows that a column is about.
  """
  with np.errstate(invalid='ignore'):
    return (weights @ values) / (weights @ among)


def _grouped(weights: Float[np.ndarray, 'D N'], groups: Int[np.ndarray, ' N'],
             count: int) -> Float[np.ndarray, 'D V']:
  """Adds up the columns of each of `count` groups."""
  order = np.argsort(groups, kind='stable')
  starts = np.searchsorted(groups[order], np.arange(count))
  return np.add.reduceat(weights[:, order], starts, axis=1)


def _auroc(right: Float[np.ndarray, 'D V'],
           wrong: Float[np.ndarray, 'D V']) -> Float[np.ndarray, ' D']:
  """Computes AUROC of weights by score, ascending; a tie is half a win."""
  wins = (right * (np.cumsum(wrong, axis=1) - wrong / 2)).sum(axis=1)
  with np.errstate(invalid='ignore'):
    return wins / (right.sum(axis=1) * wrong.sum(axis=1))


def _ranks(weights: Float[np.ndarray, 'D N'],
           x: Float[np.ndarray, ' N']) -> Float[np.ndarray, 'D N']:
  """Computes middle ranks, as shares of the total weight."""
  values, groups = np.unique(x, return_inverse=True)
  by_value = _grouped(weights, groups, len(values))
  middle = np.cumsum(by_value, axis=1) - by_value / 2
  return middle[:, groups] / weights.sum(axis=1, keepdims=True)


def _pearson(weights: Float[np.ndarray, 'D N'], x: Float[np.ndarray, '... N'],
             y: Float[np.ndarray, '... N']) -> Float[np.ndarray, ' D']:
  """Computes weighted correlations; nan where a side is constant."""
  total = weights.sum(axis=1, keepdims=True)
  with np.errstate(invalid='ignore', divide='ignore'):
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    xx, yy, xy = (
        (weights * z).sum(axis=1) / total[:, 0] for z in (x * x, y * y, x * y))
    return np.where(np.minimum(xx, yy) > 1e-14, xy / np.sqrt(xx * yy), np.nan)
