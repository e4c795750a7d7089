"""Estimators, and the held-out problems that a training run is measured on.

docs/evaluation.md has the formulas.
"""

from collections.abc import Sequence
import functools
import itertools
import math
import re
import time
from typing import NamedTuple

import jax
import numpy as np

from exprl_jax.config import Config, Eval, resolve
from exprl_jax.data import chat
from exprl_jax.data import problems as data
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.grading import grader as grading
from exprl_jax.rollout import sampler as sampler_lib
from exprl_jax.runtime import metrics
from exprl_jax.types import InputError, Problem

_SUBSETS = 200  # of the samples, where maj@k cannot look at all of them
# Statuses of a grade whose shares are metrics when there are any.
_RARE = ('unparsable', 'gold_unparsable', 'timeout', 'error')
_TAKEN = {
    'truncated_frac', 'no_answer_frac', 'length_mean', 'same_text_frac',
    *(f'{name}_frac' for name in _RARE)
}  # not of sets


class Item(NamedTuple):
  """A held-out problem."""

  set: str  # '' where there is but one set without a name
  problem: Problem


class Marks(NamedTuple):
  """What became of n samples of each of P problems."""

  status: np.ndarray  # str[P, n], of grading.STATUSES
  answer: np.ndarray  # str[P, n] normal form, '' where there is none
  tokens: np.ndarray  # i32[P, n] length
  truncated: np.ndarray  # bool[P, n] by the budget

  @property
  def correct(self) -> np.ndarray:
    """bool[P, n]."""
    return self.status == 'correct'

  def of(self, rows: Sequence[int]) -> 'Marks':
    """Those of some problems."""
    return Marks(*(x[np.asarray(rows, int)] for x in self))


def pass_at_k(n: int, c: int, k: int) -> float:
  """Unbiased estimate of pass@k from c right samples of n: 1 - C(n-c,k)/C(n,k).

  Raises:
    ValueError: k > n.
  """
  if k > n:
    raise ValueError(f'pass@{k} needs at least {k} samples, there are {n}')
  return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[str], correct: Sequence[bool], k: int) -> float:
  """How often a majority vote among k of the n samples is right.

  Samples without an answer ('') do not vote; answers that share the first
  place share the win; nobody's vote is wrong. Over all subsets of k samples,
  or over 200 of them, always the same.

  Raises:
    ValueError: k > n.
  """
  chosen = _subsets(len(answers), k)
  names = sorted(set(answers) - {''})
  if not names:
    return 0.0
  votes = np.array([[a == name for name in names] for a in answers])
  right = (votes * np.asarray(correct)[:, None]).sum(0) / votes.sum(0)
  counts = votes[chosen].sum(axis=1)  # [subsets, answers]
  most = counts.max(axis=1, keepdims=True)
  wins = (counts == most) & (most > 0)
  return float(np.mean((wins * right).sum(1) / np.maximum(wins.sum(1), 1)))


@functools.lru_cache(maxsize=32)
def _subsets(n: int, k: int) -> np.ndarray:
  """i64[subsets, k]: all subsets of k of n, or some if they are many."""
  if k > n:
    raise ValueError(f'maj@{k} needs at least {k} samples, there are {n}')
  if math.comb(n, k) <= _SUBSETS:
    return np.array(list(itertools.combinations(range(n), k)))
  rng = np.random.default_rng(0)
  return np.array([rng.permutation(n)[:k] for _ in range(_SUBSETS)])


def bootstrap(per_problem: np.ndarray, seed: int = 0,
              draws: int = 2000) -> tuple[float, float]:
  """95 % interval of the mean, resampling problems with replacement.

  Of the differences between two models it is the paired bootstrap: both are
  resampled by the same problems.
  """
  rng = np.random.default_rng(seed)
  n = len(per_problem)
  means = per_problem[rng.integers(0, n, (draws, n))].mean(axis=1)
  low, high = np.quantile(means, (0.025, 0.975))
  return float(low), float(high)


def measures(marks: Marks, ks: Sequence[int]) -> dict[str, np.ndarray]:
  """By problem: 'pass@k' f64[P] and, for k >= 3, 'maj@k' f64[P]."""
  n, out = marks.status.shape[1], {}
  for k in ks:
    out[f'pass@{k}'] = np.array(
        [pass_at_k(n, int(c), k) for c in marks.correct.sum(axis=1)])
  for k in ks:
    if k >= 3:  # of two samples each has its own way
      out[f'maj@{k}'] = np.array([
          maj_at_k(tuple(a), c, k) for a, c in zip(marks.answer, marks.correct)
      ])
  return out


def summary(marks: Marks, ks: Sequence[int],
            area: str = 'eval/') -> dict[str, float]:
  """The metrics of some problems: means, and intervals of pass@k."""
  out = {}
  for name, each in measures(marks, ks).items():
    out[area + name] = float(each.mean())
    if name.startswith('pass'):
      low, high = bootstrap(each)
      out |= {f'{area}{name}_low': low, f'{area}{name}_high': high}
  out |= {
      f'{area}truncated_frac': float(marks.truncated.mean()),
      f'{area}no_answer_frac': float((marks.status == 'no_answer').mean()),
      f'{area}length_mean': float(marks.tokens.mean())
  }
  for name in _RARE:
    if share := float((marks.status == name).mean()):
      out[f'{area}{name}_frac'] = share
  return out


