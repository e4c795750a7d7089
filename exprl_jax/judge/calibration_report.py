"""A report of judge/calibration.py as a table and as plots."""

from collections.abc import Mapping, Sequence
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from exprl_jax.judge.calibration import CORRECT_FROM, Estimate

if TYPE_CHECKING:  # importing matplotlib takes long
  from matplotlib.axes import Axes

Report = Mapping[str, Any]

# Table 5 of the paper.
_PAPER = (
    "(the paper's Qwen3-4B on mathematics: misplacement 0.178 with its own "
    'reference, 0.392 with none, 0.504 with a wrong one)')

_NAMES = {
    'own': 'own reference', 'none': 'no reference', 'wrong': 'wrong reference'
}
# Of conditions; C2 and C3 are the colors of right and wrong traces.
_COLORS = ('C0', 'C1', 'C4', 'C5', 'C6')


def table(report: Report) -> str:
  """Writes a report for the terminal: a table of conditions, then lines."""
  lines = _condition_lines(report)
  if lines:
    lines.append(_PAPER)
  for name, outcome in report.get('readouts', {}).items():
    lines.append(f'readout {name} (n {outcome["n"]}): misplacement '
                 f'{_interval(outcome["misplacement"])}, AUROC '
                 f'{_interval(outcome["auroc"])}')
  if 'progress' in report:
    progress = report['progress']
    lines.append(f'prefixes (n {progress["n"]}): '
                 f'Pearson {_interval(progress["pearson"])}, '
                 f'Spearman {_interval(progress["spearman"])}, '
                 f'mean |difference| {_interval(progress["difference"])}')
  for names, pair in report.get('agreement', {}).items():
    lines.append(f'{names} (n {pair["n"]}): '
                 f'Pearson {_number(pair["pearson"])}, '
                 f'mean |difference| {_number(pair["difference"])}, '
                 f'same decision {_number(pair["same_decision"])}')
  lines += _step_lines(report) + _pair_lines(report)
  if cost := report.get('cost'):
    lines.append(f'cost of a judgment: {cost["tokens"]:.0f} tokens, '
                 f'{cost["seconds"]:.3f} s (n {cost["n"]})')
  return '\n'.join(lines)


def _step_lines(report: Report) -> list[str]:
  """Says how well the first wrong step is seen."""
  lines = []
  for name, title in (('first_wrong_step', 'first wrong step'),
                      ('made_first_wrong_step', 'the same, traces made')):
    if found := report.get(name):
      lines.append(f'{title} (n {found["n_wrong"]} of {found["n"]}): exact '
                   f'{_interval(found["exact"])}, within one '
                   f'{_interval(found["within_one"])}, F1 '
                   f'{_interval(found["f1"])}, AUROC of changes '
                   f'{_interval(found["change_auroc"])}')
  if 'rising' in report:
    lines.append('right steps where the score does not fall: '
                 f'{_interval(report["rising"])}')
  return lines


def _pair_lines(report: Report) -> list[str]:
  """Says how often references are scored above flawed traces."""
  pairs = report.get('pairs')
  if not pairs or not pairs['problems']:
    return []
  kinds = ', '.join(f'{name} {_number(kind["won"]["value"])}'
                    for name, kind in pairs['kinds'].items())
  return [
      f'references of {pairs["problems"]} problems (mean score '
      f'{_number(pairs["score"])}) above flawed traces: '
      f'{_interval(pairs["won"])}', f'  by kind: {kinds}'
  ]


def _condition_lines(report: Report) -> list[str]:
  """Writes the head of the table and a line per condition; none without any."""
  rows = [[
      'reference', 'n', 'misplacement', 'FNR', 'FPR', 'AUROC', 'mean right',
      'mean wrong'
  ]]
  for name, outcome in _conditions(report):
    cells = (_number(outcome[key]['value'])
             for key in ('fnr', 'fpr', 'auroc', 'score_correct',
                         'score_incorrect'))
    rows.append(
        [name,
         str(outcome['n']),
         _interval(outcome['misplacement']), *cells])
  if len(rows) == 1:
    return []
  widths = [max(map(len, column)) for column in zip(*rows)]
  return [
      '  '.join([row[0].ljust(widths[0])] +
                [cell.rjust(w)
                 for cell, w in zip(row[1:], widths[1:])])
      for row in rows
  ]


