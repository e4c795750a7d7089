"""Which files a path of the config names: globs, folders, lists, the Hub."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import glob
import os
import posixpath
import re
from typing import Any, NamedTuple

from etils import epath

from exprl_jax.config import resolve
from exprl_jax.data import hub, sources
from exprl_jax.runtime import failures, inputs
from exprl_jax.types import InputError

# Of `datasets` and the Hub; they hold no rows.
_DESCRIPTIONS = {
    'dataset_dict.json', 'dataset_info.json', 'dataset_infos.json', 'state.json'
}
_WILD = re.compile(r'[*?[]')


class File(NamedTuple):
  """A file with rows, and what changes if its content does."""

  path: epath.Path
  name: str  # short: the path below the folder that all files are in
  size: int  # bytes
  modified: int  # time


def find(paths: str) -> list[File]:
  """Finds the files of a path of the config, each once.

  Args:
    paths: a file, a folder, a glob ('*', '?', '[', '**' for folders), or
      hf:ORG/NAME (hub.py), local or on gs://; or several, with commas.

  Raises:
    InputError: there is no such file; names it.
  """
  parts = [paths]
  if ',' in paths and not resolve(paths).exists():
    parts = [part.strip() for part in paths.split(',')]
  with failures.naming(paths):
    found = dict.fromkeys(path for part in parts for path in _expand(part))
  with futures.ThreadPoolExecutor(16) as pool:  # gs:// takes its time
    stats = list(pool.map(_stat, found))
  names = _short(list(found))
  return [
      File(path, name, *stat)
      for path, name, stat in zip(found, names, stats)
      if stat
  ]


def _expand(part: str) -> Sequence[epath.Path]:
  if part.startswith(hub.PREFIX):
    folder, patterns = hub.find(part)
    found = _below(folder) if folder.is_dir() else ()
    return _with_rows(
        part,
        (p for p in found if hub.matches(str(p.relative_to(folder)), patterns)))
  path = resolve(part)
  if path.is_dir():
    return _of_folder(path)
  if path.is_file():
    return [path]
  if _WILD.search(part):
    return _with_rows(part, _glob(part))
  path.exists()  # raises where a bucket lets us not in: the above say no
  raise InputError(f'{part}: no such problem file (docs/data.md has the '
                   'formats)')


def _of_folder(folder: epath.Path) -> Sequence[epath.Path]:
  """Lists the files of a folder that have rows, in it or below."""
  if (splits := folder / 'dataset_dict.json').is_file():
    raise InputError(f'{folder}: choose a split of it: ' + ', '.join(
        f'{folder}/{s}' for s in _described(splits, 'splits')))
  if (state := folder / 'state.json').is_file():  # by save_to_disk, in order
    return [folder / name for name in _described(state, '_data_files')]
  return _with_rows(str(folder), _below(folder))


def _described(path: epath.Path, key: str) -> Sequence[Any]:
  """Reads the names of splits or files that save_to_disk has written."""
  found = inputs.read_object(path).get(key)
  names = found and [
      f.get('filename') if isinstance(f, dict) else f for f in found
  ] if isinstance(found, list) else None
  if not names or not all(
      isinstance(n, str) and n not in ('', '.', '..') and '/' not in n
      for n in names):
    raise InputError(f'{path}: not as save_to_disk writes it (no {key}); save '
                     'the data set again')
  return names


def _below(folder: epath.Path) -> Iterator[epath.Path]:
  for path in folder.iterdir():
    if path.is_dir():
      yield from _below(path)
    else:
      yield path


def _glob(pattern: str) -> Iterable[epath.Path]:
  if '://' not in pattern:
    return map(epath.Path, glob.glob(pattern, recursive=True))
  if '**' in pattern:
    raise InputError(f'{pattern}: ** is for local paths; name the folder: all '
                     'below it is read')
  root = re.split(r'/[^/]*[*?[]', pattern)[0]
  return epath.Path(root).glob(pattern[len(root) + 1:])


def _with_rows(name: str, paths: Iterable[epath.Path]) -> list[epath.Path]:
  """Sorts the paths with the suffix of a format; raises if there is none."""
  out = [
      p for p in paths if sources.suffix(p.name) in sources.FORMATS
      and p.name not in _DESCRIPTIONS and p.name[0] not in '._'
  ]
  if not out:
    raise InputError(f'{name}: no such problem file; want one that ends in '
                     f'{", ".join(sources.FORMATS)}')
  return sorted(out, key=str)


def _stat(path: epath.Path) -> tuple[int, int] | None:
  """Returns size and time of a file; None of a folder."""
  try:
    if '://' not in str(path):
      own = os.stat(path)
      if path.is_dir():
        return None
      inputs.require_file(path)
      return own.st_size, own.st_mtime_ns
    stat = path.stat()
    return None if stat.is_directory else (stat.length, int(stat.mtime))
  except OSError as e:
    if failures.unreachable(e):
      raise
    raise InputError(f'{path}: no such problem file ({e.strerror})') from None


def _short(paths: Sequence[epath.Path]) -> list[str]:
  """The paths, without the folder that all of them are in."""
  texts = [str(p) for p in paths]
  if len({t.partition('://')[0] for t in texts if '://' in t}) > 1:
    return texts
  try:
    common = posixpath.commonpath([posixpath.dirname(t) for t in texts])
  except ValueError:  # absolute ones and others
    return texts
  return [t[len(common):].lstrip('/') for t in texts]
