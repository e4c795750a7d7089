"""Orbax checkpoints of the training state, and who owns a workdir."""

import dataclasses
import json
import pathlib

from etils import epath
import jax
import orbax.checkpoint as ocp

from exprl_jax.config import Checkpoint, Config
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError, TrainState

_FOLDER, _ITEM, _HOST = 'checkpoints', 'state', 'host'
# Keys that may change when a run goes on; steps, unless a schedule needs them.
_FREE = (
    'steps',
    'eval',
    'checkpoint',
    'compare',
    'sample',
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
    'grading.workers')


def check_workdir(workdir: pathlib.Path, config: Config) -> None:
  """Checks that the workdir is free, or holds this very run.

  Raises:
    InputError: it holds a run with another config, or something else.
  """
  path = workdir / 'config.json'
  new = _as_json(config)
  if path.exists():
    try:
      old = json.loads(path.read_text())
    except json.JSONDecodeError:
      raise InputError(f'{path}: not JSON; choose another --workdir') from None
    free = _FREE if config.optim.schedule == 'constant' else _FREE[1:]
    # Keys that the run did not have yet stand at their defaults.
    old = _flat(_as_json(Config())) | _flat(old)
    new = _flat(new)
    different = sorted(k for k in old.keys() | new.keys()
                       if k not in free and k.split('.')[0] not in free
                       and old.get(k) != new.get(k))
    if different:
      raise InputError(
          f'--workdir={workdir} holds another run: {", ".join(different[:5])} '
          'differ; choose a fresh --workdir, or the same config to resume')
  elif workdir.exists() and any(workdir.iterdir()):
    raise InputError(f'--workdir={workdir} is not empty and holds no run; '
                     'choose a fresh --workdir')


def claim(workdir: pathlib.Path, config: Config) -> None:
  """Makes the workdir this run's: writes its config.json."""
  check_workdir(workdir, config)
  mesh_lib.barrier('claim')
  if jax.process_index():
    return
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / 'config.json'
  ).write_text(json.dumps(_as_json(config), indent=1, sort_keys=True) + '\n')


def _as_json(config: Config) -> dict:
  return json.loads(json.dumps(dataclasses.asdict(config)))


def _flat(tree: dict, prefix: str = '') -> dict:
  out = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      out |= _flat(value, f'{prefix}{key}.')
    else:
      out[prefix + key] = value
  return out


def steps(workdir: epath.PathLike) -> list[int]:
  """The steps of the complete checkpoints of a workdir, in order."""
  folder = epath.Path(workdir) / _FOLDER
  if not folder.exists():
    return []
  return sorted(
      int(p.name)
      for p in folder.iterdir()
      if p.name.isdigit() and (p / _ITEM).exists())


def restore_params(workdir: epath.PathLike, step: int, abstract):
  """The parameters of a checkpoint, without the optimiser.

  Args:
    workdir: of a run that has checkpoints.
    step: 0 is the newest.
    abstract: ShapeDtypeStructs with the shardings to restore to.

  Returns:
    (step, parameters).

  Raises:
    InputError: no such step, or parameters of another shape.
  """
  have = steps(workdir)
  step = step or have[-1]
  if step not in have:
    raise InputError(f'{workdir}: no checkpoint of step {step}; it has '
                     f'{", ".join(map(str, have))}')
  item = {'params': abstract}
  path = epath.Path(workdir).resolve() / _FOLDER / f'{step:08d}' / _ITEM
  with ocp.PyTreeCheckpointer() as checkpointer:
    try:
      found = checkpointer.restore(
          path, args=ocp.args.PyTreeRestore(
              item=item, partial_restore=True,
              restore_args=ocp.checkpoint_utils.construct_restore_args(item)))
    except ValueError as e:
      raise InputError(f'{path}: not the parameters of the model it started '
                       f'from ({str(e).splitlines()[0]})') from None
  return step, found['params']


class Checkpoints:
  """The training states of one workdir; saving is asynchronous."""

  def __init__(self, workdir: pathlib.Path, cfg: Checkpoint):
    self._every = cfg.every
    self._manager = ocp.CheckpointManager(
        (workdir / _FOLDER).absolute(), options=ocp.CheckpointManagerOptions(
            preservation_policy=(
                ocp.checkpoint_managers.preservation_policy.LatestN(cfg.keep)),
            step_format_fixed_length=8, cleanup_tmp_directories=True))

  def restore(self, state: TrainState) -> tuple[int, TrainState, dict]:
    """The newest step, its state and what the host kept beside it; (0, `state`,
    {}) when there is none.

    Args:
      state: gives the structure, types and shardings to restore to; it is
        deleted.
    """
    step = self._manager.latest_step()
    if step is None:
      return 0, state, {}
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        state)
    for x in jax.tree.leaves(state):  # or there were two of them
      x.delete()
    found = self._manager.restore(
        step, args=ocp.args.Composite(
            **{
                _ITEM: ocp.args.StandardRestore(abstract),
                _HOST: ocp.args.JsonRestore()
            }))
    return step, found[_ITEM], found[_HOST]

  def save(self, step: int, state: TrainState, host: dict | None = None,
           last: bool = False) -> None:
    """Saves if a checkpoint is due at this step, or if it is the last.

    Args:
      step: steps that are done.
      state: of the training.
      host: what else a resumed run needs, of what JSON can hold.
      last: see above.
    """
    due = self._every and step % self._every == 0
    if (due or last) and step not in self._manager.all_steps():
      self._manager.save(
          step, args=ocp.args.Composite(
              **{
                  _ITEM: ocp.args.StandardSave(state), _HOST: ocp.args.JsonSave(
                      host or {})
              }))

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()
