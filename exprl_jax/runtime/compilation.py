"""Compilations: kept between runs, counted, explained when they are late."""

from collections.abc import Iterable
import contextlib
import functools
import hashlib
import logging as py_logging
import os
import pathlib
import platform
import re
from typing import NamedTuple

from absl import logging
from etils import epath
import jax
from jax.experimental.compilation_cache import compilation_cache

from exprl_jax.runtime import files

_EVENT = '/jax/core/compile/backend_compile_duration'
# Explains why a jitted function is traced again (jax_explain_cache_misses).
_EXPLAINS = 'jax._src.interpreters.partial_eval'
_PREFIX = 'TRACING CACHE MISS'
# With that switch on, they tell of the persistent cache, too.
_ALSO_EXPLAIN = ('jax._src.compiler', 'jax._src.compilation_cache')
_LATE_S = 2.0  # shorter compilations and those read from the cache are no news
_CACHE_BYTES = 2 * 10**9
_SHOWN = 60  # characters of a value in a reason


def use_cache(where: str) -> str:
  """Turns on JAX's persistent compilation cache: config.compile_cache.

  JAX_COMPILATION_CACHE_DIR, where it is set, takes the place of 'auto'.

  Args:
    where: 'auto': the folder `xla` of the cache ($EXPRL_CACHE, by default
      ~/.cache/exprl_jax), on CPUs one for each kind of machine, kept under
      2 GB. '': none. Otherwise a folder, which may be on gs://.

  Returns:
    The folder; '': there is none.
  """
  current = jax.config.values['jax_compilation_cache_dir'] or ''
  if where == 'auto':
    where = current or str(_own_folder())
  if where != current:
    jax.config.update('jax_compilation_cache_dir', where or None)
    compilation_cache.reset_cache()  # JAX opens it at the first compilation
  if where:
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
      # Short compilations are not worth the file.
      jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)
    logging.info('compiled programs are kept in %s', where)
  return where


def announce() -> None:
  """Says that programs will be compiled, where the cache has none."""
  where = jax.config.values['jax_compilation_cache_dir']
  if where and not jax.process_index() and not epath.Path(where).exists():
    print(
        f'the first step of each kind compiles its programs; {where} keeps '
        'them for later runs', flush=True)


def _own_folder() -> pathlib.Path:
  """The folder of 'auto', emptied of its oldest programs.

  XLA compiles for the CPU's own instructions, and home directories are shared
  by machines, so each kind of CPU has its own.
  """
  folder = files.cache_folder('xla')
  if jax.default_backend() == 'cpu':
    folder /= _cpu()
  _prune(folder, _CACHE_BYTES)
  return folder


def _cpu() -> str:
  """Names the kind of CPU: its instruction set and extensions."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:  # not Linux
    lines = [platform.processor()]
  kind = next((x for x in lines if x.startswith(('flags', 'Features'))),
              lines[0] if lines else '')
  digest = hashlib.sha256(kind.encode()).hexdigest()[:8]
  return f'{platform.machine()}-{digest}'


def _prune(folder: pathlib.Path, limit: int) -> None:
  """Deletes the files that were not read for longest, until `limit` bytes are
  left. Another process may delete the same ones."""
  with contextlib.suppress(OSError):
    found = [(x, x.stat()) for x in folder.iterdir() if x.is_file()]
    found.sort(key=lambda x: max(x[1].st_atime, x[1].st_mtime))
    size = sum(stat.st_size for _, stat in found)
    for file, stat in found:
      if size <= limit:
        break
      file.unlink(missing_ok=True)
      size -= stat.st_size


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
    if not self.explaining:
      return True
    if record.name in _ALSO_EXPLAIN:
      return 'persistent c' not in record.getMessage().lower()
    text = record.getMessage()
    if not text.startswith(_PREFIX):
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
  for name in (_EXPLAINS, *_ALSO_EXPLAIN):
    py_logging.getLogger(name).addFilter(listener)
  return listener


class Watch:
  """Counts the compilations of a run; after warm-up, says why there are more.

  Explanations cost time only where something is compiled.
  """

  def __init__(self, late_s: float = _LATE_S) -> None:
    """Args: `late_s` seconds of compilation are worth a line."""
    self._listener, self._late_s = _listener(), late_s
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
      if c.name in self._known and c.seconds >= self._late_s:
        why = f': {c.reason}' if c.reason else ''
        yield (f'{c.name} was compiled again, in {c.seconds:.1f} s{why}')
