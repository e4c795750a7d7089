"""Compares the rollout engine with samplers of whole batches, in one process.

  XLA_FLAGS=--xla_cpu_multi_thread_eigen=false \
      taskset -c 0 python benchmarks/rollout.py [--cases=...]   # one core
  python benchmarks/rollout.py                                  # all of them

All sample from the same random weights, a small model of Qwen3's shape in
float32:
  engine   exprl_jax.rollout.engine
  dense    dense_loop.py: one while_loop over the batch, a dense cache
  inverse  the same, but draws with one random number per row instead of one
           per token of the vocabulary; for `equal` and `raised`
  package  the sampler of google-tunix, if that is installed:
           pip install -e .[bench]
There are four cases:
  equal   32 prompts of 64 tokens, 128 new ones each
  raised  the same, in a cache of eight times as many tokens
  tailed  256 prompts of 64 tokens; the lengths of the completions are
          lognormal (sigma 1), with a mean of a quarter of the cap of 512
  groups  4 prompts of 512 tokens, 16 samples of 32 tokens each
No token ends a row. Engine and dense are given the length of each row, package
the longest of each batch. In `tailed`, dense and package run batches of 64
rows, which is faster for them than all 256; only tokens within a row's length
count. The engine alone returns log-probabilities.

Prints JSON: new tokens per second of the process's CPU time, medians of
alternating runs after one that compiles; `ratio`: the engine to the better of
dense and package; `loss`: of `raised` against `equal`; `same_greedy`: the share
of tokens that agree with the engine's when all are greedy.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import json
import os
import statistics
import time
from typing import Any

import dense_loop
import jax
import numpy as np

from exprl_jax import config as config_lib
from exprl_jax.models import config as model_config
from exprl_jax.models import transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.rollout import decode, engine
from exprl_jax.rollout.requests import Request, Sampling
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import Params

try:
  from flax import nnx
  from tunix.generate import sampler as tunix_sampler
  from tunix.models.qwen3 import model as tunix_model
except ImportError:
  tunix_sampler = None

MODEL: dict[str, Any] = {
    'model_type': 'qwen3', 'vocab_size': 4096, 'num_hidden_layers': 4,
    'hidden_size': 256, 'intermediate_size': 1024, 'num_attention_heads': 4,
    'num_key_value_heads': 2, 'head_dim': 64, 'rope_theta': 1e6,
    'rms_norm_eps': 1e-6, 'tie_word_embeddings': False
}

# seed -> the new tokens of every row.
Run = Callable[[int], list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Work:
  """What is to be sampled.

  Attributes:
    prompts: i32[P, T].
    lengths: i32[P, G], of the samples of each prompt.
    max_tokens: of a row, prompt and completion.
    slots: rows of the engine, and of a batch of the others.
    temperature: 0 is greedy.
  """

  prompts: np.ndarray
  lengths: np.ndarray
  max_tokens: int
  slots: int
  temperature: float = 1.0

  def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (prompts i32[slots, T], lengths i32[slots]), a row a sample."""
    prompts = np.repeat(self.prompts, self.lengths.shape[1], axis=0)
    for i in range(0, self.lengths.size, self.slots):
      at = slice(i, i + self.slots)
      yield prompts[at], self.lengths.reshape(-1)[at]


def works() -> dict[str, Work]:
  """Makes the cases, by name; see above."""
  rng = np.random.default_rng(0)

  def prompts(count: int, length: int) -> np.ndarray:
    return rng.integers(1, MODEL['vocab_size'], (count, length), np.int32)

  equal = Work(prompts(32, 64), np.full((32, 1), 128), 192, 32)
  tails = rng.lognormal(np.log(512 / 4) - 0.5, 1.0, (256, 1))
  return {
      'equal': equal,
      'raised': dataclasses.replace(equal, max_tokens=8 * equal.max_tokens),
      'tailed': Work(prompts(256, 64),
                     np.clip(tails, 1, 512).astype(int),
                     576, 64), 'groups': Work(prompts(4, 512),
                                              np.full((4, 16), 32), 544, 64)
  }


