"""Orbax checkpoints: the training state, and what the host keeps beside it.

checkpoints/STEP has two items. `state` holds the arrays. `host` holds JSON: the
fingerprint of every array, the versions that saved them, and the state of
objects on the host, under a checksum. A checkpoint is good when all of it reads
back as it was saved; one that is not moves to checkpoints_bad/ and the next
older one is taken.
"""

from collections.abc import Iterator, Mapping
import contextlib
import importlib.metadata
import json
import os
import pathlib
from typing import Any, NamedTuple, Protocol

from etils import epath
import jax
import orbax.checkpoint as ocp

import exprl_jax
from exprl_jax.config import Checkpoint
from exprl_jax.runtime import checkpoint_reading as reading
from exprl_jax.runtime import failures, files, fingerprints
from exprl_jax.types import (
    InputError,
    Params,
    RunFailure,
    StartAgain,
    TrainState,
)

_FOLDER = 'checkpoints'
# After so many saves in a row that failed, a run stops.
_MAX_FAILED_SAVES = 3


class HasState(Protocol):
  """An object on the host whose state a resumed run needs."""

  def state(self) -> Any:
    """Its state, of arrays and what JSON can hold.

    It is asked after every step, and written down at some: so it is cheap, and
    what happens to the object later does not change it.
    """

  def restore(self, state: Any) -> None:
    """Takes over what `state` returned."""


def steps(workdir: epath.PathLike) -> list[int]:
  """The steps of the complete checkpoints of a workdir, in order."""
  return [
      step for step, path in _folders(workdir) if not reading.incomplete(path)
  ]


def restore_params(workdir: epath.PathLike, step: int,
                   abstract: Params) -> tuple[int, Params]:
  """The parameters of a checkpoint, without the optimizer.

  Args:
    workdir: of a run that has checkpoints.
    step: 0 is the newest that reads back as it was saved.
    abstract: ShapeDtypeStructs with the shardings to restore to.

  Returns:
    (step, parameters).

  Raises:
    InputError: no such step, one that is damaged, or parameters of another
      shape.
  """
  available = steps(workdir)
  if step and step not in available:
    raise InputError(f'{workdir}: no checkpoint of step {step}; it has '
                     f'{", ".join(map(str, available))}')
  for at in [step] if step else reversed(available):
    path = _path(workdir, at)
    state, _, why = reading.read(path, {'params': abstract}, partial=True)
    if not why:
      return at, state['params']
    if step:
      raise InputError(f'{path}: damaged ({why}); choose another step of '
                       f'{", ".join(map(str, available))}')
    reading.say(f'{path}: damaged ({why}); taking an older checkpoint')
  raise InputError(f'{workdir}: no checkpoint can be read; it has '
                   f'{", ".join(map(str, available)) or "none"}')


def restore_step(workdir: epath.PathLike, step: int,
                 state: TrainState) -> TrainState:
  """The training state of a step, to look at: nothing is moved or changed.

  Args:
    workdir: of a run.
    step: of its checkpoints.
    state: gives structure, types and shardings; it is deleted.

  Raises:
    InputError: there is no such checkpoint, or it is damaged.
  """
  available = steps(workdir)
  if step not in available:
    raise InputError(
        f'{workdir}: no checkpoint of step {step}; it has '
        f'{", ".join(map(str, available)) or "none"} (checkpoint.keep_every)')
  abstract = _abstract(state)
  for x in jax.tree.leaves(state):  # or there were two of them
    x.delete()
  path = _path(workdir, step)
  restored, _, why = reading.read(path, abstract)
  if why:
    raise InputError(f'{path}: damaged ({why})')
  return restored


class Snapshot(NamedTuple):
  """What a checkpoint of a step needs, as it was when the step ended."""

  step: int
  state: TrainState
  host: dict[str, Any]  # states of objects on the host, by name


