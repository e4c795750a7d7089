"""Runs a config once for every combination of some flags, one after another.

  python launch/sweep.py --config=configs/tiny.py --root=runs/sweep \
    --set=config.seed=0,1,2 --set=config.optim.lr=3e-4,5e-4

Each run has its own workdir below --root, named after its values. A run that
exits with 42 (start me again; docs/reliability.md) is started again, any other
failure is final. Starting the sweep again resumes it. --dry_run prints the
command lines, for a scheduler of your own. Flags after `--` go to all runs.
"""

import itertools
import shlex
import subprocess
import sys

from absl import app, flags
from etils import epath

from exprl_jax import main as exprl_main
from exprl_jax.runs import recipes
from exprl_jax.types import InputError

_AGAIN = 42  # exit code of a run that can go on

_CONFIG = flags.DEFINE_string('config', None, 'Config file.', required=True)
_ROOT = flags.DEFINE_string('root', None, 'Folder of the workdirs.',
                            required=True)
_SET = flags.DEFINE_multi_string('set', [], 'KEY=VALUE,VALUE,...')
_RESTARTS = flags.DEFINE_integer('restarts', 10, 'Of a run that exits with 42.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the commands only.')


def commands(config: str, root: str, settings: list[str],
             more: list[str]) -> list[list[str]]:
  """A command line for each combination.

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
    out.append([
        sys.executable, '-m', 'exprl_jax.main', f'--config={config}',
        *(f'--{k}={v}' for k, v in point), *more,
        f'--workdir={epath.Path(root) / name}'
    ])
  return out


def run(line: list[str], restarts: int) -> int:
  """Runs a command until it does not ask to be started again.

  Returns:
    Its last exit code.
  """
  for _ in range(restarts + 1):
    code = subprocess.run(line, check=False).returncode
    if code != _AGAIN:
      break
  return code


def main(argv):
  """Runs the commands, or prints them."""
  try:
    lines = commands(_CONFIG.value, _ROOT.value, _SET.value, argv[1:])
  except ValueError as e:
    raise app.UsageError(str(e)) from None
  for line in lines:  # a misspelt key is found before anything runs
    try:
      _, values, _ = exprl_main.parse(line[3:])
      recipes.freeze(values)
    except InputError as e:
      raise app.UsageError(str(e)) from None
  failed = 0
  for line in lines:
    print(shlex.join(line), flush=True)
    if not _DRY_RUN.value:
      failed += run(line, _RESTARTS.value) != 0
  if failed:
    sys.exit(f'{failed} of {len(lines)} runs failed')


if __name__ == '__main__':
  app.run(main)
