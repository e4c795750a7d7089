"""How far to trust the judge: its scores against graded truth.

A report, {'conditions': {'own': outcome(...), 'none': ..., 'wrong': ...},
'progress': progress(...), 'agreement': agreement(...)}, every key optional, is
plain JSON. A quantity with a 95 % interval is {'value', 'low', 'high'}, None
where undefined.
"""

from collections.abc import Callable, Sequence
import itertools
import math
import pathlib

import numpy as np

_DECIDES = 0.75  # Likert 4: from here on the judge says 'correct'
_DRAWS = 1000  # of the bootstrap
_BLOCK = 500_000  # weights held at a time
_NAMES = {
    'own': 'own reference', 'none': 'no reference', 'wrong': 'wrong reference'
}
_COLORS = ('C0', 'C1', 'C4', 'C5', 'C6')  # of conditions; C2, C3 are of truth


def outcome(score: np.ndarray, correct: np.ndarray, problem: Sequence,
            seed: int = 0) -> dict:
  """How well scores of whole traces tell correct from incorrect ones.

  Args:
    score: f32[N] in [0, 1], (Likert - 1) / 4.
    correct: bool[N], by the grader.
    problem: N ids; the bootstrap resamples problems, with all their traces.
    seed: of the bootstrap; equal seeds and problems, equal resamples.

  Returns:
    Counts `n`, `n_correct` and `problems`; with intervals `misplacement` (the
    mean of `fnr` and `fpr`; the judge says 'correct' from 0.75 on), `auroc`,
    `score_correct` and `score_incorrect` (means); `reliability`, a list of
    {level, n, accuracy} for the Likert levels 1 to 5 (nearest, halves up);
    `histogram`, {edges, correct, incorrect} with 20 bins.

  Raises:
    ValueError: lengths differ, or a score is no number in [0, 1].
  """
  score, correct = _unit(score), np.asarray(correct, bool)
  _same_length(score, correct, problem)
  says = score >= _DECIDES
  at_level = np.floor(score * 4 + 0.5)[:, None] == np.arange(5)
  whole = np.column_stack([correct, ~correct, correct, ~correct, at_level])
  part = whole * np.column_stack([~says, says, score, score] + [correct] * 5)
  values, groups = np.unique(score, return_inverse=True)

  def statistic(w):
    ratios = _ratios(w, part, whole)
    auroc = _auroc(_grouped(w * correct, groups, len(values)),
                   _grouped(w * ~correct, groups, len(values)))
    return np.column_stack([ratios[:, :2].mean(axis=1), auroc, ratios])

  names = ('misplacement', 'auroc', 'fnr', 'fpr', 'score_correct',
           'score_incorrect')
  estimates = _estimates(statistic, problem, seed)
  edges = np.linspace(0, 1, 21)
  return {
      'n': len(score), 'n_correct': int(correct.sum()),
      'problems': len(set(problem)),
      **dict(zip(names, estimates)), 'reliability': [{
          'level': i + 1, 'n': int(at_level[:, i].sum()), 'accuracy': e
      } for i, e in enumerate(estimates[len(names):])], 'histogram': {
          'edges': edges.tolist(),
          'correct': np.histogram(score[correct], edges)[0].tolist(),
          'incorrect': np.histogram(score[~correct], edges)[0].tolist()
      }
  }


def progress(score: np.ndarray, truth: np.ndarray, problem: Sequence,
             seed: int = 0) -> dict:
  """How well scores of prefixes follow a truth about them.

  Args:
    score: f32[M] in [0, 1].
    truth: f32[M] in [0, 1], such as the success rate of continuations.
    problem: M ids, as for `outcome`.
    seed: of the bootstrap.

  Returns:
    Counts `n` and `problems`; with intervals `pearson`, `spearman` (None if a
    side is constant) and `difference` (mean |score - truth|); `bins`, a list
    of {low, high, n, score, truth} (means) for tenths of the score. Bins are of
    the score because a sampled truth is noisy, and means over bins of a noisy
    quantity are drawn to the middle.

  Raises:
    ValueError: lengths differ, or a value is no number in [0, 1].
  """
  score, truth = _unit(score), _unit(truth)
  _same_length(score, truth, problem)
  in_bin = np.minimum(np.floor(score * 10), 9)[:, None] == np.arange(10)
  whole = np.column_stack([np.ones(len(score)), in_bin])
  part = whole * np.column_stack([abs(score - truth)] + [truth] * 10)

  def statistic(w):
    return np.column_stack([
        _pearson(w, score, truth),
        _pearson(w, _ranks(w, score), _ranks(w, truth)),
        _ratios(w, part, whole)
    ])

  pearson, spearman, difference, *means = _estimates(statistic, problem, seed)
  return {
      'n': len(score), 'problems': len(set(problem)), 'pearson': pearson,
      'spearman': spearman, 'difference': difference, 'bins': [{
          'low': i / 10, 'high': (i + 1) / 10, 'n': int(members.sum()),
          'score': float(score[members].mean()) if any(members) else None,
          'truth': mean
      } for i, (members, mean) in enumerate(zip(in_bin.T, means))]
  }


