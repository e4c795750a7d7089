"""What `--help` says: run modes, sections, and the keys of schema.py."""

import ast
import dataclasses
import inspect
import itertools
import operator
import re
import typing

from exprl_jax.config import files, loading, schema
from exprl_jax.types import InputError

_COMMENT = re.compile(r'''^(?P<code>(?:[^#'"]|'[^']*'|"[^"]*")*)#\s*'''
                      r'(?P<text>.*)$')


def overview() -> str:
  """What there is: shipped configs, run modes, sections of keys."""
  sections = [
      f'  --help={field.name:15s} {_first_line(type(field.default))}'
      for field in dataclasses.fields(schema.Config)
      if dataclasses.is_dataclass(field.default)
  ]
  modes = typing.get_args(typing.get_type_hints(schema.Config)['run'])
  return '\n'.join([
      'shipped configs, --config=NAME:', f'  {" ".join(files.shipped())}',
      'run modes, --config.run=MODE:', f'  {" ".join(modes)}',
      'keys, --config.SECTION.KEY=VALUE:', '  --help=all             every key',
      *sections,
      "  --help=run             run, seed, steps and others of no section"
  ])


def _first_line(section: type) -> str:
  return (section.__doc__ or '').split('\n')[0].rstrip('.')


def text(only: str = 'all') -> str:
  """Returns a line for each key: --config.NAME=DEFAULT, and its comment.

  Args:
    only: keys of a section, or a part of a key's name; 'run': of no section.

  Raises:
    InputError: no key has that.
  """
  comments, default = _comments(), schema.Config()
  lines = ['keys of the config:']
  names = [name for name, _ in loading.hints(schema.Config)]
  if only == 'run':
    names = [name for name in names if '.' not in name]
  elif only != 'all':
    names = ([n for n in names if n.partition('.')[0] == only and '.' in n]
             or [n for n in names if only in n])
  if not names:
    raise InputError(f'command line: --help={only}: no key has that; --help '
                     'lists the sections')
  for name in names:
    section, _, field = name.rpartition('.')
    kind = type(operator.attrgetter(section)(default) if section else default)
    value = operator.attrgetter(name)(default)
    shown = ','.join(map(str, value)) if isinstance(value, tuple) else value
    lines.append(f'  --config.{name}={shown}')
    if comment := comments.get((kind.__name__, field)):
      lines.append(f'    {comment}')
  return '\n'.join(lines)


def _comments() -> dict[tuple[str, str], str]:
  """The comment of each field, by the name of its class and its own."""
  source = inspect.getsource(schema)
  lines = source.split('\n')
  return {(section.name, ast.unparse(field.target)): _comment(lines, field)
          for section in ast.parse(source).body
          if isinstance(section, ast.ClassDef) for field in section.body
          if isinstance(field, ast.AnnAssign)}


def _comment(lines: list[str], field: ast.AnnAssign) -> str:
  """The comment behind a field and below it; or else above it.

  Of lines between a comment that goes on and a field without one behind it,
  those from the first capital are of the field.
  """
  assert field.end_lineno
  below = field.end_lineno  # from 0
  if behind := _after_code(lines[below - 1]):
    block = _block(lines[below:])
    after = lines[below + len(block)]
    if after.strip() and not _after_code(after):
      block = list(itertools.takewhile(lambda x: not x[:1].isupper(), block))
    return ' '.join([behind, *block])
  block = _block(lines[:field.lineno - 1][::-1])[::-1]
  if _after_code(lines[field.lineno - 2 - len(block)]):
    block = list(itertools.dropwhile(lambda x: not x[:1].isupper(), block))
  return ' '.join(block)


def _block(lines: list[str]) -> list[str]:
  """The comments at the beginning of lines."""
  return [
      _after_code(x)
      for x in itertools.takewhile(lambda x: x.lstrip().startswith('#'), lines)
  ]


def _after_code(line: str) -> str:
  match = _COMMENT.match(line)
  return match['text'] if match else ''
