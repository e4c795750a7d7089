"""The held-out problems that a training run is evaluated on."""

from collections.abc import Sequence
import re
import time
from typing import NamedTuple

import jax
import numpy as np

from exprl_jax.config import Config, Eval, resolve
from exprl_jax.data import chat, fields
from exprl_jax.data import problems as data
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.evals import estimators
from exprl_jax.evals.estimators import Estimate, GradedSamples
from exprl_jax.grading import grader as grading
from exprl_jax.rollout.sampler import Sampler
from exprl_jax.runtime import metrics
from exprl_jax.types import InputError, Params, Problem

# A set may not have the name of a metric: both follow 'eval/'.
_METRIC_NAMES = {
    'mean_over_sets', 'truncated_frac', 'no_answer_frac', 'length_mean',
    'same_text_frac', *(f'{status}_frac' for status in estimators.RARE_STATUSES)
}


class Item(NamedTuple):
  """A held-out problem."""

  set: str  # '' if there is only one set, without a name
  problem: Problem


def read_items(cfg: Eval) -> list[Item]:
  """Reads the problems of eval.problems, one file or NAME=FILE,NAME=FILE.

  Raises:
    InputError: a bad name of a set, or a bad file; names it.
  """
  sets = files(cfg.problems)
  return [
      Item(name, problem)
      for name, file in sets.items()
      for problem in data.read_problems(file, (
          'answer',), cfg.limit, fields.of(cfg, list(sets), name))
  ]


def files(problems: str) -> dict[str, str]:
  """Parses eval.problems: name of a set -> its file.

  Raises:
    InputError: a bad name of a set.
  """
  if '=' not in problems.partition('/')[0]:
    if ',' in problems and not resolve(problems).exists():
      raise InputError(f'config.eval.problems={problems}: several files '
                       'want names, as in aime25=FILE,hmmt=FILE')
    return {'': problems}
  found: dict[str, str] = {}
  for part in problems.split(','):
    name, _, file = (x.strip() for x in part.partition('='))
    if (not re.fullmatch('[A-Za-z][A-Za-z0-9_-]*', name)
        or name in _METRIC_NAMES or name.startswith('domain_') or not file):
      raise InputError(
          f'config.eval.problems: {part.strip()!r} should be NAME=FILE, the '
          'name of letters, digits, - and _, and not that of a metric')
    if name in found:
      raise InputError(f'config.eval.problems: two sets are named {name}')
    found[name] = file
  return found


def parts(items: Sequence[Item]) -> dict[str, list[int]]:
  """Partitions the problems: metric prefix -> numbers of its problems.

  '' has all problems. If there are several sets or several domains, 'SET/' and
  'domain_DOMAIN/' have their own.
  """
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


def all_metrics(samples: GradedSamples, items: Sequence[Item],
                ks: Sequence[int]) -> dict[str, float]:
  """Returns 'eval/NAME' over all problems, 'eval/PART/NAME' over each part.

  Several sets also have 'eval/mean_over_sets/NAME', of pass@k and maj@k.
  """
  out: dict[str, float] = {}
  for part, rows in parts(items).items():
    out |= estimators.summary(samples.select(rows), ks, f'eval/{part}')
  if names := set_names(items):
    for k in ks:
      out |= _mean_over_sets(out, [f'eval/{n}/' for n in names], k)
  return out


def _mean_over_sets(values: dict[str, float], sets: Sequence[str],
                    k: int) -> dict[str, float]:
  """Averages the metrics of sets, by prefix, without regard to their sizes."""
  prefix, ends = 'eval/mean_over_sets/', ('', '_low', '_high')
  found = estimators.mean_over_sets(
      [Estimate(*(values[f'{s}pass@{k}{end}'] for end in ends)) for s in sets])
  out = {f'{prefix}pass@{k}{end}': value for end, value in zip(ends, found)}
  if k >= 3:
    out[f'{prefix}maj@{k}'] = float(
        np.mean([values[f'{s}maj@{k}'] for s in sets]))
  return out


def set_names(items: Sequence[Item]) -> list[str]:
  """Returns the names of the sets, in order; [] if there is only one."""
  names = list(dict.fromkeys(item.set for item in items))
  return names if len(names) > 1 else []


def root_key(seed: int, stream: int = 0) -> jax.Array:
  """Returns the PRNG key of an evaluation.

  It is the same at every step and in every run, so that evaluations differ by
  the policy alone. Stream 1 gives samples independent of stream 0.
  """
  return jax.random.fold_in(jax.random.key(seed), 2**31 - 1 - stream)


class HeldOut:
  """The held-out problems of a config, ready to be sampled at any step.

  A call does nothing if the config has no `eval.problems`.
  """

  def __init__(self, config: Config, tokenizer: Tokenizer,
               grader: grading.Grader | None = None) -> None:
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
    """Whether to evaluate at `step` of a run that ends at `last`."""
    every = self._config.eval.every
    return step == last or bool(every and step % every == 0)

  def __call__(self, sampler: Sampler, params: Params, step: int,
               log: metrics.Log,
               more: dict[str, float] | None = None) -> dict[str, float]:
    """Samples, grades, logs with `more`; returns the metrics ('eval/...')."""
    if not self._items:
      return {}
    start = time.perf_counter()
    cfg = self._config.eval
    values = all_metrics(self._sample(sampler, params), self._items, cfg.ks)
    values |= {'time/eval': time.perf_counter() - start} | (more or {})
    log.write(step, values, summary_line(step, values, cfg.ks))
    return values

  def _sample(self, sampler: Sampler, params: Params) -> GradedSamples:
    n = self._config.eval.samples
    groups = sampler.generate(params, self._prompts, n,
                              root_key(self._config.seed))
    sampler.engine.release()  # training needs the memory
    grades = self._grader([(self._tokenizer.decode(s.tokens), item.problem)
                           for item, group in zip(self._items, groups)
                           for s in group])
    samples = [s for group in groups for s in group]
    return estimators.graded_samples(
        [(g.status, g.answer, len(s.tokens), s.finish_reason)
         for g, s in zip(grades, samples)], n)


def summary_line(step: int, values: dict[str, float], ks: Sequence[int]) -> str:
  """Formats an evaluation for the console."""
  scores = [
      f'pass@{k} {values[f"eval/pass@{k}"]:.3f} '
      f'[{values[f"eval/pass@{k}_low"]:.3f}, '
      f'{values[f"eval/pass@{k}_high"]:.3f}]' for k in ks
  ]
  return (f'step {step:5d}  eval  {"  ".join(scores)}  '
          f'({values["time/eval"]:.0f} s)')