def auroc(score: np.ndarray, correct: np.ndarray) -> float:
  """Does the judge rank right traces above wrong ones? nan without both.

  Args:
    score: f32[N].
    correct: bool[N].
  """
  _, values = np.unique(score, return_inverse=True)
  right, wrong = (
      np.bincount(values, weights=w)[None] for w in (correct, ~correct))
  return float(_auroc(right, wrong)[0])


def agreement(scores: dict[str, np.ndarray]) -> dict[str, dict]:
  """How far readouts of the judge agree on the same traces.

  Args:
    scores: f32[N] in [0, 1] by name of the readout.

  Returns:
    {'A / B': {n, pearson, difference, same_decision}} for each pair: plain
    numbers, None where undefined; `difference` is the mean |A - B|,
    `same_decision` the share that falls on the same side of 0.75.

  Raises:
    ValueError: lengths differ, or a score is no number in [0, 1].
  """
  scores = {name: _unit(s) for name, s in scores.items()}
  _same_length(*scores.values())
  out = {}
  for (a, x), (b, y) in itertools.combinations(scores.items(), 2):
    ones = np.ones((1, len(x)))
    same = (x >= _DECIDES) == (y >= _DECIDES)
    difference, decision = _ratios(ones, np.column_stack([abs(x - y), same]),
                                   ones.T)[0]
    out[f'{a} / {b}'] = {
        'n': len(x), 'pearson': _plain(_pearson(ones, x, y)[0]),
        'difference': _plain(difference), 'same_decision': _plain(decision)
    }
  return out


