"""A model's chat template: Jinja source, rendered in a sandbox.

The functions and settings are those that templates are written for, so the text
is what `transformers.apply_chat_template(tokenize=False)` gives. It is rendered
here because importing transformers also imports torch, where it is installed.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import ctypes
import datetime
import functools
import json
import threading
import time
from typing import Any

from etils import epath
import jinja2
import jinja2.ext
import jinja2.parser
import jinja2.sandbox

from exprl_jax.runtime import inputs
from exprl_jax.types import InputError

SECONDS = 10.0  # that a template may take for one chat


class ChatTemplate:
  """The template of a model directory.

  Attributes:
    folder: of the model, for errors.
  """

  def __init__(self, folder: epath.Path, source: str,
               special: Mapping[str, str]) -> None:
    """Compiles a template.

    Args:
      folder: of the model.
      source: Jinja.
      special: texts of bos_token, eos_token and so on.

    Raises:
      InputError: the source is not Jinja.
    """
    self.folder, self._special = folder, dict(special)
    try:
      self._template = _environment().from_string(source)
    except Exception as e:  # RecursionError, too
      raise InputError(
          f'{folder}: the chat template is not Jinja ({_short(e)})') from None

  def render(self, messages: Sequence[Mapping[str, str]],
             add_generation_prompt: bool, options: Mapping[str, Any]) -> str:
    """Renders a chat.

    Args:
      messages: each with 'role' and 'content'.
      add_generation_prompt: whether to open the assistant's turn.
      options: variables of the template, such as enable_thinking.

    Raises:
      InputError: the template refuses the messages (some know no system role),
        fails, or takes longer than SECONDS.
    """
    values = {'tools': None, 'documents': None, **self._special, **options}
    try:
      with _time_limit(SECONDS):
        return self._template.render(
            values | {
                'messages': [dict(m) for m in messages],
                'add_generation_prompt': add_generation_prompt
            })
    except _OutOfTimeError:
      raise InputError(f'{self.folder}: the chat template takes more than '
                       f'{SECONDS:.0f} s; does it loop?') from None
    except jinja2.TemplateError as e:
      roles = ', '.join(m['role'] for m in messages)
      raise InputError(f'{self.folder}: the chat template refuses the messages '
                       f'({roles}): {_short(e)}') from None
    except Exception as e:
      raise InputError(f'{self.folder}: the chat template fails '
                       f'({type(e).__name__}: {_short(e)})') from None


def read(folder: epath.Path, config: Mapping[str, Any],
         special: Mapping[str, str]) -> ChatTemplate | None:
  """Reads the chat template of a model directory; None if it has none.

  Args:
    folder: may have chat_template.jinja.
    config: tokenizer_config.json, which may have it instead.
    special: see ChatTemplate.

  Raises:
    InputError: the file is not UTF-8, or the source is not Jinja.
  """
  path = folder / 'chat_template.jinja'
  source = (inputs.decode(inputs.read_bytes(path), str(path))
            if path.exists() else config.get('chat_template'))
  if isinstance(source, list):  # several templates with names
    source = {t['name']: t['template'] for t in source}.get('default')
  return None if source is None else ChatTemplate(folder, source, special)


class _OutOfTimeError(BaseException):
  """Not an Exception: nothing in a template may swallow it."""


_deadlines: dict[int, float] = {}  # of threads, by their ids
_lock = threading.Lock()


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
  """Raises _OutOfTimeError in this thread when time is up.

  Python delivers it between two bytecodes, which a template's loops consist of.
  """
  _watch()
  thread = threading.get_ident()
  with _lock:
    _deadlines[thread] = time.monotonic() + seconds
  try:
    yield
  finally:
    with _lock:
      _deadlines.pop(thread, None)


@functools.cache
def _watch() -> None:
  """Starts the thread that looks for missed deadlines."""

  def watch() -> None:
    while True:
      time.sleep(0.25)
      with _lock:
        now = time.monotonic()
        for thread in [t for t, end in _deadlines.items() if now > end]:
          del _deadlines[thread]
          ctypes.pythonapi.PyThreadState_SetAsyncExc(
              ctypes.c_ulong(thread), ctypes.py_object(_OutOfTimeError))

  threading.Thread(target=watch, daemon=True).start()


class _Generation(jinja2.ext.Extension):
  """Renders {% generation %}, which marks an assistant's turns, as it is."""

  tags = {'generation'}

  def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    return jinja2.nodes.Scope(body, lineno=line)


def _environment() -> jinja2.Environment:
  """The functions and settings that chat templates are written for."""

  def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

  def tojson(x: Any, ensure_ascii: bool = False, **kwargs: Any) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, **kwargs)

  env = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True,
      extensions=[jinja2.ext.loopcontrols, _Generation])
  env.filters['tojson'] = tojson
  env.globals['raise_exception'] = raise_exception
  env.globals['strftime_now'] = lambda f: datetime.datetime.now().strftime(f)
  return env


def _short(error: BaseException) -> str:
  """The first line of an error's text."""
  return str(error).partition('\n')[0][:200]
