"""Estimators of held-out performance: pass@k, maj@k and their intervals.

docs/evaluation.md has the formulas.
"""

from collections.abc import Sequence
import functools
import itertools
import math
from typing import NamedTuple

from jaxtyping import Bool, Float, Int, Shaped
import numpy as np

_NUM_SUBSETS = 200  # of the samples, where maj@k cannot enumerate all subsets
# Statuses of a grade that are reported only when they occur.
RARE_STATUSES = ('unparsable', 'gold_unparsable', 'timeout', 'error')


class GradedSamples(NamedTuple):
  """Grades of n samples of each of P problems."""

  status: Shaped[np.ndarray, 'P n']  # str, one of grading.STATUSES
  answer: Shaped[np.ndarray, 'P n']  # str, normal form; '': no answer
  tokens: Int[np.ndarray, 'P n']  # length
  truncated: Bool[np.ndarray, 'P n']  # by the token budget

  @property
  def correct(self) -> Bool[np.ndarray, 'P n']:
    """Whether each sample is correct."""
    return self.status == 'correct'

  def select(self, problems: Sequence[int]) -> 'GradedSamples':
    """Returns the samples of some problems."""
    rows = np.asarray(problems, int)
    return GradedSamples(self.status[rows], self.answer[rows],
                         self.tokens[rows], self.truncated[rows])


class Estimate(NamedTuple):
  """A mean with its 95 % interval."""

  mean: float
  low: float
  high: float


def graded_samples(rows: Sequence[tuple[str, str, int, str]],
                   n: int) -> GradedSamples:
  """Stacks (status, answer, tokens, finish_reason) of n samples a problem."""
  status, answer, tokens, finish_reason = zip(*rows)
  shape = (-1, n)
  return GradedSamples(
      np.array(status).reshape(shape),
      np.array(answer, object).reshape(shape),
      np.array(tokens, np.int32).reshape(shape),
      (np.array(finish_reason) == 'length').reshape(shape))


def pass_at_k(n: int, c: int, k: int) -> float:
  """Estimates pass@k from c correct of n samples: 1 - C(n-c,k)/C(n,k).

  The estimate is unbiased.

  Raises:
    ValueError: k > n.
  """
  if k > n:
    raise ValueError(f'pass@{k} needs at least {k} samples, there are {n}')
  return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[str], correct: Sequence[bool], k: int) -> float:
  """Estimates how often the majority vote of k of the n samples is correct.

  Samples without an answer ('') abstain; answers tied for first place share
  the win; a vote without voters is wrong. Averages over all subsets of k
  samples, or over a fixed choice of 200 if there are more.

  Raises:
    ValueError: k > n.
  """
  chosen = _subsets(len(answers), k)
  names = sorted(set(answers) - {''})
  if not names:
    return 0.0
  votes = np.array([[a == name for name in names] for a in answers])
  # 1. The share of an answer's samples that are correct, [answers].
  right = (votes * np.asarray(correct)[:, None]).sum(0) / votes.sum(0)
  # 2. Who wins each subset, [subsets, answers].
  counts = votes[chosen].sum(axis=1)
  most = counts.max(axis=1, keepdims=True)
  wins = (counts == most) & (most > 0)
  # 3. Winners share; the mean over subsets.
  return float(np.mean((wins * right).sum(1) / np.maximum(wins.sum(1), 1)))


@functools.lru_cache(maxsize=32)
def _subsets(n: int, k: int) -> Int[np.ndarray, 'subsets k']:
  """Returns all subsets of k of n, or a fixed choice of them if too many."""
  if k > n:
    raise ValueError(f'maj@{k} needs at least {k} samples, there are {n}')
  if math.comb(n, k) <= _NUM_SUBSETS:
    return np.array(list(itertools.combinations(range(n), k)))
  rng = np.random.default_rng(0)
  return np.array([rng.permutation(n)[:k] for _ in range(_NUM_SUBSETS)])


