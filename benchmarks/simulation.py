"""Simulated against measured seconds of rollouts, on CPUs.

  XLA_FLAGS=--xla_cpu_multi_thread_eigen=false \
      taskset -c 0 python benchmarks/simulation.py

1. The engine samples groups whose lengths are log-normal, while every program
   is timed: seconds of a prefill pass and of a copy by shape, and of a decoded
   token by slots.
2. For other lengths, planning/simulation.py predicts the seconds of a call from
   these costs and from the real scheduler's decisions.
3. The engine samples them, untimed.

Prints a line for each case: simulated and measured seconds, medians of
--repeats pairs, and their ratio.
"""

import argparse
import collections
import statistics
import time

import jax
import numpy as np
from rollout import MODEL

from exprl_jax import config as config_lib
from exprl_jax.models import config as model_config
from exprl_jax.models import transformer
from exprl_jax.planning import simulation
from exprl_jax.rollout import decode, engine
from exprl_jax.rollout.requests import Request, Sampling
from exprl_jax.runtime import mesh as mesh_lib

BUDGET, PROMPT = 256, 64
# Name -> groups, samples of each, mean length, sizes of the engine.
CASES = {
    'as many slots as samples': (8, 8, 64, {'slots': 64}),
    'a queue': (16, 8, 64, {'slots': 32}),
    'few pages': (8, 8, 96, {'slots': 64, 'pages': 60, 'page': 64}),
    'long tails': (4, 8, 24, {'slots': 32, 'chunk': 16}),
}


def requests(groups, samples, mean, seed):
  """Requests of one sample each, with budgets for lengths: no end token."""
  rng = np.random.default_rng(seed)
  lengths = iter(simulation.draw_lengths(mean, BUDGET, groups * samples, seed))
  out = []
  for group in range(groups):
    prompt = rng.integers(1, MODEL['vocab_size'], PROMPT).tolist()
    out += [
        Request(prompt, group * samples + i, 1, Sampling(next(lengths)))
        for i in range(samples)
    ]
  return out


class Timed:
  """Times the programs of an engine's runner, by shape."""

  def __init__(self, runner):
    self._runner = runner
    self.seconds = collections.defaultdict(list)

  def _time(self, key, call, *args):
    start = time.perf_counter()
    out = call(*args)
    jax.block_until_ready((self._runner._pool, self._runner._state))
    self.seconds[key].append(time.perf_counter() - start)
    return out

  def __getattr__(self, name):
    return getattr(self._runner, name)

  def prefill(self, tokens, positions, table):
    """As Runner.prefill."""
    self._time(('prefill', *tokens.shape), self._runner.prefill, tokens,
               positions, table)

  def copy(self, source, target):
    """As Runner.copy."""
    self._time(('copy',), self._runner.copy, source, target)

  def decode(self, inputs, steps):
    """As Runner.decode; the tokens of the longest row share the seconds."""
    out = self._time(('decode', len(inputs.ints)), self._runner.decode, inputs,
                     steps)
    packed = np.asarray(out)
    key = 'decode', len(inputs.ints)
    self.seconds[key][-1] /= max(1, int(packed[:, -2].max()))
    return out

  def costs(self):
    """Medians, for simulation.rollout; unseen shapes cost as their cells."""
    found = {k: statistics.median(v) for k, v in self.seconds.items()}
    passes = {k[1:]: v for k, v in found.items() if k[0] == 'prefill'}
    cell = statistics.median(v / (r * w) for (r, w), v in passes.items())
    tokens = {k[1]: v for k, v in found.items() if k[0] == 'decode'}
    return simulation.Costs(
        prefill=lambda rows, width: passes.get(
            (rows, width), cell * rows * width),
        decode=lambda slots, live: tokens[slots], copy=found.get(('copy',),
                                                                 0.0))


def run(name, repeats):
  """(simulated, measured) seconds of a case, one pair for each repeat."""
  groups, samples, mean, sizes = CASES[name]
  model = model_config.parse_config(MODEL, 'MODEL')
  mesh = mesh_lib.make_mesh(config_lib.Mesh())
  runner = engine.Engine(
      model, mesh,
      engine.Options(**dict(slots=64, max_tokens=PROMPT + BUDGET, prefill=64) |
                     sizes))
  params = decode.prepare(model, transformer.init(model, jax.random.key(0)),
                          mesh)
  timed = Timed(runner._runner)
  plain, pairs = runner._runner, []
  for i in range(repeats + 1):
    work = requests(groups, samples, mean, 2 * i)
    runner._runner = timed
    runner.generate(params, work, jax.random.key(i))
    if not i:  # which has compiled
      timed.seconds.clear()
      runner.generate(params, work, jax.random.key(i))
    other = requests(groups, samples, mean, 2 * i + 1)
    runner._runner = plain
    runner.generate(params, other, jax.random.key(i))
    lengths = {r.id: r.sampling.max_new_tokens for r in other}
    found = simulation.rollout(other, lengths, runner.options, timed.costs())
    if i:
      pairs.append((found.seconds, runner.stats.seconds))
  return pairs


def main():
  """Prints a Markdown table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--repeats', type=int, default=5)
  repeats = parser.parse_args().repeats
  print('| case | simulated, s | measured, s | ratio |\n|---|---|---|---|')
  for name in CASES:
    simulated, measured = zip(*run(name, repeats))
    ratio = statistics.median(a / b for a, b in zip(simulated, measured))
    print(
        f'| {name} | {statistics.median(simulated):.2f} | '
        f'{statistics.median(measured):.2f} | {ratio:.2f} |', flush=True)


if __name__ == '__main__':
  main()
