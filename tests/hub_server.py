"""A small Hugging Face Hub on the loopback interface.

It speaks what `snapshot_download` uses: repository info, file trees, and
`resolve` with ETag, commit, redirects of large files and byte ranges. Faults
are injected file by file.
"""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import pathlib
import re
import threading
import urllib.parse

LARGE = 2000  # bytes; larger files are served by redirect, as by git-lfs


@dataclasses.dataclass
class Repository:
  """Files of a repository, and who may read them."""

  files: dict[str, bytes]
  branches: tuple[str, ...] = ('main',)
  token: str = ''  # that has been granted access; '': all may read
  gated: bool = False  # others see that it exists; otherwise it is private

  @property
  def commit(self) -> str:
    state = hashlib.sha1()
    for name, data in sorted(self.files.items()):
      state.update(f'{name} {len(data)} '.encode() + data)
    return state.hexdigest()


class Hub(http.server.ThreadingHTTPServer):
  """The server.

  Attributes:
    repositories: by 'models/ORG/NAME' or 'datasets/ORG/NAME'.
    faults: of the next GETs of a file, by its name: an HTTP status, 'cut' (the
      stream ends in the middle); or of 'api', the repository's info.
    requests: 'METHOD /path range' of every request.
  """

  daemon_threads = True

  def __init__(self) -> None:
    super().__init__(('127.0.0.1', 0), _Handler)
    self.repositories: dict[str, Repository] = {}
    self.faults: dict[str, list[int | str]] = {}
    self.requests: list[str] = []

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self.server_address[1]}'

  @property
  def cdn(self) -> str:
    """Another host to the client, which sends no token there."""
    return f'http://localhost:{self.server_address[1]}'

  def add(self, name: str, folder: os.PathLike, **options) -> Repository:
    """Publishes the files of a folder as 'models/ORG/NAME'."""
    folder = pathlib.Path(folder)
    files = {
        str(f.relative_to(folder)): f.read_bytes()
        for f in folder.rglob('*')
        if f.is_file()
    }
    self.repositories[name] = Repository(files, **options)
    return self.repositories[name]

  def downloads(self, name: str) -> int:
    """Counts GETs of a file, wherever it was redirected to."""
    return sum(
        r.startswith('GET') and r.split()[1].endswith(f'/{name}')
        and '/api/' not in r for r in self.requests)

  def take_fault(self, name: str) -> int | str | None:
    return self.faults[name].pop(0) if self.faults.get(name) else None


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  server: Hub

  def log_message(self, *args) -> None:
    pass

  def do_HEAD(self) -> None:  # noqa: N802
    self._answer()

  def do_GET(self) -> None:  # noqa: N802
    self._answer()

  def _answer(self) -> None:
    path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
    self.server.requests.append(
        f'{self.command} {path} {self.headers.get("Range", "")}')
    if match := re.fullmatch(r'/cdn/(.*?/.*?/.*?)/(.*)', path):
      self._send_file(self.server.repositories[match[1]], match[2])
    elif match := re.fullmatch(
        r'/api/(\w+/[^/]+/[^/]+)(?:/(revision|tree)/(.*))?', path):
      self._api(*match.groups())
    elif match := re.fullmatch(r'/(datasets/)?([^/]+/[^/]+)/resolve/(.*?)/(.*)',
                               path):
      self._resolve((match[1] or 'models/') + match[2], match[3], match[4])
    else:
      self._send(404)

  def _readable(self, name: str, revision: str,
                info: bool = False) -> Repository | None:
    """Finds a repository, or sends the error that the Hub would."""
    repository = self.server.repositories.get(name)
    allowed = repository and (not repository.token
                              or self.headers.get('Authorization')
                              == f'Bearer {repository.token}')
    if repository is None or not allowed and not repository.gated:
      self._send(401, {'X-Error-Code': 'RepoNotFound'})
    elif not allowed and not info:
      self._send(403, {'X-Error-Code': 'GatedRepo'})
    elif revision not in (*repository.branches, repository.commit):
      self._send(404, {'X-Error-Code': 'RevisionNotFound'})
    else:
      return repository
    return None

  def _api(self, name: str, what: str | None, revision: str | None) -> None:
    if fault := self.server.take_fault('api'):
      return self._send(int(fault))
    repository = self._readable(name, revision or 'main', info=True)
    if repository is None:
      return
    files = sorted(repository.files.items())
    value = {
        'id': name.partition('/')[2], 'sha': repository.commit,
        'private': False, 'gated': repository.gated, 'tags': [], 'downloads': 0,
        'likes': 0, 'siblings': [{'rfilename': k} for k, _ in files]
    }
    if what == 'tree':
      value = [{
          'type': 'file', 'path': k, 'size': len(v),
          'oid': hashlib.sha1(v).hexdigest()
      } for k, v in files]
    self._send(200, {'Content-Type': 'application/json'},
               json.dumps(value).encode())

  def _resolve(self, name: str, revision: str, file: str) -> None:
    repository = self._readable(name, revision)
    if repository is None:
      return
    headers = {'X-Repo-Commit': repository.commit}
    data = repository.files.get(file)
    if data is None:
      self._send(404, headers | {'X-Error-Code': 'EntryNotFound'})
    elif len(data) <= LARGE:
      self._send_file(repository, file, headers)
    else:
      self._send(
          302, headers | {
              'Location': f'{self.server.cdn}/cdn/{name}/{file}',
              'X-Linked-Etag': f'"{hashlib.sha256(data).hexdigest()}"',
              'X-Linked-Size': str(len(data))
          })

  def _send_file(self, repository: Repository, file: str,
                 headers: dict[str, str] | None = None) -> None:
    data, status = repository.files[file], 200
    headers = {'ETag': f'"{hashlib.sha256(data).hexdigest()}"'} | (headers
                                                                   or {})
    fault = None
    if self.command == 'GET':
      fault = self.server.take_fault(file)
      if isinstance(fault, int):
        return self._send(fault)
    if wanted := re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', '')):
      start = int(wanted[1])
      headers['Content-Range'] = f'bytes {start}-{len(data) - 1}/{len(data)}'
      data, status = data[start:], 206
    self._send(status, headers, data, len(data) // 2 if fault else len(data))

  def _send(self, status: int, headers: dict[str, str] | None = None,
            data: bytes = b'', size: int | None = None) -> None:
    """Sends an answer, of its body `size` bytes."""
    self.send_response(status)
    for key, value in (headers or {}).items():
      self.send_header(key, value)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    if self.command == 'GET':
      self.wfile.write(data[:size])
    if size is not None and size < len(data):
      self.close_connection = True


@contextlib.contextmanager
def serve():
  """Runs a Hub in a thread."""
  hub = Hub()
  thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
  thread.start()
  try:
    yield hub
  finally:
    hub.shutdown()
    hub.server_close()
    thread.join()
