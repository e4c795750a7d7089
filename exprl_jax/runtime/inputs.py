"""Files that users give: opened only if they are files, JSON within limits.

Every JSON file and every line of JSON goes this way from bytes to values. What
comes out can be encoded as UTF-8 again, and is nested no deeper than code that
walks through it can go.
"""

import collections
from collections.abc import Iterable
import json
import os
import re
import stat
from typing import Any

from etils import epath

from exprl_jax.runtime import files
from exprl_jax.types import InputError

LONGEST = 2**27  # bytes of a line or of a JSON file
DEEPEST = 100  # lists and objects inside each other
# Control characters but tab and line breaks, halves of pairs.
_BAD = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]')
_KINDS = ((stat.S_ISDIR, 'a folder'), (stat.S_ISFIFO, 'a pipe'), (stat.S_ISSOCK,
                                                                  'a socket'))


def require_file(path: epath.PathLike) -> int | None:
  """Checks that a path is a file: pipes and devices may wait for ever.

  Returns:
    Its size in bytes; None in a bucket, which has nothing else.

  Raises:
    FileNotFoundError: there is nothing.
    InputError: it is something else, or cannot be looked at.
  """
  if files.is_remote(path):
    return None
  try:
    found = os.stat(path)
  except (FileNotFoundError, PermissionError):
    raise
  except (OSError, ValueError) as e:  # too long, a loop of links, a NUL
    raise InputError(f'{path}: no such file ({e})') from None
  if not stat.S_ISREG(found.st_mode):
    kind = next((k for is_kind, k in _KINDS if is_kind(found.st_mode)),
                'a device')
    raise InputError(f'{path}: {kind}, not a file; put the file there')
  return found.st_size


def read_bytes(path: epath.PathLike) -> bytes:
  """Reads a file of at most LONGEST bytes; errors as `require_file`."""
  size = require_file(path)
  if size is not None and size > LONGEST:
    raise InputError(f'{path}: {size} bytes, want at most {LONGEST}; is it '
                     'the right file?')
  return epath.Path(path).read_bytes()


def read_object(path: epath.PathLike, unique: bool = False) -> dict[str, Any]:
  """Reads the object of a JSON file.

  Args:
    path: local or on gs://.
    unique: whether a key that stands there twice is an error.

  Raises:
    FileNotFoundError: there is no such file.
    InputError: it is no file, or not a JSON object within the limits.
  """
  value = parse(read_bytes(path), str(path), unique)
  if not isinstance(value, dict):
    raise InputError(f'{path}: not a JSON object, it is '
                     f'{type(value).__name__}')
  return value


def parse(data: bytes | str, where: str, unique: bool = False) -> Any:
  """Parses JSON.

  Args:
    data: in UTF-8, if bytes.
    where: the file, or file and line, for errors.
    unique: whether a key that stands in an object twice is an error.

  Raises:
    InputError: it is not UTF-8, not JSON, or beyond a limit: of length, of
      depth, of the digits of a number; or a text in it is not Unicode.
  """
  if len(data) > LONGEST:
    raise InputError(f'{where}: longer than {LONGEST} bytes')
  text = decode(data, where) if isinstance(data, bytes) else data
  try:
    value = json.loads(
        text, object_pairs_hook=_Unique(where).made if unique else None)
  except (ValueError, RecursionError) as e:
    raise not_json(e, where) from None
  check(value, text, where)
  return value


def decode(data: bytes, where: str) -> str:
  """Decodes UTF-8; errors name the byte."""
  try:
    return data.decode()
  except UnicodeDecodeError as e:
    raise InputError(f'{where}: not UTF-8 (byte {data[e.start]:#04x} at '
                     f'{e.start})') from None


def not_json(error: Exception, where: str) -> InputError:
  """Makes the error of what the json module has raised."""
  if isinstance(error, InputError):
    return error
  if isinstance(error, RecursionError):
    return InputError(f'{where}: JSON is nested too deep, more than {DEEPEST} '
                      'lists or objects')
  if isinstance(error, json.JSONDecodeError):
    line = f'line {error.lineno} ' if error.lineno > 1 else ''
    return InputError(f'{where}: not JSON ({error.msg}: {line}column '
                      f'{error.colno})')
  # The one other: Python's limit, above which it takes quadratic time.
  return InputError(f'{where}: not JSON that can be read (a number has more '
                    'than 4300 digits)')


def check(value: Any, text: str, where: str) -> None:
  """Checks what JSON allows and nothing behind it can take.

  Args:
    value: as the json module has read it,
    text: from this.
    where: for errors.

  Raises:
    InputError: it is nested deeper than DEEPEST, or a text in it has a lone
      surrogate.
  """
  # Both are rare, and looking for their marks is fast.
  if text.count('[') + text.count('{') > DEEPEST and _is_deep(value):
    raise not_json(RecursionError(), where)
  if '\\ud' in text or '\\uD' in text:
    _check_texts(value, f'{where}: it' if isinstance(value, str) else where)


def _is_deep(value: Any) -> bool:
  level = [value]
  for _ in range(DEEPEST + 1):
    level = [x for v in level for x in _inner(v) if isinstance(x, (dict, list))]
    if not level:
      return False
  return True


def _inner(value: Any) -> Iterable[Any]:
  return value.values() if isinstance(
      value, dict) else value if isinstance(value, list) else ()


def _check_texts(value: Any, where: str) -> None:
  if isinstance(value, str):
    encodable(value, where)
  elif isinstance(value, dict):
    for key, inner in value.items():
      encodable(key, f'{where}: a key')
      _check_texts(inner, _below(where, key))
  elif isinstance(value, list):
    for i, inner in enumerate(value):
      _check_texts(inner, _below(where, i))


def _below(where: str, key: str | int) -> str:
  """FILE:LINE: KEY, and KEY.KEY below it."""
  return f'{where}.{key}' if ': ' in where else f'{where}: {key}'


def encodable(text: str, where: str) -> str:
  """Returns the text if UTF-8, and so a tokenizer, can encode it.

  Raises:
    InputError: it has a lone surrogate, which JSON can write.
  """
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise InputError(
        f'{where} has the lone surrogate U+{ord(text[e.start]):04X}'
        f' at {e.start}') from None
  return text


class _Unique:
  """Makes objects whose keys differ."""

  def __init__(self, where: str) -> None:
    self._where = where

  def made(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of (key, value); raises InputError if a key is there twice."""
    out = dict(pairs)
    if len(out) < len(pairs):
      twice = collections.Counter(k for k, _ in pairs).most_common(1)[0][0]
      raise InputError(f'{self._where}: {twice[:200]!r} stands there twice; '
                       'which one counts is not said')
    return out


def bad_character(text: str) -> str:
  """Names the first character that no field may have; '' if there is none."""
  if bad := _BAD.search(text):
    kind = 'control character' if bad[0] < '\x80' else 'lone surrogate'
    return f'{kind} U+{ord(bad[0]):04X} at {bad.start()}'
  return ''
