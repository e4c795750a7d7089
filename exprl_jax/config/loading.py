"""From a config file and flags to a checked, frozen Config.

A file in configs/ returns an `ml_collections.ConfigDict` with the keys that
matter to its experiment. `load` lays it over the defaults of schema.py, so that
each key can be overridden by a flag (`--config.optim.lr=1e-4`); `freeze` checks
types, choices and bounds and returns dataclasses. Nothing after that sees a
ConfigDict. What goes with what is checked by runs/recipes.py.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import difflib
import math
import operator
import typing
from typing import Any

import ml_collections

from exprl_jax.config import files
from exprl_jax.config.schema import Bound, Config
from exprl_jax.types import InputError

# Keys, and values of keys, that had another name.
RENAMED = {
    'run=prepare': "run='rubrics'",
    'prepare.rubrics': 'rubrics.out',
    'prepare.max_new_tokens': 'rubrics.max_new_tokens',
    'prepare.tries': 'rubrics.tries',
    'prepare': 'rubrics',
    'rollout.spare': 'rollout.oversampling',
    'rollout.carry': 'rollout.partial_rollouts',
    'select.drop_zero_spread': 'select.drop_zero_variance',
    'select.tries': 'select.max_refills',
    'select.max_empty': 'select.max_empty_steps',
    'select.floor': 'select.curriculum_floor',
    'select.memory': 'select.curriculum_memory',
    'judge.min_mass': 'judge.min_score_probability',
    'judge.verdict': "judge.judgment ('overall', 'rubric_items' or 'group')",
    'judge.alarm_window': 'judge.monitor_window',
    'judge.alarm_rise': 'judge.monitor_rise',
    'credit.single=group_centred': "credit.single='group_centered'",
    'loss.kl': 'loss.kl_estimator',
    'optim.moments': 'optim.mu_dtype',
    'eval.unlocked_k': 'eval.newly_solved_k',
    'eval.unlocked_min': 'eval.newly_solved_min',
    'eval.diagnose': 'eval.policy_statistics',
    'eval.behaviours': 'eval.behaviors',
}


def load(path: str) -> ml_collections.ConfigDict:
  """Runs `get_config` of a file and lays the result over the defaults.

  Raises:
    InputError: the file cannot be read (files.read), or as `overlay`.
  """
  full = ml_collections.ConfigDict(dataclasses.asdict(Config()))
  return overlay(full, files.read(path), path)


def overlay(full: ml_collections.ConfigDict, values: Mapping[str, Any],
            where: str, prefix: str = '') -> ml_collections.ConfigDict:
  """Sets keys of a complete config, in place, and returns it.

  Args:
    full: a config with all keys, or a group of keys of one.
    values: key -> value; of a group of keys, such a mapping again.
    where: the values are from, for errors.
    prefix: of the names of the keys: the group.

  Raises:
    InputError: a key is unknown, was renamed, or has another type.
  """
  for key, value in values.items():
    name = prefix + key
    if key not in full:
      raise InputError(f'{where}: {unknown_key(name, prefix, list(full))}')
    if isinstance(full[key], ml_collections.ConfigDict):
      if not isinstance(value, (dict, ml_collections.ConfigDict)):
        raise InputError(f'{where}: {name}={value!r} should be a group of keys')
      overlay(full[key], value, where, name + '.')
      continue
    try:
      full[key] = value
    except (TypeError, ValueError):
      raise InputError(f'{where}: {name}={value!r} should be '
                       f'{type(full[key]).__name__}') from None
  return full


def unknown_key(name: str, prefix: str, keys: list[str]) -> str:
  """What to say of a key that there is not."""
  if name in RENAMED:
    return f'{name} was renamed to {RENAMED[name]}'
  close = difflib.get_close_matches(name.removeprefix(prefix), keys, 1, 0.5)
  hint = f'; did you mean {prefix}{close[0]}?' if close else ''
  return f'unknown key {name}{hint}'


def freeze(values: ml_collections.ConfigDict) -> Config:
  """Checks choices and bounds and returns the dataclasses.

  Raises:
    InputError: a value that is not allowed; the message names the key.
  """
  config = _freeze(Config, values)
  for name, hint in hints(Config):
    check(name, get(config, name), hint)
  return config


def _freeze(cls: type, values: Any) -> Any:
  out = {}
  for field in dataclasses.fields(cls):
    value = values[field.name]
    if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
      value = _freeze(field.type, value)
    elif isinstance(value, (list, tuple)):
      value = tuple(value)
    out[field.name] = value
  return cls(**out)


def hints(cls: type, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """(dotted name, type hint) of all keys."""
  for name, hint in typing.get_type_hints(cls, include_extras=True).items():
    if dataclasses.is_dataclass(hint):
      yield from hints(typing.cast(type, hint), f'{prefix}{name}.')
    else:
      yield prefix + name, hint


def source(config: Config) -> str:
  """Writes the config file of a config: the keys that are not the defaults."""
  lines = [
      'from ml_collections import ConfigDict', '', '',
      'def get_config() -> ConfigDict:', '  c = ConfigDict()'
  ]
  sections = set()
  for name, _ in hints(Config):
    value = operator.attrgetter(name)(config)
    if value == operator.attrgetter(name)(Config()):
      continue
    section, dot, _ = name.rpartition('.')
    if dot and section not in sections:
      sections.add(section)
      lines.append(f'  c.{section} = ConfigDict()')
    lines.append(f'  c.{name} = {value!r}')
  return '\n'.join([*lines, '  return c', ''])


def check(name: str, value: Any, hint: Any) -> None:
  """Holds a value against the Literal or the bound of its key."""
  if typing.get_origin(hint) is typing.Literal:
    choices = typing.get_args(hint)
    if value not in choices:
      raise InputError(f'config.{name}={value!r}{_did_you_mean(name, value)}: '
                       f'one of {", ".join(map(repr, choices))}')
  if typing.get_origin(hint) is tuple:
    for part in value:
      check(name, part, typing.get_args(hint)[0])
  for bound in getattr(hint, '__metadata__', ()):
    if not _within(value, bound):
      ends = [
          f'{"more than" if bound.open == "low" else "at least"} '
          f'{bound.low:g}'
      ]
      if bound.high < 1e9:
        ends.append(f'{"less than" if bound.open == "high" else "at most"} '
                    f'{bound.high:g}')
      raise InputError(f'config.{name}={value}: {", ".join(ends)}' +
                       ('' if math.isfinite(value) else ', and finite'))


def _within(value: float, bound: Bound) -> bool:
  """Whether a number is in its range; NaN is in none."""
  if value in (bound.low, bound.high):
    return bound.open != ('low' if value == bound.low else 'high')
  return bound.low < value < bound.high


def _did_you_mean(name: str, value: Any) -> str:
  if renamed := RENAMED.get(f'{name}={value}'):
    return f' was renamed to {renamed}'
  choices = [
      c for n, hint in hints(Config) if n == name for c in typing.get_args(hint)
  ]
  close = difflib.get_close_matches(str(value), choices, 1)
  return f' (did you mean {close[0]!r}?)' if close else ''


def get(config: Config, dotted: str) -> Any:
  """The value of a key by its dotted name."""
  value: Any = config
  for part in dotted.split('.'):
    value = getattr(value, part)
  return value


def by_domain(config: Config, name: str) -> dict[str, str]:
  """The entries 'DOMAIN=VALUE' of a key.

  Raises:
    InputError: an entry has another form.
  """
  out = {}
  for entry in get(config, name):
    domain, equals, value = entry.partition('=')
    if not (domain and equals and value):
      raise InputError(f"config.{name}: {entry!r} should be 'DOMAIN=VALUE'")
    out[domain] = value
  return out


def longest(config: Config) -> int:
  """Tokens of the longest sequence that the learner may meet."""
  prompt = config.rollout.max_prompt_tokens
  if config.run == 'train' and config.reward == 'teacher':
    prompt = max(prompt, config.teacher.max_prompt_tokens)
  return config.rollout.max_new_tokens + prompt