def run_engine(cfg: ModelConfig, params: Params, work: Work) -> Run:
  """Prepares the engine."""
  mesh = mesh_lib.make_mesh(config_lib.Mesh())
  width = work.prompts.shape[1]
  runner = engine.Engine(
      cfg, mesh,
      engine.Options(slots=work.slots, max_tokens=work.max_tokens,
                     prefill=min(width, 256)))
  params = decode.prepare(cfg, params, mesh)
  requests, count = [], 0
  for prompt, lengths in zip(work.prompts.tolist(), work.lengths.tolist()):
    requests.append(
        Request(prompt, count, len(lengths),
                Sampling(lengths[0], work.temperature)))
    count += len(lengths)
  return lambda seed: [
      s.tokens for s in runner.generate(params, requests, jax.random.key(seed))
  ]


def run_dense(cfg: ModelConfig, params: Params, work: Work,
              draw: dense_loop.Draw = dense_loop.gumbel) -> Run:
  """Prepares the plain loop."""
  steps = int(work.lengths.max())

  def run(seed: int) -> list[np.ndarray]:
    rows: list[np.ndarray] = []
    for prompts, lengths in work.batches():
      tokens = np.asarray(
          dense_loop.generate(cfg, params, prompts, lengths,
                              jax.random.key(seed), work.max_tokens, steps,
                              max(work.temperature, 1e-6), draw=draw))
      rows += [row[:n] for row, n in zip(tokens, lengths)]
    return rows

  return run


def run_inverse(cfg: ModelConfig, params: Params, work: Work) -> Run:
  """Prepares the plain loop, drawing as the engine does."""
  return run_dense(cfg, params, work, dense_loop.inverse)


class _Numbers:
  """A tokenizer for the package: texts are token ids, written as numbers."""

  def encode(self, text: str, **_: Any) -> list[int]:
    return [int(x) for x in text.split()]

  def decode(self, ids: list[int], **_: Any) -> str:
    return ' '.join(map(str, ids))

  def bos_id(self) -> int:
    return 0  # which the package takes for none

  def eos_id(self) -> int:
    return -1

  def pad_id(self) -> int:
    return -1


def run_package(cfg: ModelConfig, params: Params, work: Work) -> Run:
  """Prepares the package's sampler, with a cache of work.max_tokens."""
  sampler = tunix_sampler.Sampler(
      _package_model(cfg, params), _Numbers(),
      tunix_sampler.CacheConfig(work.max_tokens, cfg.num_layers,
                                cfg.num_kv_heads, cfg.head_dim))
  how = ({'temperature': work.temperature, 'top_p': 1.0}
         if work.temperature else {})

  def run(seed: int) -> list[np.ndarray]:
    rows: list[np.ndarray] = []
    for prompts, lengths in work.batches():
      out = sampler([' '.join(map(str, p)) for p in prompts],
                    int(lengths.max()), prompts.shape[1], seed=seed,
                    eos_tokens=[-1], **how)
      rows += [row[:n] for row, n in zip(out.tokens, lengths)]
    return rows

  return run


def _package_model(cfg: ModelConfig, params: Params) -> Any:
  """Makes the package's model with our weights."""
  model = tunix_model.Qwen3(
      tunix_model.ModelConfig(cfg.num_layers, cfg.vocab_size, cfg.embed_dim,
                              cfg.mlp_dim, cfg.num_heads, cfg.head_dim,
                              cfg.num_kv_heads, cfg.rope.theta, cfg.norm_eps),
      rngs=nnx.Rngs(0))
  pairs = [(model.embedder.input_embedding, params['embedding']),
           (model.final_norm.w, params['final_norm']),
           (model.lm_head.w, params['head'])]
  for i, layer in enumerate(model.layers):
    attn, mlp, w = layer.attn, layer.mlp, params['layers']
    pairs += [(theirs, w[ours][i]) for ours, theirs in {
        'attention_norm': layer.input_layernorm.w, 'q': attn.q_proj.w,
        'k': attn.k_proj.w, 'v': attn.v_proj.w, 'o': attn.o_proj.w,
        'q_norm': attn.q_norm.w, 'k_norm': attn.k_norm.w, 'mlp_norm': layer.
        post_attention_layernorm.w, 'gate': mlp.gate_proj.kernel,
        'up': mlp.up_proj.kernel, 'down': mlp.down_proj.kernel
    }.items()]
  for theirs, ours in pairs:
    assert theirs.shape == ours.shape, (theirs.shape, ours.shape)
    theirs[...] = ours
  return model


