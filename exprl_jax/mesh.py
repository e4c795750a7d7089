"""The device mesh and the rules that map logical array axes onto it."""

from collections.abc import Sequence
import logging

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from exprl_jax.types import InputError

AXES = ('data', 'fsdp', 'tensor')

# Logical axis of a parameter or activation -> mesh axes.
RULES = {
    'batch': ('data', 'fsdp'),
    'embed': ('fsdp',),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'mlp': ('tensor',),
    'vocab': ('tensor',),
    'layers': (),
    'head_dim': (),
    'norm': (),
}


def make_mesh(cfg, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh with axes (data, fsdp, tensor) over all devices.

  Args:
    cfg: config.Mesh: axis sizes; at most one is -1 and takes what is left.
    devices: the devices to use; all of them by default.

  Raises:
    InputError: the sizes do not multiply to the number of devices.
  """
  sizes = tuple(getattr(cfg, axis) for axis in AXES)
  devices = jax.devices() if devices is None else list(devices)
  known = int(np.prod([s for s in sizes if s != -1]))
  if sum(s == -1 for s in sizes) > 1 or any(s < 1 and s != -1 for s in sizes):
    raise InputError(
        f'mesh={dict(zip(AXES, sizes))}: sizes are positive, and at most one '
        'of them is -1 (take what is left)')
  sizes = tuple(len(devices) // known if s == -1 else s for s in sizes)
  if int(np.prod(sizes)) != len(devices):
    raise InputError(
        f'mesh={dict(zip(AXES, sizes))} wants {int(np.prod(sizes))} devices, '
        f'there are {len(devices)}; set one axis to -1 to take what is left')
  return Mesh(np.array(devices).reshape(sizes), AXES,
              axis_types=(AxisType.Auto,) * len(AXES))


def spec(logical: Sequence[str | None], shape: Sequence[int],
         mesh: Mesh) -> PartitionSpec:
  """The partition of one array; an axis that does not divide is replicated.

  Raises:
    InputError: two axes of the array map to the same mesh axis.
  """
  out, used = [], set()
  for name, size in zip(logical, shape, strict=True):
    axes = tuple(a for a in RULES.get(name, ()) if mesh.shape[a] > 1)
    if used & set(axes):
      raise InputError(f'axes {tuple(logical)} use mesh axis {axes} twice')
    parts = int(np.prod([mesh.shape[a] for a in axes]))
    if size % parts:
      logging.info('axis %r of size %d does not divide by %d: replicated',
                   name, size, parts)
      axes = ()
    used |= set(axes)
    out.append(axes or None)
  return PartitionSpec(*out)


def shardings(logical, abstract, mesh: Mesh):
  """NamedShardings for a tree of logical axes and one of shapes."""
  return jax.tree.map(
      lambda axes, array: NamedSharding(mesh, spec(axes, array.shape, mesh)),
      logical, abstract, is_leaf=lambda x: isinstance(x, tuple))


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
  """Pins an activation to the mesh in context (`jax.set_mesh`), if any."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(logical, x.shape, mesh))


def shard_rows(tree, mesh: Mesh):
  """Puts host arrays on the mesh, their first axis split as `batch`."""
  def put(x):
    x = np.asarray(x)
    axes = ('batch',) + (None,) * (x.ndim - 1)
    sharding = NamedSharding(mesh, spec(axes, x.shape, mesh))
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])
  return jax.tree.map(put, tree)