def interval(per_problem: Float[np.ndarray,
                                ' P'], bounds: tuple[float, float] = (0.0, 1.0),
             draws: int = 2000) -> Estimate:
  """Returns the mean and its 95 % interval over sets of such problems.

  What is estimated is the mean over the population that the problems are drawn
  from. The upper end adds a problem with the highest possible value, the lower
  end one with the lowest, and takes a quantile of the mean under random
  weights, uniform on the simplex (Gaffke, 2005). For values of 0 and 1 it is
  the interval of Clopper and Pearson. Weights are drawn with a fixed seed.

  Args:
    per_problem: values within bounds; at least one. Differences between two
      models on the same problems give a paired interval.
    bounds: least and largest possible value; (-1, 1) for differences.
    draws: how many random weightings.
  """
  values, counts = np.unique(per_problem, return_counts=True)
  rng = np.random.default_rng(0)
  # Equal values share a weight: sums of exponentials are gamma.
  weights = rng.standard_gamma([*counts, 1.0], (draws, len(counts) + 1))
  weights /= weights.sum(axis=1, keepdims=True)
  low, high = (np.quantile(weights @ [*values, bound], q)
               for bound, q in zip(bounds, (0.025, 0.975)))
  return Estimate(float(np.mean(per_problem)), float(low), float(high))


def mean_over_sets(sets: Sequence[Estimate]) -> Estimate:
  """Averages the means of independent sets; sets of all sizes weigh the same.

  The distances from the mean to the ends of the interval add as those of
  independent errors do, in squares (Zou and Donner, 2008).
  """
  mean, low, high = np.asarray(sets).T
  center, n = float(mean.mean()), len(sets)
  return Estimate(center, center - float(np.linalg.norm(mean - low)) / n,
                  center + float(np.linalg.norm(high - mean)) / n)


def per_problem(samples: GradedSamples,
                ks: Sequence[int]) -> dict[str, Float[np.ndarray, ' P']]:
  """Estimates 'pass@k' and, for k >= 3, 'maj@k' of each problem."""
  n, out = samples.status.shape[1], {}
  for k in ks:
    out[f'pass@{k}'] = np.array(
        [pass_at_k(n, int(c), k) for c in samples.correct.sum(axis=1)])
  for k in ks:
    if k >= 3:  # two samples that differ tie: maj@2 is pass@1
      out[f'maj@{k}'] = np.array([
          maj_at_k(tuple(a), c, k)
          for a, c in zip(samples.answer, samples.correct)
      ])
  return out


def summary(samples: GradedSamples, ks: Sequence[int],
            area: str = 'eval/') -> dict[str, float]:
  """Returns metrics over problems: means, and intervals of pass@k."""
  out: dict[str, float] = {}
  for name, values in per_problem(samples, ks).items():
    found = interval(values)
    out[area + name] = found.mean
    if name.startswith('pass'):
      out |= {f'{area}{name}_low': found.low, f'{area}{name}_high': found.high}
  out |= {
      f'{area}truncated_frac': float(samples.truncated.mean()),
      f'{area}no_answer_frac': float((samples.status == 'no_answer').mean()),
      f'{area}length_mean': float(samples.tokens.mean())
  }
  for status in RARE_STATUSES:
    if share := float((samples.status == status).mean()):
      out[f'{area}{status}_frac'] = share
  return out


def base_unsolved(base: Bool[np.ndarray, 'P n'],
                  k: int) -> Bool[np.ndarray, ' P']:
  """Whether all of the first k samples of the base model are wrong."""
  return np.logical_not(base[:, :k].any(axis=1))


def newly_solved(base: Bool[np.ndarray, 'P n'], independent: Bool[np.ndarray,
                                                                  'P m'],
                 k: int, at_least: int) -> Bool[np.ndarray, ' P']:
  """Whether a base-unsolved problem is solved in independent samples.

  Args:
    base: correctness of the base model's samples; decides which problems are
      base-unsolved.
    independent: correctness of a model's independent samples. With the base
      model's own it is the null: problems it solves by luck the second time.
    k: how many samples of each count.
    at_least: how many of the independent ones must be correct.
  """
  return base_unsolved(base, k) & (independent[:, :k].sum(axis=1) >= at_least)