SAMPLERS = {
    'engine': run_engine, 'dense': run_dense, 'inverse': run_inverse,
    'package': run_package
}


def measure(runs: Mapping[tuple[str, str], Run], count: Mapping[tuple[str, str],
                                                                int],
            repeats: int) -> dict[tuple[str, str], float]:
  """Measures tokens per CPU-second of alternating runs.

  Args:
    runs: by (case, sampler).
    count: tokens of each run.
    repeats: runs that are measured; one more compiles.

  Returns:
    The median of each.
  """
  rates: dict[tuple[str, str], list[float]] = {name: [] for name in runs}
  for repeat in range(repeats + 1):
    for name, run in runs.items():
      start = time.process_time()
      rows = run(repeat)
      seconds = time.process_time() - start
      assert sum(map(len, rows)) == count[name], name
      if repeat:  # the first one compiles
        rates[name].append(count[name] / seconds)
  return {name: statistics.median(rate) for name, rate in rates.items()}


def same_greedy(cfg: ModelConfig, params: Params,
                samplers: Mapping[str, Callable[..., Run]],
                work: Work) -> dict[str, float]:
  """Finds the share of each sampler's greedy tokens that are the engine's."""
  work = dataclasses.replace(work, lengths=work.lengths // 8, temperature=0.0)
  rows = {
      name: np.array(make(cfg, params, work)(0))
      for name, make in samplers.items()
  }
  return {
      name: float((tokens == rows['engine']).mean())
      for name, tokens in rows.items()
  }


def compare(cases: Mapping[str, Work], group: list[str],
            makers: Mapping[str, Callable[[Work], Run]],
            repeats: int) -> dict[str, dict[str, float]]:
  """Measures cases whose runs alternate.

  Args:
    cases: all, by name.
    group: names of those to measure.
    makers: by sampler.
    repeats: see `measure`.

  Returns:
    The figures of each case, and 'loss' if there are two.
  """
  pairs = [(c, s) for c in group for s in makers]
  rates = measure({(c, s): makers[s](cases[c]) for c, s in pairs},
                  {(c, s): int(cases[c].lengths.sum()) for c, s in pairs},
                  repeats)
  out: dict[str, dict[str, float]] = {}
  for case in group:
    rate = {s: rates[case, s] for s in makers}
    out[case] = {s: round(r) for s, r in rate.items()}
    peers = [rate[s] for s in ('dense', 'package') if s in rate]
    if peers and 'engine' in rate:
      out[case]['ratio'] = round(rate['engine'] / max(peers), 2)
  if len(group) == 2:
    out['loss'] = {
        s: round(1 - rates['raised', s] / rates['equal', s], 3) for s in makers
    }
  return out


def main() -> None:
  """Measures, and prints the figures as JSON."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--cases', default='equal,raised,tailed,groups')
  parser.add_argument('--samplers', default=','.join(SAMPLERS))
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')
  samplers = {name: SAMPLERS[name] for name in args.samplers.split(',')}
  result: dict[str, Any] = {
      'cores': len(os.sched_getaffinity(0)), 'jax': jax.__version__
  }
  if 'package' in samplers and tunix_sampler is None:
    del samplers['package']
    result['package'] = 'left out: google-tunix is not installed'
  cfg = model_config.parse_config(MODEL, 'benchmark')
  params = jax.jit(transformer.init, static_argnums=0)(cfg, jax.random.key(0))
  cases = works()
  result['same_greedy'] = same_greedy(cfg, params, samplers, cases['equal'])
  # Cases that are compared with each other alternate.
  names = args.cases.split(',')
  pair = [c for c in names if c in ('equal', 'raised')]
  for group in [pair, *([c] for c in names if c not in pair)]:
    makers = {
        s: functools.partial(make, cfg, params)
        for s, make in samplers.items()
        if s != 'inverse' or group == pair
    }
    if group:
      result |= compare(cases, group, makers, args.repeats)
  print(json.dumps(result, indent=1))


if __name__ == '__main__':
  main()