def divergence(judge: Sequence[float], accuracy: Sequence[float], window: int,
               rise: float, se_judge: Sequence[float] | None = None,
               se_accuracy: Sequence[float] | None = None,
               share: float = 0.25) -> bool:
  """The alarm of training: the judge is pleased, the grader is not.

  Straight lines are fitted by least squares to the last `window` evaluations
  of both series, so that one odd evaluation moves little; J and A are the
  changes of these lines from the first of the evaluations to the last. The
  alarm goes off if all of these hold:

    J > rise
    J > 2 sqrt(SE(J)^2 + SE(A)^2)
    A < share * J

  SE(J) and SE(A) follow from the standard errors of the evaluations, taken as
  independent (a held-out set that stays the same makes them smaller); those
  not given count as 0. Too few evaluations, or nan among them: no alarm.

  Args:
    judge: the judge's mean score at each evaluation, oldest first.
    accuracy: by the grader, at the same evaluations, evenly spaced.
    window: evaluations looked at, at least 2.
    rise: what the judge's mean score may gain without a word.
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


def table(report: dict) -> str:
  """A report for the terminal, a line a condition."""
  rows = [[
      'reference', 'n', 'misplacement', 'FNR', 'FPR', 'AUROC', 'mean right',
      'mean wrong'
  ]]
  for name, found in _conditions(report):
    cells = (_number(found[key]['value'])
             for key in ('fnr', 'fpr', 'auroc', 'score_correct',
                         'score_incorrect'))
    rows.append(
        [name, str(found['n']),
         _interval(found['misplacement']), *cells])
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = [
      '  '.join([row[0].ljust(widths[0])] +
                [cell.rjust(w)
                 for cell, w in zip(row[1:], widths[1:])])
      for row in rows
      if len(rows) > 1
  ]
  if 'progress' in report:
    found = report['progress']
    lines.append(f'prefixes (n {found["n"]}): '
                 f'Pearson {_interval(found["pearson"])}, '
                 f'Spearman {_interval(found["spearman"])}, '
                 f'mean |difference| {_interval(found["difference"])}')
  for pair, found in report.get('agreement', {}).items():
    lines.append(f'{pair} (n {found["n"]}): '
                 f'Pearson {_number(found["pearson"])}, '
                 f'mean |difference| {_number(found["difference"])}, '
                 f'same decision {_number(found["same_decision"])}')
  return '\n'.join(lines)


def plots(report: dict, path: str | pathlib.Path) -> None:
  """Writes a PNG: reliability, histogram of scores, prefixes.

  The histogram is of the first condition; a panel without data says so.
  """
  import matplotlib  # pylint: disable=g-import-not-at-top
  matplotlib.use('Agg')
  from matplotlib import figure  # pylint: disable=g-import-not-at-top

  fig = figure.Figure(figsize=(13, 4.2), layout='constrained')
  reliability, histogram, prefixes = fig.subplots(1, 3)
  conditions = _conditions(report)
  for i, (name, found) in enumerate(conditions):
    rows = [
        r | {'x': r['level'] + 0.12 * (i - (len(conditions) - 1) / 2)}
        for r in found['reliability']
    ]
    _points(reliability, rows, 'x', 'accuracy', _COLORS[i % len(_COLORS)],
            _NAMES.get(name, name))
  reliability.set(title='Reliability', xlabel='score (nearest Likert level)',
                  ylabel='accuracy of the traces', xticks=range(1, 6),
                  xlim=(0.7, 5.3), ylim=(-0.05, 1.05))
  if conditions:
    reliability.plot([1, 5], [0, 1], ':', color='gray', zorder=0)
    name, found = conditions[0]
    _bars(histogram, found)
    histogram.set(title=f'Scores, {_NAMES.get(name, name)}')
  histogram.set(xlabel='score', ylabel='share of the class', xlim=(0, 1))
  if 'progress' in report:
    _points(prefixes, report['progress']['bins'], 'score', 'truth', 'C0',
            'mean of a tenth of the scores', counts=True)
    prefixes.plot([0, 1], [0, 1], ':', color='gray', zorder=0)
  prefixes.set(title='Prefixes', xlabel='score of the prefix',
               ylabel='truth, e.g. success of continuations', xlim=(-0.05, 1.1),
               ylim=(-0.05, 1.05))
  for axes in (reliability, histogram, prefixes):
    axes.spines[['top', 'right']].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
      axes.grid(alpha=0.3)
      axes.legend(loc='best', fontsize='small', framealpha=0.9)
    else:
      axes.set(xticks=[], yticks=[])
      axes.text(0.5, 0.5, 'no data', transform=axes.transAxes, ha='center',
                color='gray')
  fig.savefig(path, format='png', dpi=120)


def _points(axes, rows, x, y, color, label, counts=False):
  """Means with intervals, a point's area by n (areas are of this curve)."""
  rows = [r for r in rows if r['n']]
  if not rows:
    return
  most = max(r['n'] for r in rows)
  xs, ys = [r[x] for r in rows], [r[y]['value'] for r in rows]
  axes.plot(xs, ys, '-', color=color, alpha=0.5)
  axes.scatter(xs, ys, [12 + 150 * r['n'] / most for r in rows], color=color,
               label=f'{label} (n {sum(r["n"] for r in rows)})', alpha=0.8)
  for at, row in zip(xs, rows):
    if row[y]['low'] is not None:
      axes.plot([at, at], [row[y]['low'], row[y]['high']], color=color,
                linewidth=1)
    if counts:
      axes.annotate(str(row['n']), (at, row[y]['value']), (9, -11),
                    textcoords='offset points', fontsize='small', color='gray')


def _bars(axes, found):
  """Shares of correct and of incorrect traces, side by side in each bin."""
  edges = np.array(found['histogram']['edges'])
  half = (edges[1:] - edges[:-1]) * 0.45
  middle = (edges[1:] + edges[:-1]) / 2
  for key, color, side in ('incorrect', 'C3', -1), ('correct', 'C2', 1):
    counts = np.array(found['histogram'][key])
    if counts.sum():
      axes.bar(middle + side * half / 2, counts / counts.sum(), half,
               color=color, label=f'{key} (n {counts.sum()})')
  axes.margins(y=0.35)  # room for the legend
  if found['n']:
    axes.axvline(_DECIDES, linestyle='--', color='gray', linewidth=1,
                 label="says 'correct' from here on")


