"""What is alive on a device in each phase of a training step.

The run sizes its pools of pages by this arithmetic, and run='plan' prints it
together with what the compiled programs take.
"""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

import jax

from exprl_jax import rewards
from exprl_jax.config import Config, longest
from exprl_jax.judge import factory
from exprl_jax.models import config as model_config
from exprl_jax.models import references
from exprl_jax.models.abstract import sharded_params
from exprl_jax.models.config import ModelConfig
from exprl_jax.planning import estimates
from exprl_jax.rl import programs as learner_programs
from exprl_jax.rollout import options as options_lib
from exprl_jax.rollout import sampler
from exprl_jax.rollout.options import NoRoomError as NoRoomError
from exprl_jax.rollout.options import Options
from exprl_jax.runtime import chips
from exprl_jax.runtime import mesh as mesh_lib

PHASES = ('copy', 'rollout', 'judge', 'logprob', 'gradient', 'optimizer')
MARGIN = 0.05  # of a device's memory, that stays free
_JUDGE_SHARE = 1 / 3  # of the free memory, where both engines run (overlap)


class Models(NamedTuple):
  """The models of a run, and the sizes of their engines.

  Attributes:
    policy: the decoder that trains.
    judge: that scores; None: there is none.
    shared: the judge is the KL reference: one copy of its parameters.
    rollout: the policy's engine.
    judging: the judge's engine; None: there is none.
  """

  policy: ModelConfig
  judge: ModelConfig | None
  shared: bool
  rollout: Options
  judging: Options | None

  def resolved(self, mesh: jax.sharding.Mesh) -> 'Models':
    """With the engines' sizes filled in.

    Args:
      mesh: to sample on.
    """
    judging = self.judging
    if judging and self.judge:
      judging = options_lib.resolve(judging, self.judge, mesh)
    return self._replace(
        rollout=options_lib.resolve(self.rollout, self.policy, mesh),
        judging=judging)

  def with_layers(self, layers: int) -> 'Models':
    """With only the first layers of both models; engines stay as they are."""
    judge = self.judge and model_config.with_layers(self.judge, layers)
    return self._replace(policy=model_config.with_layers(self.policy, layers),
                         judge=judge)


@dataclasses.dataclass(frozen=True)
class Account:
  """Bytes on each device.

  Attributes:
    owners: name -> (bytes, phases in which they are there).
    workspaces: phase -> bytes that its programs take beside them.
    limit: what programs can take; None: not known (CPUs).
  """

  owners: Mapping[str, tuple[int, tuple[str, ...]]]
  workspaces: Mapping[str, float]
  limit: int | None

  @property
  def phases(self) -> list[str]:
    """Those that the run has, in order."""
    return [p for p in PHASES if p in self.workspaces]

  def alive(self, phase: str) -> dict[str, float]:
    """Bytes by owner in a phase; 'workspace' is that of its programs."""
    owners = {
        name: float(size)
        for name, (size, phases) in self.owners.items()
        if phase in phases and size
    }
    return owners | {'workspace': self.workspaces[phase]}

  def peak(self) -> tuple[float, str]:
    """The largest sum of a phase, and the phase."""
    return max((sum(self.alive(p).values()), p) for p in self.phases)

  @property
  def margin(self) -> float:
    """The share of a device's memory that stays free; negative: too little."""
    return 1 - self.peak()[0] / self.limit if self.limit else 1.0

  @property
  def fits(self) -> bool:
    """Whether enough stays free; by half a percent less, as pages round."""
    return self.margin >= MARGIN - 0.005


def trained(config: Config, model: ModelConfig,
            mesh: jax.sharding.Mesh) -> dict[str, int]:
  """Bytes on each device of parameters, moments, reference, merged adapters."""
  state = learner_programs.state(config, model, mesh)
  frozen = mesh_lib.device_bytes(sharded_params(model, mesh, frozen=True))
  lora = config.policy.lora_rank > 0
  return {
      'policy': mesh_lib.device_bytes(state.params),
      'moments': mesh_lib.device_bytes(state.opt_state),
      'reference': frozen *
      keeps_reference(config, references.find(config.policy.init)),
      'merged adapters': frozen * lora,
  }


def shares_judge(config: Config, origin: references.Reference) -> bool:
  """Whether the judge is the frozen copy of the starting policy.

  Args:
    config: of a training run whose reward uses a judge.
    origin: of the policy.
  """
  policy, judge = config.policy, config.judge
  return (origin.is_folder and not policy.random and not judge.weights
          and judge.dtype == policy.dtype
          and references.folder_of(judge.init) == origin.folder)


def keeps_reference(config: Config, origin: references.Reference) -> bool:
  """Whether a frozen copy of the starting policy is kept beside it."""
  if config.policy.lora_rank:
    return True
  if config.run != 'train':
    return False
  reward = rewards.lookup(config.reward)
  return (bool(config.loss.kl_coef) or reward.uses_reference
          or reward.uses_judge and shares_judge(config, origin))


def policy_model(config: Config) -> ModelConfig:
  """The decoder that trains, as the config sets it up."""
  cfg = config.policy
  model = model_config.read_config(references.find(cfg.init).folder)
  model = dataclasses.replace(model, dtype=cfg.dtype, remat=cfg.remat,
                              attention=cfg.attention)
  return model_config.for_length(model, longest(config))


