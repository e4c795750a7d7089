"""Rollouts in simulated time: the engine's scheduler on devices that count.

How long a rollout takes depends on how long its samples get: at the end few
slots are busy, and a token takes nearly what it takes with all of them. Here
the real scheduler decides, as in a run, about devices that know the length of
every sample and what each program costs, so that slots, pages and preemptions
are those of the run.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
import itertools
from typing import Any, NamedTuple

import numpy as np

from exprl_jax.rollout import protocol
from exprl_jax.rollout.options import Options, fit
from exprl_jax.rollout.requests import NOTHING, Request, Sample, Sampling
from exprl_jax.rollout.rows import Launch
from exprl_jax.rollout.scheduler import Scheduler
from exprl_jax.rollout.stats import Stats

_EOS = 1
_SPREAD = 0.8  # of log lengths, where a plan knows no more than their mean


class Costs(NamedTuple):
  """Seconds that the devices take.

  Attributes:
    prefill: of a pass, by rows and tokens of a row.
    decode: of one token, by slots and by the rows in them that are alive.
    copy: of a copy of pages.
  """

  prefill: Callable[[int, int], float]
  decode: Callable[[int, int], float]
  copy: float = 0.0


class Step(NamedTuple):
  """What a step samples: groups of samples, prompts of one length, a budget."""

  groups: int
  samples: int
  prompt: int
  budget: int


class Event(NamedTuple):
  """What the devices did."""

  what: str  # prefill, decode, copy
  start: float  # seconds
  seconds: float
  live: int  # rows that decode


class Timeline(NamedTuple):
  """A rollout.

  Attributes:
    seconds: until the last sample has ended.
    events: in order; the devices do one thing at a time.
    stats: as the engine counts.
    samples: by id: how many tokens they have, and why they ended.
  """

  seconds: float
  events: list[Event]
  stats: Stats
  samples: dict[int, Sample]


class _Packed(NamedTuple):
  """What a chunk returns: of protocol.pack_outputs, on the host already."""

  columns: np.ndarray

  def addressable_data(self, index: int) -> np.ndarray:
    """As of a jax.Array."""
    del index
    return self.columns


class _Devices:
  """Has the interface of runner.Runner, and a clock."""

  def __init__(self, options: Options, devices: int, lengths: Mapping[int, int],
               costs: Costs) -> None:
    self.devices = devices
    self.events: list[Event] = []
    self.now = 0.0
    self._chunk, self._lengths, self._costs = options.chunk, lengths, costs
    self._left = np.zeros(options.slots, int)  # tokens, by slot

  def _run(self, what: str, seconds: float, live: int = 0) -> None:
    self.events.append(Event(what, self.now, seconds, live))
    self.now += seconds

  def prefill(self, tokens: np.ndarray, positions: np.ndarray,
              table: np.ndarray) -> None:
    """As Runner.prefill."""
    del positions, table
    self._run('prefill', self._costs.prefill(*tokens.shape))

  def copy(self, source: np.ndarray, target: np.ndarray) -> None:
    """As Runner.copy."""
    del source, target
    self._run('copy', self._costs.copy)

  def move(self, source: np.ndarray) -> None:
    """As Runner.move."""
    self._left = self._left[source]

  def decode(self, inputs: protocol.Inputs, steps: int) -> _Packed:
    """As Runner.decode; a sample's last token is the end token."""
    named = dict(zip(protocol.INTS, inputs.ints.T))
    active = named['active'] == 1
    for slot in np.flatnonzero(active & (named['is_new'] == 1)):
      self._left[slot] = min(self._lengths[int(named['id'][slot])],
                             named['budget'][slot])
    count = np.where(active, np.minimum(self._left, steps), 0)
    for step in range(count.max()):
      live = int((count > step).sum())
      self._run('decode', self._costs.decode(len(count), live), live)
    self._left -= count
    tokens = np.zeros((len(count), self._chunk), np.int32)
    for slot in np.flatnonzero(active & (self._left == 0)):
      tokens[slot, count[slot] - 1] = _EOS
    floats = np.zeros((len(count), self._chunk + protocol.MAX_READS), np.int32)
    return _Packed(
        np.concatenate([
            tokens, floats, count[:, None].astype(np.int32),
            (self._left > 0)[:, None].astype(np.int32)
        ], axis=1))


