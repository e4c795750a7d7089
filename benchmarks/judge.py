"""Measures forked judging against judging every prefix by itself.

  XLA_FLAGS=--xla_cpu_multi_thread_eigen=false \
      taskset -c 0 python benchmarks/judge.py   # one core

A random judge of the given size scores traces of `--trace` tokens with
`--steps` steps, after `--common` tokens of instructions, problem and
reference, with `--suffix` tokens of question. Prints one JSON object: medians
of `--repeats` timings of the process's CPU time, taken in turns, and ratios.

  forked / naive   one request a trace with a fork per step / each prefix a
                   prompt of its own
  forked / once    ... / the complete trace with one question
  group / separate eight short traces of one problem with a shared prefix /
                   without

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
from exprl_jax.models.config import ModelConfig
from exprl_jax.rollout import decode, engine
from exprl_jax.rollout.requests import Fork, Request, Sampling, SharedPrefix
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import Params

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


def main(_: list[str]) -> None:
  """Prints the measurements."""
  model = judge_model()
  runner, params = engine_of(model)
  ways = requests()
  # Timings, in turns.
  seconds: dict[str, list[float]] = {k: [] for k in ways}
  tokens, scores = {}, {}
  for repeat in range(_REPEATS.value + 1):
    for name, way in ways.items():
      start = time.process_time()
      samples = runner.generate(params, way, jax.random.key(0))
      if repeat:  # the first one compiles
        seconds[name].append(time.process_time() - start)
      tokens[name] = runner.stats.prefilled + runner.stats.tokens
      scores[name] = np.array([s.read_logprobs for s in samples])
  # Medians and ratios.
  took = {k: statistics.median(v) for k, v in seconds.items()}
  difference = max(
      np.abs(scores['forked'] - scores['naive']).max(),
      np.abs(scores['group'] - scores['separate']).max())
  report = {
      'device': jax.devices()[0].device_kind, 'model': str(model),
      'seconds': {k: round(v, 4) for k, v in took.items()
                 }, 'tokens': tokens, 'formula': formula(),
      'forked_over_naive': round(took['forked'] / took['naive'], 3),
      'forked_over_once': round(took['forked'] / took['once'], 3),
      'group_over_separate': round(took['group'] / took['separate'],
                                   3), 'largest_difference': float(difference)
  }
  print(json.dumps(report, indent=1))


def judge_model() -> ModelConfig:
  """Describes the judge of the flags."""
  heads = _WIDTH.value // 64
  return model_config.parse_config(
      {
          'model_type': 'qwen3', 'vocab_size': 4096,
          'num_hidden_layers': _LAYERS.value, 'hidden_size': _WIDTH.value,
          'intermediate_size': 3 * _WIDTH.value, 'num_attention_heads': heads,
          'num_key_value_heads': max(1, heads // 4), 'head_dim': 64,
          'rms_norm_eps': 1e-6, 'rope_theta': 1e6, 'tie_word_embeddings': True,
          'torch_dtype': _DTYPE.value
      }, 'benchmark')


def engine_of(model: ModelConfig) -> tuple[engine.Engine, Params]:
  """Makes an engine on one device, and random parameters."""
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=1, fsdp=1), jax.devices()[:1])
  params = decode.prepare(model, transformer.init(model, jax.random.key(0)),
                          mesh)
  longest = max(_COMMON.value + _TRACE.value,
                _REFERENCE.value + _SHORT.value) + _SUFFIX.value + 1
  options = engine.Options(slots=64, max_tokens=longest, page=64,
                           dtype=model.dtype, widths=(16, 64, 256, 1024))
  return engine.Engine(model, mesh, options), params


def requests() -> dict[str, list[Request]]:
  """Lays out the same random questions in each of the ways."""
  rng = np.random.default_rng(0)

  def draw(n: int) -> list[int]:
    return rng.integers(0, 4096, n).tolist()

  # 1. Long traces with a question at the end of every step.
  traces = [draw(_COMMON.value + _TRACE.value) for _ in range(_TRACES.value)]
  asks = [draw(_SUFFIX.value) for _ in range(_STEPS.value)]
  ends = [
      _COMMON.value + _TRACE.value * (s + 1) // _STEPS.value
      for s in range(_STEPS.value)
  ]
  forks = [Fork(at=end, suffix=ask) for end, ask in zip(ends, asks)]
  n = len(forks)
  # 2. Short traces of one problem, each with one question.
  prefix = draw(_REFERENCE.value)
  short = [prefix + draw(_SHORT.value) for _ in range(_GROUP.value)]
  ask = Fork(len(short[0]), asks[0])
  shared = SharedPrefix(0, len(prefix))
  return {
      'forked': [
          Request(t, i * n, n, READ, forks) for i, t in enumerate(traces)
      ], 'naive': [
          Request(t[:f.at], i * n + s, 1, READ, [f])
          for i, t in enumerate(traces)
          for s, f in enumerate(forks)
      ], 'once': [
          Request(t, i, 1, READ, forks[-1:]) for i, t in enumerate(traces)
      ], 'group': [
          Request(t, i, 1, READ, [ask], shared_prefix=shared)
          for i, t in enumerate(short)
      ],
      'separate': [Request(t, i, 1, READ, [ask]) for i, t in enumerate(short)]
  }


def formula() -> dict[str, int]:
  """Counts the tokens of each way: docs/judge.md."""
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
