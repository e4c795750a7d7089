"""Plans the shipped configs on TPU slices, and prints the table of docs/tpu.md.

  pip install -e ".[tpu]"
  python benchmarks/plans.py
  python benchmarks/plans.py --target=qwen3_4b:exprl_process_fast@v5e:8x8

No TPU is needed: programs are compiled ahead of time, for minutes each. Of the
models, only config.json and the tokenizer are read.
"""

import importlib.metadata
import time

from absl import app, flags
import jax

from exprl_jax import config as config_lib
from exprl_jax.models import references
from exprl_jax.planning import compiled
from exprl_jax.planning import plan as plan_lib
from exprl_jax.runs import recipes
from exprl_jax.runtime import chips, topology, xla_flags

# Recipe @ slice, and the keys that differ from the recipe.
TARGETS = {
    'qwen3_4b:exprl_process_fast@v5e:8x8': {},
    'qwen3_4b:exprl_process_fast@v5e:4x4': {},
    'qwen3_4b:exprl_process_fast@v6e:4x4': {},
    'qwen3_4b:exprl_process_fast@v6e:2x4': {},
    'qwen3_4b:exprl_process_fast@v5p:2x2x2': {},
    'qwen3_4b:exprl_process_fast@v5e:2x4': {
        'optim.offload': True, 'policy.remat': 'offload'
    },
    'qwen3_8b_mixed:exprl_mixed@v5e:8x8': {},
    'qwen3_8b_mixed:exprl_mixed@v6e:4x4': {},
    'qwen3_8b_mixed:exprl_mixed@v5p:2x2x2': {},
}
_TARGET = flags.DEFINE_multi_string('target', list(TARGETS), 'RECIPE@SLICE.')
_4B = flags.DEFINE_string('qwen3_4b', 'Qwen/Qwen3-4B-Instruct-2507',
                          'Folder or name of the model.')
_8B = flags.DEFINE_string('qwen3_8b', 'Qwen/Qwen3-8B',
                          'Folder or name of the model.')
_LAYERS = flags.DEFINE_integer('layers', 0, 'plan.layers.')
_COLUMNS = ('copy', 'rollout', 'judge', 'logprob', 'gradient', 'optimizer')


def config_of(target, small, large, layers=0):
  """The config of a target, with the folders of the two models."""
  recipe = target.partition('@')[0]
  file, _, argument = recipe.partition(':')
  values = config_lib.load(f'configs/{file}.py:{argument}')
  values.policy.init = small if file == 'qwen3_4b' else large
  values.judge.init = small
  values.plan.layers = layers
  for key, value in TARGETS.get(target, {}).items():
    section, _, name = key.partition('.')
    values[section][name] = value
  return recipes.freeze(values)


def plan(target, small, large, layers=0):
  """The plan of a target."""
  devices = topology.devices(target.partition('@')[2])
  chip = chips.find(devices[0].device_kind)
  compiler = compiled.Compiler(xla_flags.compiler_options(chip.name))
  return plan_lib.make(config_of(target, small, large, layers), devices,
                       compiler)


def row(target, made, seconds):
  """A line of the table."""
  sums = {
      p: sum(made.account.alive(p).values()) / 1e9 for p in made.account.phases
  }
  size, phase = made.account.peak()
  cells = [
      f'**{sums[p]:.1f}**' if p == phase else f'{sums[p]:.1f}' for p in _COLUMNS
  ]
  changed = ', '.join(f'{k}={v}' for k, v in TARGETS.get(target, {}).items())
  return ' | '.join([
      f'| `{target.replace("@", "` | ")}' +
      (f' ({changed})' if changed else ''), *cells,
      f'{made.account.limit / 1e9:.1f}', f'{made.account.margin:.1%}',
      f'{made.pool_tokens("policy") / 1e6:.2f}',
      f'{sum(made.seconds().values()):.0f}', f'{seconds:.0f} |'
  ])


def main(_):
  """Prints a row for each target as it is planned."""
  print(f'jax {jax.__version__}, libtpu '
        f'{importlib.metadata.version("libtpu")}\n')
  print('| recipe | slice | ' + ' | '.join(_COLUMNS) +
        ' | limit | free | Mtokens of pages | step, s | compiled in, s |')
  print('|' + '---|' * (len(_COLUMNS) + 7))
  with references.without_weights():
    for target in _TARGET.value:
      start = time.perf_counter()
      made = plan(target, _4B.value, _8B.value, _LAYERS.value)
      print(row(target, made, time.perf_counter() - start), flush=True)


if __name__ == '__main__':
  app.run(main)
