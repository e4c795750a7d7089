"""Serves a bucket on this machine: python tests/gcs_server.py PORT BUCKET.

The emulator does not say which generation of an object it sends. TensorStore
needs that of what it reads and writes again, so it is added here.
"""

import sys

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

_download = objects.download


def download(request, response, storage, *args, **kwargs):
  """Sends an object with its generation."""
  try:
    found = storage.get_file_obj(request.params['bucket_name'],
                                 request.params['object_id'])
    response['x-goog-generation'] = found['generation']
  except NotFound:
    pass
  return _download(request, response, storage, *args, **kwargs)


objects.download = download  # before the server makes its table of handlers

if __name__ == '__main__':
  from gcp_storage_emulator import server
  server.create_server('127.0.0.1', int(sys.argv[1]), in_memory=True,
                       default_bucket=sys.argv[2]).run()
