"""The device mesh and the rules that map logical array axes onto it."""

from collections.abc import Sequence
import functools
import json
import math
from typing import Any, NamedTuple

from absl import logging
import jax
from jax.experimental import multihost_utils
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
)
import numpy as np

from exprl_jax import config as config_lib
from exprl_jax.types import InputError

AXES = ('data', 'fsdp', 'expert', 'tensor')

# Logical axis of a parameter or activation -> mesh axes.
RULES: dict[str | None, tuple[str, ...]] = {
    'batch': ('data', 'fsdp', 'expert'),
    'batch_of_experts': ('data', 'fsdp'),  # all tokens that meet an expert
    'embed': ('fsdp',),
    'experts': ('expert',),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'mlp': ('tensor',),
    'vocab': ('tensor',),
    'layers': (),
    'head_dim': (),
    'norm': (),
    'router': (),
}


def make_mesh(cfg: config_lib.Mesh,
              devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Makes a mesh with axes (data, fsdp, expert, tensor) over all devices.

  The last axis is the innermost: tensor joins chips of a host if that has
  enough of them, then come the hosts of a slice, then slices.

  Args:
    cfg: axis sizes; at most one is -1 and takes the remaining devices.
    devices: the devices to use; all of them by default.

  Raises:
    InputError: the sizes do not multiply to the number of devices, or an axis
      other than data would span slices.
  """
  sizes = tuple(getattr(cfg, axis) for axis in AXES)
  devices = jax.devices() if devices is None else devices
  devices = _in_order(devices)
  known = int(np.prod([s for s in sizes if s != -1]))
  if sum(s == -1 for s in sizes) > 1 or any(s < 1 and s != -1 for s in sizes):
    raise InputError(
        f'mesh={dict(zip(AXES, sizes))}: sizes are positive, and at most one '
        'of them is -1 (take what is left)')
  if len(devices) % known or -1 not in sizes and known != len(devices):
    raise InputError(
        f'mesh={dict(zip(AXES, sizes))} wants {known} devices'
        f'{" or a multiple" if -1 in sizes else ""}, there are {len(devices)}'
        f'{"" if -1 in sizes else "; -1 for one axis takes what is left"}')
  sizes = tuple(len(devices) // known if s == -1 else s for s in sizes)
  slices = len({slice_of(d) for d in devices})
  if sizes[0] % slices:
    raise InputError(
        f'mesh.data={sizes[0]} on {slices} slices: parameters would be sharded '
        'over the slow network between them. --config.mesh.data='
        f'{slices} --config.mesh.fsdp=-1 gives every slice a copy')
  return Mesh(
      np.array(devices).reshape(sizes), AXES,
      axis_types=(AxisType.Auto,) * len(AXES))


def _in_order(devices: Sequence[jax.Device]) -> list[jax.Device]:
  """Sorts devices: neighbors are of one host, then of one slice."""
  return sorted(devices, key=lambda d: (slice_of(d), d.process_index, d.id))


def slice_of(device: jax.Device) -> int:
  """The number of the slice that a device is in; 0 where there are none."""
  return getattr(device, 'slice_index', None) or 0


def spec(logical: Sequence[str | None], shape: Sequence[int],
         mesh: Mesh | AbstractMesh) -> PartitionSpec:
  """Partitions one array. Mesh axes that do not divide it are left out.

  Args:
    logical: a name of RULES for each axis, or None; other names replicate.
    shape: of the array.
    mesh: to partition over.

  Raises:
    InputError: two axes of the array map to the same mesh axis.
  """
  out: list[tuple[str, ...] | None] = []
  used: set[str] = set()
  for name, size in zip(logical, shape, strict=True):
    wanted = tuple(a for a in RULES.get(name, ()) if mesh.shape[a] > 1)
    if used & set(wanted):
      raise InputError(f'axes {tuple(logical)} use mesh axis {wanted} twice')
    axes = _dividing(size, wanted, mesh)
    if axes != wanted:
      _warn_once(name, size, wanted, axes)
    used |= set(axes)
    out.append(axes or None)
  # As compiled programs return it: P() and P(None) are one sharding, and two
  # keys of jit's cache.
  while out and out[-1] is None:
    out.pop()
  return PartitionSpec(*out)


def _dividing(size: int, axes: tuple[str, ...],
              mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
  """Selects the mesh axes, from the first, whose product divides a size."""
  while size % int(np.prod([mesh.shape[a] for a in axes])):
    axes = axes[:-1]
  return axes


@functools.cache
def _warn_once(name: str | None, size: int, wanted: tuple[str, ...],
               axes: tuple[str, ...]) -> None:
  logging.warning('axis %r of size %d does not divide over mesh axes %s: %s',
                  name, size, wanted,
                  f'only over {axes}' if axes else 'it is replicated')


def split_axes(logical: str, size: int,
               mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
  """Lists the mesh axes that an array's logical axis is split over."""
  for entry in spec((logical,), (size,), mesh):
    return (entry,) if isinstance(entry, str) else tuple(entry)
  return ()


def shardings(logical: Any, abstract: Any, mesh: Mesh) -> Any:
  """Makes a tree of NamedShardings.

  Args:
    logical: tree of tuples of logical axes.
    abstract: the same tree of arrays or shapes.
    mesh: to shard over.
  """
  return jax.tree.map(
      lambda axes, array: NamedSharding(mesh, spec(axes, array.shape, mesh)),
      logical, abstract, is_leaf=lambda x: isinstance(x, tuple))


def batch_parts(mesh: Mesh) -> int:
  """Counts the parts that the rows of a batch are split into."""
  return int(np.prod([mesh.shape[a] for a in RULES['batch']]))


def device_bytes(tree: Any) -> int:
  """Bytes that sharded arrays, or ShapeDtypeStructs, take on each device."""
  return sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(tree))


