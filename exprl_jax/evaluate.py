"""Evaluation on held-out problems: pass@1, pass@k, bootstrap intervals."""

import json
import math
import pathlib
import time

import jax
import numpy as np

from exprl_jax import checkpoint, data, grading, metrics
from exprl_jax import mesh as mesh_lib
from exprl_jax.config import Config, resolve
from exprl_jax.models import hf
from exprl_jax.rollout import engine
from exprl_jax.tokenizer import Tokenizer


def pass_at_k(n: int, c: int, k: int) -> float:
  """Unbiased estimate of pass@k from c right samples of n: 1 - C(n-c,k)/C(n,k).

  Raises:
    ValueError: k > n.
  """
  if k > n:
    raise ValueError(f'pass@{k} needs at least {k} samples, there are {n}')
  return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def bootstrap(per_problem: np.ndarray, seed: int = 0, draws: int = 2000
              ) -> tuple[float, float]:
  """95 % interval of the mean, resampling problems with replacement."""
  rng = np.random.default_rng(seed)
  n = len(per_problem)
  means = per_problem[rng.integers(0, n, (draws, n))].mean(axis=1)
  low, high = np.quantile(means, (0.025, 0.975))
  return float(low), float(high)


class HeldOut:
  """The held-out set of a config, ready to be sampled at any step.

  Calling it without `eval.problems` in the config does nothing.
  """

  def __init__(self, config: Config, tokenizer: Tokenizer):
    """Reads and checks the problems.

    Raises:
      ValueError: a bad row, or a question that does not fit.
    """
    self._config, self._tokenizer = config, tokenizer
    self._problems, self._prompts = (), []
    if config.eval.problems:
      self._problems = data.read_problems(
          resolve(config.eval.problems), ('answer',), config.eval.limit)
      self._prompts = data.policy_prompts(tokenizer, self._problems, config)

  def due(self, step: int, last: int) -> bool:
    """Whether `step` is to be evaluated, of a run that ends at `last`."""
    every = self._config.eval.every
    return step == last or bool(every and step % every == 0)

  def __call__(self, sampler: engine.Sampler, params, step: int,
               log: metrics.Log, more: dict[str, float] | None = None,
               samples_to: pathlib.Path | None = None) -> dict[str, float]:
    """Samples, grades, logs with `more`; returns the metrics ('eval/...')."""
    if not self._problems:
      return {}
    start = time.perf_counter()
    cfg = self._config.eval
    correct, finished, lengths, texts = self._sample(sampler, params)
    values = summary(correct, cfg.ks)
    values |= {'eval/truncated_frac': float(1 - finished.mean()),
               'eval/length_mean': float(lengths.mean()),
               'time/eval': time.perf_counter() - start} | (more or {})
    log.write(step, values, line(step, values, cfg))
    if samples_to and jax.process_index() == 0:
      with samples_to.open('w') as file:
        for i, text in enumerate(texts):
          p, g = divmod(i, cfg.samples)
          file.write(json.dumps({
              'id': self._problems[p].id, 'sample': g, 'text': text,
              'correct': bool(correct[p, g]),
              'finished': bool(finished[i])}) + '\n')
    return values

  def _sample(self, sampler, params):
    n = self._config.eval.samples
    # The same draws at every step: evaluations differ by the policy alone.
    key = jax.random.fold_in(jax.random.key(self._config.seed), 2**31 - 1)
    groups = sampler.generate(params, self._prompts, n, key)
    samples = [s for group in groups for s in group]
    texts = [self._tokenizer.decode(s.tokens) for s in samples]
    correct = np.array([grading.grade(text, self._problems[i // n].answer)
                        for i, text in enumerate(texts)])
    return (correct.reshape(-1, n),
            np.array([s.ended != 'length' for s in samples]),
            np.array([len(s.tokens) for s in samples]), texts)


def summary(correct: np.ndarray, ks: tuple[int, ...]) -> dict[str, float]:
  """pass@k of bool[problems, samples], with intervals over problems."""
  n, out = correct.shape[1], {}
  for k in ks:
    each = np.array([pass_at_k(n, int(c), k) for c in correct.sum(axis=1)])
    low, high = bootstrap(each)
    out |= {f'eval/pass@{k}': float(each.mean()),
            f'eval/pass@{k}_low': low, f'eval/pass@{k}_high': high}
  return out


def line(step: int, values: dict[str, float], cfg) -> str:
  """What a person reads of an evaluation."""
  parts = [f'pass@{k} {values[f"eval/pass@{k}"]:.3f} '
           f'[{values[f"eval/pass@{k}_low"]:.3f}, '
           f'{values[f"eval/pass@{k}_high"]:.3f}]' for k in cfg.ks]
  return (f'step {step:5d}  eval  {"  ".join(parts)}  '
          f'({values["time/eval"]:.0f} s)')


def evaluate(config: Config, workdir: pathlib.Path) -> list[metrics.Row]:
  """run='evaluate': scores policy.init and writes workdir/samples.jsonl."""
  mesh = mesh_lib.rollout_mesh(mesh_lib.make_mesh(config.mesh),
                               config.mesh.rollout_tensor)
  folder = resolve(config.policy.init)
  tokenizer = Tokenizer(folder)
  held_out = HeldOut(config, tokenizer)
  model, params = hf.load(folder, mesh, config.policy.dtype, frozen=True,
                          attention=config.policy.attention)
  checkpoint.claim(workdir, config)
  log = metrics.Log(workdir, 0, main=jax.process_index() == 0)
  sampler = engine.Sampler(config, model, tokenizer, mesh)
  held_out(sampler, params, 0, log, samples_to=workdir / 'samples.jsonl')
  log.close()
  return metrics.read(workdir / 'metrics.jsonl')
