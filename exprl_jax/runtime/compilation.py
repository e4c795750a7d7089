"""Compilations: kept between runs, counted, explained when they are late."""

from collections.abc import Iterable
import functools
import logging as py_logging
import os
import re
from typing import NamedTuple

from absl import logging
import jax
from jax.experimental.compilation_cache import compilation_cache

from exprl_jax.runtime import files

_EVENT = '/jax/core/compile/backend_compile_duration'
# Explains why a jitted function is traced again (jax_explain_cache_misses).
_EXPLAINS = 'jax._src.interpreters.partial_eval'
_PREFIX = 'TRACING CACHE MISS'
_SHOWN = 60  # characters of a value in a reason


def use_cache(where: str) -> str:
  """Turns on JAX's persistent compilation cache: config.compile_cache.

  JAX_COMPILATION_CACHE_DIR, where it is set, takes the place of 'auto'.

  Args:
    where: 'auto': on TPUs the folder `xla` of the cache ($EXPRL_CACHE, by
      default ~/.cache/exprl_jax), elsewhere none, since programs for CPUs are
      of one machine. '': none. Otherwise a folder, which may be on gs://.

  Returns:
    The folder; '': there is none.
  """
  current = jax.config.values['jax_compilation_cache_dir'] or ''
  if where == 'auto':
    where = current
    if not where and jax.default_backend() == 'tpu':
      where = str(files.cache_folder('xla'))
  if where != current:
    jax.config.update('jax_compilation_cache_dir', where or None)
    compilation_cache.reset_cache()  # JAX opens it at the first compilation
  if where:
    # Short compilations are not worth the file.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)
    logging.info('compiled programs are kept in %s', where)
  return where


class Compilation(NamedTuple):
  """A program that was compiled, or read from the persistent cache."""

  name: str  # of the function
  seconds: float
  reason: str  # what differs from earlier calls; '' where it was not asked


class _Listener(py_logging.Filter):
  """Collects the compilations of this process, and JAX's explanations."""

  def __init__(self) -> None:
    super().__init__()
    self.compilations: list[Compilation] = []
    self.explaining = False
    self._reasons: dict[str, str] = {}

  def event(self, event: str, duration_secs: float,
            **kwargs: str | int) -> None:
    """Takes the measurements of JAX that are of compilations."""
    if event == _EVENT:  # of 'jit(FUNCTION)'
      function = re.sub(r'^\w+\((.*)\)$', r'\1', str(kwargs.get('fun_name',
                                                                '')))
      self.compilations.append(
          Compilation(function, duration_secs, self._reasons.pop(function, '')))

  def filter(self, record: py_logging.LogRecord) -> bool:
    """Takes explanations out of the log while a Watch asks for them."""
    text = record.getMessage()
    if not (self.explaining and text.startswith(_PREFIX)):
      return True
    function, reason = _parse(text)
    self._reasons[function] = reason
    return False


def _parse(explanation: str) -> tuple[str, str]:
  """The function of an explanation by JAX, and its reason on one line."""
  lines = [line.strip() for line in explanation.splitlines()]
  for line, following in zip(lines, lines[1:]):
    if line.startswith('never seen function'):
      return following.split(' ')[0], 'a new function of this name'
  function = next((x.split(' ')[1] for x in lines if x.startswith('for ')), '')
  differences = [x.removeprefix('* ') for x in lines if x.startswith('* ')]
  return function, '; '.join(map(_brief, differences[:2])) or lines[-1]


def _brief(difference: str) -> str:
  """Cuts `WHERE, now A and before B` to where A and B differ.

  They may be the `repr` of a whole model's configuration.
  """
  found = re.fullmatch(r'(.*?), now (.*) and before (.*?)(?:, so .*)?',
                       difference)
  if not found:
    return difference[:_SHOWN]
  where, now, before = found.groups()
  same = os.path.commonprefix([now, before])
  start = max(same.rfind(' '), same.rfind('(')) + 1
  return (f'{where}, now {now[start:start + _SHOWN]} and before '
          f'{before[start:start + _SHOWN]}')


@functools.cache
def _listener() -> _Listener:
  """The one listener of this process."""
  listener = _Listener()
  jax.monitoring.register_event_duration_secs_listener(listener.event)
  py_logging.getLogger(_EXPLAINS).addFilter(listener)
  return listener


class Watch:
  """Counts the compilations of a run; after warm-up, says why there are more.

  Explanations cost time only where something is compiled.
  """

  def __init__(self) -> None:
    self._listener = _listener()
    self._logged = len(self._listener.compilations)
    self._known: set[str] = set()
    self._warm = False

  def step(self) -> tuple[dict[str, float], list[str]]:
    """Looks at what was compiled since the last call.

    Returns:
      perf/compilations and perf/compile_s; and, after warm-up, a line for each
      program that had been compiled before.
    """
    new = self._listener.compilations[self._logged:]
    self._logged += len(new)
    late = list(self._late(new)) if self._warm else []
    self._known |= {c.name for c in new}
    return {
        'perf/compilations': len(new),
        'perf/compile_s': sum(c.seconds for c in new)
    }, late

  def warmed_up(self) -> None:
    """Expects no program that is known by now to be compiled again."""
    self._warm = True
    if not jax.config.values['jax_explain_cache_misses']:
      jax.config.update('jax_explain_cache_misses', True)
      self._listener.explaining = True

  def close(self) -> None:
    """Stops asking JAX for explanations."""
    if self._listener.explaining:
      jax.config.update('jax_explain_cache_misses', False)
      self._listener.explaining = False

  def _late(self, new: Iterable[Compilation]) -> Iterable[str]:
    for c in new:
      if c.name in self._known:
        why = f': {c.reason}' if c.reason else ''
        yield (f'{c.name} was compiled again, in {c.seconds:.1f} s{why}')
