"""What a training run does on its devices: compilations, memory, utilization.

docs/metrics.md describes the metrics, docs/performance.md what to do with them.
"""

from collections.abc import Sequence

import jax

from exprl_jax.models import flops
from exprl_jax.rl.experience import Example
from exprl_jax.rl.policy import Policy
from exprl_jax.runs import setup
from exprl_jax.runtime import chips, compilation, memory, profiler
from exprl_jax.types import TrainState


class Telemetry:
  """Watches the steps of a run, one `begin` and one `end` each."""

  def __init__(self, run: setup.Run) -> None:
    config = run.inputs.config
    self._run = run
    self._watch = compilation.Watch()
    self._profiler = profiler.Profiler(
        run.workdir, profiler.parse(config.profile.steps, config.steps))

  def begin(self, step: int) -> None:
    """Comes before a step's work.

    Args:
      step: as it is logged, from 1.
    """
    self._profiler.begin(step)

  def end(self, step: int, state: TrainState,
          values: dict[str, float]) -> dict[str, float]:
    """Comes behind a step's work; says which programs were compiled late.

    Args:
      step: as it is logged.
      state: after the step.
      values: the step's metrics.

    Returns:
      Metrics of compilations and memory.
    """
    self._profiler.end(step)
    counts, late = self._watch.step()
    for line in late:
      self._run.log.say(f'warning: step {step}: {line}')
    if 'policy/loss' in values:  # all that a step needs was compiled by now
      self._watch.warmed_up()
    return counts | memory.hbm() | self._owners(state)

  def _owners(self, state: TrainState) -> dict[str, float]:
    """Device memory of the run's parts, 1e9 bytes."""
    judge = self._run.judge
    live = memory.live_bytes({
        'policy': state.params, 'moments': state.opt_state,
        'reference': self._run.policy.frozen,
        'judge': judge.params if judge else None
    })
    return {
        f'hbm/{owner}_gb': n / 1e9
        for owner, n in live.items()
        if n or owner == 'other'
    }

  def close(self) -> None:
    """Writes a trace that has not ended."""
    self._profiler.close()
    self._watch.close()


def utilization(policy: Policy, examples: Sequence[Example],
                seconds: float) -> dict[str, float]:
  """Speed of an update.

  Args:
    policy: what was trained.
    examples: that it was trained on.
    seconds: that the update took.

  Returns:
    perf/train_tokens_per_s; and perf/train_mfu on chips that runtime/chips.py
    knows.
  """
  own = [len(x.tokens) for x in examples]
  teacher = [
      len(x.teacher_tokens) for x in examples if x.teacher_tokens is not None
  ]
  out = {'perf/train_tokens_per_s': sum(own) / seconds}
  if chip := chips.find(jax.local_devices()[0].device_kind):
    spent = flops.train_flops(policy.model, own, policy.lora_scale is not None)
    spent += flops.forward_flops(policy.model, teacher)
    out['perf/train_mfu'] = spent / (seconds * policy.mesh.size * chip.flops)
  return out
