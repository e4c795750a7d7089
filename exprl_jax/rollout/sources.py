"""Where the groups of a step come from: synchronous, partial or asynchronous
rollouts.

A source is asked for the groups of a step and says what a resumed run needs
(`state`, `restore`).
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import threading
from typing import Any, Protocol

import jax
import numpy as np

from exprl_jax.config import Config
from exprl_jax.rollout.requests import NOTHING, Sample
from exprl_jax.rollout.sampler import Early, Sampler, complete
from exprl_jax.runtime import stopping
from exprl_jax.types import Group, Params, Problem, Trajectory

# (step, attempt) -> problems; attempts after 0 refill a batch.
Draw = Callable[[int, int], list[Problem]]
Prompts = Callable[[Sequence[Problem]], list[list[int]]]


class Source(Protocol):
  """Gives the groups that a step trains on."""

  def next(self, step: int, attempt: int, params: Params,
           key: jax.Array) -> list[Group]:
    """Samples; `params` are the policy's, all of them."""

  def metrics(self) -> dict[str, float]:
    """Of the rollout that gave the last groups."""

  def idle(self) -> None:
    """Waits until the engine can be used for something else."""

  def close(self) -> None:
    """Ends what is under way."""

  def state(self) -> Any:
    """What a resumed run needs, of arrays and what JSON can hold."""

  def restore(self, state: Any) -> None:
    """Takes over what `state` returned."""


class _Alone:
  """The engine works while the step waits for it, and not otherwise."""

  _sampler: Sampler

  def metrics(self) -> dict[str, float]:
    """See Source."""
    return self._sampler.engine.metrics()

  def idle(self) -> None:
    """See Source."""

  def close(self) -> None:
    """See Source."""


class Synchronous(_Alone):
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


class Partial(_Alone):
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


_Rollout = tuple[list[Group], dict[str, float]]  # and metrics


class _Pending:
  """A rollout that may be under way."""

  def __init__(self, rollout: 'futures.Future[_Rollout]') -> None:
    self.rollout = rollout

  def tolist(self) -> list[Any] | None:
    """As JSON, when the rollout is done: [metrics, groups], each group [id,
    prompt, [[tokens, logprobs, finish_reason], ...]]. None: it was abandoned.
    """
    if self.rollout.exception():
      return None
    groups, values = self.rollout.result()
    return [
        values,
        [[
            g.problem.id, g.trajectories[0].prompt,
            [[t.completion, t.logprobs, t.finish_reason]
             for t in g.trajectories]
        ]
         for g in groups]
    ]


class Async:
  """One step off policy: while a step is judged and trained on, the groups of
  the next one are sampled, with the parameters from before its update.

  The devices that sample do not train. Each token keeps the log-probability of
  the policy that sampled it, and truncated importance sampling corrects for the
  step between (loss.tis_cap). What is under way when a run is stopped is
  dropped: the resumed run samples that step again, on policy.
  """

  def __init__(self, config: Config, sampler: Sampler, draw: Draw,
               prompts: Prompts, problems: Sequence[Problem]):
    """Args: as Partial."""
    self._config, self._sampler, self._draw = config, sampler, draw
    self._prompts, self._problems = prompts, problems
    self._pending: _Pending | None = None
    self._metrics: dict[str, float] = {}
    self._closed = threading.Event()
    self._thread = futures.ThreadPoolExecutor(1, 'rollout')

  def next(self, step: int, attempt: int, params: Params,
           key: jax.Array) -> list[Group]:
    """See Source; the time is what the step has waited."""
    del attempt, key
    # 1. The groups of this step: the first one has to sample them.
    stale = self._pending is not None
    pending = self._pending or self._launch(step, params)
    groups, values = pending.rollout.result()
    self._metrics = values | {'rollout/staleness': float(stale)}
    # 2. Those of the next.
    last = step + 1 == self._config.steps
    self._pending = None if last else self._launch(step + 1, params)
    return groups

  def _launch(self, step: int, params: Params) -> _Pending:
    """Starts to sample the problems of a step.

    What is random, and what the parameters are, is settled here: the thread
    only samples.
    """
    problems = self._draw(step, 0)
    key = jax.random.fold_in(jax.random.key(self._config.seed), step)
    return _Pending(
        self._thread.submit(self._sample, problems, self._prompts(problems),
                            self._sampler.prepare(params),
                            jax.random.fold_in(key, 0)))

  def _sample(self, problems: Sequence[Problem], prompts: list[list[int]],
              params: Params, key: jax.Array) -> _Rollout:
    cfg = self._config.rollout
    with stopping.aside(self._closed):
      samples = self._sampler.generate(params, prompts, cfg.group_size, key,
                                       oversampling=cfg.oversampling)
      self._sampler.engine.release()  # the next parameters need the memory
    return ([group(*x) for x in zip(problems, prompts, samples)],
            self._sampler.engine.metrics())

  def metrics(self) -> dict[str, float]:
    """See Source."""
    return self._metrics

  def idle(self) -> None:
    """See Source."""
    if self._pending:
      futures.wait([self._pending.rollout])

  def close(self) -> None:
    """See Source."""
    self._closed.set()
    self._thread.shutdown()

  def state(self) -> _Pending | None:
    """A list as JSON, once the rollout of the next step is done."""
    return self._pending

  def restore(self, state: list[Any] | None) -> None:
    """See Source."""
    if state is None:
      return
    values, groups = state
    wanted = {id_ for id_, *_ in groups}
    by_id = {p.id: p for p in self._problems if p.id in wanted}
    done: futures.Future[_Rollout] = futures.Future()
    done.set_result(([_restored(by_id[x[0]], *x[1:]) for x in groups], values))
    self._pending = _Pending(done)


def _restored(problem: Problem, prompt: list[int], samples: list[Any]) -> Group:
  """A group of a checkpoint."""
  return Group(problem, [
      Trajectory(np.array(prompt, np.int32), np.array(tokens, np.int32),
                 np.array(logprobs, np.float32), reason)
      for tokens, logprobs, reason in samples
  ])


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