def rollout(requests: Sequence[Request], lengths: Mapping[int, int],
            options: Options, costs: Costs, devices: int = 1,
            stop_after: int = 0) -> Timeline:
  """Simulates a call of the engine.

  Args:
    requests: as of Engine.generate; they end with `lengths` or their budgets.
    lengths: tokens of each sample, by id, with the end token.
    options: resolved.
    costs: of the programs.
    devices: parts that the slots are split into.
    stop_after: as of Engine.generate.
  """
  options = fit(options, requests, devices)
  runner: Any = _Devices(options, devices, lengths, costs)
  stats = Stats()
  scheduler = Scheduler(requests, runner, options, stats,
                        lambda id_, sample: None, None)
  in_flight: deque[Launch] = deque()
  while scheduler.unfinished or in_flight:
    launch = scheduler.launch()
    if launch:
      in_flight.append(launch)
    if launch and len(in_flight) <= bool(options.ahead):
      continue
    scheduler.collect(in_flight.popleft())
    if scheduler.complete >= (stop_after or len(requests)):
      scheduler.stop()
      in_flight.clear()
  return Timeline(runner.now, runner.events, stats, scheduler.results)


def draw_lengths(mean: float, longest: int, count: int,
                 seed: int = 0) -> list[int]:
  """Draws log-normal lengths, cut at the budget."""
  rng = np.random.default_rng(seed)
  mu = np.log(mean) - _SPREAD**2 / 2
  drawn = np.exp(rng.normal(mu, _SPREAD, count))
  return [int(x) for x in np.clip(np.round(drawn), 1, longest)]


def steady(step: Step, lengths: Sequence[int], ahead: int, options: Options,
           costs: Costs, devices: int = 1, steps: int = 8) -> float:
  """Seconds of a rollout with partial rollouts, once that has settled.

  Args:
    step: what a step samples.
    lengths: of samples, in the order in which they are drawn.
    ahead: groups in flight beside those of the step; 0: every step samples from
      start to end.
    options: resolved.
    costs: of the programs.
    devices: parts that the slots are split into.
    steps: to simulate; the mean of the last half counts.
  """
  drawn, how = itertools.cycle(lengths), Sampling(step.budget, eos_ids=(_EOS,))
  # Of each group: the lengths that its samples will have, and what they have.
  flying: list[tuple[list[int], list[Sample]]] = []
  seconds = []
  for i in range(steps):
    flying += [([*itertools.islice(drawn, step.samples)],
                [NOTHING] * step.samples)
               for _ in range(step.groups + ahead * (i == 0))]
    requests = [
        Request([2] * step.prompt, n * step.samples, step.samples, how,
                partial=parts) for n, (_, parts) in enumerate(flying)
    ]
    left = {
        n * step.samples + j: total - len(part.tokens)
        for n, (totals, parts) in enumerate(flying)
        for j, (total, part) in enumerate(zip(totals, parts))
    }
    found = rollout(requests, left, options, costs, devices, step.groups)
    seconds.append(found.seconds)
    after = [(totals, [found.samples[r.id + j]
                       for j in range(step.samples)])
             for r, (totals, _) in zip(requests, flying)]
    ready = [x for x in after if _complete(x[1])][:step.groups]
    flying = [x for x in after if all(x is not r for r in ready)]
  return float(np.mean(seconds[steps // 2:]))


def _complete(samples: Sequence[Sample]) -> bool:
  return all(
      s.finish_reason == 'eos' or s.finish_reason == 'length' for s in samples)
