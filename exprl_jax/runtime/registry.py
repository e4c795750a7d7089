"""Registries: plain dicts, each merged from the files of a package.

A package of choices (rewards, readouts, model families, data formats) has a
file per choice, and each file declares a dict literal, such as `REWARDS =
{'outcome': ...}`. `collect` merges them, so that adding a choice touches one
file. A choice of the user's own is an import path: `load_function`.
"""

from collections.abc import Callable, Mapping
import difflib
import functools
import importlib
import importlib.util
import pathlib
import pkgutil
from typing import Any, TypeVar

from exprl_jax.types import InputError

T = TypeVar('T')


def collect(package: str, name: str) -> dict[str, Any]:
  """Merges the dicts called `name` of all modules of a package.

  Raises:
    ValueError: two modules declare the same choice.
  """
  out: dict[str, Any] = {}
  path = importlib.import_module(package).__path__
  for module in sorted(m.name for m in pkgutil.iter_modules(path)):
    choices = getattr(importlib.import_module(f'{package}.{module}'), name, {})
    if twice := out.keys() & choices.keys():
      raise ValueError(f'{package}.{module}: {name} has {sorted(twice)}, which '
                       'another module declares, too')
    out |= choices
  return out


def lookup(choices: Mapping[str, T], name: str, key: str) -> T:
  """The entry of a registry.

  Args:
    choices: the registry.
    name: of the entry.
    key: of the config, for the error.

  Raises:
    InputError: there is no such entry; lists those there are.
  """
  if name in choices:
    return choices[name]
  close = difflib.get_close_matches(name, choices, 1)
  hint = f' (did you mean {close[0]!r}?)' if close else ''
  raise InputError(f'config.{key}={name!r}{hint}: one of '
                   f'{", ".join(map(repr, choices))}')


@functools.cache
def load_function(path: str, key: str) -> Callable[..., Any]:
  """Imports `FILE.py:FUNCTION` or `MODULE:FUNCTION`.

  Args:
    path: see above.
    key: of the config, for errors.

  Raises:
    InputError: there is no such file, module or function.
  """
  module_path, _, name = path.rpartition(':')
  try:
    if module_path.endswith('.py'):
      spec = importlib.util.spec_from_file_location(
          pathlib.Path(module_path).stem, module_path)
      assert spec and spec.loader
      module = importlib.util.module_from_spec(spec)
      spec.loader.exec_module(module)
    else:
      module = importlib.import_module(module_path)
    return getattr(module, name)
  except Exception as e:  # whatever the user's module raises
    raise InputError(f'config.{key}={path}: {type(e).__name__}: {e}') from None
