"""Forked judging against judging every prefix by itself.

  XLA_FLAGS=--xla_cpu_multi_thread_eigen=false \
      taskset -c 0 python benchmarks/judge.py   # one core

A random judge of the given size scores traces of `--trace` tokens with
`--steps` steps, after `--common` tokens of instructions, problem and
reference, with `--suffix` tokens of question. Prints one JSON object: medians
of `--repeats` timings of the process's CPU time, taken in turns, and ratios.

  forked / naive   one trunk with a branch per step / each prefix a prompt of
                   its own
  forked / once    ... / the whole trace with one question
  group / separate eight short traces of one problem with one root / with a
                   trunk each

Tokens are those that the engine has counted; `formula` is what docs/judge.md
predicts.
"""

import json
import statistics
import time

from absl import app, flags
import jax
import numpy as np

from exprl_jax import config as config_lib
from exprl_jax.models import config as model_config
from exprl_jax.models import transformer
from exprl_jax.rollout import decode, engine
from exprl_jax.rollout.requests import Fork, Request, Sampling, SharedPrefix
from exprl_jax.runtime import mesh as mesh_lib

_STEPS = flags.DEFINE_integer('steps', 8, 'S.')
_COMMON = flags.DEFINE_integer('common', 300, 'Tokens before the trace.')
_TRACE = flags.DEFINE_integer('trace', 800, 'Tokens of a trace.')
_SUFFIX = flags.DEFINE_integer('suffix', 24, 'Tokens of a question.')
_TRACES = flags.DEFINE_integer('traces', 2, 'Traces scored together.')
_REFERENCE = flags.DEFINE_integer('reference', 400, 'Tokens, of the group.')
_SHORT = flags.DEFINE_integer('short', 200, 'Tokens of a trace of the group.')
_GROUP = flags.DEFINE_integer('group', 8, 'Traces of the group.')
_LAYERS = flags.DEFINE_integer('layers', 6, 'Of the judge.')
_WIDTH = flags.DEFINE_integer('width', 512, 'Its hidden size.')
_DTYPE = flags.DEFINE_string('dtype', 'float32', 'Of the judge.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timings of each.')

READ = Sampling(1, 0.0, read_ids=(1, 2, 3, 4, 5))


def main(_):
  """Prints the measurements."""
  heads = _WIDTH.value // 64
  model = model_config.parse_config(
      {
          'model_type': 'qwen3', 'vocab_size': 4096,
          'num_hidden_layers': _LAYERS.value, 'hidden_size': _WIDTH.value,
          'intermediate_size': 3 * _WIDTH.value, 'num_attention_heads': heads,
          'num_key_value_heads': max(1, heads // 4), 'head_dim': 64,
          'rms_norm_eps': 1e-6, 'rope_theta': 1e6, 'tie_word_embeddings': True,
          'torch_dtype': _DTYPE.value
      }, 'benchmark')
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=1, fsdp=1), jax.devices()[:1])
  params = decode.prepare(model, transformer.init(model, jax.random.key(0)),
                          mesh)
  longest = max(_COMMON.value + _TRACE.value,
                _REFERENCE.value + _SHORT.value) + _SUFFIX.value + 1
  runner = engine.Engine(
      model, mesh,
      engine.Options(slots=64, max_tokens=longest, page=64, dtype=model.dtype,
                     widths=(16, 64, 256, 1024)))
  rng = np.random.default_rng(0)
  draw = lambda n: rng.integers(0, 4096, n).tolist()
  traces = [draw(_COMMON.value + _TRACE.value) for _ in range(_TRACES.value)]
  asks = [draw(_SUFFIX.value) for _ in range(_STEPS.value)]
  ends = [
      _COMMON.value + _TRACE.value * (s + 1) // _STEPS.value
      for s in range(_STEPS.value)
  ]
  forks = [Fork(*pair) for pair in zip(ends, asks)]
  root = draw(_REFERENCE.value)
  short = [root + draw(_SHORT.value) for _ in range(_GROUP.value)]
  ask = Fork(len(short[0]), asks[0])
  ways = {
      'forked': [
          Request(t, i * len(forks), len(forks), READ, forks)
          for i, t in enumerate(traces)
      ], 'naive': [
          Request(t[:f.at],
                  i * len(forks) + s, 1, READ, [f])
          for i, t in enumerate(traces)
          for s, f in enumerate(forks)
      ], 'once': [
          Request(t, i, 1, READ, forks[-1:]) for i, t in enumerate(traces)
      ], 'group': [
          Request(t, i, 1, READ, [ask],
                  shared_prefix=SharedPrefix(0, len(root)))
          for i, t in enumerate(short)
      ],
      'separate': [Request(t, i, 1, READ, [ask]) for i, t in enumerate(short)]
  }
  seconds, tokens, scores = {k: [] for k in ways}, {}, {}
  for repeat in range(_REPEATS.value + 1):
    for name, requests in ways.items():
      start = time.process_time()
      out = runner.generate(params, requests, jax.random.key(0))
      if repeat:  # the first one compiles
        seconds[name].append(time.process_time() - start)
      tokens[name] = runner.stats.prefilled + runner.stats.tokens
      scores[name] = np.array([s.read_logprobs for s in out])
  took = {k: statistics.median(v) for k, v in seconds.items()}
  print(
      json.dumps(
          {
              'device': jax.devices()[0].device_kind, 'model': str(model),
              'seconds': {k: round(v, 4) for k, v in took.items()
                         }, 'tokens': tokens, 'formula': formula(),
              'forked_over_naive': round(took['forked'] / took['naive'], 3),
              'forked_over_once': round(took['forked'] / took['once'], 3),
              'group_over_separate': round(took['group'] / took['separate'], 3),
              'largest_difference': float(
                  max(
                      np.abs(scores['forked'] - scores['naive']).max(),
                      np.abs(scores['group'] - scores['separate']).max()))
          }, indent=1))


def formula() -> dict[str, int]:
  """Tokens of each way: docs/judge.md."""
  c, t, q, s = _COMMON.value, _TRACE.value, _SUFFIX.value, _STEPS.value
  n, g = _TRACES.value, _GROUP.value
  prefixes = sum(t * (k + 1) // s for k in range(s))
  return {
      'forked': n * (c + t + s * q), 'naive': n * (s * (c + q) + prefixes),
      'once': n * (c + t + q),
      'group': _REFERENCE.value + g * (_SHORT.value + q),
      'separate': g * (_REFERENCE.value + _SHORT.value + q)
  }


if __name__ == '__main__':
  app.run(main)
