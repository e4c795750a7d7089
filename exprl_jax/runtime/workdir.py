"""Who owns a workdir: a run is resumed only with its own config."""

import dataclasses
import json
from typing import Any

from etils import epath
import jax
import ml_collections

from exprl_jax import config as config_lib
from exprl_jax.config import Config
from exprl_jax.runtime import checkpoints, files, starts
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError

# Keys and groups of keys that may change when a run is resumed.
_MAY_CHANGE = frozenset({
    'eval',
    'checkpoint',
    'watchdog_minutes',
    'compare',
    'compile_cache',
    'profile',
    'log',
    'sample',
    'traces',
    'export',
    'calibration',
    # Where and in what portions things are computed.
    'mesh',
    'policy.remat',
    'optim.row_tokens',
    'optim.micro_rows',
    'optim.offload',
    'rollout.slots',
    'rollout.pages',
    'judge.slots',
    'judge.pages',
    'judge.endpoint',  # a service may move; endpoint_model says what it is
    'judge.endpoint_key',
    'judge.endpoint_requests',
    'judge.endpoint_timeout',
    'judge.endpoint_retries',
    'grading.workers'
})


def check(workdir: epath.PathLike, config: Config) -> None:
  """Checks that the workdir is empty, or holds this very run.

  Raises:
    InputError: it holds a run with another config, or something else.
  """
  workdir = epath.Path(workdir)
  path = workdir / 'config.json'
  if path.exists():
    old = read(workdir)
    if different := _differences(old, config):
      raise InputError(
          f'--workdir={workdir} holds another run: {", ".join(different[:5])} '
          'differ; choose an empty --workdir, or the same config to resume')
  elif workdir.exists() and not all(map(files.is_hidden, workdir.iterdir())):
    raise InputError(f'--workdir={workdir} is not empty and holds no run; '
                     'choose an empty --workdir')


def check_resume(workdir: str, how: str) -> None:
  """Checks the flag --resume: 'always' wants a run with checkpoints, 'never'
  wants none.

  Raises:
    InputError: the workdir is not so.
  """
  if how == 'always' and not (workdir and checkpoints.steps(workdir)):
    raise InputError(f'--resume=always: --workdir={workdir} has no checkpoint; '
                     'check the path, or start with --resume=auto')
  if how == 'never' and workdir and (epath.Path(workdir) /
                                     'config.json').exists():
    raise InputError(f'--resume=never: --workdir={workdir} holds a run; choose '
                     'another, or go on with it with --resume=auto')


def read(workdir: epath.PathLike) -> dict[str, Any]:
  """Reads the config.json of a run.

  Raises:
    InputError: there is none, or it is damaged.
  """
  path = epath.Path(workdir) / 'config.json'
  try:
    old = json.loads(path.read_bytes())
  except FileNotFoundError:
    raise InputError(f'{path}: no such file; --workdir={workdir} holds no '
                     'run') from None
  except (ValueError, RecursionError):
    old = None
  if not isinstance(old, dict):
    raise InputError(f'{path}: not the JSON of a config; put it back, or '
                     'choose another --workdir')
  return old


def values(workdir: epath.PathLike) -> ml_collections.ConfigDict:
  """The config of a run, keys that it did not have yet at their defaults.

  Raises:
    InputError: there is none, or it is damaged.
  """
  full = ml_collections.ConfigDict(dataclasses.asdict(Config()))
  return config_lib.overlay(full, ml_collections.ConfigDict(read(workdir)),
                            f'{workdir}/config.json')


def _differences(old: dict[str, Any], config: Config) -> list[str]:
  """Keys that differ and must not; keys the run did not have yet count as
  their defaults."""
  may_change = _MAY_CHANGE
  if config.optim.schedule == 'constant':  # else the schedule depends on it
    may_change |= {'steps'}
  before = flat(_as_json(Config())) | flat(old)
  now = flat(_as_json(config))
  return sorted(k for k in before.keys() | now.keys()
                if k not in may_change and k.split('.')[0] not in may_change
                and before.get(k) != now.get(k))


def claim(workdir: epath.PathLike, config: Config) -> None:
  """Makes the workdir this run's: checks it and writes its config.json."""
  check(workdir, config)
  mesh_lib.barrier('claim')
  if jax.process_index():
    return
  path = epath.Path(workdir) / 'config.json'
  text = files.dumps(_as_json(config), indent=1, sort_keys=True) + '\n'
  if not path.exists() or path.read_bytes() != text.encode():
    files.write(path, text)
  starts.note(workdir)


def _as_json(config: Config) -> dict[str, Any]:
  return json.loads(json.dumps(dataclasses.asdict(config)))


def flat(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """Values by their keys: {'optim.lr': 1e-4}."""
  out: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      out |= flat(value, f'{prefix}{key}.')
    else:
      out[prefix + key] = value
  return out
