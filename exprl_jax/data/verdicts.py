"""Checks of all problems before a run, in one pass that is remembered.

Whether prompts fit, answers can be read and rubrics are there takes minutes for
millions of problems, and is the same at the next start. A pass without an error
leaves a small file in the folder `checked` of the cache (stored.py).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import itertools
import json
from typing import Any

import jax

from exprl_jax import __version__
from exprl_jax.data import stored
from exprl_jax.data.lazy import digest, digest_of
from exprl_jax.runtime import files, mesh
from exprl_jax.types import InputError, Problem

CHUNK = 1024  # problems that a check is given at a time

# Raises InputError for a bad one; what it returns is not used.
Check = Callable[[Sequence[Problem]], object]


def check(problems: Sequence[Problem], checks: Sequence[Check], *key:
          Any) -> None:
  """Gives all problems to the checks, CHUNK at a time.

  All processes call it, and each checks its share of the chunks.

  Args:
    problems: to be checked.
    checks: of problems.
    key: all that the checks depend on, beside the problems; of JSON, or with a
      `repr` that says it.

  Raises:
    InputError: the first error of a check, in every process.
  """

  def check_all() -> dict[str, int]:
    errors = mesh.everywhere(_first_error(problems, checks))
    if found := [(i, text) for i, text in errors if text]:
      raise InputError(min(found)[1])
    return {'problems': len(problems)}

  remembered(problems, check_all, *key)


def _first_error(problems: Sequence[Problem],
                 checks: Sequence[Check]) -> tuple[int, str]:
  """The first error in this process's chunks: its chunk and text, or ''."""
  for i, chunk in enumerate(chunks(problems)):
    if mesh.is_mine(i):
      try:
        for function in checks:
          function(chunk)
      except InputError as e:
        return i, str(e)
  return 0, ''


def remembered(problems: Sequence[Problem], compute: Callable[[], Any], *key:
               Any) -> Any:
  """Returns what `compute` returned for the same problems and key.

  All processes call it, and all of them compute if the value is not known.

  Args:
    problems: that the value depends on.
    compute: returns a value that JSON can hold.
    key: all else that the value depends on; see `check`.
  """
  own = digest_of(problems) if len(problems) > stored.IN_MEMORY else ''
  path = files.cache_folder(
      'checked') / f'{digest(__version__, own, *key)}.json'
  known = ''
  if own and jax.process_index() == 0 and path.is_file():
    known = path.read_text()
  if known := mesh.broadcast(known):
    return json.loads(known)
  value = compute()
  if own and jax.process_index() == 0:
    with contextlib.suppress(OSError):  # then the next start computes again
      stored.write_whole(path, json.dumps(value))
  return value


def chunks(problems: Iterable[Problem]) -> Iterator[list[Problem]]:
  """Yields lists of CHUNK problems, and what is left."""
  rest = iter(problems)
  while chunk := list(itertools.islice(rest, CHUNK)):
    yield chunk