def decoders(config: Config) -> tuple[ModelConfig, ModelConfig | None]:
  """The policy, and the judge if there is one of its own parameters."""
  policy = policy_model(config)
  if not (uses_judge(config)
          and not shares_judge(config, references.find(config.policy.init))):
    return policy, None
  return policy, factory.engine_options(config)[0]


def uses_judge(config: Config) -> bool:
  """Whether the run loads a judge."""
  return config.run == 'train' and rewards.lookup(config.reward).uses_judge


def models(config: Config, mesh: jax.sharding.Mesh) -> Models:
  """Sizes the engines of a training run by what is alive beside them.

  Args:
    config: of the run; its models' config.json are read, no weights.
    mesh: to train on.

  Raises:
    InputError: there is no such model, or a pool cannot hold a single row.
  """
  sampling = mesh_lib.rollout_mesh(mesh, config.mesh.rollout_tensor)
  origin = references.find(config.policy.init)
  cfg = config.policy
  policy = dataclasses.replace(model_config.read_config(origin.folder),
                               dtype=cfg.dtype, remat=cfg.remat,
                               attention=cfg.attention)
  policy = model_config.for_length(policy, longest(config))
  sizes = trained(config, policy, mesh)
  always = sizes['policy'] + sizes['reference']
  always += 0 if config.optim.offload else sizes['moments']
  rollout = sampler.engine_options(config, policy)
  if not uses_judge(config):
    reserved = always + sizes['merged adapters']
    return Models(policy, None, False,
                  dataclasses.replace(rollout, reserved=reserved), None)
  # The judge: while it runs, the policy's copy and pool are gone, unless both
  # engines run (overlap).
  judge, judging = factory.engine_options(config)
  judge = model_config.for_length(judge, judging.max_tokens)
  shared = shares_judge(config, origin)
  own = 0 if shared else options_lib.weight_bytes(judging, judge, sampling)
  reserved = always
  if config.judge.overlap:
    reserved += options_lib.weight_bytes(rollout, policy, sampling)
    reserved += options_lib.workspace(rollout, policy, sampling)
    reserved += sizes['merged adapters']
    judging = dataclasses.replace(judging, share=_JUDGE_SHARE)
  judging = dataclasses.replace(judging, reserved=reserved)
  reserved = always + own + sizes['merged adapters']
  if config.judge.overlap:
    reserved += options_lib.pool_bytes(judging, judge, sampling)
    reserved += options_lib.workspace(judging, judge, sampling)
    reserved += options_lib.weight_bytes(judging, judge, sampling) - own
  return Models(policy, judge, shared,
                dataclasses.replace(rollout, reserved=reserved), judging)


def account(config: Config, mesh: jax.sharding.Mesh) -> Account:
  """Adds up what a training run keeps on each device, with estimates of what
  its programs take.

  Args:
    config: of the run.
    mesh: to train on.

  Raises:
    InputError: as `models`.
  """
  found = models(config, mesh)
  sampling = mesh_lib.rollout_mesh(mesh, config.mesh.rollout_tensor)
  sizes = trained(config, found.policy, mesh)
  rollout = ('rollout', 'judge') if config.judge.overlap else ('rollout',)
  judging = ('rollout', 'judge') if config.judge.overlap else ('judge',)
  owners: dict[str, tuple[int, tuple[str, ...]]] = {
      'policy': (sizes['policy'], PHASES),
      'moments': (sizes['moments'],
                  ('optimizer',) if config.optim.offload else PHASES),
      'gradient': (sizes['policy'], ('gradient', 'optimizer')),
      'reference': (sizes['reference'], PHASES),
      'merged adapters': (sizes['merged adapters'], ('copy', *rollout)),
      'sampling copy': (options_lib.weight_bytes(found.rollout, found.policy,
                                                 sampling), ('copy', *rollout)),
      'policy pages': (options_lib.pool_bytes(found.rollout, found.policy,
                                              sampling), rollout),
  }
  if found.judging and found.judge:
    owners['judge'] = (options_lib.weight_bytes(found.judging, found.judge,
                                                sampling),
                       judging if found.shared else PHASES)
    owners['judge pages'] = (options_lib.pool_bytes(found.judging, found.judge,
                                                    sampling), judging)
  return Account(owners, _workspaces(config, found, mesh, sampling),
                 chips.memory_limit(mesh.devices.flat[0]))


def _workspaces(config: Config, found: Models, mesh: jax.sharding.Mesh,
                sampling: jax.sharding.Mesh) -> dict[str, float]:
  """Estimates what the programs of each phase take."""
  rollout = options_lib.workspace(found.rollout, found.policy, sampling)
  logprob = estimates.logprobs(config, found.policy, mesh)
  out = {
      'copy': estimates.copy(found.policy, sampling), 'rollout': float(rollout),
      'logprob': logprob,
      'gradient': estimates.gradient(config, found.policy, mesh),
      'optimizer': 0.1 * trained(config, found.policy, mesh)['policy']
  }
  if found.judging and found.judge:
    out['judge'] = float(
        options_lib.workspace(found.judging, found.judge, sampling))
  return out
