"""Metrics to metrics.jsonl, progress to the terminal."""

from collections.abc import Iterable
import json
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np
import tqdm

Row = dict[str, float]  # {'step': ..., 'area/name': number}


class Log:
  """Appends rows to metrics.jsonl and shows a progress bar.

  No name is a path prefix of another. A resumed run first drops the rows after
  its checkpoint, so that the file reads as if nothing had happened.
  """

  def __init__(self, workdir: pathlib.Path, total: int, first_step: int = 0,
               main: bool = True) -> None:
    """Only one process, the main one, writes and shows anything."""
    self._path = workdir / 'metrics.jsonl'
    self._main = main
    if main:
      rows = read(self._path) if first_step else []
      rows = [r for r in rows if r['step'] <= first_step]
      self._path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    self._bar = tqdm.tqdm(total=total, initial=first_step, unit='step',
                          disable=not main or not sys.stderr.isatty(),
                          leave=False)

  def write(self, step: int, values: dict[str, Any], line: str = '') -> None:
    """Appends the finite values as a row, and prints `line` if any."""
    if not self._main:
      return
    row = {'step': step
          } | {k: float(v) for k, v in values.items() if np.isfinite(v)}
    with self._path.open('a') as file:
      file.write(json.dumps(row) + '\n')
    if line:
      self.say(line)

  def say(self, line: str) -> None:
    """Prints a line above the progress bar."""
    if self._main:
      tqdm.tqdm.write(line, file=sys.stdout)
      sys.stdout.flush()

  def advance(self, **shown: str) -> None:
    """Advances the progress bar by one step."""
    self._bar.set_postfix(shown, refresh=False)
    self._bar.update()

  def close(self) -> None:
    """Removes the progress bar."""
    self._bar.close()


def read(path: pathlib.Path) -> list[Row]:
  """Reads the rows of a metrics.jsonl up to its first incomplete line."""
  rows: list[Row] = []
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:
        break
  return rows


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


def mean(values: Iterable[float]) -> float:
  """Computes the mean, nan of no values (metrics.jsonl omits nan)."""
  values = list(values)
  return statistics.fmean(values) if values else float('nan')
