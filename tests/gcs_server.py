"""Serves a bucket on this machine: python tests/gcs_server.py PORT BUCKET.

The emulator lacks two things, added here. It does not say which generation of
an object it sends, which TensorStore needs of what it reads and writes again.
And it forgets uploads that are complete, so that a client that has lost the
last answer and asks again is told that there is no such upload.
"""

from collections.abc import Iterator
import contextlib
import json
import pathlib
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

_download, _upload = objects.download, objects.upload_partial
_uploaded: dict[str, object] = {}  # the last answers, by upload


def download(request, response, storage, *args, **kwargs):
  """Sends an object with its generation."""
  try:
    found = storage.get_file_obj(request.params['bucket_name'],
                                 request.params['object_id'])
    response['x-goog-generation'] = found['generation']
  except NotFound:
    pass
  return _download(request, response, storage, *args, **kwargs)


def upload_partial(request, response, storage, *args, **kwargs):
  """Takes a part of an upload; one that is complete is answered as before."""
  (upload,) = request.query['upload_id']
  if upload not in _uploaded:
    _upload(request, response, storage, *args, **kwargs)
    if response.status == 200 and response._content:
      _uploaded[upload] = json.loads(response._content)
  elif request.data is not None:
    response.json(_uploaded[upload])


# Before the server makes its table of handlers.
objects.download, objects.upload_partial = download, upload_partial


class Bucket:
  """A bucket without faults, as tests see it: objects by name."""

  def __init__(self, port: int, name: str) -> None:
    self.port, self._at = port, f'b/{name}/o'

  def _ask(self, path: str, data: bytes | None = None) -> bytes:
    url = f'http://127.0.0.1:{self.port}/{path}'
    with urllib.request.urlopen(url, data, timeout=60) as answer:
      return answer.read()

  def put(self, name: str, data: bytes) -> None:
    """Writes an object."""
    self._ask(f'upload/storage/v1/{self._at}?uploadType=media&name={name}',
              data)

  def put_folder(self, folder: pathlib.Path, name: str) -> None:
    """Writes the files of a local folder."""
    for file in pathlib.Path(folder).iterdir():
      self.put(f'{name}/{file.name}', file.read_bytes())

  def get(self, name: str) -> bytes:
    """Reads an object."""
    quoted = urllib.parse.quote(name, safe='')
    return self._ask(f'download/storage/v1/{self._at}/{quoted}?alt=media')

  def names(self, prefix: str = '') -> list[str]:
    """Lists objects."""
    found = self._ask(
        f'storage/v1/{self._at}?maxResults=100000&prefix={prefix}')
    return sorted(o['name'] for o in json.loads(found).get('items', ()))


@contextlib.contextmanager
def serve(name: str) -> Iterator[Bucket]:
  """Serves a bucket from a process of its own."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  child = subprocess.Popen(
      [sys.executable, __file__, str(port), name], stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL)
  try:
    for _ in range(100):
      with contextlib.suppress(OSError):
        urllib.request.urlopen(f'http://127.0.0.1:{port}', timeout=1).close()
        break
      time.sleep(0.1)
    yield Bucket(port, name)
  finally:
    child.kill()
    child.wait()


def environment(url: str) -> dict[str, str]:
  """What clients need to find the server; read when they are first imported."""
  return {
      'TENSORSTORE_GCS_HTTP_URL': url, 'STORAGE_EMULATOR_HOST': url,
      'GOOGLE_CLOUD_PROJECT': 'test', 'NO_GCE_CHECK': 'true',
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false'
  }


if __name__ == '__main__':
  from gcp_storage_emulator import server
  server.create_server('127.0.0.1', int(sys.argv[1]), in_memory=True,
                       default_bucket=sys.argv[2]).run()
