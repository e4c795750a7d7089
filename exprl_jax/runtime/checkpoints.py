"""Orbax checkpoints: the training state, and what the host keeps beside it."""

from collections.abc import Mapping
from typing import Any, Protocol

from etils import epath
import jax
import orbax.checkpoint as ocp

from exprl_jax.config import Checkpoint
from exprl_jax.runtime import files
from exprl_jax.types import InputError, Params, TrainState

_FOLDER, _STATE, _HOST = 'checkpoints', 'state', 'host'


def steps(workdir: epath.PathLike) -> list[int]:
  """The steps of the complete checkpoints of a workdir, in order."""
  folder = epath.Path(workdir) / _FOLDER
  if not folder.exists():
    return []
  return sorted(
      int(p.name)
      for p in folder.iterdir()
      if p.name.isdigit() and (p / _STATE).exists())


def restore_params(workdir: epath.PathLike, step: int,
                   abstract: Params) -> tuple[int, Params]:
  """The parameters of a checkpoint, without the optimizer.

  Args:
    workdir: of a run that has checkpoints.
    step: 0 is the newest.
    abstract: ShapeDtypeStructs with the shardings to restore to.

  Returns:
    (step, parameters).

  Raises:
    InputError: no such step, or parameters of another shape.
  """
  available = steps(workdir)
  step = step or available[-1]
  if step not in available:
    raise InputError(f'{workdir}: no checkpoint of step {step}; it has '
                     f'{", ".join(map(str, available))}')
  item = {'params': abstract}
  path = files.absolute(workdir) / _FOLDER / f'{step:08d}' / _STATE
  with ocp.PyTreeCheckpointer() as checkpointer:
    try:
      restored = checkpointer.restore(
          path, args=ocp.args.PyTreeRestore(
              item=item, partial_restore=True,
              restore_args=ocp.checkpoint_utils.construct_restore_args(item)))
    except ValueError as e:
      raise InputError(f'{path}: not the parameters of the model it started '
                       f'from ({str(e).splitlines()[0]})') from None
  return step, restored['params']


class HasState(Protocol):
  """An object on the host whose state a resumed run needs."""

  def state(self) -> Any:
    """Its state, of what JSON can hold."""

  def restore(self, state: Any) -> None:
    """Takes over what `state` returned."""


class Checkpoints:
  """The training states of one workdir; saving is asynchronous."""

  def __init__(self, workdir: epath.Path, cfg: Checkpoint,
               host: Mapping[str, HasState] | None = None):
    """Opens the folder.

    Args:
      workdir: of the run.
      cfg: how often to save, and how many to keep.
      host: by name, the objects whose state is saved and restored along.
    """
    self._every, self._host = cfg.every, dict(host or {})
    self._manager = ocp.CheckpointManager(
        files.absolute(workdir / _FOLDER), options=ocp.CheckpointManagerOptions(
            preservation_policy=(
                ocp.checkpoint_managers.preservation_policy.LatestN(cfg.keep)),
            step_format_fixed_length=8, cleanup_tmp_directories=True))

  def restore(self, state: TrainState) -> tuple[int, TrainState]:
    """Restores the newest checkpoint and the objects on the host.

    Args:
      state: gives the structure, types and shardings to restore to; it is
        deleted.

    Returns:
      Its step and state; (0, `state`) when there is none.
    """
    step = self._manager.latest_step()
    if step is None:
      return 0, state
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        state)
    for x in jax.tree.leaves(state):  # or there were two of them
      x.delete()
    restored = self._manager.restore(
        step, args=ocp.args.Composite(
            **{
                _STATE: ocp.args.StandardRestore(abstract),
                _HOST: ocp.args.JsonRestore()
            }))
    for name, owner in self._host.items():
      owner.restore(restored[_HOST][name])
    return step, restored[_STATE]

  def save(self, step: int, state: TrainState, last: bool = False) -> None:
    """Saves if a checkpoint is due after this step, or if it is the last."""
    due = self._every and step % self._every == 0
    if (due or last) and step not in self._manager.all_steps():
      host = {name: owner.state() for name, owner in self._host.items()}
      self._manager.save(
          step, args=ocp.args.Composite(**{
              _STATE: ocp.args.StandardSave(state), _HOST: ocp.args.JsonSave(
                  host)
          }))

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()
