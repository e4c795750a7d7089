"""The rollout engine against whole-batch samplers, in one process.

  XLA_FLAGS=--xla_cpu_multi_thread_eigen=false \
      taskset -c 0 python benchmarks/rollout.py [--cases=...]   # one core
  python benchmarks/rollout.py                                  # all of them

The same random weights, a small model of Qwen3's shape in float32, under
  engine   exprl_jax.rollout.engine
  dense    dense_loop.py: one while_loop over the batch, a dense cache
  inverse  the same, but draws with one random number per row instead of one
           per token of the vocabulary; for `equal` and `raised`
  package  the sampler of google-tunix, left out where that is not installed:
           pip install -e .[bench]
and four kinds of work:
  equal   32 prompts of 64 tokens, 128 new ones each
  raised  the same, with room for eight times as many tokens
  tailed  256 prompts of 64 tokens; the lengths of the completions are
          lognormal (sigma 1), with a mean of a quarter of the cap of 512
  groups  4 prompts of 512 tokens, 16 samples of 32 tokens each
No token ends a row: the engine is given each row's length, dense too, and
package each batch's longest. In `tailed` these two run batches of 64 rows,
which is better for them than all 256; only tokens within a row's length
count. The engine returns log-probabilities, too; the others need not.

Prints JSON: new tokens per second of the process's CPU time, medians of
alternating runs after one that compiles; `ratio`: the engine to the better
of dense and package; `loss`: of `raised` against `equal`; `same_greedy`: the
fraction of tokens that are the engine's when all choose the likeliest.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time

import dense_loop
import jax
import numpy as np

from exprl_jax import config as config_lib
from exprl_jax.models import config as model_config
from exprl_jax.models import transformer
from exprl_jax.rollout import decode, engine
from exprl_jax.runtime import mesh as mesh_lib

try:
  from flax import nnx
  from tunix.generate import sampler as tunix_sampler
  from tunix.models.qwen3 import model as tunix_model
except ImportError:
  tunix_sampler = None

MODEL = {
    'model_type': 'qwen3', 'vocab_size': 4096, 'num_hidden_layers': 4,
    'hidden_size': 256, 'intermediate_size': 1024, 'num_attention_heads': 4,
    'num_key_value_heads': 2, 'head_dim': 64, 'rope_theta': 1e6,
    'rms_norm_eps': 1e-6, 'tie_word_embeddings': False
}


@dataclasses.dataclass(frozen=True)
class Work:
  """What is to be sampled.

  Attributes:
    prompts: i32[N, P].
    lengths: i32[N, G], of the samples of each prompt.
    room: tokens that a row may have.
    slots: rows of the engine and of a batch of the others.
    temperature: 0 is greedy.
  """

  prompts: np.ndarray
  lengths: np.ndarray
  room: int
  slots: int
  temperature: float = 1.0

  def batches(self):
    """(prompts i32[slots, P], lengths i32[slots]), prompts repeated."""
    prompts = np.repeat(self.prompts, self.lengths.shape[1], axis=0)
    for i in range(0, self.lengths.size, self.slots):
      at = slice(i, i + self.slots)
      yield prompts[at], self.lengths.reshape(-1)[at]


def works() -> dict[str, Work]:
  """By name; see above."""
  rng = np.random.default_rng(0)

  def prompts(count, length):
    return rng.integers(1, MODEL['vocab_size'], (count, length), np.int32)

  equal = Work(prompts(32, 64), np.full((32, 1), 128), 192, 32)
  tails = rng.lognormal(np.log(512 / 4) - 0.5, 1.0, (256, 1))
  return {
      'equal': equal, 'raised': dataclasses.replace(equal, room=8 * equal.room),
      'tailed': Work(prompts(256, 64),
                     np.clip(tails, 1, 512).astype(int),
                     576, 64), 'groups': Work(prompts(4, 512),
                                              np.full((4, 16), 32), 544, 64)
  }


# Each sampler: (cfg, params, work) -> (seed -> tokens of every row).


def run_engine(cfg, params, work):
  """Our own."""
  mesh = mesh_lib.make_mesh(config_lib.Mesh())
  width = work.prompts.shape[1]
  runner = engine.Engine(
      cfg, mesh,
      engine.Options(slots=work.slots, max_tokens=work.room,
                     prefill=min(width, 256)))
  params = decode.prepare(cfg, params, mesh)
  requests, count = [], 0
  for prompt, lengths in zip(work.prompts.tolist(), work.lengths.tolist()):
    requests.append(
        engine.Request(prompt, count, len(lengths),
                       engine.Sampling(lengths[0], work.temperature)))
    count += len(lengths)
  return lambda seed: [
      s.tokens for s in runner.generate(params, requests, jax.random.key(seed))
  ]


def run_dense(cfg, params, work, draw=dense_loop.gumbel):
  """The plain loop."""
  steps = int(work.lengths.max())

  def run(seed):
    rows = []
    for prompts, lengths in work.batches():
      tokens = np.asarray(
          dense_loop.generate(cfg, params, prompts, lengths,
                              jax.random.key(seed), work.room, steps,
                              max(work.temperature, 1e-6), draw=draw))
      rows += [row[:n] for row, n in zip(tokens, lengths)]
    return rows

  return run


def run_inverse(cfg, params, work):
  """The plain loop with the engine's way to draw."""
  return run_dense(cfg, params, work, dense_loop.inverse)


