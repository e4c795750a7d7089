"""What the report plots: panels of curves over the steps, as plotly figures.

Runs whose titles differ by the seed alone are one recipe: they share a color,
and a line and a band are drawn for their mean and range.
"""

from collections.abc import Iterable, Sequence
import math
from typing import Any, NamedTuple

from exprl_jax.report import Result
from exprl_jax.runtime.metrics import Row
from exprl_jax.types import printable

# Okabe and Ito's, which people with color blindness can tell apart, too.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9',
          '#7F7F7F', '#B8A900')
_DASHES = ('solid', 'dash', 'dot', 'dashdot')
_LABEL = 60  # characters of a legend
_POINTS = 1000  # of a curve


class Panel(NamedTuple):
  """A plot.

  Attributes:
    title: of it.
    unit: of the y axis.
    lines: metric -> label, '' for the only one.
    note: what is healthy.
    interval: whether the metrics have `_low` and `_high`.
  """

  title: str
  unit: str
  lines: dict[str, str]
  note: str = ''
  interval: bool = False


_PANELS = (
    Panel(
        'Reward and accuracy on training samples', 'mean', {
            'reward/mean': 'reward',
            'reward/accuracy': 'accuracy (grader, not trained on)'
        },
        'Both should rise; reward up and accuracy flat: the judge is hacked.'),
    Panel(
        'Judge against grader', 'score', {
            'judge/auroc': 'AUROC',
            'judge/score_right': 'score of right traces',
            'judge/score_wrong': 'score of wrong traces'
        }, 'The two scores should stay apart.'),
    Panel('Hacking alarm', 'on', {'judge/hacking_alarm': ''}),
    Panel('Supervised loss', 'nats per token', {'sft/loss': ''}),
    Panel('Distance from the starting policy', 'KL, nats per token',
          {'policy/ref_kl': ''}),
    Panel('Entropy', 'nats per token', {'policy/entropy': ''},
          'Falls to 0: collapse. Keeps rising: noise.'),
    Panel('Gradient norm', 'before clipping', {'optim/grad_norm': ''}),
    Panel('Clipped ratios', 'share of tokens',
          {'policy/clip_frac_low': 'below', 'policy/clip_frac_high': 'above'}),
    Panel('Sampler against learner', 'KL, nats per token', {'mismatch/kl': ''},
          'Above 0.02: they disagree.'),
    Panel('Length of completions', 'tokens',
          {'length/response_mean': 'mean', 'length/response_max': 'longest'}),
    Panel(
        'Truncated, one step, no credit', 'share of traces', {
            'length/truncated_frac': 'truncated',
            'steps/one_step_frac': 'of one step',
            'credit/zero_frac': 'without credit'
        }, 'All of them low.'),
    Panel(
        'Seconds of a step', 's', {
            'time/rollout': 'rollout', 'time/judge': 'judge',
            'time/logprob': 'log-probabilities', 'time/update': 'update'
        }),
    Panel('Sampled tokens per second', 'tokens/s', {'perf/tokens_per_s': ''}),
)


def figures(results: Sequence[Result]) -> list[dict[str, Any]]:
  """The panels that have data: {title, note, data, unit} for plotly."""
  ks = dict.fromkeys(k for r in results for k in r.config.eval.ks)
  panels = [
      Panel(f'Held-out pass@{k}', 'share of problems', {f'eval/pass@{k}': ''},
            '95 % interval over problems.', interval=True) for k in ks
  ]
  groups = _recipes(results)
  out = []
  for panel in (*panels, *_PANELS):
    data = [
        trace for i, (name, seeds) in enumerate(groups.items())
        for trace in _recipe(panel, name, seeds, COLORS[i % len(COLORS)])
    ]
    if any(any(line['y']) for line in data):  # an alarm that never was is none
      out.append({
          'title': panel.title, 'note': panel.note, 'unit': panel.unit,
          'data': data
      })
  return out


def _recipes(results: Sequence[Result]) -> dict[str, list[Result]]:
  """Runs by their title without the seed."""
  out: dict[str, list[Result]] = {}
  for result in results:
    out.setdefault(result.title.rpartition(', seed')[0] or result.title,
                   []).append(result)
  return out


def _recipe(panel: Panel, name: str, seeds: Sequence[Result],
            color: str) -> Iterable[dict[str, Any]]:
  """The curves of a recipe: one for each seed and metric, and their mean."""
  for dash, (metric, label) in zip(_DASHES, panel.lines.items()):
    curves = []
    for run in seeds:
      points = _points(run.rows, metric)
      if points:
        curves.append(points)
        title = printable(run.title)[:_LABEL]
        yield from _curve(panel, points, run.rows, metric,
                          f'{title}: {label}' if label else title, color, dash,
                          thin=len(seeds) > 1)
    if len(curves) > 1:
      shown = printable(name)[:_LABEL] + (f': {label}' if label else '')
      yield from _mean(curves, f'{shown}, mean of {len(curves)} seeds', color,
                       dash)


def _points(rows: Sequence[Row], metric: str) -> dict[float, float]:
  """Step -> value, of at most _POINTS steps."""
  found = {
      row['step']: row[metric]
      for row in rows
      if metric in row and math.isfinite(row[metric])
  }
  every = -(-len(found) // _POINTS)
  return dict(list(found.items())[::every or 1])


def _line(x: Iterable[float], y: Iterable[float], name: str, color: str,
          dash: str) -> dict[str, Any]:
  return {
      'x': list(x), 'y': list(y), 'name': name, 'legendgroup': name,
      'mode': 'lines', 'line': {'color': color, 'dash': dash, 'width': 2}
  }


def _curve(panel: Panel, points: dict[float, float], rows: Sequence[Row],
           metric: str, name: str, color: str, dash: str,
           thin: bool) -> Iterable[dict[str, Any]]:
  line = _line(points, points.values(), name, color, dash)
  if thin:
    line |= {'opacity': 0.35, 'line': line['line'] | {'width': 1}}
  if panel.interval:
    line['mode'] = 'lines+markers'
    if not thin:
      yield _band(_points(rows, f'{metric}_low'),
                  _points(rows, f'{metric}_high'), name, color)
  yield line


def _mean(curves: Sequence[dict[float, float]], name: str, color: str,
          dash: str) -> Iterable[dict[str, Any]]:
  """The mean of seeds where all have a value, and a band from the least to the
  most."""
  steps = [s for s in curves[0] if all(s in c for c in curves)]
  values = [[c[s] for c in curves] for s in steps]
  yield _band(dict(zip(steps, map(min, values))),
              dict(zip(steps, map(max, values))), name, color)
  yield _line(steps, [sum(v) / len(v) for v in values], name, color, dash)


def _band(low: dict[float, float], high: dict[float, float], name: str,
          color: str) -> dict[str, Any]:
  """A closed, filled outline."""
  steps = [s for s in low if s in high]
  return {
      'x': steps + steps[::-1],
      'y': [low[s] for s in steps] + [high[s] for s in steps[::-1]],
      'fill': 'toself', 'fillcolor': color, 'opacity': 0.15, 'mode': 'none',
      'legendgroup': name, 'showlegend': False, 'hoverinfo': 'skip'
  }
