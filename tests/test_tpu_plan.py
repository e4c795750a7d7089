"""Plans for TPUs, compiled ahead of time; what decoding sends over the network.

  pip install -e ".[test,tpu]"
  python -m pytest -m slow -s tests/test_tpu_plan.py
"""

import dataclasses
import importlib.util
import json
import runpy

import pytest

from exprl_jax import config as config_lib
from exprl_jax import main
from exprl_jax.models import config as model_config
from exprl_jax.models import paged
from exprl_jax.planning import compiled, programs, search
from exprl_jax.planning import plan as plan_lib
from exprl_jax.rollout import programs as engine_programs
from exprl_jax.rollout.options import Options
from exprl_jax.runs import recipes
from exprl_jax.runtime import hlo, topology, xla_flags
from exprl_jax.runtime import mesh as mesh_lib
from tests.published import CONFIGS, folder_of

pytestmark = [
    pytest.mark.skipif(not importlib.util.find_spec('libtpu'),
                       reason='pip install -e ".[tpu]"'),
    # Of libtpu, which looks for the host it is not on.
    pytest.mark.filterwarnings('ignore')
]
PLANS = runpy.run_path('benchmarks/plans.py', run_name='plans')
MODELS = ('Qwen3-4B-Instruct-2507', 'Qwen3-8B')


def decode_program(name, layers, data, tensor, **options):
  """A published model's chunk of decoding on a v5e:2x4 slice."""
  model = model_config.with_layers(
      dataclasses.replace(
          model_config.parse_config(
              json.loads((CONFIGS / f'{name}.json').read_text()), name),
          dtype='bfloat16'), layers)
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data, 1, 1, tensor),
                            topology.devices('v5e:2x4'))
  listed = engine_programs.programs(
      model, mesh,
      Options(**dict(slots=64, max_tokens=4096, pages=256, dtype='bfloat16') |
              options), 'policy')
  return model, next(p for p in listed if p.name == 'policy/decode')


@pytest.mark.parametrize('name, data, tensor', [
    ('Qwen3-4B-Instruct-2507', 2, 4),
    pytest.param('Qwen3-8B', 1, 8, marks=pytest.mark.slow),
    pytest.param('Llama-3.2-1B-Instruct', 2, 4, marks=pytest.mark.slow),
    pytest.param('SmolLM3-3B', 2, 4, marks=pytest.mark.slow),
])
def test_decoding_sends_no_vocabulary_and_copies_no_pool(name, data, tensor):
  """Of the softmax, maxima, sums and one block cross the network."""
  model, program = decode_program(name, 2, data, tensor)
  text = program.compile().as_text()
  rows = 64 // data
  largest = max(
      hlo.array_bytes(i.shape) for i, computation in hlo.collectives(text))
  assert largest < 4 * rows * model.vocab_size / tensor
  pool = next(x for x in program.args if isinstance(x, paged.Pool))
  size = mesh_lib.device_bytes(pool)
  copies = [
      i for body in hlo.parse(text)[0].values() for i in body
      if i.opcode == 'copy' and hlo.array_bytes(i.shape) >= size
  ]
  assert not copies


@pytest.mark.slow
def test_the_whole_list_of_the_tiny_run_compiles_for_one_chip():
  _, values, _ = main.parse(['--config=configs/tiny.py', '--config.compare='])
  made = plan_lib.make(recipes.freeze(values), topology.devices('v5e:1x1'),
                       compiled.Compiler(xla_flags.compiler_options('v5e')))
  assert made.account.fits and set(
      made.account.phases) >= {'rollout', 'judge', 'gradient'}


@pytest.fixture
def folders(tmp_path):
  """The two models of the presets, without weights."""
  return [folder_of(name, tmp_path) for name in MODELS]


@pytest.mark.slow
@pytest.mark.parametrize('target', PLANS['TARGETS'])
def test_production_configs_fit(target, folders):
  """At two and four layers, extrapolated; docs/tpu.md has them in full."""
  made = PLANS['plan'](target, *map(str, folders), 2)
  print(PLANS['row'](target, made, 0.0))
  assert made.account.margin >= 0.045


@pytest.mark.slow
def test_two_depths_give_all(folders):
  """Extrapolated from two and four layers to twelve, and compiled in full."""
  (program,) = [
      p for p in _programs(folders, 12) if p.name == 'learner/gradient'
  ]
  compiler = compiled.Compiler(xla_flags.compiler_options('v5e'))
  full = compiler.weigh(program, 0, 1)
  few, more = (compiler.weigh(
      next(p
           for p in _programs(folders, n)
           if p.name == 'learner/gradient'), 0, 1)
               for n in (2, 4))
  guess = few.extrapolated(more, 5)
  # Small stacked arrays are padded to tiles of eight layers.
  assert guess.arguments == pytest.approx(full.arguments, rel=2e-4)
  assert guess.peak == pytest.approx(full.peak, rel=0.03)
  assert guess.flops == pytest.approx(full.flops, rel=1e-6)


def _programs(folders, layers):
  """On eight chips, with all of them in fsdp."""
  config = _short(folders, layers)
  meshes = mesh_lib.meshes(config, topology.devices('v5e:2x4'))
  return programs.programs(config, meshes)


def _short(folders, layers):
  """The 4B preset with few layers and rows of 4,096 tokens."""
  path = folders[0] / 'config.json'
  path.write_text(
      json.dumps(json.loads(path.read_text()) | {'num_hidden_layers': layers}))
  config = PLANS['config_of']('qwen3_4b:grpo@', *map(str, folders))
  return search.with_keys(
      config, {
          'rollout.max_new_tokens': 3072, 'rollout.max_prompt_tokens': 1024,
          'optim.row_tokens': 4096
      })
