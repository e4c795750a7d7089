"""Reads checkpoints, and finds those that are not what was saved.

The layout is that of runtime/checkpoints.py, which writes them.
"""

from collections.abc import Callable
import hashlib
import json
from typing import Any, NamedTuple

from etils import epath
import jax
import orbax.checkpoint as ocp

from exprl_jax.runtime import failures, files, fingerprints
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError, StartAgain

STATE, HOST = 'state', 'host'  # the items of a checkpoint
BAD = 'checkpoints_bad'
_COMMITTED = 'commit_success.txt'  # Orbax writes it last


class Host(NamedTuple):
  """What a checkpoint's JSON holds."""

  fingerprints: dict[str, str]  # of the state's leaves
  versions: dict[str, str]
  host: dict[str, Any]  # states of objects on the host, by name


class _Bad(Exception):
  """A checkpoint does not read back as it was saved; says why."""


def incomplete(path: epath.Path) -> str:
  """Why a checkpoint was not saved to its end; '' where it was."""
  for part in (path, path / STATE, path / HOST):
    if not (part / _COMMITTED).exists():
      return f'{part.name}/{_COMMITTED} is missing: saving was cut short'
  return ''


def read(path: epath.Path, abstract: Any,
         partial: bool = False) -> tuple[Any, Host, str]:
  """Reads a checkpoint and compares it with its fingerprints.

  All processes call it, and all get the same answer.

  Returns:
    (state, host, why it is bad); the first two mean nothing if it is bad.

  Raises:
    InputError: it is good, but has other arrays; or storage lets us not in.
    StartAgain: storage does not answer.
  """
  found: dict[str, Any] = {}

  def read_host() -> None:
    found['host'] = _read_host(path)
    _compare(path, found['host'], abstract, partial)

  def read_state() -> None:
    found['state'] = _read_state(path, abstract, partial)

  # The processes agree after each part: the last one needs all of them.
  for part in (read_host, read_state,
               lambda: _verify(found['state'], found['host'])):
    if why := next(filter(None, mesh_lib.everywhere(_tried(path, part))), ''):
      return None, None, why  # type: ignore[return-value]
  return found['state'], found['host'], ''


def _tried(path: epath.Path, part: Callable[[], None]) -> str:
  """Why a part of reading failed; '' where it did not."""
  try:
    part()
  except InputError:
    raise
  except _Bad as e:
    return str(e)
  except Exception as e:  # of any kind: there are so many ways to be damaged
    if failures.refused(e):
      raise InputError(
          f'{path}: {failures.brief(e)}; {failures.remedy(e)}') from e
    if failures.unreachable(e):
      raise StartAgain(f'{path}: {failures.brief(e)}') from e
    return failures.brief(e)
  return ''


def _read_host(path: epath.Path) -> Host:
  if why := incomplete(path):
    raise _Bad(why)
  stored = json.loads((path / HOST / 'metadata').read_bytes())
  if not isinstance(stored, dict) or not {'text', 'sha256'} <= stored.keys():
    raise _Bad('no checksums: saved by an older version')
  if checksum(stored['text']) != stored['sha256']:
    raise _Bad("host/metadata differs from its checksum")
  return Host(**json.loads(stored['text']))


def _compare(path: epath.Path, host: Host, abstract: Any,
             partial: bool) -> None:
  """Checks names, types and shapes.

  Raises:
    InputError: they differ; names the first ones.
  """
  kind = lambda text: text.rpartition(':')[0]
  saved = {k: kind(v) for k, v in host.fingerprints.items()}
  wanted = {
      fingerprints.name(k): fingerprints.describe(v)
      for k, v in jax.tree_util.tree_flatten_with_path(abstract)[0]
  }
  names = wanted.keys() if partial else saved.keys() | wanted.keys()
  different = [
      f'{name} is {saved.get(name, "missing")}, wanted '
      f'{wanted.get(name, "none")}'
      for name in sorted(names)
      if saved.get(name) != wanted.get(name)
  ]
  if different:
    more = f' and {len(different) - 3} more' if len(different) > 3 else ''
    raise InputError(
        f'{path}: not the arrays of this model and optimizer: '
        f'{"; ".join(different[:3])}{more}; resume with the config that saved '
        'it')


def _read_state(path: epath.Path, abstract: Any, partial: bool) -> Any:
  """Reads the arrays, onto the shardings of `abstract`."""
  with ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.restore(
        files.absolute(path / STATE), args=ocp.args.PyTreeRestore(
            item=abstract, partial_restore=partial,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)))


def _verify(state: Any, host: Host) -> None:
  """Compares fingerprints.

  Raises:
    _Bad: an array is not what was saved.
  """
  for name, value in fingerprints.fingerprints(state).items():
    if host.fingerprints[name] != value:
      raise _Bad(f'{name} differs from its fingerprint')


def put_aside(path: epath.Path, why: str) -> None:
  """Moves a bad checkpoint out of the way, and says so."""
  bad = path.parent.parent / BAD
  if not jax.process_index():
    bad.mkdir(parents=True, exist_ok=True)
    taken = {p.name for p in bad.iterdir()}
    name = next(n for n in (f'{path.name}.{i}' for i in range(len(taken) + 1))
                if n not in taken)
    path.rename(bad / name)
    say(f'WARNING: {path} is damaged ({why}); it is now {bad / name}, and the '
        'next older checkpoint is taken')
  mesh_lib.barrier('put_aside')


def checksum(text: str) -> str:
  """SHA-256 of the host's JSON."""
  return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()


def say(line: str) -> None:
  """Prints a line, once of all processes."""
  if not jax.process_index():
    print(line, flush=True)
