"""Device memory: what is in use, and by whom."""

from collections.abc import Mapping
from typing import Any

import jax


def hbm() -> dict[str, float]:
  """Returns hbm/in_use_gb, hbm/peak_gb and hbm/limit_gb, in 1e9 bytes.

  Each is the largest over this process's devices. Those that the backend does
  not report are left out: on CPUs, all of them.
  """
  names = {
      'hbm/in_use_gb': 'bytes_in_use', 'hbm/peak_gb': 'peak_bytes_in_use',
      'hbm/limit_gb': 'bytes_limit'
  }
  stats = [d.memory_stats() or {} for d in jax.local_devices()]
  return {
      name: max(s[key]
                for s in stats) / 1e9
      for name, key in names.items()
      if stats and all(key in s for s in stats)
  }


def live_bytes(trees: Mapping[str, Any]) -> dict[str, int]:
  """Counts the bytes of device memory that trees of arrays take.

  A buffer that several trees share counts for the first of them. Arrays in host
  memory do not count.

  Args:
    trees: owner -> arrays.

  Returns:
    Owner -> bytes on the device where it has most; 'other' are all live arrays
    that are in none of the trees.
  """
  seen: set[Any] = set()
  out = {
      owner: _largest(jax.tree.leaves(tree), seen)
      for owner, tree in trees.items()
  }
  return out | {'other': _largest(jax.live_arrays(), seen)}


def _largest(arrays: list[Any], seen: set[Any]) -> int:
  """Bytes of arrays on their fullest device; adds their buffers to `seen`."""
  bytes_on: dict[jax.Device, int] = {}
  for array in arrays:
    if not isinstance(array, jax.Array) or array.is_deleted():
      continue
    if _in_host_memory(array):
      continue
    for shard in array.addressable_shards:
      key = _buffer(shard)
      if key not in seen:
        seen.add(key)
        bytes_on[shard.device] = (bytes_on.get(shard.device, 0) +
                                  shard.data.nbytes)
  return max(bytes_on.values(), default=0)


def _in_host_memory(array: jax.Array) -> bool:
  device: Any = next(iter(array.sharding.device_set))
  kind = array.sharding.memory_kind
  return kind is not None and kind != device.default_memory().kind


def _buffer(shard: Any) -> Any:
  """Names the memory of a shard: views of one buffer have the same name."""
  try:
    return shard.device, shard.data.unsafe_buffer_pointer()
  except jax.errors.JaxRuntimeError:  # a backend without addresses
    return shard.device, id(shard.data)
