"""Ahead-of-time compilation for real TPU topologies, without a TPU.

  pip install -e ".[test,tpu]"
  python -m pytest -m slow -s tests/test_tpu_compile.py

docs/tpu.md has the memory figures that these tests print.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax
import jax.numpy as jnp
import pytest

from exprl_jax import config as config_lib
from exprl_jax.models import head, paged, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.models.rope import Rope
from exprl_jax.rl import programs as learner_programs
from exprl_jax.rollout import programs as engine_programs
from exprl_jax.rollout.options import Options
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import xla_flags
from tests.conftest import SMALL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec('libtpu'),
                       reason='pip install -e ".[tpu]"'),
    # Of libtpu, which looks for the host it is not on.
    pytest.mark.filterwarnings('ignore')
]

QWEN3_4B = ModelConfig(vocab_size=151936, num_layers=36, embed_dim=2560,
                       mlp_dim=9728, num_heads=32, num_kv_heads=8, head_dim=128,
                       norm_eps=1e-6, tied_embedding=True, rope=Rope(5e6),
                       qk_norm=True, dtype='bfloat16', remat='full',
                       attention='splash')
V5E_BYTES = 15.75 * 2**30  # of a chip, usable
V5E, V6E, V5P = 'v5e:2x4', 'v6e:2x4', 'v5p:2x2x1'
GIB = 2**30 / 1e9  # bars are in 1e9 bytes a chip
FLAGS = xla_flags.compiler_options('v5e')


@pytest.fixture(scope='module')
def v5e_8():
  """The devices of a v5e:2x4 slice."""
  os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
  return topology('v5e:2x4')


def compile_gradient(cfg, devices, rows, tokens, **sizes):
  """Forward and backward of the log-probabilities of packed rows."""
  mesh = mesh_lib.make_mesh(config_lib.Mesh(**sizes), devices)
  abstract = transformer.abstract_params(cfg)
  shardings = mesh_lib.shardings(transformer.logical_axes(cfg), abstract, mesh)
  params = jax.tree.map(lambda x, s: x.update(sharding=s), abstract, shardings)
  ids = jax.ShapeDtypeStruct(
      (rows, tokens), jnp.int32, sharding=jax.sharding.NamedSharding(
          mesh, mesh_lib.spec(('batch', None), (rows, tokens), mesh)))

  def gradient(params, tokens, segment_ids):
    return jax.grad(lambda p: head.token_logprobs(cfg, p, tokens, segment_ids)[
        0].sum())(params)

  with jax.set_mesh(mesh):
    return jax.jit(gradient, out_shardings=shardings).lower(params, ids,
                                                            ids).compile()


class Step:
  """The learner's programs on a slice: a packed row for each chip."""

  def __init__(self, cfg, name, tokens=20480, tensor=1):
    devices = topology(name)
    mesh = mesh_lib.make_mesh(
        config_lib.Mesh(1,
                        len(devices) // tensor, 1, tensor), devices)
    config = config_lib.Config(rollout=config_lib.Rollout(temperature=0.8),
                               optim=config_lib.Optim(row_tokens=tokens))
    self.shardings = mesh_lib.shardings(transformer.logical_axes(cfg),
                                        transformer.abstract_params(cfg), mesh)
    self.programs = {
        p.name: p for p in learner_programs.programs(config, cfg, mesh)
    }

  def gradient(self, more=False):
    """Compiled; `more`: added to the total of earlier micro-batches."""
    name = 'learner/add_gradient' if more else 'learner/gradient'
    compiled = self.programs[name].compile(FLAGS)
    for split, wanted in zip(
        jax.tree.leaves(compiled.output_shardings.gradient),
        jax.tree.leaves(self.shardings), strict=True):
      assert split.is_equivalent_to(wanted, 4), split
    return compiled

  def moments(self):
    """The optimizer's state."""
    return self.programs['learner/apply_gradient'].args[0].opt_state

  def apply(self):
    """The optimizer's program, compiled."""
    return self.programs['learner/apply_gradient'].compile()


def gigabytes(compiled):
  """(arguments, peak) of a program, 1e9 bytes a chip."""
  memory = compiled.memory_analysis()
  return (memory.argument_size_in_bytes / 1e9,
          memory.peak_memory_in_bytes / 1e9)


def per_chip(tree):
  """1e9 bytes a chip of arrays."""
  return sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)) / 1e9


@pytest.mark.parametrize('name, remat, more, bar',
                         [(V5E, 'full', False, 15.7),
                          (V5E, 'offload', False, 13.7),
                          (V5E, 'offload', True, 15.7),
                          (V6E, 'full', True, 31.25 * GIB),
                          (V5P, 'full', True, 95.74 * GIB)])
