r"""Runs a config once for every combination of some flags.

  python launch/sweep.py --config=configs/tiny.py --root=runs/sweep \
    --set=config.seed=0,1,2 --set=config.optim.lr=3e-4,5e-4

runs them here, one after another, each in a workdir below --root that is named
after its values. A run that exits with 42 (start me again) or 1 (a bug, which
the third time is a 3; docs/reliability.md) is started again, any other failure
is final. Starting the sweep again resumes it. With a launcher,

  python launch/sweep.py --config=configs/qwen3_4b.py:exprl_process_fast \
    --root=lr --set=config.optim.lr=5e-7,1e-6 \
    --launcher="python launch/gke.py --slice=v5e-64 --image=IMAGE --bucket=B"

each is a job of its own, and Kueue may let them wait; --root is how their names
begin. launch/tpu_vm.py waits until each has its slice before the next.
--dry_run prints the command lines. Flags after `--` go to all runs.
"""

import itertools
import re
import shlex
import subprocess
import sys

from absl import app, flags
from etils import epath

from exprl_jax import main as exprl_main
from exprl_jax.runs import recipes
from exprl_jax.types import InputError

_AGAIN = (1, 42)  # exit codes of a run that may go on

_CONFIG = flags.DEFINE_string('config', None, 'Config file.', required=True)
_ROOT = flags.DEFINE_string('root', None, 'Folder of the workdirs.',
                            required=True)
_SET = flags.DEFINE_multi_string('set', [], 'KEY=VALUE,VALUE,...')
_LAUNCHER = flags.DEFINE_string('launcher', '', 'A launcher with its flags, '
                                'but for --name.')
_RESTARTS = flags.DEFINE_integer('restarts', 10,
                                 'Of a run that exits with 42 or 1.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the commands only.')


def combinations(settings: list[str]) -> list[tuple[str, list[str]]]:
  """A name and the flags of each combination.

  Raises:
    ValueError: a setting is not KEY=VALUE,VALUE,...
  """
  axes = []
  for setting in settings:
    key, equals, values = setting.partition('=')
    if not (key and equals and all(values.split(','))):
      raise ValueError(f'--set={setting}: want KEY=VALUE,VALUE,...')
    axes.append([(key, value) for value in values.split(',')])
  out = []
  for point in itertools.product(*axes):
    name = '-'.join(f'{k.split(".")[-1]}={v}' for k, v in point) or 'run'
    out.append((name, [f'--{k}={v}' for k, v in point]))
  return out


def job_names(root: str, names: list[str]) -> list[str]:
  """Names of jobs, all different.

  Raises:
    ValueError: two are the same, or one is too long.
  """
  out = [
      re.sub(r'[^a-z0-9]+', '-', f'{root}-{name}'.lower()).strip('-')
      for name in names
  ]
  for job in out:
    if out.count(job) > 1:
      raise ValueError(f'--set: two runs would be the job {job}: use values '
                       'that differ in letters or digits')
    if len(job) > 36:
      raise ValueError(f'--root, --set: {job} is longer than 36 characters')
  return out


def run(line: list[str], restarts: int) -> int:
  """Runs a command until it does not ask to be started again.

  Returns:
    Its last exit code.
  """
  for _ in range(restarts + 1):
    code = subprocess.run(line, check=False).returncode
    if code not in _AGAIN:
      break
  return code


def main(argv):
  """Runs the commands, or prints them."""
  root, launcher = _ROOT.value, shlex.split(_LAUNCHER.value)
  try:
    points = combinations(_SET.value)
    runs = [[f'--config={_CONFIG.value}', *own, *argv[1:]] for _, own in points]
    for args in runs:  # a misspelt key is found before anything runs
      recipes.freeze(exprl_main.parse(args)[1])
    names = [name for name, _ in points]
    if launcher:
      lines = [[*launcher, f'--name={job}', '--', *args]
               for job, args in zip(job_names(root, names), runs)]
    else:
      main_ = [sys.executable, '-m', 'exprl_jax.main']
      lines = [[*main_, *args, f'--workdir={epath.Path(root) / name}']
               for name, args in zip(names, runs)]
  except (ValueError, InputError) as e:
    sys.exit(f'error: {e}')
  failed = 0
  for line in lines:
    print(shlex.join(line), flush=True)
    if not _DRY_RUN.value:
      restarts = 0 if launcher else _RESTARTS.value
      failed += run(line, restarts) != 0
  if failed:
    sys.exit(f'{failed} of {len(lines)} runs failed')


if __name__ == '__main__':
  app.run(main)
