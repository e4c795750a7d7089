"""Converters of published data sets, one file for each group.

CONVERTERS maps a value of `config.data.convert` to a converter: a function from
a row, as it is published, to the fields of a problem. docs/datasets.md has the
table of sets.
"""

from exprl_jax.data.converters.base import Converter, Row
from exprl_jax.runtime import registry

CONVERTERS: dict[str, Converter] = registry.collect('exprl_jax.data.converters',
                                                    'CONVERTERS')

__all__ = ['CONVERTERS', 'Converter', 'Row', 'lookup']


def lookup(name: str, key: str = 'data.convert') -> Converter:
  """Finds a converter by its name or import path.

  Args:
    name: an entry of CONVERTERS, FILE.py:FUNCTION or MODULE:FUNCTION.
    key: of the config, for errors.

  Raises:
    InputError: there is no such converter.
  """
  if ':' in name:
    return registry.load_function(name, key)
  return registry.lookup(CONVERTERS, name, key)
