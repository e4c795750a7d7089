"""The end of a run: a table for the terminal, report.html for the browser."""

from collections.abc import Iterator
import contextlib
import shutil
import sys
from typing import NamedTuple

from etils import epath

from exprl_jax.config import Config
from exprl_jax.runtime import metrics
from exprl_jax.types import Unfinished, printable


class Result(NamedTuple):
  """A run, finished or not."""

  title: str
  config: Config
  workdir: epath.Path
  rows: list[metrics.Row]  # of metrics.jsonl


def write(workdir: epath.Path, results: list[Result]) -> None:
  """Prints the summary of some runs and writes workdir/report.html."""
  from exprl_jax.report import page  # plotting takes a while to import
  print('\n' + as_text(summary(results)))
  path = workdir / 'report.html'
  page.write(path, results)
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
        if name not in found[0]:  # another run's ks
          line += ['', '']
          continue
        line += [
            f'{found[0][name]:.3f}',
            f'{last[name]:.3f} [{last[f"{name}_low"]:.3f}, '
            f'{last[f"{name}_high"]:.3f}]'
        ]
      table.append(line)
  return table


def as_text(table: list[list[str]], width: int | None = None) -> str:
  """Formats a table: aligned columns, or lines for each row where it is narrow.

  Args:
    table: a header and rows; the first column has their names.
    width: columns of the terminal; None: those of this one, without a limit
      where the output goes elsewhere.
  """
  if width is None:
    width = (shutil.get_terminal_size().columns
             if sys.stdout.isatty() else 10**6)
  table = [[printable(cell) for cell in row] for row in table]
  widths = [max(map(len, column)) for column in zip(*table)]
  lines = [
      '  '.join(cell.ljust(w)
                for cell, w in zip(row, widths)).rstrip()
      for row in table
  ]
  if max(map(len, lines), default=0) <= width:
    return '\n'.join(lines)
  head, *rows = table
  left = max(map(len, head[1:]), default=0)
  return '\n'.join([head[0]] + [
      line for name, *cells in rows
      for line in (name, *(f'  {title.ljust(left)}  {cell}'
                           for title, cell in zip(head[1:], cells)
                           if cell))
  ])
