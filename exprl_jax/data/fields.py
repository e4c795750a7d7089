r"""From the rows of a data set to rows with our field names.

  data.convert     a function from a row to a row, or to None: not used
  data.fields      'question=problem': our field, and where it stands
  data.answer_from 'boxed' | 'hash': the answer stands in the solution

in this order, each if it is set. `eval` has the same keys.
"""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import importlib
import inspect
import pathlib
import re
from typing import Any

from exprl_jax import config as config_lib
from exprl_jax.data import validation
from exprl_jax.data.sources import base
from exprl_jax.grading import answers
from exprl_jax.runtime import registry
from exprl_jax.types import InputError

Convert = Callable[[dict[str, Any]], dict[str, Any] | None]

_ENTRY = re.compile(r'(?:(?P<set>[\w-]+):)?(?P<field>\w+)=(?P<path>.*)')
_HASH_LINE = re.compile(r'^[ \t]*####[ \t]*(\S.*?)[ \t]*$', re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Fields:
  """The three steps for the rows of one data set."""

  convert: str = ''
  fields: tuple[tuple[str, str], ...] = ()  # our name, path in the row
  answer_from: str = ''
  key: str = 'data'  # of the config, for errors

  def name(self) -> list[Any]:
    """What rows depend on, beside the files: JSON."""
    function = _convert(self)
    return [
        self.convert, self.fields, self.answer_from,
        _source(function) if function else ''
    ]

  def apply(self, row: Any, where: str) -> Any:
    """Returns the row with our field names; None: it is not used.

    Raises:
      InputError: data.convert raises.
    """
    if function := _convert(self):
      try:
        row = function(row)
      except Exception as e:  # whatever the user's function raises
        raise InputError(f'{where}: {self.key}.convert={self.convert}: '
                         f'{type(e).__name__}: {base.first_line(e)}') from None
      if not isinstance(row, dict):
        return row
    if self.fields:
      row = row | {name: _at(row, path) for name, path in self.fields}
    if self.answer_from:
      row = row | _RULES[self.answer_from](row.get('solution'))
    return row


OURS = Fields()  # rows have our names already


def of(cfg: config_lib.Data | config_lib.Eval, names: Sequence[str] = (),
       name: str = '') -> Fields:
  """Reads the keys of a config for one of its sets.

  Args:
    cfg: `data` or `eval`.
    names: of all sets.
    name: of this one.

  Raises:
    InputError: an entry has another form, or there is no such field, set or
      converter.
  """
  key = 'data' if isinstance(cfg, config_lib.Data) else 'eval'
  fields: dict[str, str] = {}
  for entry in cfg.fields:
    match = _ENTRY.fullmatch(entry)
    if not match or match['field'] not in validation.FIELDS:
      raise InputError(f"config.{key}.fields: {entry!r} should be 'FIELD=PATH' "
                       "or 'SET:FIELD=PATH', the field one of " +
                       ', '.join(validation.FIELDS))
    _check_set(match['set'], names, f'config.{key}.fields: {entry!r}')
    if match['set'] in (None, name):
      fields[match['field']] = match['path'].strip()
  convert = cfg.convert
  for entry in cfg.converts:
    own, equals, function = entry.partition('=')
    if not (own and equals and function):
      raise InputError(f"config.{key}.converts: {entry!r} should be "
                       "'SET=CONVERTER'")
    _check_set(own, names, f'config.{key}.converts: {entry!r}')
    convert = function if own == name else convert
  out = Fields(convert, tuple(fields.items()), cfg.answer_from, key)
  _convert(out)  # raises if there is none
  return out


def _check_set(name: str | None, names: Sequence[str], what: str) -> None:
  if name is not None and name not in names:
    raise InputError(f'{what}: no set is named {name}' +
                     (f'; there are {", ".join(names)}' if any(names) else ''))


def _convert(fields: Fields) -> Convert | None:
  """Finds a converter: NAME of data/converters, or FILE.py:FUNCTION."""
  if not fields.convert:
    return None
  key = f'{fields.key}.convert'
  if ':' in fields.convert:
    return registry.load_function(fields.convert, key)
  module = importlib.import_module('exprl_jax.data.converters')
  return registry.lookup(module.CONVERTERS, fields.convert, key)


def _source(function: Convert) -> str:
  """Hashes the file of a function: other code makes other rows."""
  try:
    path = inspect.getsourcefile(inspect.unwrap(function))
  except TypeError:  # not of Python
    path = None
  data = pathlib.Path(path).read_bytes() if path else b''
  return hashlib.blake2b(data, digest_size=16).hexdigest()


def _at(row: Any, path: str) -> Any:
  """The value at 'a.0.b' in a row; None if there is none, or no path."""
  if not path:
    return None
  if isinstance(row, dict) and path in row:  # a name may have dots
    return row[path]
  head, dot, rest = path.partition('.')
  if isinstance(row, dict):
    inner = row.get(head)
  elif isinstance(row, list) and re.fullmatch('[0-9]+', head):
    inner = row[int(head)] if int(head) < len(row) else None
  else:
    inner = None
  return _at(inner, rest) if dot else inner


def _boxed(solution: Any) -> dict[str, Any]:
  r"""The answer is in the last \boxed{}."""
  found = isinstance(solution, str) and answers.final_answer(solution)
  return {'answer': found or None}


def _hash(solution: Any) -> dict[str, Any]:
  r"""The answer is on the last line '#### 42', as in GSM8K.

  The line becomes \boxed{42}: the judge sees no mark of a data set, and SFT
  teaches the mark that the grader reads.
  """
  if not isinstance(solution, str):
    return {'answer': None}
  lines = list(_HASH_LINE.finditer(solution))
  if not lines:
    return {'answer': None}
  last = lines[-1]
  return {
      'answer': last[1], 'solution': solution[:last.start()] +
      rf'\boxed{{{last[1]}}}' + solution[last.end():]
  }


_RULES = {'boxed': _boxed, 'hash': _hash}
