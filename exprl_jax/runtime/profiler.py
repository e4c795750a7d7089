"""Traces of training steps by jax.profiler, for TensorBoard and XProf."""

import contextlib
import re
import tempfile

from etils import epath
import jax

from exprl_jax.runtime import files
from exprl_jax.types import InputError

_FOLDER = 'profile'


def parse(steps: str, total: int) -> range:
  """The steps of config.profile.steps: '3:5' are 3, 4 and 5; '' are none.

  Args:
    steps: FIRST:LAST, or one step.
    total: steps of the run, the first of which is 1.

  Raises:
    InputError: another form, or steps that the run does not have.
  """
  if not steps:
    return range(0)
  found = re.fullmatch(r'(\d+)(?::(\d+))?', steps)
  if not found:
    raise InputError(f'config.profile.steps={steps!r} should be FIRST:LAST, as '
                     "in '3:5', or one step")
  first, last = int(found[1]), int(found[2] or found[1])
  if not 1 <= first <= last <= total:
    raise InputError(f'config.profile.steps={steps!r}: 1 <= FIRST <= LAST <= '
                     f'steps={total}')
  return range(first, last + 1)


class Profiler:
  """Writes one trace of some steps to WORKDIR/profile.

  Every process of several writes a file of its own there, named by its host.
  """

  def __init__(self, workdir: epath.PathLike, steps: range) -> None:
    self._folder, self._steps = epath.Path(workdir) / _FOLDER, steps
    self._tracing = False
    self._annotation = contextlib.ExitStack()
    # JAX writes to disks only.
    self._local = (
        tempfile.TemporaryDirectory()  # pylint: disable=consider-using-with
        if steps and files.is_remote(self._folder) else None)

  def begin(self, step: int) -> None:
    """Starts the trace, if this is its first step, and marks the step."""
    if step not in self._steps:
      return
    if not self._tracing:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # phases have names of their own
      jax.profiler.start_trace(
          self._local.name if self._local else self._folder,
          profiler_options=options)
      self._tracing = True
    self._annotation.enter_context(
        jax.profiler.StepTraceAnnotation('train', step_num=step))

  def end(self, step: int) -> None:
    """Ends the step, and the trace behind its last one."""
    self._annotation.close()
    if self._tracing and step + 1 not in self._steps:
      self.close()

  def close(self) -> None:
    """Writes the trace, if there is one."""
    self._annotation.close()
    if self._tracing:
      jax.profiler.stop_trace()
      self._tracing = False
      if self._local:
        files.copy_folder(self._local.name, self._folder)
        self._local.cleanup()
