"""Seeded damage to files, and the rule that holds for all of it.

A reader takes a file rightly, or raises an InputError that names the file and
the place, within seconds.
"""

import contextlib
import json
import signal
import time

from exprl_jax.types import InputError

SECONDS = 5.0


class TooLongError(BaseException):
  """Not an Exception, so that no reader takes it for a damaged file."""


@contextlib.contextmanager
def alarm(seconds=SECONDS):
  """Ends what waits for ever; computation is timed."""

  def ring(*_):
    raise TooLongError

  before = signal.signal(signal.SIGALRM, ring)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  start = time.monotonic()
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
  assert time.monotonic() - start < seconds


def outcome(read, what):
  """Calls a reader; returns (result, '') or (None, the InputError's line)."""
  try:
    with alarm():
      return read(), ''
  except InputError as e:
    message = str(e)
    assert message.isprintable(), what
    return None, message
  except BaseException as e:
    raise AssertionError(f'{type(e).__name__} of {what!r:.2000}') from e


# Values that nobody expects, as JSON: most are fine somewhere.
VALUES = [
    'null', 'true', 'false', '0', '-1', '1', '2.5', '1e12', '1000000000000',
    '1' + '0' * 400, '9' * 4300, '9' * 4301, '-' + '7' * 5000, '1e400',
    '-1e400', 'NaN', 'Infinity', '-Infinity', '-0', '1e-400', '""', '" "',
    '"x"', '"\\ud800"', '"\\udfffx"', '"\\ud83d\\ude00"', '"\\u0000"',
    '"\\u001b[2J"', '"\\frac"', '"\\u202e"', '"\u2028"',
    '"' + 'long ' * 3000 + '"', '[]', '{}', '[[]]', '{"a": {"b": []}}',
    '[' * 90 + ']' * 90, '[' * 101 + ']' * 101, '[' * 5000 + ']' * 5000,
    '[' * 100000, '{"a":' * 2000 + '1' + '}' * 2000, '[1, "x", null]',
    '{"\\ud800": 1}', '{"text": "t", "points": 1}',
    '[{"text": "t", "points": 1' + '0' * 400 + '}]',
    '[{"text": "t", "points": 2}]', '[{"text": "t", "points": 1e400}]',
    '[{"text": "\\u0007", "points": 1}]', '{"content": 3}', '"../../x"'
]
_BYTES = [
    b'\xff', b'\xfe\xff', b'\xed\xa0\x80', b'\xc3', b'\x00', b'\n', b'\r', b'"',
    b'\\', b'{', b'}', b'[', b']', b',', b':', b'\xef\xbb\xbf', b'\\u', b'e9',
    b'\xf4\x90\x80\x80', b'\x1b', b'\x7f', b'\xc2\x85'
]


def damage(rng, data):
  """Changes some bytes: flipped, removed, doubled, moved, cut or put in."""
  data = bytearray(data)
  for _ in range(rng.choice([1, 1, 1, 2, 5])):
    at = rng.randrange(len(data) + 1)
    to = min(len(data), at + rng.choice([1, 1, 2, 8, 40]))
    kind = rng.randrange(6)
    if kind == 0 and at < len(data):
      data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
      del data[at:to]
    elif kind == 2:
      data[at:at] = data[at:to]
    elif kind == 3:
      data[at:] = b'' if rng.random() < .3 else data[at:]
    else:
      data[at:at] = rng.choice(_BYTES)
  return bytes(data)


def with_value(rng, value):
  """Writes JSON in which one value, anywhere, is another of VALUES."""
  mark = f'@{rng.random()}@'
  text = json.dumps(_replaced(rng, value, mark), ensure_ascii=False)
  return text.replace(f'"{mark}"', rng.choice(VALUES)).encode()


def _replaced(rng, value, mark):
  inner = list(value.items()) if isinstance(value, dict) else list(
      enumerate(value)) if isinstance(value, list) else []
  if not inner or rng.random() < .1:
    return mark
  key, old = rng.choice(inner)
  copy = value.copy()
  if rng.random() < .1:
    del copy[key]
  else:
    copy[key] = _replaced(rng, old, mark) if rng.random() < .5 else mark
  return copy
