"""Files of a workdir, on a disk or in a bucket: whole, or not there.

On a disk a file is written beside its place, under a hidden name, and renamed.
An object of a bucket appears when it is complete.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import tempfile
from typing import Any
import uuid

from etils import epath


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path is in a bucket, where nothing can be appended to."""
  return '://' in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
  """Makes a local path absolute; one in a bucket is."""
  return epath.Path(path if is_remote(path) else os.path.abspath(path))


def is_hidden(path: epath.Path) -> bool:
  """Whether a file is one that a killed process has not finished."""
  return path.name.startswith('.')


def write(path: epath.PathLike, data: str | bytes) -> None:
  """Writes a whole file; its folder is made.

  A process that is killed meanwhile leaves what was there before. Lone
  surrogates of a text become \\udXXX.
  """
  path = epath.Path(path)
  if isinstance(data, str):
    data = data.encode('utf-8', 'backslashreplace')
  with naming(path):
    _write(path, data)


def _write(path: epath.Path, data: bytes) -> None:
  if is_remote(path):
    path.write_bytes(data)
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}')
  try:
    with open(temporary, 'wb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  sync_folder(path.parent)


@contextlib.contextmanager
def naming(path: epath.PathLike) -> Iterator[None]:
  """Errors of the system within it name the file, as those of `open` do.

  A write to a full disk says only that it is full.
  """
  try:
    yield
  except OSError as e:
    if e.errno and e.filename is None:
      e.filename = os.fspath(path)
    raise


def sync_folder(folder: epath.PathLike) -> None:
  """Makes the names in a local folder durable, where the system can."""
  with contextlib.suppress(OSError):  # some file systems cannot
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def dumps(value: Any, **options: Any) -> str:
  """Formats JSON in ASCII, which holds any text, lone surrogates included."""
  return json.dumps(value, ensure_ascii=True, **options)


def write_json(path: epath.PathLike, value: Any, **options: Any) -> None:
  """Writes a JSON file as a whole."""
  write(path, dumps(value, **options) + '\n')


@contextlib.contextmanager
def local(path: epath.PathLike) -> Iterator[pathlib.Path]:
  """A local file for writers that know no other; it becomes `path` at the end.

  Yields:
    A path with the same suffix.
  """
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / epath.Path(path).name
    yield file
    write(path, file.read_bytes())


def copy_folder(source: epath.PathLike, target: epath.PathLike) -> None:
  """Copies the files of a local folder, and of those in it, somewhere else."""
  source, target = pathlib.Path(source), epath.Path(target)
  for file in sorted(source.rglob('*')):
    if file.is_file():
      write(target / str(file.relative_to(source)), file.read_bytes())


def set_aside(path: epath.PathLike, data: bytes) -> epath.Path:
  """Keeps what does not belong into a file as NAME.bad-N; returns its path."""
  path, number = epath.Path(path), 1
  while (aside := path.with_name(f'{path.name}.bad-{number}')).exists():
    number += 1
  write(aside, data)
  return aside


def cache_folder(name: str) -> pathlib.Path:
  """A folder of the user's cache, which need not be there.

  It is in $EXPRL_CACHE, by default ~/.cache/exprl_jax.
  """
  root = os.environ.get('EXPRL_CACHE') or '~/.cache/exprl_jax'
  return pathlib.Path(root).expanduser() / name
