"""Flags of XLA for each generation of TPUs.

libtpu reads LIBTPU_INIT_ARGS once, when JAX first asks for its devices (not
when jax is imported): `apply` comes before that. This module does not import
jax.
"""

from collections.abc import Mapping, MutableMapping
import importlib.util
import os
from typing import NamedTuple

_VARIABLE = 'LIBTPU_INIT_ARGS'
# First part of TPU_ACCELERATOR_TYPE -> name in runtime/chips.py.
_GENERATIONS = {
    'v4': 'v4',
    'v5lite': 'v5e',
    'v5litepod': 'v5e',
    'v5e': 'v5e',
    'v5p': 'v5p',
    'v6e': 'v6e',
    'tpu7x': 'tpu7x',
}


class Flag(NamedTuple):
  """A flag and why it is set; docs/performance.md has what it was measured to
  do, and flags that did not help."""

  name: str
  value: str
  reason: str


# While gradients are computed the optimizer's moments, a reference, a judge and
# pages occupy memory, too. The compiler sees the arguments of its own program
# alone, and would take all the rest.
COMMON = (
    Flag('xla_tpu_scheduler_percent_shared_memory_limit', '70',
         'the scheduler leaves memory to arrays of other programs'),
    Flag('xla_tpu_licm_size_inflation_ratio', '0.1',
         'what is larger than its operands is not kept across a loop'),
)
# Flags of one generation, beside the common ones.
TABLE: dict[str, tuple[Flag, ...]] = {
    name: () for name in ('v4', 'v5e', 'v5p', 'v6e', 'tpu7x')
}


def generation(environ: Mapping[str, str] = os.environ) -> str | None:
  """The generation by TPU_ACCELERATOR_TYPE ('v5litepod-8'), which TPU VMs and
  GKE set; None: not set, or not known."""
  kind = environ.get('TPU_ACCELERATOR_TYPE', '').partition('-')[0]
  return _GENERATIONS.get(kind.lower())


def compiler_options(generation: str | None) -> dict[str, str]:
  """Options of jax.stages.Lowered.compile, for absent devices.

  Args:
    generation: a name of runtime/chips.py; None, or one that is not in the
      table: flags of all generations.
  """
  flags = (*COMMON, *TABLE.get(generation or '', ()))
  return {flag.name: flag.value for flag in flags}


def apply(generation_name: str | None = None,
          environ: MutableMapping[str, str] = os.environ) -> dict[str, str]:
  """Adds the flags to LIBTPU_INIT_ARGS; those that are set there stay.

  Does nothing where libtpu is not installed or JAX_PLATFORMS leaves TPUs out.

  Args:
    generation_name: by default that of `generation`.
    environ: the process's environment; changed.

  Returns:
    The flags that were added.
  """
  platforms = environ.get('JAX_PLATFORMS', '')
  if platforms and 'tpu' not in platforms.split(','):
    return {}
  if not importlib.util.find_spec('libtpu'):
    return {}
  given = environ.get(_VARIABLE, '').split()
  names = {x.lstrip('-').partition('=')[0] for x in given}
  wanted = compiler_options(generation_name or generation(environ))
  added = {k: v for k, v in wanted.items() if k not in names}
  if added:
    environ[_VARIABLE] = ' '.join(
        [*given, *(f'--{k}={v}' for k, v in added.items())])
  return added
