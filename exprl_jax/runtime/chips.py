"""What accelerators have and do, from their makers' data sheets."""

from typing import NamedTuple

import jax

_GIB = 2**30


class Chip(NamedTuple):
  """One device as JAX counts them: a chip, or on TPU7x half of one.

  Attributes:
    name: of the generation: the first part of a topology's name.
    memory: bytes of HBM that programs can take (as libtpu reports it).
    flops: bfloat16 operations a second.
    bandwidth: bytes a second between HBM and chip.
    links: bytes a second that leave a device over all of its links.
    host_memory: bytes of host memory for each device, on the smallest host that
      slices of several hosts have.
    host_bandwidth: bytes a second between a device and its host.
  """

  name: str
  memory: int
  flops: float
  bandwidth: float
  links: float
  host_memory: int
  host_bandwidth: float


# By jax.Device.device_kind.
CHIPS = {
    'TPU v4': Chip('v4', int(30.75 * _GIB), 275e12, 1.228e12, 270e9,
                   100 * 10**9, 15e9),
    'TPU v5 lite': Chip('v5e', int(15.75 * _GIB), 197e12, 0.819e12, 180e9,
                        48 * 10**9, 15e9),
    'TPU v5': Chip('v5p', int(95.74 * _GIB), 459e12, 2.765e12, 540e9,
                   112 * 10**9, 15e9),
    'TPU v6 lite': Chip('v6e', int(31.25 * _GIB), 918e12, 1.64e12, 360e9,
                        180 * 10**9, 32e9),
    'TPU7x': Chip('tpu7x', int(94.75 * _GIB), 1153e12, 3.69e12, 300e9,
                  120 * 10**9, 32e9),
    'NVIDIA A100-SXM4-80GB': Chip('a100', 79 * _GIB, 312e12, 2.039e12, 300e9,
                                  128 * 10**9, 25e9),
    'NVIDIA H100 80GB HBM3': Chip('h100', 79 * _GIB, 989e12, 3.35e12, 450e9,
                                  128 * 10**9, 50e9),
    'NVIDIA H200': Chip('h200', 140 * _GIB, 989e12, 4.8e12, 450e9, 128 * 10**9,
                        50e9),
}


def find(device_kind: str) -> Chip | None:
  """The chip of a jax.Device.device_kind; None: it is not known."""
  return CHIPS.get(device_kind)


def memory_limit(device: jax.Device) -> int | None:
  """Bytes that programs can take of a device; None: as much as the host has.

  A TPU need not be there: it is known by its kind.
  """
  chip = find(device.device_kind)
  if chip and device.platform == 'tpu':
    return chip.memory
  if device.platform == 'cpu':
    return None
  return (device.memory_stats() or {}).get('bytes_limit')
