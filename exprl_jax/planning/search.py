"""What to change in a config that does not fit, one key at a time."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import operator
from typing import Any

from absl import logging
import jax

from exprl_jax.config import Config
from exprl_jax.models.config import ModelConfig
from exprl_jax.planning import memory
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError

Changes = dict[str, Any]  # key -> value
_LEAST_SLOTS = 16
_MOST_CHANGES = 16


def fit(config: Config, devices: Sequence[jax.Device],
        weigh: Callable[[Config], memory.Account | None]) -> Changes | None:
  """Changes keys until a run fits.

  Args:
    config: of a training run.
    devices: that the run has.
    weigh: a config -> its account; None where a pool cannot hold a row.

  Returns:
    The changes in order; {} if it fits as it is, None if nothing helps.
  """
  changes: Changes = {}
  for _ in range(_MOST_CHANGES):
    account = weigh(config)
    if account and account.fits:
      return changes
    phase = account.peak()[1] if account else 'rollout'
    change = next(_remedies(config, devices, phase), None)
    if change is None:
      return None
    changes[change[0]] = change[1]
    config = with_keys(config, {change[0]: change[1]})
  return None


def suggest(config: Config, devices: Sequence[jax.Device]) -> Changes | None:
  """As `fit`, by the estimates of memory.account: nothing is compiled."""
  return fit(config, devices, lambda c: estimated(c, devices))


def estimated(config: Config,
              devices: Sequence[jax.Device]) -> memory.Account | None:
  """The account of a config on its devices; None: no room for pages."""
  try:
    return memory.account(config, mesh_lib.meshes(config, devices))
  except memory.NoRoomError:
    return None


def _remedies(config: Config, devices: Sequence[jax.Device],
              phase: str) -> Iterator[tuple[str, Any]]:
  """Yields changes that help a phase, the cheapest first."""
  optim, policy = config.optim, config.policy
  models = memory.decoders(config)
  meshes = mesh_lib.meshes(config, devices)
  training = phase in ('logprob', 'gradient', 'optimizer')
  if training and optim.micro_rows > 1:
    yield 'optim.micro_rows', 1
  if training and policy.remat in ('none', 'dots', 'save_attention'):
    yield 'policy.remat', 'full'
  if not optim.offload:
    yield 'optim.offload', True
  if phase == 'gradient' and policy.remat == 'full':
    yield 'policy.remat', 'offload'
  if not training and (tensor := _doubled(config, meshes, models)):
    yield 'mesh.rollout_tensor', tensor
  if models[1] and not config.judge.weights:
    yield 'judge.weights', 'int8'
  if training and meshes.train.size % (2 * config.mesh.tensor) == 0 and (
      models[0].num_kv_heads % (2 * config.mesh.tensor) == 0):
    yield 'mesh.tensor', 2 * config.mesh.tensor
  if phase == 'judge' and config.judge.slots > _LEAST_SLOTS:
    yield 'judge.slots', config.judge.slots // 2
  if not training and config.rollout.slots > _LEAST_SLOTS:
    yield 'rollout.slots', config.rollout.slots // 2


def _doubled(config: Config, meshes: mesh_lib.Meshes,
             models: tuple[ModelConfig, ModelConfig | None]) -> int:
  """Twice the devices for a copy to sample with; 0: that does not help."""
  tensor = 2 * (config.mesh.rollout_tensor or config.mesh.tensor)
  heads = [m.num_kv_heads for m in models if m]
  rests = [m.size // config.mesh.expert for m in (meshes.sample, meshes.judge)]
  fits = all(rest % tensor == 0 for rest in rests) and all(
      h % tensor == 0 for h in heads)
  return tensor if fits else 0


def with_keys(config: Config, changes: Changes) -> Config:
  """Returns a config with other values of keys such as 'optim.offload'."""
  for name, value in changes.items():
    section, _, key = name.partition('.')
    group = operator.attrgetter(section)(config)
    config = dataclasses.replace(
        config, **{section: dataclasses.replace(group, **{key: value})})
  return config


def flags(changes: Changes) -> str:
  """Changes as flags of the command."""
  return ' '.join(f'--config.{k}={v}' for k, v in changes.items())


def check(config: Config, devices: Sequence[jax.Device]) -> None:
  """Checks that a run fits on its devices, by estimates.

  Args:
    config: of a training run.
    devices: that the run has.

  Raises:
    InputError: it does not fit; says what would.
  """
  account = estimated(config, devices)
  if account and account.margin >= 0:
    if not account.fits:
      logging.warning(
          "about %.1f %% of a device's memory stays free in phase %s; "
          "run='plan' says more", 100 * account.margin,
          account.peak()[1])
    return
  if account:
    size, phase = account.peak()
    problem = (f'the run takes {size / 1e9:.1f} GB of each device in phase '
               f'{phase}, which has {(account.limit or 0) / 1e9:.1f}')
  else:
    problem = 'beside all that is on a device there is no room for pages'
  changes = suggest(config, devices)
  remedy = f'it fits with {flags(changes)}' if changes else (
      'no change of its keys makes it fit; use more devices')
  raise InputError(f"{problem} (estimated; run='plan' compiles): {remedy}")