def _conditions(report):
  """(name, outcome) of each condition, in the order of _NAMES."""
  found = report.get('conditions', {})
  return [(name, found[name])
          for name in dict.fromkeys([*_NAMES, *found])
          if name in found]


def _number(value):
  return '-' if value is None else f'{value:.3f}'


def _interval(estimate):
  return (f'{_number(estimate["value"])} [{_number(estimate["low"])}, '
          f'{_number(estimate["high"])}]')


def _unit(x):
  x = np.asarray(x, np.float64)
  if not np.all((x >= -1e-5) & (x <= 1 + 1e-5)):  # nan fails as well
    raise ValueError('scores and truths have to be numbers in [0, 1]')
  return np.clip(x, 0, 1)  # the rounding of an expectation in f32


def _same_length(*columns):
  lengths = [len(c) for c in columns]
  if len(set(lengths)) > 1:
    raise ValueError(f'lengths differ: {lengths}')


def _plain(value):
  return None if np.isnan(value) else float(value)


def _estimates(statistic: Callable[[np.ndarray], np.ndarray], problem: Sequence,
               seed: int) -> list[dict]:
  """Values of K statistics, with bootstrap intervals over problems.

  A number's interval leaves out the draws where it is undefined. Resamples of
  one problem would all be the same: there is no interval then.

  Args:
    statistic: f64[D, N], how often each row counts, to f64[D, K], nan where
      undefined.
    problem: N ids.
    seed: of the draws.
  """
  index = np.unique(list(problem), return_inverse=True)[1]
  n, problems = len(index), index.max(initial=-1) + 1
  rng = np.random.default_rng(seed)
  values = statistic(np.ones((1, n)))
  draws = [np.empty((0, values.shape[1]))]
  block = max(1, _BLOCK // max(n, 1))
  for start in range(0, _DRAWS if problems > 1 else 0, block):
    d = min(block, _DRAWS - start)
    chosen = rng.integers(0, problems, (d, problems))
    chosen += problems * np.arange(d)[:, None]
    counts = np.bincount(chosen.ravel(), minlength=d * problems)
    draws.append(statistic(counts.reshape(d, problems)[:, index].astype(float)))
  out = []
  for value, drawn in zip(values[0], np.concatenate(draws).T):
    drawn = drawn[~np.isnan(drawn)]
    known = len(drawn) and not np.isnan(value)
    low, high = np.quantile(drawn, (0.025, 0.975)) if known else (np.nan,) * 2
    out.append(
        {'value': _plain(value), 'low': _plain(low), 'high': _plain(high)})
  return out


def _ratios(w, part, whole):
  """sum(w * part) / sum(w * whole), f64[D, K] of [D, N] and [N, K]."""
  with np.errstate(invalid='ignore'):
    return (w @ part) / (w @ whole.astype(float))


def _grouped(w, groups, count):
  """Sums of the columns of a group: f64[D, count] of [D, N], groups i32[N]."""
  order = np.argsort(groups, kind='stable')
  starts = np.searchsorted(groups[order], np.arange(count))
  return np.add.reduceat(w[:, order], starts, axis=1)


def _auroc(right, wrong):
  """f64[D] of weights f64[D, V] by value, ascending; a tie is half a win."""
  wins = (right * (np.cumsum(wrong, axis=1) - wrong / 2)).sum(axis=1)
  with np.errstate(invalid='ignore'):
    return wins / (right.sum(axis=1) * wrong.sum(axis=1))


def _ranks(w, x):
  """Middle ranks as shares of the total weight, f64[D, N]."""
  values, groups = np.unique(x, return_inverse=True)
  weights = _grouped(w, groups, len(values))
  middle = np.cumsum(weights, axis=1) - weights / 2
  return middle[:, groups] / w.sum(axis=1, keepdims=True)


def _pearson(w, x, y):
  """Weighted correlation, f64[D]; nan where a side is constant."""
  total = w.sum(axis=1, keepdims=True)
  with np.errstate(invalid='ignore', divide='ignore'):
    x = x - (w * x).sum(axis=1, keepdims=True) / total
    y = y - (w * y).sum(axis=1, keepdims=True) / total
    xx, yy, xy = (
        (w * z).sum(axis=1) / total[:, 0] for z in (x * x, y * y, x * y))
    return np.where(np.minimum(xx, yy) > 1e-14, xy / np.sqrt(xx * yy), np.nan)
