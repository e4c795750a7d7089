"""Model families, a file each.

A module of this package that has a dict `FAMILIES`, from model_type of
config.json to a `common.Family`, adds its entries; there is no list to extend.
"""

from collections.abc import Iterable
import importlib
import pkgutil
from types import ModuleType

from exprl_jax.models.families.common import Family


def merge(modules: Iterable[ModuleType]) -> dict[str, Family]:
  """Joins the modules' `FAMILIES`.

  Raises:
    ValueError: two modules have the same model_type.
  """
  merged: dict[str, Family] = {}
  for module in modules:
    families = getattr(module, 'FAMILIES', {})
    if twice := sorted(set(merged) & set(families)):
      raise ValueError(f'{module.__name__}: model_type {", ".join(twice)} is '
                       'in another module, too')
    merged |= families
  return merged


def discover() -> dict[str, Family]:
  """Imports every module of this package and joins their `FAMILIES`."""
  return merge(
      importlib.import_module(f'{__name__}.{module.name}')
      for module in pkgutil.iter_modules(__path__))


FAMILIES = discover()