class _Numbers:
  """What the package wants for a tokenizer: token ids, written as text."""

  def encode(self, text, **_):
    return [int(x) for x in text.split()]

  def decode(self, ids, **_):
    return ' '.join(map(str, ids))

  def bos_id(self):
    return 0  # the package: there is none

  def eos_id(self):
    return -1

  def pad_id(self):
    return -1


def run_package(cfg, params, work):
  """The package's sampler, with a cache as large as the work wants it."""
  sampler = tunix_sampler.Sampler(
      _package_model(cfg, params), _Numbers(),
      tunix_sampler.CacheConfig(work.room, cfg.num_layers, cfg.num_kv_heads,
                                cfg.head_dim))
  how = ({'temperature': work.temperature, 'top_p': 1.0}
         if work.temperature else {})

  def run(seed):
    rows = []
    for prompts, lengths in work.batches():
      out = sampler([' '.join(map(str, p)) for p in prompts],
                    int(lengths.max()), prompts.shape[1], seed=seed,
                    eos_tokens=[-1], **how)
      rows += [row[:n] for row, n in zip(out.tokens, lengths)]
    return rows

  return run


def _package_model(cfg, params):
  """The package's model with our weights."""
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


def measure(runs: dict, count: dict, repeats: int) -> dict:
  """Tokens per CPU-second of each run, the median of alternating ones."""
  rates = {name: [] for name in runs}
  for repeat in range(repeats + 1):
    for name, run in runs.items():
      start = time.process_time()
      rows = run(repeat)
      seconds = time.process_time() - start
      assert sum(map(len, rows)) == count[name], name
      if repeat:  # the first one compiles
        rates[name].append(count[name] / seconds)
  return {name: statistics.median(rate) for name, rate in rates.items()}


def same_greedy(cfg, params, samplers: dict, work: Work) -> dict:
  """How much of what each sampler finds likeliest is what the engine does."""
  work = dataclasses.replace(work, lengths=work.lengths // 8, temperature=0.0)
  rows = {
      name: np.array(make(cfg, params, work)(0))
      for name, make in samplers.items()
  }
  return {
      name: float((found == rows['engine']).mean())
      for name, found in rows.items()
  }


def main() -> None:
  """Prints the figures as JSON."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--cases', default='equal,raised,tailed,groups')
  parser.add_argument('--samplers', default=','.join(SAMPLERS))
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')
  samplers = {name: SAMPLERS[name] for name in args.samplers.split(',')}
  result = {'cores': len(os.sched_getaffinity(0)), 'jax': jax.__version__}
  if 'package' in samplers and tunix_sampler is None:
    del samplers['package']
    result['package'] = 'left out: google-tunix is not installed'
  cfg = model_config.parse_config(MODEL, 'benchmark')
  params = jax.jit(transformer.init, static_argnums=0)(cfg, jax.random.key(0))
  everything = works()
  result['same_greedy'] = same_greedy(cfg, params, samplers,
                                      everything['equal'])
  # Those that are compared with each other alternate.
  cases = args.cases.split(',')
  together = [[c for c in cases if c in ('equal', 'raised')],
              *([c] for c in cases if c not in ('equal', 'raised'))]
  for group in filter(None, together):
    names = [(c, s)
             for c in group
             for s in samplers
             if s != 'inverse' or c in together[0]]
    rates = measure(
        {(c, s): samplers[s](cfg, params, everything[c]) for c, s in names},
        {(c, s): int(everything[c].lengths.sum()) for c, s in names},
        args.repeats)
    for case in group:
      rate = {s: r for (c, s), r in rates.items() if c == case}
      result[case] = {s: round(r) for s, r in rate.items()}
      peers = [rate[s] for s in ('dense', 'package') if s in rate]
      if peers and 'engine' in rate:
        result[case]['ratio'] = round(rate['engine'] / max(peers), 2)
    if len(group) == 2:
      result['loss'] = {
          s: round(1 - rates['raised', s] / rates['equal', s], 3)
          for s in samplers
      }
  print(json.dumps(result, indent=1))


if __name__ == '__main__':
  main()