def parts(items: Sequence[Item]) -> dict[str, list[int]]:
  """The problems, all together ('') and by set and by domain, if these are
  several: 'SET/' or 'domain_DOMAIN/' -> their numbers."""
  out: dict[str, list[int]] = {'': list(range(len(items)))}
  sets = [f'{item.set}/' for item in items]
  domains = [
      f'domain_{re.sub(r"[^A-Za-z0-9-]", "_", item.problem.domain)}/'
      for item in items
  ]
  for names in (sets, domains):
    if len(set(names)) > 1:
      for i, name in enumerate(names):
        out.setdefault(name, []).append(i)
  return out


def all_metrics(marks: Marks, items: Sequence[Item],
                ks: Sequence[int]) -> dict[str, float]:
  """'eval/NAME' of all problems, 'eval/SET/NAME' of each set and domain."""
  out = {}
  for part, rows in parts(items).items():
    out |= summary(marks.of(rows), ks, f'eval/{part}')
  return out


def read_items(cfg: Eval) -> list[Item]:
  """The problems of eval.problems, one file or NAME=FILE,NAME=FILE.

  Raises:
    InputError: a name that cannot be, or a file that is not as it should be.
  """
  if '=' not in cfg.problems.partition('/')[0]:
    files = {'': cfg.problems}
    if ',' in cfg.problems and not resolve(cfg.problems).exists():
      raise InputError(f'config.eval.problems={cfg.problems}: several files '
                       'want names, as in aime25=FILE,hmmt=FILE')
  else:
    files = {}
    for part in cfg.problems.split(','):
      name, _, file = (x.strip() for x in part.partition('='))
      if (not re.fullmatch('[A-Za-z][A-Za-z0-9_-]*', name) or name in _TAKEN
          or name.startswith('domain_') or not file):
        raise InputError(
            f'config.eval.problems: {part.strip()!r} should be NAME=FILE, the '
            'name of letters, digits, - and _, and not that of a metric')
      if name in files:
        raise InputError(f'config.eval.problems: two sets are named {name}')
      files[name] = file
  return [
      Item(name, problem)
      for name, file in files.items()
      for problem in data.read_problems(resolve(file), ('answer',), cfg.limit)
  ]


def root_key(seed: int, number: int = 0) -> jax.Array:
  """The key of an evaluation: the same draws at every step and in every run,
  so that evaluations differ by the policy alone. `number` 1 is for others."""
  return jax.random.fold_in(jax.random.key(seed), 2**31 - 1 - number)


class HeldOut:
  """The held-out problems of a config, ready to be sampled at any step.

  Calling it without `eval.problems` in the config does nothing.
  """

  def __init__(self, config: Config, tokenizer: Tokenizer,
               grader: grading.Grader | None = None):
    """Reads and checks the problems.

    Args:
      config: its `eval`, `rollout` and `seed`.
      tokenizer: the policy's.
      grader: of final answers; by default one of its own, by config.grading.

    Raises:
      InputError: a bad row, or a question that does not fit.
    """
    self._config, self._tokenizer = config, tokenizer
    self._items: list[Item] = []
    if config.eval.problems:
      self._items = read_items(config.eval)
      problems = [item.problem for item in self._items]
      self._prompts = chat.policy_prompts(tokenizer, problems, config)
      self._grader = grader or grading.Grader(config.grading)
      self._grader.check(problems)

  def due(self, step: int, last: int) -> bool:
    """Whether `step` is to be evaluated, of a run that ends at `last`."""
    every = self._config.eval.every
    return step == last or bool(every and step % every == 0)

  def __call__(self, sampler: sampler_lib.Sampler, params, step: int,
               log: metrics.Log,
               more: dict[str, float] | None = None) -> dict[str, float]:
    """Samples, grades, logs with `more`; returns the metrics ('eval/...')."""
    if not self._items:
      return {}
    start = time.perf_counter()
    cfg = self._config.eval
    values = all_metrics(self._sample(sampler, params), self._items, cfg.ks)
    values |= {'time/eval': time.perf_counter() - start} | (more or {})
    log.write(step, values, line(step, values, cfg.ks))
    return values

  def _sample(self, sampler, params) -> Marks:
    n = self._config.eval.samples
    groups = sampler.generate(params, self._prompts, n,
                              root_key(self._config.seed))
    sampler.engine.release()  # training needs the memory
    grades = self._grader([(self._tokenizer.decode(s.tokens), item.problem)
                           for item, group in zip(self._items, groups)
                           for s in group])
    samples = [s for group in groups for s in group]
    return marks_of([(g.status, g.answer, len(s.tokens), s.finish_reason)
                     for g, s in zip(grades, samples)], n)


def marks_of(rows: Sequence[tuple[str, str, int, str]], n: int) -> Marks:
  """From (status, answer, tokens, ended) of n samples a problem."""
  status, answer, tokens, ended = zip(*rows)
  shape = (-1, n)
  return Marks(
      np.array(status).reshape(shape),
      np.array(answer, object).reshape(shape),
      np.array(tokens, np.int32).reshape(shape),
      (np.array(ended) == 'length').reshape(shape))


def line(step: int, values: dict[str, float], ks: Sequence[int]) -> str:
  """What a person reads of an evaluation."""
  found = [
      f'pass@{k} {values[f"eval/pass@{k}"]:.3f} '
      f'[{values[f"eval/pass@{k}_low"]:.3f}, '
      f'{values[f"eval/pass@{k}_high"]:.3f}]' for k in ks
  ]
  return (f'step {step:5d}  eval  {"  ".join(found)}  '
          f'({values["time/eval"]:.0f} s)')