def platform() -> str:
  """The platform of the mesh in context; without one, that of this process.

  They differ where a program is compiled ahead of time.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def vocab_parts(size: int) -> int:
  """Counts the parts that a vocabulary is split into on the mesh in context."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return 1
  return math.prod(mesh.shape[a] for a in split_axes('vocab', size, mesh))


def split(shape: Sequence[int], axis: int, mesh: Mesh) -> NamedSharding:
  """Shards one axis over as many devices as divide it."""
  axes = tuple(a for a in mesh.axis_names if mesh.shape[a] > 1)
  return NamedSharding(
      mesh,
      PartitionSpec(*(None,) * axis,
                    _dividing(shape[axis], axes, mesh) or None))


def rollout_mesh(mesh: Mesh, tensor: int) -> Mesh:
  """Arranges the same devices for sampling.

  Args:
    mesh: of training.
    tensor: size of the tensor axis: so many devices share a copy of the
      parameters, and data takes the other axes but `expert`. 0: `mesh` itself.

  Raises:
    InputError: the devices do not divide.
  """
  if not tensor:
    return mesh
  expert, rest = mesh.shape['expert'], mesh.size // mesh.shape['expert']
  if rest % tensor:
    raise InputError(f'mesh.rollout_tensor={tensor} does not divide the '
                     f'{rest} devices of data, fsdp and tensor')
  return Mesh(mesh.devices.reshape(rest // tensor, 1, expert, tensor), AXES,
              axis_types=(AxisType.Auto,) * len(AXES))


class Meshes(NamedTuple):
  """Which devices do what.

  Attributes:
    train: they train.
    sample: they sample; the same devices, unless rollout.source='async'.
    judge: they judge; the devices that train.
  """

  train: Mesh
  sample: Mesh
  judge: Mesh

  @property
  def split(self) -> bool:
    """Whether sampling has devices of its own."""
    return not set(self.train.devices.flat) & set(self.sample.devices.flat)

  @property
  def devices(self) -> list[jax.Device]:
    """All of them."""
    both = [*self.train.devices.flat, *self.sample.devices.flat]
    return list(dict.fromkeys(both))


def meshes(config: config_lib.Config,
           devices: Sequence[jax.Device] | None = None) -> Meshes:
  """Arranges devices for a training run.

  Args:
    config: its `mesh`, and rollout.source.
    devices: the devices to use; all of them by default.

  Raises:
    InputError: as make_mesh and rollout_mesh, or there are too few devices to
      split.
  """
  cfg = config.mesh
  devices = jax.devices() if devices is None else list(devices)
  if config.run != 'train' or config.rollout.source != 'async':
    train = make_mesh(cfg, devices)
    same = rollout_mesh(train, cfg.rollout_tensor)
    return Meshes(train, same, same)
  if jax.process_count() > 1:
    raise InputError("config.rollout.source='async' is for one process: a "
                     'host with all devices')
  count = cfg.sampling_devices or len(devices) // 2
  if not 0 < count < len(devices):
    raise InputError(
        f"config.rollout.source='async': of {len(devices)} devices {count} "
        'cannot sample while others train (mesh.sampling_devices)')
  devices = _in_order(devices)
  train = make_mesh(cfg, devices[:-count])
  sampling = make_mesh(config_lib.Mesh(data=-1, fsdp=1), devices[-count:])
  return Meshes(train, rollout_mesh(sampling, cfg.rollout_tensor or cfg.tensor),
                rollout_mesh(train, cfg.rollout_tensor))


def barrier(name: str) -> None:
  """Waits for all processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def fetch(tree: Any) -> Any:
  """Copies global arrays to numpy arrays, complete in every process."""
  if jax.process_count() == 1:
    return jax.tree.map(np.asarray, tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def gather(x: np.ndarray) -> np.ndarray:
  """Stacks the host values of all processes: [n, ...] of [...]."""
  return multihost_utils.process_allgather(x).reshape(-1, *x.shape)


def broadcast(value: Any) -> Any:
  """Returns the value of process 0, which JSON can hold, in every process."""
  if jax.process_count() == 1:
    return value
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = multihost_utils.broadcast_one_to_all(np.int32(len(data)))
  data = multihost_utils.broadcast_one_to_all(np.resize(data, int(size)))
  return json.loads(np.asarray(data).tobytes())


def is_mine(i: int) -> bool:
  """Whether part `i` of work that processes share is this process's."""
  return i % jax.process_count() == jax.process_index()


def everywhere(value: Any) -> list[Any]:
  """Returns the values of all processes, which JSON can hold, to each."""
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = gather(np.array([len(data)], np.int32))[:, 0]
  rows = gather(np.resize(data, int(sizes.max())))
  return [json.loads(row[:n].tobytes()) for row, n in zip(rows, sizes)]


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
  """Pins an activation to the mesh in context (`jax.set_mesh`), if any."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(logical, x.shape, mesh))


def shard_rows(tree: Any, mesh: Mesh) -> Any:
  """Puts host arrays on the mesh, their first axis split as `batch`."""

  def put(x: np.ndarray) -> jax.Array:
    x = np.asarray(x)
    axes = ('batch', *(None,) * (x.ndim - 1))
    sharding = NamedSharding(mesh, spec(axes, x.shape, mesh))
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(put, tree)
