"""A plan: what a training run takes on given devices, phase by phase."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax

from exprl_jax.config import Config
from exprl_jax.planning import compiled, memory, programs, timing
from exprl_jax.planning.compiled import Weight
from exprl_jax.rl import packing
from exprl_jax.runtime import chips
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """What a run takes.

  Attributes:
    config: of the run.
    meshes: which devices do what.
    chip: of the devices; None: not known.
    models: with the engines' sizes.
    account: what is alive in each phase.
    weights: of the compiled programs, in the list's order.
    shares: of a step: program -> calls and seconds.
  """

  config: Config
  meshes: mesh_lib.Meshes
  chip: chips.Chip | None
  models: memory.Models
  account: memory.Account
  weights: dict[str, Weight]
  shares: dict[str, timing.Share]

  def pool_tokens(self, owner: str) -> int:
    """Tokens that an engine's pages hold on all devices: 'policy', 'judge'."""
    options, mesh = self.models.rollout, self.meshes.sample
    if owner == 'judge':
      assert self.models.judging is not None
      options, mesh = self.models.judging, self.meshes.judge
    return options.pages * options.page * mesh_lib.batch_parts(mesh)

  def host_bytes(self) -> float:
    """Bytes of host memory for each device: moments and layer inputs that are
    offloaded, and the copy of the state that is written as a checkpoint."""
    owners = self.account.owners
    moments, policy = owners['moments'][0], owners['policy'][0]
    out = float(policy + moments)
    if self.config.optim.offload:
      out += moments
    if self.config.policy.remat == 'offload':
      model = self.models.policy
      tokens = packing.row_tokens(self.config) * self.config.optim.micro_rows
      out += 2 * tokens * model.embed_dim * model.num_layers
    return out

  def seconds(self) -> dict[str, float]:
    """Seconds of each phase of a step."""
    out = dict.fromkeys(self.account.phases, 0.0)
    for name, share in self.shares.items():
      out[compiled.phase(name)] += share.calls * share.seconds
    return out

  def step_seconds(self) -> float:
    """Seconds from one step to the next."""
    phases = self.seconds()
    rollout = phases.get('rollout', 0.0)
    rest = sum(phases.values()) - rollout
    return max(rollout, rest) if self.meshes.split else rollout + rest

  def json(self) -> dict[str, Any]:
    """All of it, for plan.json."""
    return {
        'devices': len(self.meshes.devices),
        'device_kind': self.meshes.devices[0].device_kind,
        'limit_bytes': self.account.limit, 'margin': self.account.margin,
        'fits': self.account.fits, 'memory_bytes': {
            phase: self.account.alive(phase) for phase in self.account.phases
        }, 'programs': {
            name: dataclasses.asdict(w) for name, w in self.weights.items()
        },
        'step': {name: share._asdict() for name, share in self.shares.items()
                }, 'seconds': self.seconds(), 'host_bytes': self.host_bytes(),
        'pool_tokens': {
            owner: self.pool_tokens(owner)
            for owner in ('policy', 'judge')
            if owner == 'policy' or self.models.judging
        }
    }


def make(config: Config, devices: Sequence[jax.Device] | None,
         compiler: compiled.Compiler) -> Plan:
  """Compiles the programs of a run and adds everything up.

  Args:
    config: of a training run; no weights are read.
    devices: to plan for; None: those that are here.
    compiler: remembers programs from one plan to the next.

  Raises:
    InputError: a model is missing, or a pool cannot hold a single row.
  """
  meshes = mesh_lib.meshes(config, devices)
  found = memory.models(config, meshes).resolved(meshes)
  if not config.plan.layers:
    weights = _weigh(config, meshes, found, compiler)
  else:
    # A layer adds the same to everything: two depths give all.
    few = config.plan.layers
    layers = found.policy.num_layers
    if few * 2 > layers:
      raise InputError(f'config.plan.layers={few}: at most half of the '
                       f"policy's {layers} layers")
    small = _weigh(config, meshes, found.with_layers(few), compiler)
    large = _weigh(config, meshes, found.with_layers(2 * few), compiler)
    weights = {}
    for name, weight in small.items():
      model = found.judge if name.startswith('judge/') else found.policy
      assert model is not None
      weights[name] = weight.extrapolated(large[name],
                                          (model.num_layers - few) / few)
  chip = chips.find(meshes.devices[0].device_kind)
  account = dataclasses.replace(
      memory.account(config, meshes),
      workspaces=compiled.workspaces(list(weights.items())))
  return Plan(config, meshes, chip, found, account, weights,
              timing.shares(config, found, meshes, weights, chip))


def _weigh(config: Config, meshes: mesh_lib.Meshes, found: memory.Models,
           compiler: compiled.Compiler) -> dict[str, Weight]:
  """Compiles all programs of a run."""
  out = {}
  for program in programs.programs(config, meshes, found):
    trips = 1
    if program.name.endswith('/decode'):
      engine = found.judging if program.name == 'judge/decode' else None
      trips = (engine or found.rollout).chunk
    out[program.name] = compiler.weigh(program, compiled.owned_bytes(program),
                                       trips)
  return out
