"""The command: python -m exprl_jax.main --config=configs/tiny.py.

Flags after it override the config: --config.seed=1 --config.optim.lr=3e-4.
"""

import dataclasses
import importlib
import pathlib
import sys
import tempfile

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from exprl_jax import config as config_lib
from exprl_jax.types import InputError

_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Where the run writes. A folder of the same run is '
    'resumed; by default a fresh one is made and its path printed.')
_DRY_RUN = flags.DEFINE_bool(
    'dry_run', False, 'Check the config, the data and the models, print one '
    'prompt of each kind, and stop.')
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Call jax.distributed.initialize() first: a slice '
    'of several hosts.')

# config.run -> the function (config, workdir) that does it. Imported when
# needed, so that a misspelt flag is reported at once.
_RUNS = {
    'train': ('exprl_jax.train', 'train'),
    'sft': ('exprl_jax.sft', 'sft'),
    'evaluate': ('exprl_jax.evaluate', 'evaluate'),
    'train_judge': ('exprl_jax.tiny.train_judge', 'train_judge'),
}


def run(config: config_lib.Config, workdir: pathlib.Path):
  """Dispatches on config.run; returns the rows of metrics.jsonl."""
  module, function = _RUNS[config.run]
  return getattr(importlib.import_module(module), function)(config, workdir)


def compared(config: config_lib.Config, path: str) -> config_lib.Config:
  """The config to compare with: `config.compare`, same seed and steps."""
  other = config_lib.freeze(
      config_lib.load(str(pathlib.Path(path).parent / config.compare)))
  return dataclasses.replace(
      other, seed=config.seed, steps=config.steps, compare='',
      eval=config.eval, checkpoint=config.checkpoint, mesh=config.mesh)


def main(path: str, values) -> None:
  """Runs the config file `path` with `values`, overrides applied."""
  config = config_lib.freeze(values)
  configs = [(path, config)]
  if config.compare:
    other = compared(config, path)
    configs.append((config.compare, other))
  if _DISTRIBUTED.value:
    import jax  # pylint: disable=g-import-not-at-top
    jax.distributed.initialize()
  workdir = pathlib.Path(
      _WORKDIR.value or tempfile.mkdtemp(prefix=f'{pathlib.Path(path).stem}-'))
  if _DRY_RUN.value:
    from exprl_jax import dry_run  # pylint: disable=g-import-not-at-top
    dry_run.dry_run(config)
    return
  print(f'workdir {workdir}', flush=True)
  results = []
  for i, (name, cfg) in enumerate(configs):
    folder = workdir if i == 0 else workdir / 'compare'
    title = f'{pathlib.Path(name).stem}, seed {cfg.seed}'
    print(f'\n{title}', flush=True)
    results.append((title, cfg, run(cfg, folder)))
  from exprl_jax import report  # pylint: disable=g-import-not-at-top
  report.write(workdir, results)


def _take_config(argv: list[str]) -> tuple[str, list[str]]:
  """Takes --config=PATH (or --config PATH) out of a command line."""
  rest, path = [], ''
  args = iter(argv)
  for arg in args:
    name, equals, value = arg.lstrip('-').partition('=')
    if arg.startswith('-') and name == 'config':
      path = value if equals else next(args, '')
    else:
      rest.append(arg)
  return path, rest


def _define_overrides(values, argv: list[str]) -> None:
  """Makes --config.a.b=VALUE a flag for every key of the config."""
  try:
    config_flags.DEFINE_config_dict('config', values, sys_argv=argv)
  except (AttributeError, KeyError) as e:  # a key that does not exist
    text = ' '.join(str(e.args[0]).replace("'", '').split())
    raise InputError(f'a --config. flag names no key: {text}') from None


def cli(argv: list[str] | None = None) -> None:
  """Entry point. A mistake in the input is one line, and exit code 2."""
  argv = sys.argv if argv is None else argv
  logging.set_verbosity(logging.WARNING)  # --verbosity=0 shows INFO
  path, rest = _take_config(argv)
  if not path and '--help' not in rest:
    sys.exit('error: --config=FILE is missing; try --config=configs/tiny.py')
  try:
    values = config_lib.load(path) if path else {}
    if path:
      _define_overrides(values, rest)

    def body(args):
      if len(args) > 1:
        raise InputError(f'not a flag: {args[1]!r}')
      try:
        main(path, values)
      except InputError as e:
        print(f'error: {e}', file=sys.stderr)
        sys.exit(2)

    app.run(body, argv=rest)
  except InputError as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  cli()
