"""Metrics to metrics.jsonl, progress to the terminal."""

from collections.abc import Iterable, Sequence
import math
import shutil
import statistics
import sys
import time
from typing import Any

from etils import epath
import jax
import numpy as np
import tqdm

from exprl_jax.runtime import jsonl, trackers

Row = dict[str, float]  # {'step': ..., 'area/name': number}
# A progress bar without the bar, for the sake of the curves behind it.
_NARROW = '{desc:.9} {n_fmt}/{total_fmt} [{remaining}{postfix}]'


class Log:
  """Appends rows to metrics.jsonl and shows a progress bar.

  No name is a path prefix of another. A resumed run first drops the rows after
  its checkpoint, so that the file reads as if nothing had happened.
  """

  def __init__(self, workdir: epath.PathLike, total: int, first_step: int = 0,
               main: bool = True) -> None:
    """Only one process, the main one, writes and shows anything."""
    self._lines = jsonl.Lines(epath.Path(workdir) / 'metrics.jsonl', _is_row)
    self._main, self._curves = main, dict[str, list[float]]()
    if main:
      self._lines.keep(lambda row: 0 < first_step >= row['step'])
      self._lines.open()
    self._bar = tqdm.tqdm(total=total, initial=first_step, unit='step',
                          dynamic_ncols=True, disable=not main
                          or not sys.stderr.isatty(), leave=False)

  def write(self, step: int, values: dict[str, Any], line: str = '') -> None:
    """Appends the finite values as a row, and prints `line` if any."""
    if not self._main:
      return
    row = {'step': step
          } | {k: float(v) for k, v in values.items() if np.isfinite(v)}
    self._lines.append(row)
    trackers.scalars(step, {k: v for k, v in row.items() if k != 'step'})
    if line:
      self.say(line)

  def say(self, line: str) -> None:
    """Prints a line above the progress bar."""
    if self._main:
      tqdm.tqdm.write(line, file=sys.stdout)
      sys.stdout.flush()

  def phase(self, name: str) -> None:
    """Shows what is being done, in front of the progress bar."""
    self._bar.bar_format = _NARROW if _is_narrow() else None
    self._bar.set_description_str(name)

  def advance(self, **values: float) -> None:
    """Advances the progress bar by one step, with the curves of values."""
    for name, value in values.items():
      self._curves.setdefault(name, []).append(value)
    marks = 4 if _is_narrow() else 12
    self._bar.set_postfix_str(
        ', '.join(f'{name} {sparkline(x, marks)} {x[-1]:.3f}'
                  for name, x in self._curves.items()), refresh=False)
    self._bar.update()

  def flush(self) -> None:
    """Returns when the rows are stored: before a checkpoint that is behind
    them, since a resumed run does not write them again."""
    if self._main:
      self._lines.flush()

  def close(self) -> None:
    """Stores the rows, and removes the progress bar."""
    if self._main:
      self._lines.close()
    self._bar.close()


def read(path: epath.PathLike) -> list[Row]:
  """Reads the rows of a metrics.jsonl, or its parts, that are whole."""
  return jsonl.read(path, _is_row).rows


def _is_row(row: dict[str, Any]) -> bool:
  """Whether an object is one of `Row`: what damage has left may not be."""
  return 'step' in row and all(type(v) in (int, float) for v in row.values())


class Timer:
  """Adds up seconds by phase: `with timer('rollout'): ...`.

  Phases have their names in traces of the profiler, too.
  """

  def __init__(self) -> None:
    self.seconds: dict[str, float] = {}
    self._name, self._start = '', 0.0
    self._annotation = jax.profiler.TraceAnnotation('')

  def __call__(self, name: str) -> 'Timer':
    """Names the phase that the `with` block times."""
    self._name = name
    return self

  def __enter__(self) -> None:
    self._annotation = jax.profiler.TraceAnnotation(self._name)
    self._annotation.__enter__()
    self._start = time.perf_counter()

  def __exit__(self, *_: object) -> None:
    spent = time.perf_counter() - self._start
    self._annotation.__exit__(None, None, None)
    self.seconds[self._name] = self.seconds.get(self._name, 0.0) + spent

  def metrics(self) -> dict[str, float]:
    """Returns {'time/PHASE': seconds}."""
    return {f'time/{k}': v for k, v in self.seconds.items()}


def _is_narrow() -> bool:
  """Whether the terminal has no room for a bar and curves."""
  return shutil.get_terminal_size().columns < 110


def sparkline(values: Sequence[float], width: int = 12) -> str:
  """A curve as a line of text, each mark a mean of neighbors; gaps for nan."""
  values, marks = list(values), '▁▂▃▄▅▆▇█'
  every = -(-len(values) // width) or 1
  means = [mean(values[i:i + every]) for i in range(0, len(values), every)]
  finite = [x for x in means if math.isfinite(x)]
  if not finite:
    return ''
  low, size = min(finite), max(finite) - min(finite)
  return ''.join(
      marks[min(7, int(8 * (x - low) /
                       size)) if size else 0] if math.isfinite(x) else ' '
      for x in means)


def mean(values: Iterable[float]) -> float:
  """Computes the mean, nan of no values (metrics.jsonl omits nan)."""
  values = list(values)
  return statistics.fmean(values) if values else float('nan')
