"""The command: python -m exprl_jax.main --config=configs/tiny.py.

Flags after it override any key of exprl_jax/config/schema.py:
--config.seed=1 --config.optim.lr=3e-4. `--help` lists the rest.
"""

import dataclasses
import importlib
import pathlib
import sys
import tempfile

from absl import flags, logging
import ml_collections
from ml_collections import config_flags

from exprl_jax import config as config_lib
from exprl_jax.config import files
from exprl_jax.types import InputError

# config.run -> the function (config, workdir) -> rows that does it. Imported
# when needed, so that a misspelt flag is reported at once.
_RUNS = {
    'train': ('exprl_jax.runs.train', 'train'),
    'sft': ('exprl_jax.runs.sft', 'sft'),
    'evaluate': ('exprl_jax.runs.evaluate', 'compare'),
    'judge': ('exprl_jax.runs.judge', 'judge'),
    'train_judge': ('exprl_jax.runs.train_judge', 'train_judge'),
}

# Likewise, of runs that write no workdir: (config) -> None.
_TOOLS = {
    'sample': ('exprl_jax.runs.sample', 'generate'),
    'prepare': ('exprl_jax.runs.rubrics', 'prepare'),
    'export': ('exprl_jax.runs.export', 'export'),
}


def parse(
    argv: list[str]) -> tuple[str, ml_collections.ConfigDict, flags.FlagValues]:
  """Parses a command line (without the program's name).

  Returns:
    The path of the config file, its values with the overrides applied, and
    the other flags.

  Raises:
    InputError: a flag, a key or a value that cannot be.
  """
  found = flags.FlagValues()
  flags.DEFINE_string(
      'workdir', '', 'Where the run writes. A folder of the same run is '
      'resumed; by default a fresh one is made and its path printed.',
      flag_values=found)
  flags.DEFINE_bool(
      'dry_run', False, 'Check the config, the data and the models, print one '
      'prompt of each kind, and stop.', flag_values=found)
  flags.DEFINE_string(
      'distributed', '', "Of several processes: 'auto' on TPU slices and GKE, "
      'HOST:PORT,PROCESSES,INDEX elsewhere. All see the same --workdir.',
      flag_values=found)
  flags.DEFINE_bool('verbose', False, 'Log what the libraries do.',
                    flag_values=found)
  if '--help' in argv:
    print(f'{__doc__}\n{found.get_help()}')
    sys.exit(0)
  path, rest = _take_config(argv)
  values = config_lib.load(path)
  try:
    config_flags.DEFINE_config_dict('config', values, flag_values=found,
                                    sys_argv=rest)
    more = found(['main', *rest])[1:]
  except (flags.Error, AttributeError, KeyError) as e:
    text = ' '.join(str(e.args[0] if e.args else e).split())
    raise InputError(f'command line: {text}') from None
  if more:
    raise InputError(f'command line: {more[0]!r} is not a flag')
  return path, values, found


def _take_config(argv: list[str]) -> tuple[str, list[str]]:
  """Takes --config=PATH[:ARGUMENT] (or --config PATH) out of a command line."""
  rest, path, args = [], '', iter(argv)
  for arg in args:
    name, equals, value = arg.lstrip('-').partition('=')
    if arg.startswith('-') and name == 'config':
      path = value if equals else next(args, '')
    else:
      rest.append(arg)
  if not path:
    raise InputError('--config=FILE is missing; try --config=configs/tiny.py')
  return path, rest


def compared(config: config_lib.Config, path: str) -> config_lib.Config:
  """The config that `config.compare` names, on the same problems, samples and
  steps: the two differ by reward, credit, loss and optimiser."""
  other = config_lib.freeze(config_lib.load(files.beside(path, config.compare)))
  return dataclasses.replace(
      other, compare='', **{
          key: getattr(config, key)
          for key in ('seed', 'steps', 'policy', 'data', 'rollout', 'grading',
                      'eval', 'checkpoint', 'mesh')
      })


def join(how: str) -> None:
  """Makes this process one of several: the flag --distributed.

  Raises:
    InputError: the flag is none of its forms.
  """
  import jax
  if how == 'auto':
    jax.distributed.initialize()
    return
  try:
    address, processes, index = how.split(',')
    jax.distributed.initialize(address, int(processes), int(index))
  except ValueError:
    raise InputError(f"--distributed={how}: 'auto', or HOST:PORT,PROCESSES,"
                     'INDEX') from None


def main(argv: list[str]) -> None:
  """Does what a command line says.

  Raises:
    InputError: something in it, or in what it names, is not as it should be.
  """
  path, values, found = parse(argv)
  logging.set_verbosity(logging.INFO if found.verbose else logging.WARNING)
  config = config_lib.freeze(values)
  if found.distributed:
    join(found.distributed)
  runs = [(path, config)]
  if config.compare:
    runs.append((config.compare, compared(config, path)))
  if found.dry_run:
    from exprl_jax.runs import dry_run
    dry_run.dry_run(config)
    return
  if config.run in _TOOLS:
    module, function = _TOOLS[config.run]
    getattr(importlib.import_module(module), function)(config)
    return
  import jax

  from exprl_jax.runtime import checkpoints as checkpoint
  from exprl_jax.runtime import report
  if jax.process_count() > 1 and not found.workdir:
    raise InputError('--workdir is missing: several processes need the same')
  first = jax.process_index() == 0
  show = print if first else lambda *args, **kw: None
  workdir = pathlib.Path(
      found.workdir
      or tempfile.mkdtemp(prefix=f'{files.title(path).replace(":", "-")}-'))
  checkpoint.check_workdir(workdir, config)
  show(f'workdir {workdir}', flush=True)
  results = []
  for i, (name, cfg) in enumerate(runs):
    folder = workdir if i == 0 else workdir / 'compare'
    title = f'{files.title(name)}, seed {cfg.seed}'
    show(f'\n{title}', flush=True)
    module, function = _RUNS[cfg.run]
    rows = getattr(importlib.import_module(module), function)(cfg, folder)
    results.append(report.Result(title, cfg, folder, rows))
  if first and config.run not in ('judge', 'evaluate'):  # have their own
    report.write(workdir, results)


if __name__ == '__main__':
  try:
    main(sys.argv[1:])
  except InputError as e:  # one line, no trace
    sys.exit(f'error: {e}')
