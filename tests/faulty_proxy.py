"""A reverse proxy on the loopback interface that injects faults by rule.

It stands between the clients of a bucket (gcsfs, TensorStore) and the emulator
of gcs_server.py.
"""

import dataclasses
import http.client
import http.server
import json
import random
import re
import threading
import time
import urllib.parse


@dataclasses.dataclass
class Rule:
  """What happens to requests that match.

  Attributes:
    what: an HTTP status to answer with; 'cut': the answer ends in the middle;
      'slow': it takes `seconds`.
    match: a regular expression, searched in 'METHOD /path?query body' with all
      that is quoted unquoted; names of objects are in the path, the query or
      the body.
    times: how many requests; then the rule is over.
    chance: of each request that matches.
    seconds: of 'slow'.
    hits: how many requests met it.
  """

  what: int | str
  match: str = ''
  times: float = float('inf')
  chance: float = 1.0
  seconds: float = 3.0
  hits: int = 0


class Proxy(http.server.ThreadingHTTPServer):
  """The proxy; `rules` are tried in order, the first that applies wins.

  Attributes:
    rules: to be set and changed at any time.
    requests: 'METHOD /path?query' of every request.
  """

  daemon_threads = True
  request_queue_size = 128

  def __init__(self, port: int) -> None:
    """Listens on a free port, in front of a server on `port`."""
    super().__init__(('127.0.0.1', 0), _Handler)
    self.upstream = port
    self.rules: list[Rule] = []
    self.requests: list[str] = []
    self._random, self._lock = random.Random(0), threading.Lock()
    threading.Thread(target=self.serve_forever, daemon=True).start()

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self.server_address[1]}'

  def fault(self, subject: str) -> Rule | None:
    """The rule that a request meets."""
    with self._lock:
      for rule in self.rules:
        if (rule.hits < rule.times and re.search(rule.match, subject, re.S)
            and self._random.random() < rule.chance):
          rule.hits += 1
          return rule
    return None

  def handle_error(self, *_) -> None:  # clients may leave when they like
    pass


class _Handler(http.server.BaseHTTPRequestHandler):
  """Sends a request on, or does what a rule says."""

  protocol_version = 'HTTP/1.1'
  server: Proxy

  def log_message(self, *_) -> None:
    pass

  def _any(self) -> None:
    body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    line = f'{self.command} {urllib.parse.unquote(self.path)}'
    self.server.requests.append(line)
    rule = self.server.fault(f'{line} {body[:2000].decode("latin-1")}')
    what = rule.what if rule else ''
    if isinstance(what, int):
      text = json.dumps({'error': {'code': what, 'message': 'injected'}})
      self._send(what, [], text.encode())
      return
    if what == 'slow':
      time.sleep(rule.seconds)
    status, headers, data = self._forward(body)
    self._send(status, headers, data, cut=what == 'cut')

  do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _any

  def _forward(self, body: bytes) -> tuple[int, list, bytes]:
    """Asks the server; the Host header makes its links point here."""
    upstream = http.client.HTTPConnection('127.0.0.1', self.server.upstream,
                                          timeout=60)
    try:
      headers = dict(self.headers) | {'Connection': 'close'}
      upstream.request(self.command, self.path, body or None, headers)
      answer = upstream.getresponse()
      return answer.status, answer.getheaders(), answer.read()
    finally:
      upstream.close()

  def _send(self, status: int, headers: list, data: bytes, cut=False) -> None:
    self.send_response(status)
    for name, value in headers:
      if name.lower() not in ('content-length', 'connection', 'date', 'server'):
        self.send_header(name, value)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data[:len(data) // 2] if cut else data)
    self.close_connection |= cut