class Checkpoints:
  """The training states of one workdir; saving is asynchronous."""

  def __init__(self, workdir: epath.PathLike, cfg: Checkpoint,
               host: Mapping[str, HasState] | None = None):
    """Remembers the folder; `restore` or the first `save` opens it.

    Args:
      workdir: of the run; a bucket's gs:// path, too.
      cfg: how often to save, and which to keep.
      host: by name, the objects whose state is saved and restored along.
    """
    self._workdir, self._cfg = epath.Path(workdir), cfg
    self._host = dict(host or {})
    self._manager: ocp.CheckpointManager | None = None
    self._failed = 0

  def restore(self, state: TrainState) -> tuple[int, TrainState]:
    """Restores the newest good checkpoint and the objects on the host.

    Args:
      state: gives the structure, types and shardings to restore to; it is
        deleted where there is a checkpoint.

    Returns:
      Its step and state; (0, `state`) when there is none.

    Raises:
      InputError: it has other arrays than `state`, or none is good.
    """
    found = list(_folders(self._workdir))
    if not found:
      return 0, state
    abstract = _abstract(state)
    for x in jax.tree.leaves(state):  # or there were two of them
      x.delete()
    for step, path in reversed(found):
      restored, host, why = reading.read(path, abstract)
      if why:
        reading.put_aside(path, why)
        continue
      for name, owner in self._host.items():
        owner.restore(host.host[name])
      return step, restored
    raise InputError(
        f'{self._workdir}: none of its {len(found)} checkpoints can be read; '
        f'they are in {reading.BAD}/; start over in an empty --workdir')

  def snapshot(self, step: int, state: TrainState) -> Snapshot:
    """Takes down a step that ended; `state` itself is not copied."""
    return Snapshot(step, state,
                    {k: owner.state() for k, owner in self._host.items()})

  def save(self, step: int, state: TrainState, last: bool = False) -> None:
    """Saves if a checkpoint is due after this step, or if it is the last."""
    due = self._cfg.every and step % self._cfg.every == 0
    # Where a save failed, the next step tries again.
    if due or last or self._failed:
      self.write(self.snapshot(step, state), again=not last)

  def write(self, taken: Snapshot, again: bool = False) -> None:
    """Saves a snapshot, unless its step has a checkpoint.

    Args:
      taken: whose arrays must still be alive.
      again: a failure that may pass is printed, and the next step saves; after
        three in a row it is raised.

    Raises:
      StartAgain: storage fails.
    """
    try:
      self._write(taken)
      self._failed = 0
    except Exception as e:
      self._failed += 1
      if not failures.transient(e):
        raise
      why = f'checkpoint of step {taken.step} failed ({failures.brief(e)})'
      if not again or self._failed >= _MAX_FAILED_SAVES:
        raise StartAgain(f'{why}, {self._failed} in a row') from e
      reading.say(f'{why}; the next step tries again')

  def _write(self, taken: Snapshot) -> None:
    manager = self._open()
    if taken.step in manager.all_steps():
      return
    manager.wait_until_finished()  # raises what the last save met
    text = json.dumps(
        reading.Host(fingerprints.fingerprints(taken.state), _versions(),
                     taken.host)._asdict(), default=lambda x: x.tolist())
    manager.save(
        taken.step, args=ocp.args.Composite(
            **{
                reading.STATE: ocp.args.StandardSave(taken.state),
                reading.HOST: ocp.args.JsonSave(
                    {'text': text, 'sha256': reading.checksum(text)})
            }))

  @contextlib.contextmanager
  def rescue(self) -> Iterator['Rescue']:
    """Saves the snapshot that was taken last when the block raises.

    Processes save together, so one of several that fails alone saves nothing.
    """
    rescue = Rescue(self)
    try:
      yield rescue
    except Exception as e:
      together = isinstance(e, (StartAgain, RunFailure))
      if together or jax.process_count() == 1:
        rescue.save()
      raise

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      policies = ocp.checkpoint_managers.preservation_policy
      keep = [policies.LatestN(self._cfg.keep)]
      if self._cfg.keep_every:
        keep.append(policies.EveryNSteps(self._cfg.keep_every))
      folder = files.absolute(self._workdir / _FOLDER)
      self._manager = ocp.CheckpointManager(
          folder, options=ocp.CheckpointManagerOptions(
              preservation_policy=policies.AnyPreservationPolicy(keep),
              step_format_fixed_length=8, cleanup_tmp_directories=True,
              temporary_path_class=_temporary_paths(folder)))
    return self._manager

  def close(self) -> None:
    """Waits until everything is on disk."""
    if self._manager is not None:
      self._manager.wait_until_finished()
      self._manager.close()
      self._manager = None


class Rescue:
  """What is saved when the run fails or has to stop."""

  def __init__(self, checkpoints: Checkpoints) -> None:
    self._checkpoints = checkpoints
    self._taken: Snapshot | None = None

  def take(self, step: int, state: TrainState) -> None:
    """Takes down the end of a step."""
    self._taken = self._checkpoints.snapshot(step, state)

  def save(self) -> None:
    """Saves what was taken, if an update has not consumed it."""
    taken, self._taken = self._taken, None
    if taken is None or not taken.step:
      return
    if any(x.is_deleted() for x in jax.tree.leaves(taken.state)):
      return
    try:
      self._checkpoints.write(taken)
      self._checkpoints.close()
      reading.say(f'saved step {taken.step}')
    except Exception as e:  # the first failure is the one to report
      reading.say(f'step {taken.step} could not be saved ({failures.brief(e)})')


def _abstract(state: TrainState) -> TrainState:
  """Shapes, types and shardings of a state."""
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state)


def _folders(workdir: epath.PathLike) -> Iterator[tuple[int, epath.Path]]:
  """(step, folder) of whatever is there under a step's name, in order."""
  folder = epath.Path(workdir) / _FOLDER
  if folder.exists():
    yield from sorted(
        (int(p.name), p) for p in folder.iterdir() if p.name.isdigit())


def _path(workdir: epath.PathLike, step: int) -> epath.Path:
  return epath.Path(workdir) / _FOLDER / f'{step:08d}'


def _versions() -> dict[str, str]:
  return {'exprl_jax': exprl_jax.__version__} | {
      name: importlib.metadata.version(name)
      for name in ('jax', 'flax', 'optax', 'orbax-checkpoint')
  }


def _temporary_paths(folder: epath.Path) -> Any:
  """How Orbax saves: by a renamed folder; on a mounted bucket, which cannot
  rename folders, in place with a file that marks the end."""
  if files.is_remote(folder) or not os.path.exists('/proc/mounts'):
    return None
  mounts = [
      line.split()[1:3]
      for line in pathlib.Path('/proc/mounts').read_text().splitlines()
  ]
  under = [(len(at), kind)
           for at, kind in mounts
           if folder.is_relative_to(at.encode().decode('unicode_escape'))]
  if max(under, default=(0, ''))[1].startswith('fuse'):
    return ocp.path.atomicity.CommitFileTemporaryPath
  return None
