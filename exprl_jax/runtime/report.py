"""The end of a run: a table for the terminal, report.html for the browser."""

import base64
from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import io
import json
import pathlib
from typing import Any, NamedTuple

from etils import epath
import jinja2

from exprl_jax.config import Config
from exprl_jax.runtime import files, jsonl, metrics
from exprl_jax.types import LINES, Unfinished, printable

_SAMPLES = 8  # traces shown
_LABEL = 60  # characters of a legend


class Result(NamedTuple):
  """A finished run."""

  title: str
  config: Config
  workdir: epath.Path
  rows: list[metrics.Row]  # of metrics.jsonl


def write(workdir: epath.Path, results: list[Result]) -> None:
  """Prints the summary of some runs and writes workdir/report.html."""
  table = summary(results)
  print('\n' + as_text(table))
  environment = jinja2.Environment(autoescape=True, trim_blocks=True,
                                   lstrip_blocks=True)
  environment.filters['printable'] = functools.partial(printable, keep=LINES)
  page = environment.from_string(
      pathlib.Path(__file__).with_suffix('.html').read_text())
  path = workdir / 'report.html'
  files.write(
      path,
      page.render(
          titles=[r.title for r in results], table=table, plots=plots(results),
          samples=samples(results[0].workdir), times=times(results[0].rows),
          config=json.dumps(dataclasses.asdict(results[0].config), indent=1)))
  print(printable(f'report {path}'), flush=True)


def finish(workdir: epath.Path, results: list[Result]) -> None:
  """Does what `write` does, behind runs that must not fail any more.

  Raises:
    Unfinished: that failed.
  """
  with unfinished('report.html', workdir):
    write(workdir, results)


@contextlib.contextmanager
def unfinished(what: str, workdir: epath.PathLike) -> Iterator[None]:
  """Turns any error of a trained run's end into one that says how to go on.

  Raises:
    Unfinished: the block failed.
  """
  try:
    yield
  except Exception as e:
    why = ' '.join(f'{type(e).__name__}: {e}'.split())
    raise Unfinished(
        f'{workdir}/{what} was not written ({why}); all training is saved: '
        "the same command with --config.run=report and this --workdir writes "
        'it') from e


def evaluations(rows: list[metrics.Row]) -> list[metrics.Row]:
  """Selects the rows that hold an evaluation."""
  return [r for r in rows if 'eval/truncated_frac' in r]


def summary(results: list[Result]) -> list[list[str]]:
  """A header, then a line a run: held-out pass@k before and after."""
  ks = results[0].config.eval.ks
  head = ['held-out problems']
  for k in ks:
    head += [f'pass@{k} before', 'after [95 % interval]']
  table = [head]
  for result in results:
    found = evaluations(result.rows)
    if found:
      line = [result.title]
      for k in ks:
        name, last = f'eval/pass@{k}', found[-1]
        line += [
            f'{found[0][name]:.3f}',
            f'{last[name]:.3f} [{last[f"{name}_low"]:.3f}, '
            f'{last[f"{name}_high"]:.3f}]'
        ]
      table.append(line)
  return table


def as_text(table: list[list[str]]) -> str:
  """Formats a table with aligned columns."""
  table = [[printable(cell) for cell in row] for row in table]
  widths = [max(map(len, column)) for column in zip(*table)]
  return '\n'.join('  '.join(cell.ljust(w)
                             for cell, w in zip(row, widths)).rstrip()
                   for row in table)


def times(rows: list[metrics.Row]) -> dict[str, float]:
  """Sums the seconds of each phase over a run."""
  out: dict[str, float] = {}
  for row in rows:
    for name, value in row.items():
      if name.startswith('time/'):
        out[name[5:]] = out.get(name[5:], 0.0) + value
  return out


def samples(workdir: epath.Path) -> list[dict[str, Any]]:
  """Some traces of the last training step that was written, one a problem
  first."""
  found = sorted((workdir / 'samples').glob('[0-9]' * 8 + '.jsonl'))
  if not found:
    return []
  rows = jsonl.read(found[-1], _is_sample).rows
  first = {row['id']: row for row in reversed(rows)}.values()
  rest = [row for row in rows if all(row is not f for f in first)]
  return [*first, *rest][:_SAMPLES]


def _is_sample(row: dict[str, Any]) -> bool:
  return isinstance(row.get('steps'), list) and 'id' in row


class Curve(NamedTuple):
  """A line of a plot: a metric over the steps of a run."""

  label: str
  rows: list[metrics.Row]
  name: str
  style: str = '-'
  low: str = ''  # metric of the lower end of an interval; '' draws none
  high: str = ''


def plots(results: list[Result]) -> list[dict[str, str]]:
  """Draws plots as {title, data: URL of an SVG}, omitting those without data.
  """
  main = results[0]
  reward = 'reward' if main.config.reward == 'sparse' else "judge's reward"
  drawn = []
  for k in main.config.eval.ks:
    name = f'eval/pass@{k}'
    curves = [
        Curve(r.title, r.rows, name, 'o-', f'{name}_low', f'{name}_high')
        for r in results
    ]
    drawn.append(
        _draw(f'Held-out pass@{k}, 95 % interval over problems', curves,
              f'pass@{k}'))
  drawn.append(
      _draw('Reward and true accuracy on training samples: both should rise', [
          Curve(reward, main.rows, 'reward/mean'),
          Curve('accuracy (grader, not trained on)', main.rows,
                'reward/accuracy')
      ], 'mean'))
  for title, name, label in (('Supervised loss', 'sft/loss', 'nats per token'),
                             ('Distance from the starting policy',
                              'policy/ref_kl', 'KL, nats per token'),
                             ('Entropy', 'policy/entropy', 'nats per token'),
                             ('Length of completions', 'length/response_mean',
                              'tokens')):
    drawn.append(
        _draw(title, [Curve(r.title, r.rows, name) for r in results], label))
  return [plot for plot in drawn if plot is not None]


def _legend(label: str) -> str:
  """A label, escaped and shortened."""
  return printable(label)[:_LABEL]


def _draw(title: str, curves: list[Curve], label: str) -> dict[str, str] | None:
  """Draws one plot with a y axis from 0; None if no curve has data."""
  import matplotlib  # pylint: disable=g-import-not-at-top
  matplotlib.use('Agg')
  from matplotlib import figure  # pylint: disable=g-import-not-at-top

  curves = [c for c in curves if any(c.name in row for row in c.rows)]
  if not curves:
    return None
  # A config may be named $x$: that is no formula.
  with matplotlib.rc_context({'text.parse_math': False}):
    return _plot(figure.Figure(figsize=(6, 3.2), layout='constrained'), title,
                 curves, label)


def _plot(fig: Any, title: str, curves: list[Curve],
          label: str) -> dict[str, str]:
  """Plots curves that have data on a figure of matplotlib."""
  axes = fig.subplots()
  for curve in curves:
    rows = [row for row in curve.rows if curve.name in row]
    x = [row['step'] for row in rows]
    (line,) = axes.plot(x, [row[curve.name] for row in rows], curve.style,
                        label=_legend(curve.label))
    if curve.low:
      axes.fill_between(x, [row[curve.low] for row in rows],
                        [row[curve.high] for row in rows],
                        color=line.get_color(), alpha=0.15)
  axes.set(xlabel='step', ylabel=label)
  axes.set_ylim(bottom=0)
  axes.grid(alpha=0.3)
  axes.legend()
  buffer = io.BytesIO()
  fig.savefig(buffer, format='svg')
  data = base64.b64encode(buffer.getvalue()).decode()
  return {'title': title, 'data': f'data:image/svg+xml;base64,{data}'}
