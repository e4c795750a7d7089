"""TPU slices by name: what GKE and TPU VMs call them."""

import math
import re
from typing import NamedTuple


class Slice(NamedTuple):
  """A slice.

  Attributes:
    name: as users say it: v5e and v6e by chips, v4 and v5p by cores.
    accelerator: GKE's label of the node pool.
    topology: chips along each axis.
    hosts: machines in it.
    host_chips: of each.
    machine: GKE's type of machine.
    vm_type: accelerator type of TPU VMs; '': GKE only.
    vm_version: their software.
  """

  name: str
  accelerator: str
  topology: str
  hosts: int
  host_chips: int
  machine: str
  vm_type: str
  vm_version: str


class _Generation(NamedTuple):
  """What the slices of a generation have in common."""

  accelerator: str
  machine: str
  vm_type: str
  vm_version: str
  cores: int  # that a chip counts as, in names
  shapes: tuple[str, ...]


_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8',
          '8x8x8')
_GENERATIONS = {
    'v4': _Generation('tpu-v4-podslice', 'ct4p-hightpu-{}t', 'v4-{}',
                      'tpu-ubuntu2204-base', 2, _CUBES),
    'v5e': _Generation('tpu-v5-lite-podslice', 'ct5lp-hightpu-{}t',
                       'v5litepod-{}', 'v2-alpha-tpuv5-lite', 1, _FLAT),
    'v5p': _Generation('tpu-v5p-slice', 'ct5p-hightpu-{}t', 'v5p-{}',
                       'v2-alpha-tpuv5', 2, _CUBES),
    'v6e': _Generation('tpu-v6e-slice', 'ct6e-standard-{}t', 'v6e-{}',
                       'v2-alpha-tpuv6e', 1, _FLAT),
    'tpu7x': _Generation('tpu7x', 'tpu7x-standard-{}t', '', '', 2, _CUBES),
}
_ONE_HOST = 8  # chips that one machine of a flat slice may have


def _slices() -> dict[str, Slice]:
  out = {}
  for name, g in _GENERATIONS.items():
    for shape in g.shapes:
      chips = math.prod(map(int, shape.split('x')))
      flat = g.shapes is _FLAT
      host_chips = chips if flat and chips <= _ONE_HOST else min(chips, 4)
      size = chips * g.cores
      out[f'{name}-{size}'] = Slice(f'{name}-{size}', g.accelerator, shape,
                                    chips // host_chips, host_chips,
                                    g.machine.format(host_chips),
                                    g.vm_type.format(size), g.vm_version)
  return out


SLICES = _slices()


def find(name: str) -> Slice:
  """Returns a slice.

  Raises:
    ValueError: there is none of this name.
  """
  if name not in SLICES:
    generation = name.partition('-')[0]
    known = [n for n in SLICES if n.partition('-')[0] == generation
            ] or [f'{g}-N' for g in _GENERATIONS]
    raise ValueError(f'--slice={name}: no such slice; there are '
                     f'{", ".join(known)} (v5e and v6e by chips, others by '
                     'cores, two a chip)')
  return SLICES[name]


def check_name(name: str) -> None:
  """Checks the name of a job.

  Raises:
    ValueError: it is none that Kubernetes and Google Cloud take.
  """
  if not re.fullmatch(r'[a-z]([-a-z0-9]{0,34}[a-z0-9])?', name):
    raise ValueError(f'--name={name}: up to 36 lower-case letters, digits and '
                     '-, a letter first')


def flags_of(slice_: Slice, count: int, args: list[str]) -> list[str]:
  """Adds what several hosts or slices need to the flags of a run.

  The network between slices is slow: parameters are sharded within a slice, and
  every slice has a copy.

  Args:
    slice_: of the run.
    count: how many of them.
    args: of exprl_jax.main; what they set stays.

  Raises:
    ValueError: there is no --config among them.
  """
  if not any(arg.startswith('--config=') for arg in args):
    raise ValueError('no --config=FILE after --')
  added = {}
  if slice_.hosts * count > 1:
    added['--distributed'] = 'auto'
  if count > 1:
    added |= {'--config.mesh.data': str(count), '--config.mesh.fsdp': '-1'}
  given = {arg.partition('=')[0] for arg in args}
  return [*(f'{k}={v}' for k, v in added.items() if k not in given), *args]
