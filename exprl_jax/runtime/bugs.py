"""Counts bugs that end a run again and again.

What looks like a bug may be a sick chip, so launchers start the run again. The
same error at the same step, three times in a row, is one.
"""

from collections.abc import Iterator
import contextlib
import json

from etils import epath
import jax

from exprl_jax.runtime import failures, files, metrics
from exprl_jax.types import RunFailure

_TIMES = 3


@contextlib.contextmanager
def counting(workdir: epath.Path) -> Iterator[None]:
  """Within it, the run that is in `workdir` goes on.

  Raises:
    RunFailure: in place of the same error for the third time.
  """
  try:
    yield
  except Exception as e:
    if failures.exit_code(e) != failures.BUG or jax.process_index():
      raise
    path, now = workdir / 'bugs.json', [failures.brief(e), _rows(workdir)]
    before = json.loads(path.read_text()) if path.exists() else []
    again = [*before, now] if before[-1:] == [now] else [now]
    if len(again) < _TIMES:
      files.write_json(path, again)
      raise
    path.unlink()
    raise RunFailure(f'{failures.brief(e)}: the third time in a row, at the '
                     'same step. Please report this bug with its trace') from e


def _rows(workdir: epath.Path) -> int:
  """Counts the rows of metrics so far."""
  return len(metrics.read(workdir / 'metrics.jsonl'))
