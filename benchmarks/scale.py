"""How a training step scales to a pod, from programs compiled for its slices.

  pip install -e ".[tpu]"
  python benchmarks/scale.py --out=scale.jsonl            # minutes a slice
  python benchmarks/scale.py --out=scale.jsonl --picture=docs/scaling.svg

No TPU is needed. Each slice's programs are compiled at two and four layers and
extrapolated (plan.layers); --qwen3_4b names the model. Slots grow with the
chips. `weak`: so do the problems of a step; `strong`: they stay those of the
recipe. Slices that --out has are not planned again; the second command draws.
"""

import dataclasses
import json
import pathlib

from absl import app, flags
import matplotlib
from plans import config_of

from exprl_jax.models import references
from exprl_jax.planning import compiled, timing
from exprl_jax.planning import plan as plan_lib
from exprl_jax.planning.search import with_keys
from exprl_jax.runtime import chips, topology, xla_flags

_RECIPE = 'qwen3_4b:exprl_process_fast'
_SLICES = ('v5e:4x4', 'v5e:8x8', 'v5e:8x16', 'v5e:16x16', 'v5e:8x8*2')
_CHIPS = 64  # for which the recipe's batch and slots are
# A host of four v5e chips has 100 Gbit/s to the other slices.
_BETWEEN_SLICES = 100e9 / 8 / 4

_OUT = flags.DEFINE_string('out', 'scale.jsonl', 'Where rows go.')
_PICTURE = flags.DEFINE_string('picture', '', 'SVG to draw from them.')
_SLICE = flags.DEFINE_multi_string('slice', list(_SLICES), 'Of plan.topology.')


def step(made, config):
  """Seconds and network bytes of a step of a config by compiled programs."""
  shares = timing.shares(config, made.models, made.meshes, made.weights,
                         made.chip)
  other = dataclasses.replace(made, config=config, shares=shares)
  network = sum(
      s.calls * made.weights[n].network_bytes for n, s in shares.items())
  return other.step_seconds(), network


def row(name):
  """What a slice takes."""
  devices = topology.devices(name)
  slices = int(name.partition('*')[2] or 1)
  recipe = config_of(_RECIPE, flags.FLAGS.qwen3_4b, flags.FLAGS.qwen3_4b,
                     layers=2)
  factor = len(devices) / _CHIPS
  grown = with_keys(
      recipe, {
          'mesh.data': slices, 'rollout.slots': int(
              factor * recipe.rollout.slots), 'judge.slots': int(
                  factor * recipe.judge.slots), 'data.batch': int(
                      factor * recipe.data.batch)
      })
  chip = chips.find(devices[0].device_kind)
  compiler = compiled.Compiler(xla_flags.compiler_options(chip.name))
  made = plan_lib.make(grown, devices, compiler)
  weak, network = step(made, grown)
  strong, _ = step(made, with_keys(grown, {'data.batch': recipe.data.batch}))
  peak, phase = made.account.peak()
  # The gradient's mean over slices: each sends and receives all but its share.
  between = 2 * (slices - 1) / slices * made.account.owners['gradient'][0]
  return {
      'slice': name, 'chips': len(devices), 'slices': slices, 'peak': peak,
      'phase': phase, 'margin': made.account.margin, 'network': network,
      'between': between, 'between_s': between / _BETWEEN_SLICES, 'weak': weak,
      'strong': strong
  }


def table(rows):
  """As Markdown; efficiencies are against the first row."""
  first = rows[0]
  out = [
      '| slice | chips | peak, GB | free | network, GB | between slices, GB | '
      'weak, s | efficiency | strong, s | speedup |', '|' + '---|' * 10
  ]
  for r in rows:
    weak, strong = r['weak'] + r['between_s'], r['strong'] + r['between_s']
    out.append(f'| {r["slice"]} | {r["chips"]} | {r["peak"] / 1e9:.1f} '
               f'({r["phase"]}) | {r["margin"]:.1%} | {r["network"] / 1e9:.0f} '
               f'| {r["between"] / 1e9:.2f} | {weak:.0f} | '
               f'{first["weak"] / weak:.2f} | {strong:.0f} | '
               f'{first["strong"] / strong:.1f} of '
               f'{r["chips"] / first["chips"]:.0f} |')
  return '\n'.join(out)


def draw(rows, path):
  """Seconds of a step against chips."""
  matplotlib.use('Agg')
  from matplotlib import pyplot as plt
  fig, ax = plt.subplots(figsize=(6, 3.6), layout='constrained')
  one = sorted((r for r in rows if r['slices'] == 1), key=lambda r: r['chips'])
  for kind, label in (('weak', 'weak: 9 problems for 16 chips'),
                      ('strong', 'strong: 36 problems')):
    (line,) = ax.loglog([r['chips'] for r in one], [r[kind] for r in one], 'o-',
                        label=label)
    for r in rows:
      if r['slices'] > 1:
        ax.loglog(r['chips'], r[kind] + r['between_s'], 's', markersize=9,
                  fillstyle='none', color=line.get_color(),
                  label=f'{kind}, two slices')
  ticks = [r['chips'] for r in one]
  ax.set(xlabel='v5e chips', ylabel='seconds of a step (roofline)',
         xticks=ticks, xticklabels=ticks)
  ax.grid(alpha=0.3)
  ax.legend(fontsize=8)
  fig.savefig(path)


def main(_):
  """Plans what is missing, prints the table, and draws."""
  out = pathlib.Path(_OUT.value)
  rows = [json.loads(line) for line in out.read_text().splitlines()
         ] if out.exists() else []
  if not _PICTURE.value:
    with references.without_weights():
      for name in _SLICE.value:
        if all(r['slice'] != name for r in rows):
          rows.append(row(name))
          out.write_text(''.join(json.dumps(r) + '\n' for r in rows))
          print(json.dumps(rows[-1]), flush=True)
  else:
    draw(rows, _PICTURE.value)
  print(table(rows))


if __name__ == '__main__':
  app.run(main)
