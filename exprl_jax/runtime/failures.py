"""Exit codes, and which exception stands for which.

  0  done
  1  a bug: an exception that nothing below covers (bugs.py: the third time, 3)
  2  the input: a flag, key, file or model; also a full disk, and storage that
     does not let us in
  3  the run's own verdict: more of the same cannot help
  4  trained and saved, but the report or model could not be written
  42 start me again with the same command: stopped from outside, or by a device,
     network or storage that may work again

docs/reliability.md has the table for users; launch/ follows it.
"""

from collections.abc import Iterator
import contextlib
import errno

from exprl_jax.types import InputError, RunFailure, StartAgain, Unfinished

DONE, BUG, INPUT, VERDICT, UNFINISHED, AGAIN = 0, 1, 2, 3, 4, 42

# Status codes in the messages of XLA, Orbax's tensorstore and gRPC.
_STATUS = ('UNAVAILABLE', 'ABORTED', 'CANCELLED', 'DEADLINE_EXCEEDED',
           'DATA_LOSS', 'INTERNAL')
_HTTP = (408, 429, 500, 502, 503, 504)
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What HTTP clients raise when a connection breaks or times out, by the first
# part of the module and the name: not all of it is a ConnectionError. Imported
# they are not: most runs need none of these libraries.
_NETWORK = {('aiohttp', 'ClientConnectionError'),
            ('aiohttp', 'ClientPayloadError'), ('requests', 'ConnectionError'),
            ('requests', 'Timeout'), ('requests', 'ChunkedEncodingError'),
            ('gcsfs', 'ChecksumError'), ('google', 'TransportError')}


def exit_code(error: BaseException) -> int:
  """The exit code for an exception that ended a run."""
  if isinstance(error, StartAgain):
    return AGAIN
  if isinstance(error, RunFailure):
    return VERDICT
  if isinstance(error, Unfinished):
    return UNFINISHED
  if isinstance(error, InputError) or out_of_space(error) or refused(error):
    return INPUT
  return AGAIN if transient(error) else BUG


def transient(error: BaseException) -> bool:
  """Whether the same may work later: devices, network and storage."""
  return any(_transient(e) for e in _chain(error))


def out_of_space(error: BaseException) -> bool:
  """Whether a disk or a quota is full."""
  return any(
      isinstance(e, OSError) and e.errno in _FULL
      or 'No space left on device' in str(e) for e in _chain(error))


def refused(error: BaseException) -> bool:
  """Whether storage does not let us in: no permission, or read-only."""
  return any(map(_refused, _chain(error)))


def unreachable(error: BaseException) -> bool:
  """Whether the network is down or a service away, now."""
  return any(map(_unreachable, _chain(error)))


def remedy(error: BaseException) -> str:
  """What the user can do about storage; '' where it is not to blame."""
  if out_of_space(error):
    return 'make space, and the same command goes on'
  if refused(error):
    return ('let this account read and write there (of a bucket: '
            'roles/storage.objectUser), and the same command goes on')
  return ''


def brief(error: BaseException) -> str:
  """An exception in one short line."""
  text = ' '.join(str(error).split())
  return f'{type(error).__name__}: {text[:200]}' if text else type(
      error).__name__


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
  """Within it, what the user has named is opened for the first time.

  Args:
    what: the flag or key, and its value.

  Raises:
    InputError: in place of storage's errors, but those that may pass; names
      `what` and says what to do.
  """
  try:
    yield
  except (InputError, StartAgain):
    raise
  except Exception as e:
    known = remedy(e)
    if not known and (transient(e) or not isinstance(e, OSError)):
      raise
    raise InputError(
        f'{what}: {brief(e)}; {known or "is the path right?"}') from e


def _refused(error: BaseException) -> bool:
  if isinstance(error, OSError):
    # gcsfs says 403 in words only.
    if error.errno == errno.EROFS or str(error).startswith('Forbidden:'):
      return True
  return (isinstance(error, PermissionError) or _http_code(error) in (401, 403)
          or 'PERMISSION_DENIED' in str(error))


def _unreachable(error: BaseException) -> bool:
  if isinstance(error, (ConnectionError, TimeoutError)):
    return True
  names = {(t.__module__.split('.')[0], t.__name__) for t in type(error).__mro__
          }
  text = str(error)
  return (bool(names & _NETWORK) or _http_code(error) in _HTTP
          or any(f'{s}:' in text for s in ('UNAVAILABLE', 'DEADLINE_EXCEEDED')))


def _transient(error: BaseException) -> bool:
  if _unreachable(error):
    return True
  if isinstance(error, OSError):
    return error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
  # XLA: JaxRuntimeError; tensorstore and the coordination service: ValueError
  # and RuntimeError that start with the status, or have it behind a place.
  if isinstance(error, (RuntimeError, ValueError)):
    text = str(error)
    return any(f'{s}:' in text for s in _STATUS)
  return False


def _http_code(error: BaseException) -> int:
  """Of gcsfs, google-api-core, aiohttp and requests; 0: none."""
  response = getattr(error, 'response', None)
  for code in (getattr(error, 'code', None), getattr(error, 'status', None),
               getattr(response, 'status_code', None)):
    value = getattr(code, 'value', code)  # http.HTTPStatus
    if isinstance(value, int) or isinstance(value, str) and value.isdigit():
      return int(value)
  return 0


def _chain(error: BaseException) -> Iterator[BaseException]:
  """An exception and what it was raised from."""
  seen: set[int] = set()
  at: BaseException | None = error
  while at is not None and id(at) not in seen:
    seen.add(id(at))
    yield at
    at = at.__cause__ or at.__context__
