"""The files of a jail: a root of its own, and how much it has written.

Like `grading.jail`, which uses it, imports nothing of the package but
`grading.kernel`.
"""

import os
import pathlib

from exprl_jax.grading import kernel

_DEVICES = ('null', 'zero', 'full', 'random', 'urandom')
_ENTRIES = 4096  # files that a program may make
# Where the new root is made; any folder will do, the paths are open by then.
_PLACES = ('/tmp', '/mnt', '/var', '/home')


def mount_proc() -> None:
  """Mounts the /proc of a new process namespace over the old one."""
  kernel.mount('', '/', flags=kernel.MS_REC | kernel.MS_PRIVATE)
  kernel.mount('proc', '/proc', 'proc')


def mount_root(readable: list[str], disk_mb: int) -> None:
  """Makes a root of read-only paths and an empty /tmp, and moves there.

  Needs a new mount namespace. Leaves /proc empty where the kernel does not let
  it be mounted.
  """
  kernel.mount('', '/', flags=kernel.MS_REC | kernel.MS_PRIVATE)
  # 1. Open what will be seen: the new root may hide it.
  paths = [*readable, *(f'/dev/{name}' for name in _DEVICES)]
  opened = {
      path: os.open(path, os.O_PATH)
      for path in paths
      if os.path.exists(path) and not os.path.islink(path)
  }
  links = {path: os.readlink(path) for path in paths if os.path.islink(path)}
  # 2. Two file systems in memory: a small root, and /tmp.
  root = next(place for place in _PLACES if os.path.isdir(place))
  kernel.mount('tmpfs', root, 'tmpfs', kernel.MS_NOSUID, 'size=1m,mode=755')
  for folder in ('tmp', 'proc', 'dev'):
    os.mkdir(f'{root}/{folder}')
  kernel.mount('tmpfs', f'{root}/tmp', 'tmpfs',
               kernel.MS_NOSUID | kernel.MS_NODEV,
               f'size={disk_mb}m,nr_inodes={_ENTRIES},mode=1777')
  # 3. The paths, at their places.
  for path, file in opened.items():
    _bind(file, root + path, writable=path.startswith('/dev/'))
  for path, target_of_link in links.items():
    pathlib.Path(root + path).parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target_of_link, root + path)
  os.symlink('/tmp', f'{root}/dev/shm')
  try:
    kernel.mount('proc', f'{root}/proc', 'proc', kernel.MS_NOSUID)
    kernel.read_only(f'{root}/proc', recursive=False)
  except OSError:  # parts of the outer /proc are masked
    pass
  # 4. Move, and lose the old root.
  kernel.enter_root(root)
  kernel.read_only('/', recursive=False)


def _bind(file: int, target: str, writable: bool) -> None:
  """Mounts an open file or folder at another path, and closes it."""
  source, place = f'/proc/self/fd/{file}', pathlib.Path(target)
  place.parent.mkdir(parents=True, exist_ok=True)
  if os.path.isdir(source):
    place.mkdir(exist_ok=True)
  else:
    place.touch()
  kernel.mount(source, target, flags=kernel.MS_BIND | kernel.MS_REC)
  if not writable:
    kernel.read_only(target, recursive=True)
  os.close(file)


def written(folder: str, limit: int) -> int:
  """Sums the bytes of files on disk below a folder; stops above `limit`.

  Counts more than `limit` where there are too many files.
  """
  total, entries, folders = 0, 0, [folder]
  while folders and total <= limit:
    try:
      with os.scandir(folders.pop()) as found:
        for entry in found:
          entries += 1
          if entries > _ENTRIES:
            return limit + 1
          if entry.is_dir(follow_symlinks=False):
            folders.append(entry.path)
          total += 512 * entry.stat(follow_symlinks=False).st_blocks
    except OSError:  # removed, or made unreadable; its size was counted
      continue
  return total
