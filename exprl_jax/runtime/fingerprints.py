"""Fingerprints of arrays: 64 bits a leaf, from the bits of all elements.

They depend on values, types and places, not on how an array is split: the
devices hash each element with its index and add the hashes modulo 2^32, and
such sums may be taken in any order. A change of any one element always changes
the sum, since the hash of an index is a bijection of the element.

The cost is one read of the arrays from device memory.
"""

import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

_SECOND = 0x9E3779B9  # starts the second sum
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}  # by bytes


def fingerprints(tree: Any) -> dict[str, str]:
  """The fingerprint of every leaf, by its path.

  Args:
    tree: of arrays of 1, 2 or 4 bytes an element, in device or host memory.
      Leaves in host memory pass through the devices one by one.

  Returns:
    {path: 'DTYPE[SHAPE]:16 hexadecimal digits'}.
  """
  named = jax.tree_util.tree_flatten_with_path(tree)[0]
  away = [x for _, x in named if _in_host_memory(x)]
  here = _sums([x for _, x in named if not _in_host_memory(x)])
  sums = iter(np.asarray(here))
  moved = iter([np.asarray(_sums([_onto_device(x)]))[0] for x in away])
  return {
      name(path): describe(x) +
      ':%08x%08x' % tuple(next(moved if _in_host_memory(x) else sums))
      for path, x in named
  }


def name(path: tuple[Any, ...]) -> str:
  """'params.head.kernel' of a leaf's path."""
  return jax.tree_util.keystr(path, simple=True, separator='.')


def describe(x: Any) -> str:
  """'float32[2,3]' of an array or a ShapeDtypeStruct."""
  return f'{x.dtype}[{",".join(map(str, x.shape))}]'


def _in_host_memory(x: jax.Array) -> bool:
  kind = x.sharding.memory_kind
  return kind is not None and 'host' in kind and kind != _default_kind(x)


def _default_kind(x: jax.Array) -> str:
  device: Any = next(iter(x.sharding.device_set))
  return device.default_memory().kind


def _onto_device(x: jax.Array) -> jax.Array:
  return jax.device_put(x, x.sharding.with_memory_kind(_default_kind(x)))


@jax.jit
def _sums(leaves: list[jax.Array]) -> jax.Array:
  """u32[leaves, 2]."""
  if not leaves:
    return jnp.zeros((0, 2), jnp.uint32)
  return jnp.stack([_sum(x) for x in leaves])


def _sum(x: jax.Array) -> jax.Array:
  """u32[2]: two sums of the hashes of the elements."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  bits = lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])
  mixed = _mix(bits.astype(jnp.uint32) ^ _mix(_index(x.shape)))
  second = _mix(mixed + jnp.uint32(_SECOND))
  zero = jnp.uint32(0)
  # One reduction of both: the hashes are never stored.
  return jnp.stack(
      lax.reduce((mixed, second), (zero, zero), lambda a, b:
                 (a[0] + b[0], a[1] + b[1]), range(x.ndim)))


def _index(shape: tuple[int, ...]) -> jax.Array:
  """u32[shape]: the place of each element in the flat array, modulo 2^32."""
  index = jnp.zeros(shape, jnp.uint32)
  for axis in range(len(shape)):
    stride = math.prod(shape[axis + 1:]) % 2**32
    index += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
  return index


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of 32-bit words: the finalizer of MurmurHash3 (Appleby)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
