"""Simulated rollouts decide as the engine does."""

import dataclasses

import jax
import numpy as np
import pytest

from exprl_jax.planning import simulation
from exprl_jax.planning.simulation import Costs, Step
from exprl_jax.rollout import decode, engine
from exprl_jax.rollout.options import Options, resolve
from exprl_jax.rollout.requests import Request, Sampling
from tests.conftest import SMALL

COSTS = Costs(prefill=lambda rows, width: 0.01 * rows * width,
              decode=lambda slots, live: 1.0, copy=0.0)
COUNTS = ('steps', 'slot_steps', 'row_steps', 'tokens', 'prefilled',
          'preemptions', 'context')


@pytest.mark.parametrize('options', [
    Options(slots=6, max_tokens=40, page=4, chunk=7, prefill=8),
    Options(slots=6, max_tokens=40, page=4, pages=12, chunk=5, prefill=8),
    Options(slots=3, max_tokens=40, page=8, chunk=4, prefill=8, ahead=True),
], ids=['plain', 'preempted', 'ahead'])
def test_counts_are_those_of_the_engine(small, one_device, options):
  """Slots, chunks, prefill passes and preemptions for the same lengths."""
  model, params = small
  real = engine.Engine(model, one_device, options)
  rng = np.random.default_rng(0)
  requests = [
      Request(
          rng.integers(3, 40, 3 + i).tolist(), 4 * i, 4,
          Sampling(22, eos_ids=(1, 2))) for i in range(7)
  ]
  samples = real.generate(decode.prepare(model, params, one_device), requests,
                          jax.random.key(1))
  lengths = {i: len(s.tokens) for i, s in enumerate(samples)}
  assert len(set(lengths.values())) > 5
  found = simulation.rollout(requests, lengths, real.options, COSTS)
  for name in COUNTS:
    assert getattr(found.stats, name) == getattr(real.stats, name), name
  assert {i: len(s.tokens) for i, s in found.samples.items()} == lengths
  if options.pages:
    assert found.stats.preemptions
  # The devices do one thing at a time, and every token of the longest row.
  assert sum(e.seconds for e in found.events) == pytest.approx(found.seconds)
  assert sum(e.what == 'decode' for e in found.events) == found.stats.steps
  assert sum(e.live for e in found.events) == found.stats.row_steps


@pytest.fixture
def options(one_device):
  return resolve(Options(slots=8, max_tokens=80, page=8, chunk=4), SMALL,
                 one_device)


def test_by_hand(options):
  """Eight rows of 10 tokens and one of 50, in eight slots: the ninth starts
  when the first chunk with an end is over."""
  lengths = dict(enumerate([10] * 8 + [50]))
  requests = [
      Request([2, 3], i, 1, Sampling(60, eos_ids=(1,))) for i in lengths
  ]
  free = dataclasses.replace(options, ahead=False)
  found = simulation.rollout(requests, lengths, free,
                             COSTS._replace(prefill=lambda rows, width: 0.0))
  assert found.seconds == 10 + 50
  assert [e.live for e in found.events if e.what == 'decode'
         ] == [8] * 10 + [1] * 50
  cheaper = Costs(lambda rows, width: 0.0, lambda slots, live: live / 8)
  assert simulation.rollout(requests, lengths, free,
                            cheaper).seconds == 10 + 50 / 8


def test_partial_rollouts_hide_the_longest_samples(options):
  lengths = simulation.draw_lengths(12, 60, 4000)
  assert np.mean(lengths) == pytest.approx(12, rel=0.1)
  step = Step(groups=4, samples=2, prompt=3, budget=60)
  free = COSTS._replace(prefill=lambda rows, width: 0.0)
  alone = simulation.steady(step, lengths, 0, options, free, steps=12)
  ahead = simulation.steady(step, lengths, 8, options, free, steps=12)
  busy = 8 * 12 / 8  # steps, with all slots always busy
  assert busy < ahead < 0.8 * alone
