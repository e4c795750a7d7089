"""Format '.json': a list of objects, or one object a line."""

import codecs
from collections.abc import Iterator
import io
import json
import re
from typing import Any

from etils import epath

from exprl_jax.data.sources import base, jsonl
from exprl_jax.runtime import inputs
from exprl_jax.types import InputError

_CHUNK = 2**20  # characters read at a time
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r'\s*')


def read(path: epath.Path) -> Iterator[tuple[int, Any]]:
  """Yields the numbers of items, from 1, and the items.

  A file that does not begin with '[' is read as JSONL, which many data sets
  call .json.

  Raises:
    InputError: it is not JSON; names the item.
  """
  with base.open_bytes(path) as file:
    head = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
  if head.startswith(b'['):
    yield from _items(path)
  else:
    yield from jsonl.read(path)


def _items(path: epath.Path) -> Iterator[tuple[int, Any]]:
  with base.open_bytes(path) as file:
    text = io.TextIOWrapper(file, 'utf-8-sig', newline='')
    buffer, at, number = _more(text, '', path, 1), 0, 1
    while True:
      # 1. '[' or ',' before an item, ']' behind the last one.
      at = _skip(buffer, at)
      mark, at = buffer[at:at + 1], _skip(buffer, at + 1)
      if mark == ']' or number == 1 and buffer[at:at + 1] == ']':
        return
      if mark != (',' if number > 1 else '['):
        raise InputError(f'{path}:{number}: not JSON (want , or ] before it)')
      # 2. The item, with as much of the file as it takes.
      while not (found := _item(buffer, at, f'{path}:{number}')):
        if len(buffer) - at > inputs.LONGEST:
          raise InputError(f'{path}:{number}: not JSON, or longer than '
                           f'{inputs.LONGEST} characters')
        longer = _more(text, buffer[at:], path, number)
        if len(longer) == len(buffer) - at:
          raise InputError(f'{path}:{number}: not JSON, or the file ends in it')
        buffer, at = longer, 0
      row, at = found
      yield number, row
      number += 1


def _item(text: str, at: int, where: str) -> tuple[Any, int] | None:
  """Parses a value and finds where it ends; None: the text is too short."""
  try:
    row, end = _DECODER.raw_decode(text, at)
  except json.JSONDecodeError:
    return None
  except (ValueError, RecursionError) as e:
    raise inputs.not_json(e, where) from None
  # Something must follow: a number may go on, and the list has to end.
  if _skip(text, end) == len(text):
    return None
  inputs.check(row, text[at:end], where)
  return row, end


def _skip(text: str, at: int) -> int:
  match = _SPACE.match(text, at)
  return match.end() if match else at


def _more(text: io.TextIOWrapper, rest: str, path: epath.Path,
          number: int) -> str:
  """Returns `rest` with what follows, at least as much again."""
  try:
    return rest + text.read(max(_CHUNK, len(rest)))
  except UnicodeDecodeError as e:
    raise InputError(f'{path}: not UTF-8 ({e.reason}; in item {number} or '
                     'later)') from None


FORMATS = {'.json': read}
