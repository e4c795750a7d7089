"""run='report': what the end of a training run writes, once more.

A run that has trained but could not write its model or report is not started
again: this needs its workdir alone.
"""

import dataclasses

from etils import epath
import jax

from exprl_jax import report as report_lib
from exprl_jax.config import Config
from exprl_jax.models import hf, references
from exprl_jax.runtime import checkpoints, metrics
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import workdir as workdir_lib
from exprl_jax.types import InputError

_MODES = ('train', 'sft', 'train_judge')  # that end with a report


def original(config: Config, workdir: epath.PathLike) -> Config:
  """Returns the config under which a workdir's run was started.

  Raises:
    InputError: there is no such run, or the config is another one's.
  """
  mode = workdir_lib.read(workdir).get('run')
  if mode not in _MODES:
    raise InputError(f'--workdir={workdir}: run={mode!r} has no report.html')
  config = dataclasses.replace(config, run=mode)
  workdir_lib.check(workdir, config)
  return config


def report(config: Config, workdir: epath.Path) -> list[metrics.Row]:
  """Writes the model of a run that has its last checkpoint, if it is missing.

  Args:
    config: of the run (`original`).
    workdir: where it has written.

  Returns:
    The rows of metrics.jsonl, of which the report is made.

  Raises:
    Unfinished: that failed again.
  """
  done = checkpoints.steps(workdir)
  if not (workdir / 'model/config.json').exists():
    if done and done[-1] == config.steps:
      with report_lib.unfinished('model', workdir):
        mesh = mesh_lib.make_mesh(config.mesh)
        base, model, params = references.load(
            references.of_checkpoint(str(workdir), 0), mesh)
        hf.save(workdir / 'model', model, params, base)
    elif jax.process_index() == 0:
      print(f'no model: the run has not ended, its last checkpoint is of step '
            f'{done[-1] if done else 0} of {config.steps}')
  return metrics.read(workdir / 'metrics.jsonl')
