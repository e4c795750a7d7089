"""Labeled traces that a judge is trained on: judge_training.traces.

A line is one of judge.traces (evals/judge_traces.py) with labels, the first of
these that it has:

  scores      with `steps`: a number in [0, 1] for each step, or null
  score       a number in [0, 1] for the whole trace
  wrong_at    or `label`, the first wrong step: steps before it are labeled 1,
              it and all later ones 0
  correct     1 or 0 for the whole trace
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import grain

from exprl_jax.config import Config, resolve
from exprl_jax.data import steps as steps_lib
from exprl_jax.data.sources import jsonl
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.evals import judge_traces
from exprl_jax.types import InputError, Labeled


def read(config: Config, tokenizer: Tokenizer) -> list[Labeled]:
  """Reads judge_training.traces.

  Args:
    config: its `judge` and `judge_training`.
    tokenizer: the judge's; it finds the steps.

  Raises:
    InputError: no such file, or a bad line; names file and line.
  """
  path = resolve(config.judge_training.traces)
  if not path.is_file():
    raise InputError(f'config.judge_training.traces={path}: no such file')
  segment = steps_lib.segmenter(config.judge, tokenizer, True)
  out = []
  for number, where, row in jsonl.objects(path):
    trace = judge_traces.parse(row, where, number, segment)
    if len(trace.steps) > config.judge.max_steps:
      raise InputError(f'{where}: {len(trace.steps)} steps, judge.max_steps='
                       f'{config.judge.max_steps}')
    if ''.join(trace.steps).strip():
      out.append(Labeled(trace.problem, trace.steps, _labels(row, trace,
                                                             where)))
  if not out:
    raise InputError(f'{path}: no traces in it')
  return out


def batches(traces: Sequence[Labeled],
            config: Config) -> Callable[[int], list[Labeled]]:
  """The function from a step to its batch; every epoch is another order."""
  size = config.data.batch
  order = grain.MapDataset.source(traces).seed(config.seed).shuffle().repeat()
  return lambda step: [order[step * size + i] for i in range(size)]


def _labels(row: dict[str, Any], trace: judge_traces.Trace,
            where: str) -> list[float]:
  """The labels of a trace's steps; nan where there is none."""
  count = len(trace.steps)
  unknown = [math.nan] * (count - 1)
  if (scores := row.get('scores')) is not None:
    if not isinstance(scores, list) or 'steps' not in row or (len(scores)
                                                              != count):
      raise InputError(f'{where}: scores should be a list of {count} numbers, '
                       'one for each of `steps`')
    return [math.nan if s is None else _share(s, 'scores', where)
            for s in scores]  # yapf: disable
  if (score := row.get('score')) is not None:
    return [*unknown, _share(score, 'score', where)]
  if (first := trace.first_wrong) is not None:
    return [float(first < 0 or i < first) for i in range(count)]
  if trace.correct is not None:
    return [*unknown, float(trace.correct)]
  raise InputError(f'{where}: no label: one of scores, score, wrong_at, label '
                   'and correct')


def _share(value: Any, name: str, where: str) -> float:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  if not number or not 0 <= value <= 1:
    raise InputError(f'{where}: {name} holds {value!r}, want numbers from 0 to '
                     '1')
  return float(value)
