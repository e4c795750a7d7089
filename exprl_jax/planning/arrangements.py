"""Ways to arrange a step, compared by simulation before one is chosen.

Lengths are drawn around the plan's mean, so samples that run long leave slots
idle at the end of a rollout. Partial rollouts fill these with the next step's
samples; a pipeline that is one step off policy samples on some of the devices
while others judge and update.
"""

from typing import NamedTuple

from exprl_jax.planning import simulation, timing
from exprl_jax.planning.plan import Plan
from exprl_jax.planning.simulation import Costs, Step
from exprl_jax.runtime import mesh as mesh_lib

_SHARES = (0.25, 0.375, 0.5, 0.625, 0.75)  # of the devices, that sample
_DRAWN = 4096  # lengths


class Arrangement(NamedTuple):
  """A way to arrange a step.

  Attributes:
    name: of it.
    rollout: seconds of the rollout.
    rest: seconds of judging, log-probabilities and update.
    step: seconds from one step to the next.
  """

  name: str
  rollout: float
  rest: float
  step: float


def compare(plan: Plan) -> list[Arrangement]:
  """Simulates the arrangements of a plan; [] where it does not sample, or
  nothing is known of its devices."""
  if not plan.chip or 'policy/decode' not in plan.shares:
    return []
  config, options = plan.config, plan.models.rollout
  work = timing.work(config, plan.models)
  samples = config.rollout.group_size + config.rollout.oversampling
  step = Step(work.prompts, samples, work.prompt, config.rollout.max_new_tokens)
  parts = mesh_lib.batch_parts(plan.meshes.sample)
  lengths = simulation.draw_lengths(work.completion, step.budget, _DRAWN)
  seconds = plan.seconds()
  rest = sum(seconds.values()) - seconds.get('rollout', 0.0)

  def sampled(share: float, ahead: int) -> float:
    # Without samples that go on, one step is like the next.
    return simulation.steady(step, lengths, ahead, options, costs(plan, share),
                             parts, steps=6 if ahead else 1)

  if plan.meshes.split:
    rollout = sampled(1.0, 0)
    return [
        Arrangement(_apart(plan.meshes.sample.size), rollout, rest,
                    max(rollout, rest))
    ]
  # 1. One after the other.
  alone = sampled(1.0, 0)
  out = [Arrangement('synchronous', alone, rest, alone + rest)]
  # 2. The next step's samples in idle slots.
  ahead = max(1, work.prompts // 2)
  partial = sampled(1.0, ahead)
  out.append(
      Arrangement(f'rollout.partial_rollouts={ahead}', partial, rest,
                  partial + rest))
  # 3. Sampling beside the update of the step before, on a part of the devices.
  pipelined = []
  for share in _SHARES:
    count = round(share * plan.meshes.train.size)
    if 0 < count < plan.meshes.train.size:
      rollout, others = sampled(share, 0), rest / (1 - share)
      pipelined.append(
          Arrangement(_apart(count), rollout, others, max(rollout, others)))
  return [*out, *sorted(pipelined, key=lambda a: a.step)[:1]]


def _apart(devices: int) -> str:
  return f'rollout.source=async, mesh.sampling_devices={devices}'


def costs(plan: Plan, share: float = 1.0) -> Costs:
  """What the policy's engine takes on a share of the devices.

  Each copy of the weights costs the same to read; with fewer of them each has
  more rows, whose keys and values it reads.

  Args:
    plan: with a chip.
    share: of the devices.
  """
  assert plan.chip
  options, decode = plan.models.rollout, plan.weights['policy/decode']
  sampling = plan.meshes.sample
  work = timing.work(plan.config, plan.models)
  live = timing.live_rows(options, sampling, work.rows,
                          work.prompt + work.completion)
  # 1. A token of all slots: weights and network, and each row's own part.
  fixed = timing.seconds(decode, decode.flops, decode.memory_bytes, plan.chip)
  whole = plan.shares['policy/decode'].seconds
  row = max(0.0, whole - fixed) / (live * share)
  # 2. Passes, by their cells.
  name = next(n for n in plan.shares if n.startswith('policy/prefill_'))
  rows, width = map(int, name.rpartition('_')[2].split('x'))
  cell = plan.shares[name].seconds / (rows * width * share)
  return Costs(prefill=lambda rows, width: cell * rows * width,
               decode=lambda slots, live: (fixed + row * live) / options.chunk)