def plots(report: Report, path: str | os.PathLike[str]) -> None:
  """Writes a PNG with three panels: reliability, scores, prefixes.

  A panel without data says so.
  """
  import matplotlib  # pylint: disable=g-import-not-at-top
  matplotlib.use('Agg')
  from matplotlib import figure  # pylint: disable=g-import-not-at-top

  fig = figure.Figure(figsize=(13, 4.2), layout='constrained')
  reliability, histogram, prefixes = fig.subplots(1, 3)
  _plot_reliability(reliability, report)
  _plot_histogram(histogram, report)
  _plot_prefixes(prefixes, report)
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


def _plot_reliability(axes: 'Axes', report: Report) -> None:
  """Plots the accuracy of the traces at each Likert level."""
  conditions = _conditions(report)
  for i, (name, outcome) in enumerate(conditions):
    # Side by side, so that intervals do not hide each other.
    rows = [
        row | {'x': row['level'] + 0.12 * (i - (len(conditions) - 1) / 2)}
        for row in outcome['reliability']
    ]
    _points(axes, rows, 'x', 'accuracy', _COLORS[i % len(_COLORS)],
            _NAMES.get(name, name))
  axes.set(title='Reliability', xlabel='score (nearest Likert level)',
           ylabel='accuracy of the traces', xticks=range(1, 6), xlim=(0.7, 5.3),
           ylim=(-0.05, 1.05))
  if conditions:
    axes.plot([1, 5], [0, 1], ':', color='gray', zorder=0)


def _plot_histogram(axes: 'Axes', report: Report) -> None:
  """Plots the scores of right and of wrong traces, of the first condition."""
  if conditions := _conditions(report):
    name, outcome = conditions[0]
    _bars(axes, outcome)
    axes.set(title=f'Scores, {_NAMES.get(name, name)}')
  axes.set(xlabel='score', ylabel='share of the class', xlim=(0, 1))


def _plot_prefixes(axes: 'Axes', report: Report) -> None:
  """Plots the truth about prefixes by tenths of their score."""
  if 'progress' in report:
    _points(axes, report['progress']['bins'], 'score', 'truth', 'C0',
            'mean of a tenth of the scores', counts=True)
    axes.plot([0, 1], [0, 1], ':', color='gray', zorder=0)
  axes.set(title='Prefixes', xlabel='score of the prefix',
           ylabel='truth, e.g. success of continuations', xlim=(-0.05, 1.1),
           ylim=(-0.05, 1.05))


def _points(axes: 'Axes', rows: Sequence[Mapping[str, Any]], x: str, y: str,
            color: str, label: str, counts: bool = False) -> None:
  """Plots means with intervals; the area of a point is relative to its n.

  Args:
    axes: to plot on.
    rows: of the report, with `n`; those with n = 0 are left out.
    x: key of a number.
    y: key of an Estimate.
    color: of the curve.
    label: of the curve.
    counts: write n next to the points.
  """
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


def _bars(axes: 'Axes', outcome: Mapping[str, Any]) -> None:
  """Plots shares of right and of wrong traces, side by side in each bin."""
  edges = np.array(outcome['histogram']['edges'])
  half = (edges[1:] - edges[:-1]) * 0.45
  middle = (edges[1:] + edges[:-1]) / 2
  for key, color, side in ('incorrect', 'C3', -1), ('correct', 'C2', 1):
    counts = np.array(outcome['histogram'][key])
    if counts.sum():
      axes.bar(middle + side * half / 2, counts / counts.sum(), half,
               color=color, label=f'{key} (n {counts.sum()})')
  axes.margins(y=0.35)  # for the legend
  if outcome['n']:
    axes.axvline(CORRECT_FROM, linestyle='--', color='gray', linewidth=1,
                 label="says 'correct' from here on")


def _conditions(report: Report) -> list[tuple[str, dict[str, Any]]]:
  """Lists (name, outcome) of each condition, in the order of _NAMES."""
  conditions = report.get('conditions', {})
  return [(name, conditions[name])
          for name in dict.fromkeys([*_NAMES, *conditions])
          if name in conditions]


def _number(value: float | None) -> str:
  return '-' if value is None else f'{value:.3f}'


def _interval(estimate: Estimate) -> str:
  return (f'{_number(estimate["value"])} [{_number(estimate["low"])}, '
          f'{_number(estimate["high"])}]')
