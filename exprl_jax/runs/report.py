"""run='report': what the end of a training run writes, once more.

A run that has trained but could not write its model or report is not started
again: this needs its workdir alone. A run that is still at work gets a report
of what it has; several runs are compared on one page.
"""

from collections.abc import Sequence
import dataclasses

from etils import epath
import jax

from exprl_jax import config as config_lib
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


def has_ended(config: Config, workdir: epath.PathLike) -> bool:
  """Whether a run has made its last step: only then is a model written.

  Raises:
    InputError: there is no such run, or the config is another one's.
  """
  original(config, workdir)
  return ((epath.Path(workdir) / 'model/config.json').exists()
          or config.steps in checkpoints.steps(workdir))


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


def side_by_side(workdirs: Sequence[str],
                 out: epath.Path) -> list[report_lib.Result]:
  """Writes out/report.html about several runs, ended or at work.

  Nothing is written to their workdirs. A run is called by its folder, and two
  that differ by a seed at the end of it (process-0, process-1) share a color.

  Raises:
    InputError: a folder holds no run, or one without metrics.
  """
  folders = [epath.Path(w) for w in workdirs if w]
  names = [f.name for f in folders]
  if len(set(names)) < len(names):
    names = [f'{f.parent.name}/{f.name}' for f in folders]
  results = []
  for name, folder in zip(names, folders):
    config = config_lib.freeze(workdir_lib.values(folder))
    rows = metrics.read(folder / 'metrics.jsonl')
    if not rows:
      raise InputError(f'--workdir={folder}: metrics.jsonl has no rows yet')
    recipe = name.removesuffix(f'-{config.seed}')
    results.append(
        report_lib.Result(f'{recipe}, seed {config.seed}', config, folder,
                          rows))
  report_lib.write(out, results)
  return results
