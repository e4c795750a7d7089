"""A small service of chat completions on the loopback interface.

It speaks what OpenAI's does: one answer to a list of messages, and its tokens.
Faults are injected into the next answers, or into all to some questions.
"""

from collections.abc import Callable
import contextlib
import http.server
import json
import threading
import time


class Service(http.server.ThreadingHTTPServer):
  """The server.

  Attributes:
    answer: text of the user's message -> what the model writes.
    faults: of the next answers: an HTTP status, 'cut' (the stream ends in the
      middle), 'slow' (three seconds late), 'html' (another kind of answer).
    broken: questions that hold this text get 500, always; '': none.
    key: that requests have to bring; '': none.
    requests: bodies of all requests.
    retry_after: header of answers with a status; '': none.
    most: requests that were there at the same time.
  """

  daemon_threads = True

  def __init__(self, answer: Callable[[str], str]) -> None:
    super().__init__(('127.0.0.1', 0), _Handler)
    self.answer, self.faults, self.requests = answer, [], []
    self.broken, self.key, self.retry_after = '', '', ''
    self.most = self.now = 0
    self.lock = threading.Lock()

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self.server_address[1]}/v1'

  @property
  def asked(self) -> list[str]:
    """The user's messages of all requests."""
    return [r['messages'][-1]['content'] for r in self.requests]


@contextlib.contextmanager
def serving(answer: Callable[[str], str]):
  """Within it, a service answers."""
  service = Service(answer)
  thread = threading.Thread(target=service.serve_forever, args=(0.02,))
  thread.start()
  try:
    yield service
  finally:
    service.shutdown()
    service.server_close()
    thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):

  def log_message(self, *args):
    del args

  def do_POST(self) -> None:
    server = self.server
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    with server.lock:
      server.requests.append(body)
      server.now += 1
      server.most = max(server.most, server.now)
      fault = server.faults.pop(0) if server.faults else None
    try:
      self._answer(server, body, fault)
    except OSError:  # the client did not wait
      pass
    finally:
      with server.lock:
        server.now -= 1

  def _answer(self, server: Service, body: dict, fault: int | str | None):
    said = body['messages'][-1]['content']
    if self.path != '/v1/chat/completions':
      fault = 404
    if server.key and self.headers['Authorization'] != f'Bearer {server.key}':
      fault = 401
    if server.broken and server.broken in said:
      fault = 500
    if fault == 'slow':
      time.sleep(3.0)
    if isinstance(fault, int):
      return self._send(fault, b'{"error": {"message": "no"}}')
    if fault == 'html':
      return self._send(200, b'<html>hello</html>')
    time.sleep(0.01)  # so that requests meet
    text = server.answer(said)
    data = json.dumps({
        'choices': [{
            'index': 0, 'finish_reason': 'stop',
            'message': {'role': 'assistant', 'content': text}
        }], 'usage': {
            'prompt_tokens': len(said.split()), 'completion_tokens': len(
                (text or '').split())
        }
    }).encode()
    self._send(200, data, cut=fault == 'cut')

  def _send(self, status: int, data: bytes, cut: bool = False) -> None:
    self.send_response(status)
    self.send_header('Content-Type', 'application/json')
    if status != 200 and self.server.retry_after:
      self.send_header('Retry-After', self.server.retry_after)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data[:len(data) // 2] if cut else data)
    self.close_connection = True
