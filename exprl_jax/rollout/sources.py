"""Where the groups of a step come from: synchronous or partial rollouts.

A source is asked for the groups of a step and says what a resumed run needs
(`state`, `restore`).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from exprl_jax.config import Config
from exprl_jax.rollout.requests import NOTHING, Sample
from exprl_jax.rollout.sampler import Early, Sampler, complete
from exprl_jax.types import Group, Params, Problem, Trajectory

# (step, attempt) -> problems; attempts after 0 refill a batch.
Draw = Callable[[int, int], list[Problem]]
Prompts = Callable[[Sequence[Problem]], list[list[int]]]


class Source(Protocol):
  """Gives the groups that a step trains on."""

  def next(self, step: int, attempt: int, params: Params,
           key: jax.Array) -> list[Group]:
    """Samples; `params` are the policy's, all of them."""

  def state(self) -> Any:
    """What a resumed run needs, of arrays and what JSON can hold."""

  def restore(self, state: Any) -> None:
    """Takes over what `state` returned."""


class Synchronous:
  """Every step samples its problems from start to end."""

  def __init__(self, config: Config, sampler: Sampler, draw: Draw,
               prompts: Prompts,
               early: Callable[[Sequence[Group]], None] | None = None):
    """Args: `early` is given groups that are complete before the others."""
    self._config, self._sampler, self._draw = config, sampler, draw
    self._prompts, self._early = prompts, early

  def next(self, step: int, attempt: int, params: Params,
           key: jax.Array) -> list[Group]:
    """See Source."""
    problems, cfg = self._draw(step, attempt), self._config.rollout
    prompts = self._prompts(problems)
    samples = self._sampler.generate(
        params, prompts, cfg.group_size, jax.random.fold_in(key, attempt),
        oversampling=cfg.oversampling, early=_early(self._early, problems,
                                                    prompts))
    self._sampler.engine.release()  # the update needs the memory
    return [group(*x) for x in zip(problems, prompts, samples)]

  def state(self) -> None:
    """Nothing: a step's groups are a function of its number."""

  def restore(self, state: None) -> None:
    """See Source."""


class Partial:
  """Partial rollouts: more problems are in flight than a step trains on.

  A step ends with its batch of complete groups; unfinished samples go on in the
  next step, with the parameters of then. Each token keeps the log-probability
  of the policy that sampled it.
  """

  def __init__(self, config: Config, sampler: Sampler, draw: Draw,
               prompts: Prompts, problems: Sequence[Problem],
               ahead: Sequence[Problem],
               early: Callable[[Sequence[Group]], None] | None = None):
    """Starts with problems in flight that have no token yet.

    Args:
      config: its `rollout`.
      sampler: of the policy.
      draw: the problems that a step adds.
      prompts: of problems.
      problems: all of them, to restore from ids.
      ahead: in flight at step 0.
      early: see Synchronous.
    """
    self._config, self._sampler, self._draw = config, sampler, draw
    self._prompts, self._early = prompts, early
    self._problems = problems
    cfg = config.rollout
    self._unfinished: list[tuple[Problem, list[Sample]]] = [
        (p, [NOTHING] * (cfg.group_size + cfg.oversampling)) for p in ahead
    ]

  def next(self, step: int, attempt: int, params: Params,
           key: jax.Array) -> list[Group]:
    """See Source."""
    drawn, cfg = self._draw(step, attempt), self._config.rollout
    problems = [*(p for p, _ in self._unfinished), *drawn]
    prompts = self._prompts(problems)
    samples = self._sampler.generate(
        params, prompts, cfg.group_size, jax.random.fold_in(key, attempt),
        partial=[s for _, s in self._unfinished], num_groups=len(drawn),
        oversampling=cfg.oversampling, early=_early(self._early, problems,
                                                    prompts))
    self._sampler.engine.release()  # the update needs the memory
    ready = [i for i, s in enumerate(samples) if complete(s, cfg.group_size)
            ][:len(drawn)]
    self._unfinished = [
        (problems[i], samples[i]) for i in range(len(samples)) if i not in ready
    ]
    return [group(problems[i], prompts[i], samples[i]) for i in ready]

  def state(self) -> list[Any]:
    """[id of the problem, [[tokens, logprobs, finish_reason], ...]] each."""
    return [[p.id, [[s.tokens, s.logprobs, s.finish_reason]
                    for s in samples]]
            for p, samples in self._unfinished]

  def restore(self, state: list[Any]) -> None:
    """See Source."""
    wanted = {id_ for id_, _ in state}
    by_id = {p.id: p for p in self._problems if p.id in wanted}
    self._unfinished = [(by_id[id_], [
        Sample(np.array(tokens, np.int32), np.array(logprobs, np.float32),
               reason) for tokens, logprobs, reason in samples
    ]) for id_, samples in state]


def group(problem: Problem, prompt: Sequence[int],
          samples: Sequence[Sample]) -> Group:
  """The trajectories of a problem's samples."""
  ids = np.array(prompt, np.int32)
  return Group(
      problem,
      [Trajectory(ids, s.tokens, s.logprobs, s.finish_reason) for s in samples])


def _early(early: Callable[[Sequence[Group]], None] | None,
           problems: Sequence[Problem],
           prompts: Sequence[Sequence[int]]) -> Early | None:
  if early is None:
    return None
  return lambda samples: early(
      [group(problems[i], prompts[i], s) for i, s in samples.items()])
