"""Devices of TPU slices that are not here, to compile programs for.

  pip install -e ".[tpu]"

A topology is GENERATION:SHAPE, with the shape in chips as Google Cloud gives
it: v4:2x2x1, v5e:2x4, v5p:2x2x2, v6e:4x4, tpu7x:2x2x1. A factor behind it is
the number of slices: v5e:8x8*2.
"""

import importlib.util
import math
import os
import re
from typing import Any

import jax

from exprl_jax.types import InputError

# Generation -> (name of libtpu's, configuration, chips of a host: of slices of
# several hosts).
_GENERATIONS = {
    'v4': ('v4', 'megacore', (2, 2, 1)),
    'v5e': ('v5e', 'default', (2, 2, 1)),
    'v5p': ('v5', 'megacore', (2, 2, 1)),
    'v6e': ('v6e', 'default', (2, 2, 1)),
    'tpu7x': ('tpu7x', '', (2, 2, 1)),
}


def devices(name: str) -> list[jax.Device]:
  """Describes the devices of a topology; none of them is needed.

  Raises:
    InputError: there is no such topology, or no libtpu.
  """
  generation, shape, slices = _parse(name)
  if not importlib.util.find_spec('libtpu'):
    raise InputError(f'plan.topology={name}: the compiler for TPUs is missing; '
                     'pip install -e ".[tpu]"')
  # Of libtpu: do not ask for the host's metadata, and share the library.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  os.environ.setdefault('TPU_MIN_LOG_LEVEL', '3')
  from jax.experimental import topologies
  kind, config, _ = _GENERATIONS[generation]
  options: dict[str, Any] = {
      'chips_per_host_bounds': _host(generation, shape), 'num_slices': slices
  }
  if config:
    options['chip_config_name'] = config
  # Slices of this size and above are rings.
  if generation in ('v5e', 'v6e'):
    options['wrap'] = (min(shape) >= 16,) * 2 + (False,)
  try:
    return list(
        topologies.get_topology_desc(
            platform='tpu', topology_name=f'{kind}:{"x".join(map(str, shape))}',
            **options).devices)
  except Exception as e:  # whatever libtpu raises
    raise InputError(f'plan.topology={name}: {str(e).splitlines()[0]}') from e


def hosts(name: str) -> int:
  """Counts the hosts of a topology.

  Raises:
    InputError: the name is none.
  """
  generation, shape, slices = _parse(name)
  return slices * math.prod(shape) // math.prod(_host(generation, shape))


def _host(generation: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Chips of a host along each axis."""
  if generation in ('v5e', 'v6e') and shape == (2, 4):
    return (2, 4, 1)  # one host
  dims = [*shape, *(1,) * (3 - len(shape))]
  return tuple(map(math.gcd, dims, _GENERATIONS[generation][2]))


def _parse(name: str) -> tuple[str, tuple[int, ...], int]:
  """(generation, chips along each axis, slices)."""
  found = re.fullmatch(r'(\w+):(\d+(?:x\d+){1,2})(?:\*(\d+))?', name)
  if not found or found[1] not in _GENERATIONS:
    raise InputError(
        f'plan.topology={name!r}: GENERATION:SHAPE such as v5e:2x4 or v5p:2x2x1'
        f'*2; generations are {", ".join(_GENERATIONS)}')
  shape = tuple(map(int, found[2].split('x')))
  flat = found[1] in ('v5e', 'v6e')
  if len(shape) != (2 if flat else 3):
    raise InputError(f'plan.topology={name!r}: the shape of {found[1]} has '
                     f'{2 if flat else 3} numbers')
  return found[1], shape, int(found[3] or 1)
