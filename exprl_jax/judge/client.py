"""A client of OpenAI-compatible chat completions, for judges behind one.

Questions are asked by a thread of their own, a bounded number at a time. What
may pass (no connection, time-outs, cut answers, HTTP 408, 429 and 5xx) is
asked again, each time after a longer wait. A question that still has no answer
is given up, if the service answers another one; if it does not, it is down, and
the run stops to be started again.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
import contextlib
import json
import os
import re
import threading
from typing import Any

from absl import logging
import aiohttp

from exprl_jax import config as config_lib
from exprl_jax.judge.chats import Messages
from exprl_jax.runtime import failures
from exprl_jax.types import InputError, StartAgain, printable

Question = Callable[[], Messages]  # made when it is asked
_PASSING = (408, 425, 429)  # and 5xx
_REFUSED = (301, 302, 303, 307, 308, 401, 403, 404, 405)  # the same for all
_LONGEST_WAIT = 60.0  # seconds between two attempts
_SECONDS = re.compile('[0-9]{1,9}')  # Retry-After; dates are not read
_LARGEST = 2**24  # bytes of an answer
_PING: Messages = [{'role': 'user', 'content': 'Answer with the number 1.'}]
COUNTERS = ('requests', 'retries', 'failed', 'prompt_tokens',
            'completion_tokens')


class _PassingError(Exception):
  """There is no answer now."""

  def __init__(self, why: str, wait: float = 0.0, foreign: bool = False):
    super().__init__(why)
    self.wait = wait  # seconds that the service asks for
    self.foreign = foreign  # it answers, with something else


class _RefusedError(Exception):
  """The service takes other questions, not this one."""


def key_of(cfg: config_lib.Judge) -> str:
  """The key of an endpoint, from the environment; '': none is needed.

  Raises:
    InputError: there is no such variable.
  """
  if cfg.endpoint_key and not os.environ.get(cfg.endpoint_key):
    raise InputError(f'config.judge.endpoint_key={cfg.endpoint_key}: the '
                     'environment has no such variable; it holds the key')
  return os.environ[cfg.endpoint_key].strip() if cfg.endpoint_key else ''


class Client:
  """Asks one model of one service, and counts."""

  def __init__(self, cfg: config_lib.Judge, first_wait: float = 0.5):
    """Connects to nothing yet.

    Args:
      cfg: endpoint, endpoint_* and chat_template_options.
      first_wait: seconds before the second attempt; then twice as long.

    Raises:
      InputError: there is no key.
    """
    self._cfg, self._first_wait = cfg, first_wait
    self._url = f'{cfg.endpoint.rstrip("/")}/chat/completions'
    key = key_of(cfg)
    self._headers = {'Authorization': f'Bearer {key}'} if key else {}
    self._counts = dict.fromkeys(COUNTERS, 0)
    self._warned = False

  def usage(self) -> dict[str, float]:
    """Returns the counts since the last call, as metrics."""
    found, self._counts = self._counts, dict.fromkeys(COUNTERS, 0)
    return {f'judge/endpoint_{k}': float(n) for k, n in found.items()}

  async def answer_all(self, questions: Sequence[Question],
                       body: dict[str, Any], answers: dict[int,
                                                           str | None]) -> None:
    """Asks all questions.

    Args:
      questions: to be asked.
      body: other fields of all requests.
      answers: takes the answers by number, as they come; None: there is none.

    Raises:
      InputError: the service does not let us in, or is another kind of service.
      StartAgain: it is down.
    """
    cfg, todo = self._cfg, iter(enumerate(questions))
    limit = min(cfg.endpoint_requests, len(questions))
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=limit), headers=self._headers,
        timeout=aiohttp.ClientTimeout(total=cfg.endpoint_timeout),
        trust_env=True) as session:
      work = [
          asyncio.create_task(self._work(session, todo, body, answers))
          for _ in range(limit)
      ]
      try:
        await asyncio.gather(*work)
      finally:
        for task in work:
          task.cancel()
        await asyncio.gather(*work, return_exceptions=True)

  async def _work(self, session: aiohttp.ClientSession,
                  todo: Iterator[tuple[int, Question]], body: dict[str, Any],
                  answers: dict[int, str | None]) -> None:
    for i, question in todo:
      answers[i] = await self._answer(session, body | {'messages': question()})

  async def _answer(self, session: aiohttp.ClientSession,
                    body: dict[str, Any]) -> str | None:
    """The answer to a question; None where only this one has none."""
    try:
      return await self._patiently(session, body)
    except (_PassingError, _RefusedError) as e:
      self._counts['failed'] += 1
      why, asked = e, isinstance(e, _RefusedError)
    if not self._warned:
      self._warned = True
      logging.warning('%s: a question has no answer (%s); it is unreadable',
                      self._url, why)
    if not asked:
      await self._ping(session)
    return None

  async def _ping(self, session: aiohttp.ClientSession) -> None:
    """Asks a short question, to see whether the service is there at all."""
    try:
      with contextlib.suppress(_RefusedError):  # it is
        await self._patiently(
            session,
            self._common() | {'messages': _PING, 'max_tokens': 1})
    except _PassingError as e:
      if e.foreign:
        raise InputError(
            f'config.judge.endpoint={self._cfg.endpoint}: {e}; is it the /v1 '
            'of an OpenAI-compatible service?') from None
      raise StartAgain(
          f'judge.endpoint={self._cfg.endpoint} is down ({e}, '
          f'{self._cfg.endpoint_retries + 1} attempts); what it has answered '
          'is kept') from None

  async def _patiently(self, session: aiohttp.ClientSession,
                       body: dict[str, Any]) -> str:
    """Asks until there is an answer, or judge.endpoint_retries are used up."""
    for attempt in range(self._cfg.endpoint_retries):
      try:
        return await self._once(session, body)
      except _PassingError as e:
        wait = min(max(e.wait, self._first_wait * 2.0**min(attempt, 30)),
                   _LONGEST_WAIT)
      self._counts['retries'] += 1
      await asyncio.sleep(wait)
    return await self._once(session, body)

  async def _once(self, session: aiohttp.ClientSession, body: dict[str,
                                                                   Any]) -> str:
    self._counts['requests'] += 1
    try:
      async with session.post(self._url, json=self._common() | body,
                              allow_redirects=False) as response:
        status, data = response.status, await _read(response)
        wait = response.headers.get('Retry-After', '')
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as e:
      raise _PassingError(failures.brief(e)) from None
    if status in _PASSING or status >= 500:
      raise _PassingError(f'HTTP {status}',
                          float(wait) if _SECONDS.fullmatch(wait) else 0.0)
    if status >= 300:
      said = f'HTTP {status} {printable(data[:200].decode(errors="replace"))}'
      if status not in _REFUSED:
        raise _RefusedError(said)
      raise InputError(
          f'config.judge.endpoint={self._cfg.endpoint}: {said}; '
          'are judge.endpoint, judge.endpoint_model and the key in '
          'the variable judge.endpoint_key right?')
    return self._text(data)

  def _text(self, data: bytes) -> str:
    """The text of a chat completion; '' if it has none."""
    try:
      answer = json.loads(data)
      text = answer['choices'][0]['message'].get('content') or ''
      if not isinstance(text, str):
        raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
      raise _PassingError('no chat completion in the answer',
                          foreign=True) from None
    usage = answer.get('usage')
    for name in ('prompt_tokens', 'completion_tokens'):
      count = usage.get(name) if isinstance(usage, dict) else 0
      if isinstance(count, int) and 0 <= count < 2**40:
        self._counts[name] += count
    return text

  def _common(self) -> dict[str, Any]:
    return {'model': self._cfg.endpoint_model, 'temperature': 0}


async def _read(response: aiohttp.ClientResponse) -> bytes:
  """Reads an answer of bounded size."""
  data = bytearray()
  async for part in response.content.iter_any():
    data += part
    if len(data) > _LARGEST:
      raise _PassingError(f'an answer of more than {_LARGEST} bytes')
  return bytes(data)


class Asking:
  """Questions that a thread asks.

  Attributes:
    answers: by number, as they come; None where there is none.
    error: that has ended it.
  """

  def __init__(self, client: Client, questions: Sequence[Question],
               body: dict[str, Any]):
    """Starts to ask; see Client.answer_all."""
    self.answers: dict[int, str | None] = {}
    self.error: Exception | None = None
    self._ask = lambda: client.answer_all(questions, body, self.answers)
    self._loop = asyncio.new_event_loop()
    self._task: asyncio.Task[None] = self._loop.create_task(self._ask())
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def _run(self) -> None:
    try:
      self._loop.run_until_complete(self._task)
    except asyncio.CancelledError:
      pass
    except Exception as e:
      self.error = e
    finally:
      self._loop.close()

  def wait(self, seconds: float) -> bool:
    """Waits for the end, so long at most; returns whether it goes on."""
    self._thread.join(seconds)
    return self._thread.is_alive()

  def stop(self) -> None:
    """Asks no more, and forgets the questions that wait for an answer."""
    with contextlib.suppress(RuntimeError):  # the loop has ended
      self._loop.call_soon_threadsafe(self._task.cancel)
    self._thread.join()
