"""run='plan': what a training run takes on given devices, without it.

The programs are those of the list that the run warms up. They are compiled for
the devices of plan.topology, which need not be here; no weights are read.
docs/tpu.md explains the output.
"""

import dataclasses
import json
import pathlib
from typing import Any

from exprl_jax.config import Config
from exprl_jax.planning import compiled, tables
from exprl_jax.planning import plan as plan_lib
from exprl_jax.runtime import topology
from exprl_jax.runtime import workdir as workdir_lib
from exprl_jax.runtime.metrics import Row


def plan(config: Config, workdir: pathlib.Path) -> list[Row]:
  """Prints the plan, and writes plan.json and memory.png into `workdir`.

  Returns:
    No rows: there is no metrics.jsonl.

  Raises:
    InputError: a model or topology that is not there, or a pool that cannot
      hold a single row.
  """
  workdir_lib.claim(workdir, config)
  devices = (topology.devices(config.plan.topology)
             if config.plan.topology else None)
  planned = dataclasses.replace(config, run=config.plan.run)
  made = plan_lib.make(planned, devices, compiled.Compiler(_flags(config)))
  print(tables.text(made))
  (workdir / 'plan.json').write_text(json.dumps(made.json(), indent=1))
  tables.picture(made, workdir / 'memory.png')
  print(f'plan {workdir}/plan.json, memory.png')
  return []


def _flags(config: Config) -> dict[str, Any] | None:
  return None
