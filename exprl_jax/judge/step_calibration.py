"""Do a judge's scores of prefixes show the first wrong step of a trace?

ExpRL-Process pays a step by the change of the score, so a useful judge scores a
trace higher while it goes right and lower from its first wrong step on. Scores
are in [0, 1]; results are plain JSON with calibration's Estimates.
"""

from collections.abc import Hashable, Sequence
import itertools
import random
from typing import Any, NamedTuple

from jaxtyping import Float, Int
import numpy as np

from exprl_jax.judge import calibration
from exprl_jax.judge.calibration import Estimate

_THRESHOLDS = 41  # that are tried, at quantiles of a signal
_FALL = 0.05  # what a score may fall by without falling: noise of a read-out


class Marked(NamedTuple):
  """A trace of which the first wrong step is known."""

  problem: Hashable
  scores: Float[np.ndarray, ' S']  # after each step
  first: int  # wrong step, from 0; -1: none


def first_wrong_step(traces: Sequence[Marked], seed: int = 0) -> dict[str, Any]:
  """Measures how well scores locate the first wrong step.

  A step is called wrong where a signal falls below a threshold: the score
  itself, or its change by the step. Problems are split in two halves; each
  half's signal and threshold are those that are best on the other one.

  Returns:
    Counts `n`, `n_wrong` and `problems`; Estimates `exact` and `within_one`,
    shares of the traces with a wrong step where the first step called wrong is
    that step, or it or a neighbor; `right`, the share of the others where no
    step is called wrong; `f1`, the harmonic mean of `exact` and `right`, as
    ProcessBench reports it (arXiv 2412.06559); `change_auroc`, how often the
    score changes less by a first wrong step than by a right one, a tie counting
    half (not by the first step of a trace); `score_before` and `score_from`,
    means of scores before the first wrong step and from it on. None where
    undefined.
  """
  called = _called(traces, seed)
  first = np.array([t.first for t in traces], int)
  wrong = first >= 0
  before = np.array([_mean(t.scores[:t.first]) if t.first > 0 else np.nan
                     for t in traces])  # yapf: disable
  after = np.array([_mean(t.scores[t.first:]) if t.first >= 0 else np.nan
                    for t in traces])  # yapf: disable
  found = wrong & (called == first)
  near = wrong & (called >= 0) & (abs(called - first) <= 1)
  among = np.column_stack(
      [wrong, wrong, ~wrong, ~np.isnan(before), ~np.isnan(after)]).astype(float)
  values = np.column_stack([
      found, near, ~wrong & (called < 0),
      np.nan_to_num(before),
      np.nan_to_num(after)
  ]).astype(float)

  def statistic(weights: np.ndarray) -> np.ndarray:
    shares = calibration.means(weights, values, among)
    exact, right = shares[:, 0], shares[:, 2]
    with np.errstate(invalid='ignore', divide='ignore'):
      f1 = np.where(exact + right > 0, 2 * exact * right / (exact + right),
                    exact + right)
    return np.column_stack([shares, f1])

  names = ('exact', 'within_one', 'right', 'score_before', 'score_from', 'f1')
  found_ = calibration.estimates(statistic, [t.problem for t in traces], seed)
  return {
      'n': len(traces), 'n_wrong': int(wrong.sum()),
      'problems': len({t.problem for t in traces}),
      'change_auroc': _change_auroc(traces, seed), **dict(zip(names, found_))
  }


def rising(traces: Sequence[Marked], seed: int = 0) -> Estimate:
  """Measures how seldom scores fall while a trace goes right.

  Returns:
    The share of neighboring steps, none of them wrong, where the score does
    not fall by more than 0.05.
  """
  kept, count = [], []
  for t in traces:
    change = np.diff(t.scores[:t.first] if t.first >= 0 else t.scores)
    kept.append((change >= -_FALL).sum())
    count.append(len(change))
  among, values = (np.array(x, float)[:, None] for x in (count, kept))
  (share,) = calibration.estimates(
      lambda weights: calibration.means(weights, values, among),
      [t.problem for t in traces], seed)
  return share


def _signals(trace: Marked) -> Float[np.ndarray, '2 S']:
  """The score after each step, and its change by it."""
  return np.stack([trace.scores, np.diff(trace.scores, prepend=0.0)])


def _called(traces: Sequence[Marked], seed: int) -> Int[np.ndarray, ' N']:
  """The first step of each trace that is called wrong; -1: none is."""
  problems = sorted({t.problem for t in traces}, key=str)
  random.Random(seed).shuffle(problems)
  half = set(problems[:len(problems) // 2])
  called = np.full(len(traces), -1)
  sides = [[i
            for i, t in enumerate(traces)
            if (t.problem in half) == side]
           for side in (True, False)]
  for own, other in itertools.permutations(sides):
    signal, threshold = _best([traces[i] for i in other])
    for i in own:
      called[i] = _first_below(_signals(traces[i])[signal], threshold)
  return called


def _best(traces: Sequence[Marked]) -> tuple[int, float]:
  """The signal and threshold with the highest F1 on these traces."""
  signals = [_signals(t) for t in traces]
  first = np.array([t.first for t in traces], int)
  best = (-1.0, 0, -np.inf)
  for which in range(2) if traces else ():
    every = np.concatenate([s[which] for s in signals])
    for threshold in np.quantile(every, np.linspace(0, 1, _THRESHOLDS)):
      hit = first == [_first_below(s[which], threshold) for s in signals]
      shares = [_mean(hit[first >= 0]), _mean(hit[first < 0])]
      known = [s for s in shares if s == s]
      f1 = 0.0 if min(known) == 0 else len(known) / sum(1 / s for s in known)
      best = max(best, (f1, which, float(threshold)))
  return best[1], best[2]


def _first_below(signal: Float[np.ndarray, ' S'], threshold: float) -> int:
  below = signal < threshold
  return int(below.argmax()) if below.any() else -1


def _change_auroc(traces: Sequence[Marked], seed: int) -> Estimate:
  """Compares changes by right steps with those by first wrong ones."""
  changes, right, problems = [], [], []
  for t in traces:
    last = t.first if t.first >= 0 else len(t.scores) - 1
    for step in range(1, last + 1):
      changes.append(t.scores[step] - t.scores[step - 1])
      right.append(step != t.first)
      problems.append(t.problem)
  return calibration.separation(np.array(changes, float), np.array(right, bool),
                                problems, seed)


def _mean(values: np.ndarray) -> float:
  return float(np.mean(values)) if len(values) else float('nan')
