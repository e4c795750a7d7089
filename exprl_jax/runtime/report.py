"""The end of a run: a table for the terminal, report.html for the browser."""

import base64
import dataclasses
import io
import json
import pathlib
from typing import NamedTuple

import jinja2

from exprl_jax.config import Config
from exprl_jax.runtime import metrics

_SAMPLES = 8  # traces shown


class Result(NamedTuple):
  """A finished run."""

  title: str
  config: Config
  workdir: pathlib.Path
  rows: list[metrics.Row]  # of metrics.jsonl


def write(workdir: pathlib.Path, results: list[Result]) -> None:
  """Prints the summary of some runs and writes workdir/report.html."""
  table = summary(results)
  print('\n' + as_text(table))
  page = jinja2.Environment(
      autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
          pathlib.Path(__file__).with_suffix('.html').read_text())
  path = workdir / 'report.html'
  path.write_text(
      page.render(
          titles=[r.title for r in results], table=table, plots=plots(results),
          samples=samples(results[0].workdir), times=times(results[0].rows),
          config=json.dumps(dataclasses.asdict(results[0].config), indent=1)))
  print(f'report {path}', flush=True)


def evaluations(rows: list[metrics.Row]) -> list[metrics.Row]:
  """The rows that hold an evaluation."""
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
  """The table with its columns lined up."""
  widths = [max(map(len, column)) for column in zip(*table)]
  return '\n'.join('  '.join(cell.ljust(w)
                             for cell, w in zip(row, widths)).rstrip()
                   for row in table)


def times(rows: list[metrics.Row]) -> dict[str, float]:
  """Seconds by phase, over the whole run."""
  out = {}
  for row in rows:
    for name, value in row.items():
      if name.startswith('time/'):
        out[name[5:]] = out.get(name[5:], 0.0) + value
  return out


def samples(workdir: pathlib.Path) -> list[dict]:
  """Some traces of the last training step that was written, one a problem
  first."""
  files = sorted((workdir / 'samples').glob('[0-9]' * 8 + '.jsonl'))
  if not files:
    return []
  rows = [json.loads(line) for line in files[-1].read_text().splitlines()]
  first = {row['id']: row for row in reversed(rows)}.values()
  rest = [row for row in rows if all(row is not f for f in first)]
  return [*first, *rest][:_SAMPLES]


def plots(results: list[Result]) -> list[dict[str, str]]:
  """Plots as {title, svg}; those without data are left out."""
  import matplotlib  # pylint: disable=g-import-not-at-top
  matplotlib.use('Agg')
  from matplotlib import figure  # pylint: disable=g-import-not-at-top

  out = []

  def draw(title, lines, label, bottom=None):
    """lines: (label, rows, name, low name, high name, style)."""
    lines = [x for x in lines if any(x[2] in r for r in x[1])]
    if not lines:
      return
    fig = figure.Figure(figsize=(6, 3.2), layout='constrained')
    axes = fig.subplots()
    for text, rows, name, low, high, style in lines:
      rows = [r for r in rows if name in r]
      x = [r['step'] for r in rows]
      (curve,) = axes.plot(x, [r[name] for r in rows], style, label=text)
      if low:
        axes.fill_between(x, [r[low] for r in rows], [r[high] for r in rows],
                          color=curve.get_color(), alpha=0.15)
    axes.set(xlabel='step', ylabel=label)
    if bottom is not None:
      axes.set_ylim(bottom=bottom)
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    fig.savefig(buffer, format='svg')
    data = base64.b64encode(buffer.getvalue()).decode()
    out.append({'title': title, 'data': f'data:image/svg+xml;base64,{data}'})

  main = results[0]
  reward = 'reward' if main.config.reward == 'sparse' else "judge's reward"
  for k in main.config.eval.ks:
    name = f'eval/pass@{k}'
    draw(f'Held-out pass@{k}, 95 % interval over problems',
         [(r.title, r.rows, name, f'{name}_low', f'{name}_high', 'o-')
          for r in results], f'pass@{k}', 0)
  draw('Reward and true accuracy on training samples: both should rise',
       [(reward, main.rows, 'reward/mean', '', '', '-'),
        ('accuracy (grader, not trained on)', main.rows, 'reward/accuracy', '',
         '', '-')], 'mean', 0)
  draw('Supervised loss',
       [(r.title, r.rows, 'sft/loss', '', '', '-') for r in results],
       'nats per token', 0)
  draw('Distance from the starting policy',
       [(r.title, r.rows, 'policy/ref_kl', '', '', '-') for r in results],
       'KL, nats per token', 0)
  draw('Entropy',
       [(r.title, r.rows, 'policy/entropy', '', '', '-') for r in results],
       'nats per token', 0)
  draw(
      'Length of completions',
      [(r.title, r.rows, 'length/response_mean', '', '', '-') for r in results],
      'tokens', 0)
  return out
