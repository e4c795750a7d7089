"""Format '.json': a list of objects, or one object a line."""

import codecs
from collections.abc import Iterator
import json
import re
from typing import Any, BinaryIO

from etils import epath

from exprl_jax.data.sources import base, jsonl
from exprl_jax.runtime import inputs
from exprl_jax.types import InputError

_CHUNK = 2**20  # characters read at a time
_DECODER = json.JSONDecoder()
_BLANKS = ' \t\r\n'  # of JSON, not of Unicode
_SPACE = re.compile(f'[{_BLANKS}]*')


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
    text = _Text(path, file)
    buffer, at, number = text.more('', 1), 0, 1
    while True:
      # 1. '[' or ',' before an item, ']' behind the last one.
      at = _skip(buffer, at)
      mark, at = buffer[at:at + 1], _skip(buffer, at + 1)
      if mark == '[' and number == 1 and buffer[at:at + 1] == ']':
        mark, at = ']', at + 1
      if mark == ']':
        text.require_end(buffer[at:], number)
        return
      if mark != (',' if number > 1 else '['):
        raise InputError(f'{path}:{number}: not JSON (want , or ] before it)')
      # 2. The item, with as much of the file as it takes.
      while not (found := _item(buffer, at, f'{path}:{number}')):
        if len(buffer) - at > inputs.LONGEST:
          raise InputError(f'{path}:{number}: not JSON, or longer than '
                           f'{inputs.LONGEST} characters')
        longer = text.more(buffer[at:], number)
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


class _Text:
  """The characters of a file, up to bytes that are none."""

  def __init__(self, path: epath.Path, file: BinaryIO) -> None:
    self._path, self._file, self._bad = path, file, ''
    self._decoder = codecs.getincrementaldecoder('utf-8-sig')()

  def more(self, rest: str, number: int) -> str:
    """Returns `rest` with what follows, at least as much again.

    Raises:
      InputError: bytes that are not UTF-8 follow; they are in item `number`.
    """
    text, data = '', b' '
    while not text and data and not self._bad:
      data = self._file.read(max(_CHUNK, len(rest)))
      try:
        text = self._decoder.decode(data, final=not data)
      except UnicodeDecodeError as e:
        self._bad = f'byte {e.object[e.start]:#04x}'
        text = e.object[:e.start].decode()
    if self._bad and not text:
      raise InputError(f'{self._path}:{number}: not UTF-8 ({self._bad})')
    return rest + text

  def require_end(self, rest: str, number: int) -> None:
    """Raises InputError unless only blanks follow the list."""
    while not rest.strip(_BLANKS):
      if not (rest := self.more('', number)):
        return
    raise InputError(f'{self._path}:{number}: not JSON (more behind the list)')


FORMATS = {'.json': read}
