"""run='plan': what a training run takes on given devices, without it.

The programs are those of the list that the run warms up. They are compiled for
the devices of plan.topology, which need not be here; no weights are read.
docs/tpu.md explains the output.
"""

import dataclasses

from etils import epath
import jax

from exprl_jax import config as config_lib
from exprl_jax.config import Config
from exprl_jax.models import references
from exprl_jax.planning import arrangements, compiled, memory, search, tables
from exprl_jax.planning import plan as plan_lib
from exprl_jax.runs import sft
from exprl_jax.runtime import chips, files, topology, xla_flags
from exprl_jax.runtime import workdir as workdir_lib
from exprl_jax.runtime.metrics import Row
from exprl_jax.types import InputError


def plan(config: Config, workdir: epath.Path) -> list[Row]:
  """Prints the plan, and writes plan.json and memory.png into `workdir`.

  With plan.search, keys are changed until the run fits, and planned.py is the
  config with them.

  Returns:
    No rows: there is no metrics.jsonl.

  Raises:
    InputError: a model or topology that is not there, or a pool that cannot
      hold a single row.
  """
  workdir_lib.claim(workdir, config)
  with references.without_weights():
    _plan(config, workdir)
  return []


def _plan(config: Config, workdir: epath.Path) -> None:
  devices = (topology.devices(config.plan.topology)
             if config.plan.topology else jax.devices())
  planned = dataclasses.replace(config, run=config.plan.run)
  if planned.run == 'sft':
    planned = sft.supervised(planned)
  chip = chips.find(devices[0].device_kind)
  compiler = compiled.Compiler(
      xla_flags.compiler_options(chip.name if chip else None) if devices[0].
      platform == 'tpu' else None)
  if config.plan.search:
    planned = _search(planned, devices, compiler, workdir)
  made = plan_lib.make(planned, devices, compiler)
  print(tables.text(made))
  if not made.account.fits and not config.plan.search:
    changes = search.suggest(planned, devices)
    print(f'estimated to fit: {search.flags(changes)}' if changes else
          'no change of its keys makes it fit; use more devices')
  ways = [a._asdict() for a in arrangements.compare(made)]
  files.write_json(workdir / 'plan.json',
                   made.json() | {'arrangements': ways}, indent=1)
  with files.local(workdir / 'memory.png') as picture:
    tables.picture(made, picture)
  print(f'plan {workdir}/plan.json, memory.png; compiled in '
        f'{compiler.seconds:.0f} s')


def _search(config: Config, devices: list[jax.Device],
            compiler: compiled.Compiler, workdir: epath.Path) -> Config:
  """Changes keys until the compiled programs fit; writes planned.py.

  Raises:
    InputError: nothing makes it fit.
  """

  def weigh(config: Config) -> memory.Account | None:
    try:
      account = plan_lib.make(config, devices, compiler).account
    except memory.NoRoomError:
      return None
    size, phase = account.peak()
    print(f'  {size / 1e9:.2f} GB in {phase}', flush=True)
    return account

  changes = search.fit(config, devices, weigh)
  if changes is None:
    raise InputError('config: no change of its keys makes it fit on '
                     f'{len(devices)} devices; use more')
  print(f'fits with {search.flags(changes) or "no change"}\n')
  found = search.with_keys(config, changes)
  files.write(workdir / 'planned.py', config_lib.source(found))
  return found
