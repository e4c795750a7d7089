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
from exprl_jax.judge import factory, panel
from exprl_jax.models import config as model_config
from exprl_jax.models import references
from exprl_jax.models.abstract import sharded_params
from exprl_jax.models.config import ModelConfig
from exprl_jax.planning import estimates
from exprl_jax.rl import programs as learner_programs
from exprl_jax.rollout import decode, sampler
from exprl_jax.rollout import options as options_lib
from exprl_jax.rollout.options import NoRoomError as NoRoomError
from exprl_jax.rollout.options import Options
from exprl_jax.runtime import chips
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import Params

PHASES = ('copy', 'rollout', 'judge', 'logprob', 'gradient', 'optimizer')
MARGIN = 0.05  # of a device's memory, that stays free
# Owner -> (bytes on each device, phases in which they are there).
Owners = dict[str, tuple[int, tuple[str, ...]]]
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

  def resolved(self, meshes: mesh_lib.Meshes) -> 'Models':
    """With the engines' sizes filled in."""
    judging = self.judging
    if judging and self.judge:
      judging = options_lib.resolve(judging, self.judge, meshes.judge)
    return self._replace(
        rollout=options_lib.resolve(self.rollout, self.policy, meshes.sample),
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

  owners: Owners
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


def shares_judge(config: Config, origin: references.Reference) -> bool:
  """Whether the judge is the frozen copy of the starting policy.

  Args:
    config: of a training run whose reward uses a judge.
    origin: of the policy.
  """
  policy, judge = config.policy, config.judge
  return (bool(panel.local(judge)) and origin.is_folder and not policy.random
          and not judge.weights and judge.dtype == policy.dtype
          and references.folder_of(judge.init) == origin.folder)


def keeps_reference(config: Config, origin: references.Reference) -> bool:
  """Whether a frozen copy of the starting policy is kept beside it."""
  if config.policy.lora_rank:
    return True
  if config.run != 'train':
    return False
  reward = rewards.lookup(config.reward)
  return (bool(config.loss.kl_coef) and not config.reference.init
          or reward.uses_reference and not config.teacher.init
          or reward.uses_judge and shares_judge(config, origin))


def other_frozen(config: Config) -> list[str]:
  """Sources of the frozen models besides the starting policy and the judge."""
  return [x for x in (config.reference.init, config.teacher.init) if x]


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
  """Whether the run loads a judge; one behind an endpoint is none."""
  return (config.run == 'train' and rewards.lookup(config.reward).uses_judge
          and bool(panel.local(config.judge)))


def owners(config: Config, meshes: mesh_lib.Meshes) -> Owners:
  """Lists what a run keeps on each device, without pages.

  Where sampling has devices of its own, `copy` and `rollout` are of these, and
  the other phases of those that train.

  Args:
    config: of the run.
    meshes: which devices do what.
  """
  policy, (mesh, sampling, judge_mesh) = policy_model(config), meshes
  phases = PHASES[2:] if meshes.split else PHASES
  lora, frozen = config.policy.lora_rank > 0, _frozen(policy, mesh)
  state = learner_programs.state(config, policy, mesh)
  rollout = ('rollout', 'judge') if config.judge.overlap else ('rollout',)
  judging = ('rollout', 'judge') if config.judge.overlap else ('judge',)
  size = mesh_lib.device_bytes
  reference = keeps_reference(config, references.find(config.policy.init))
  out: Owners = {
      'policy': (size(state.params), phases),
      'moments': (size(state.opt_state),
                  ('optimizer',) if config.optim.offload else phases),
      'gradient': (size(state.params), ('gradient', 'optimizer')),
      'reference': (size(frozen) * (reference + len(other_frozen(config))),
                    phases), 'sampling adapters': (size(state.params) * lora,
                                                   ('copy', *rollout)),
      'sampling copy': (_copied(frozen if lora else state.params, policy,
                                sampling), ('copy', *rollout))
  }
  if uses_judge(config):
    judge, options = factory.engine_options(config)
    if shares_judge(config, references.find(config.policy.init)):
      out['judge'] = _copied(frozen, judge, judge_mesh), judging
    else:
      out['judge'] = (options_lib.weight_bytes(options, judge,
                                               judge_mesh), phases)
  return out


def _frozen(model: ModelConfig, mesh: jax.sharding.Mesh) -> Params:
  return sharded_params(model, mesh, frozen=True)


def _copied(held: Params, model: ModelConfig, mesh: jax.sharding.Mesh) -> int:
  """Bytes on each device of the copy to sample with; 0: it is what is held."""
  wanted = _frozen(model, mesh)
  return 0 if decode.is_prepared(held,
                                 wanted) else mesh_lib.device_bytes(wanted)


def models(config: Config, meshes: mesh_lib.Meshes) -> Models:
  """Sizes the engines of a training run by what is alive beside them.

  Args:
    config: of the run; its models' config.json are read, no weights.
    meshes: which devices do what.

  Raises:
    InputError: there is no such model.
    NoRoomError: a pool cannot hold a single row.
  """
  policy, (_, sampling, judge_mesh) = policy_model(config), meshes
  kept, overlap = owners(config, meshes), config.judge.overlap

  def reserved(phase: str) -> int:
    return sum(size for size, phases in kept.values() if phase in phases)

  rollout = sampler.engine_options(config, policy)
  rollout = dataclasses.replace(rollout, reserved=reserved('rollout'))
  if not uses_judge(config):
    return Models(policy, None, False, rollout, None)
  judge, judging = factory.engine_options(config)
  judge = model_config.for_length(judge, judging.max_tokens)
  judging = dataclasses.replace(judging, reserved=reserved('judge'))
  if overlap:  # both pools are there: the judge's takes its share first
    other = options_lib.workspace(rollout, policy, sampling)
    judging = dataclasses.replace(judging, share=_JUDGE_SHARE,
                                  reserved=reserved('judge') + other)
    taken = options_lib.pool_bytes(judging, judge, judge_mesh)
    taken += options_lib.workspace(judging, judge, judge_mesh)
    rollout = dataclasses.replace(rollout, reserved=reserved('rollout') + taken)
  shared = shares_judge(config, references.find(config.policy.init))
  return Models(policy, judge, shared, rollout, judging)


def account(config: Config, meshes: mesh_lib.Meshes) -> Account:
  """Adds up what a training run keeps on each device, with estimates of what
  its programs take.

  Args:
    config: of the run.
    meshes: which devices do what.

  Raises:
    InputError: as `models`.
    NoRoomError: as `models`.
  """
  found, kept = models(config, meshes), owners(config, meshes)
  kept['policy pages'] = (options_lib.pool_bytes(found.rollout, found.policy,
                                                 meshes.sample),
                          kept['sampling copy'][1][1:])
  if found.judging and found.judge:
    kept['judge pages'] = (options_lib.pool_bytes(found.judging, found.judge,
                                                  meshes.judge),
                           ('rollout', 'judge') if config.judge.overlap else
                           ('judge',))
  return Account(kept, _workspaces(config, found, meshes),
                 chips.memory_limit(meshes.devices[0]))


def _workspaces(config: Config, found: Models,
                meshes: mesh_lib.Meshes) -> dict[str, float]:
  """Estimates what the programs of each phase take."""
  mesh, sampling, judging = meshes
  rollout = options_lib.workspace(found.rollout, found.policy, sampling)
  logprob = estimates.logprobs(config, found.policy, mesh)
  trained = owners(config, meshes)['policy'][0]
  out = {
      'copy': estimates.copy(found.policy, sampling),
      'rollout': float(rollout),
      'logprob': logprob,
      # A later micro-batch has a gradient of its own beside the total.
      'gradient': estimates.gradient(config, found.policy, mesh) + trained,
      'optimizer': 0.1 * trained
  }
  if found.judging and found.judge:
    out['judge'] = float(
        options_lib.workspace(found.judging, found.judge, judging))
  return out
