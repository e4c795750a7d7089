"""The working tree as an archive."""

import hashlib
import io
import pathlib
import subprocess
import tarfile


def pack(root: pathlib.Path) -> tuple[bytes, str, list[str]]:
  """Packs the working tree: tracked files as they are now, and new ones that
  git does not ignore.

  Returns:
    A .tar.gz; its version, a digest of the contents; the names of files that
    are not as committed.
  """

  def git(*args: str) -> list[str]:
    out = subprocess.run(['git', '-C', str(root), *args], check=True,
                         capture_output=True, text=True).stdout
    return [name for name in out.split('\0') if name]

  names = git('ls-files', '-z', '--cached', '--others', '--exclude-standard')
  changed = [
      line[3:] for line in git('status', '--porcelain', '--no-renames', '-z')
  ]
  digest, file = hashlib.blake2b(digest_size=6), io.BytesIO()
  with tarfile.open(fileobj=file, mode='w:gz') as tar:
    for name in sorted(set(names)):
      path = root / name
      if path.is_file():  # not deleted since
        digest.update(name.encode() + b'\0' + path.read_bytes() + b'\0')
        tar.add(path, name, recursive=False)
  return file.getvalue(), digest.hexdigest(), changed