def test_a_train_step_of_qwen3_4b(v5e_8, name, remat, more, bar):
  """Rows of 20,480 tokens, parameters and moments in float32 on the chips."""
  step = Step(dataclasses.replace(QWEN3_4B, remat=remat), name)
  arguments, peak = gigabytes(step.gradient(more))
  print(f'\n{name} {remat}, {"a later" if more else "the first"} micro-batch: '
        f'arguments {arguments:.2f}, peak {peak:.2f} GB a chip, optimizer '
        f'{gigabytes(step.apply())}')
  assert arguments > per_chip(step.moments())  # the compiler sees them
  assert peak <= bar


def test_the_gradient_of_the_head_is_added_up_once(v5e_8):
  """Two layers, to be quick: nothing as large as the head crosses the network
  inside a loop, and the head does so in bfloat16.
  """
  step = Step(dataclasses.replace(QWEN3_4B, num_layers=2), V5E, tokens=2048)
  text = step.gradient().as_text()
  moved = [(name, line) for name, line in instructions(text) if re.search(
      r'\[(151936,2560|2560,151936)\]\S* (all-gather|'
      r'all-reduce|reduce-scatter)(-start)?\(', line)]
  assert moved
  loops = set(re.findall(r'(?:body|condition)=(%[\w.-]+)', text))
  assert not [line for name, line in moved if name in loops]
  assert all('bf16[' in line.split('(')[0]
             for _, line in moved
             if 'all-gather' in line)


def instructions(text):
  """(computation, instruction) of a program; ENTRY is the outermost."""
  name = ''
  for line in text.splitlines():
    start = re.match(r'(ENTRY|%\S+) .*\{$', line)
    name = start[1] if start else name
    yield name, line


@pytest.mark.parametrize('head_dim', [64, 128, 256])
def test_splash_attention_with_segments_windows_and_soft_caps(v5e_8, head_dim):
  """Two kinds of layers in one scan, also where heads do not fill lanes."""
  cfg = dataclasses.replace(SMALL, vocab_size=512, embed_dim=256, num_layers=4,
                            head_dim=head_dim, windows=(0, 256, 0, 256),
                            attention_softcap=50.0, attention='splash',
                            dtype='bfloat16')
  compiled = compile_gradient(cfg, v5e_8, 4, 1000, data=1, fsdp=4, tensor=2)
  assert compiled.as_text().count('tpu_custom_call') >= 6


def topology(name):
  """The devices of a slice by its name in the tests' parameters."""
  from jax.experimental import topologies
  kind, bounds, chip = {
      'v5e:2x4': ('v5e:2x4', (2, 2, 1), 'default'),
      'v6e:2x4': ('v6e:2x4', (2, 2, 1), 'default'),
      'v5p:2x2x1': ('v5:2x2x1', (2, 2, 1), 'megacore')
  }[name]
  return topologies.get_topology_desc(platform='tpu', topology_name=kind,
                                      chip_config_name=chip,
                                      chips_per_host_bounds=bounds,
                                      num_slices=1,
                                      wrap=(False, False, False)).devices


@pytest.mark.parametrize('name, data, tensor, slots, pages',
                         [('v5e:2x4', 2, 4, 64, 1024),
                          ('v6e:2x4', 2, 4, 256, 3000),
                          ('v5p:2x2x1', 1, 4, 256, 12000)])
def test_the_decode_chunk_of_qwen3_4b(v5e_8, name, data, tensor, slots, pages):
  """Updated in place: no second pool, no copy of it."""
  cfg = dataclasses.replace(QWEN3_4B, remat='none')
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data, 1, 1, tensor), topology(name))
  listed = engine_programs.programs(
      cfg, mesh,
      Options(slots=slots, max_tokens=20480, pages=pages, dtype='bfloat16',
              kernel='ragged'), 'policy')
  (program,) = [p for p in listed if p.name == 'policy/decode']
  pool = next(x for x in program.args if isinstance(x, paged.Pool))
  compiled = program.compile()
  memory = compiled.memory_analysis()
  shard = pool.keys.sharding.shard_shape(pool.keys.shape)
  size = 2 * math.prod(shard)
  print(f'\n{name}: pool {size / 1e9:.2f} GB a chip, temporaries '
        f'{memory.temp_size_in_bytes / 1e9:.2f}, peak '
        f'{memory.peak_memory_in_bytes / 1e9:.2f}, '
        f'aliased {memory.alias_size_in_bytes / 1e9:.2f}')
  text = compiled.as_text()
  assert 'tpu_custom_call' in text
  assert memory.temp_size_in_bytes < 0.2 * size
  assert memory.alias_size_in_bytes >= size
  dims = [','.join(map(str, s)) for s in (shard, shard[1:])]
  copies = [
      line for line in text.splitlines()
      if re.search(rf'= bf16\[({"|".join(dims)})\]\S* copy\(', line)
  ]
  assert not copies
