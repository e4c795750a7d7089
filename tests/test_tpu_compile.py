"""Ahead-of-time compilation for real TPU topologies, without a TPU.

  pip install -e ".[test,tpu]"
  python -m pytest -m slow -s tests/test_tpu_compile.py

docs/tpu.md has the memory figures that these tests print.
"""

import dataclasses
import functools
import importlib.util
import math
import os
import re

import jax
import jax.numpy as jnp
import pytest

from exprl_jax import config as config_lib
from exprl_jax import types
from exprl_jax.models import head, paged, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.models.rope import Rope
from exprl_jax.rl import learner
from exprl_jax.rollout import decode, protocol
from exprl_jax.runtime import mesh as mesh_lib
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
# A gradient's program does not know that the optimiser's moments are there as
# well: without these it is less thrifty (docs/tpu.md).
FLAGS = {
    'xla_tpu_scheduler_percent_shared_memory_limit': '70',
    'xla_tpu_licm_size_inflation_ratio': '0.1'
}


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
  """The programs of learner.update on a slice: a packed row for each chip."""

  def __init__(self, cfg, name, tokens=20480, tensor=1):
    devices = topology(name)
    rows = len(devices) // tensor
    self.cfg = cfg
    self.mesh = mesh_lib.make_mesh(config_lib.Mesh(1, rows, 1, tensor), devices)
    abstract = transformer.abstract_params(cfg)
    self.shardings = mesh_lib.shardings(transformer.logical_axes(cfg), abstract,
                                        self.mesh)
    self.params = jax.tree.map(lambda x, s: x.update(sharding=s), abstract,
                               self.shardings)
    row = lambda dtype: self.array((rows, tokens), dtype, 'batch', None)
    self.batch = types.Experience(row(jnp.int32), row(jnp.int32),
                                  *(row(jnp.float32) for _ in range(5)))

  def array(self, shape, dtype, *axes):
    return jax.ShapeDtypeStruct(
        shape, dtype, sharding=jax.sharding.NamedSharding(
            self.mesh, mesh_lib.spec(axes, shape, self.mesh)))

  def gradient(self, more=False):
    """Compiled; `more`: added to the total of earlier micro-batches."""
    run = functools.partial(learner.gradient, self.cfg, cfg=config_lib.Loss(),
                            temperature=0.8)
    with jax.set_mesh(self.mesh):
      total = None
      if more:
        logs = jax.eval_shape(run, self.params, batch=self.batch)[1:]
        total = (self.params, *jax.tree.map(lambda x: self.array(
            (), x.dtype), logs))
      compiled = learner.gradient.lower(
          self.cfg, self.params, self.batch, config_lib.Loss(), temperature=0.8,
          total=total).compile(compiler_options=FLAGS)
    for x, split, wanted in zip(jax.tree.leaves(self.params),
                                jax.tree.leaves(compiled.output_shardings[0]),
                                jax.tree.leaves(self.shardings), strict=True):
      assert split.is_equivalent_to(wanted, x.ndim), (x.shape, split)
    return compiled

  def moments(self):
    """The optimiser's state."""
    state = jax.eval_shape(
        learner.optimizer(config_lib.Optim(), 100).init, self.params)
    split = {x.shape: x.sharding for x in jax.tree.leaves(self.params)}
    everywhere = self.array((), jnp.int32).sharding
    return jax.tree.map(
        lambda x: x.update(sharding=split.get(x.shape, everywhere)), state)

  def apply(self):
    """The optimiser's program, compiled."""
    count = self.array((), jnp.int32)
    state = types.TrainState(count, count, self.params, self.moments())
    with jax.set_mesh(self.mesh):
      return learner._apply.lower(state, self.params, config_lib.Optim(),
                                  100).compile()


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
  moments = per_chip(step.moments())
  print(f'\n{name} {remat}, {"a later" if more else "the first"} micro-batch: '
        f'arguments {arguments:.2f}, peak {peak:.2f} GB a chip, with the '
        f'moments {peak + moments:.2f}, optimiser {gigabytes(step.apply())}')
  assert peak + moments <= bar


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
  layout = paged.Layout(pages, 128, 'bfloat16', 'ragged')

  def array(shape, dtype, *axes):
    spec = mesh_lib.spec(axes or (None,) * len(shape), shape, mesh)
    return jax.ShapeDtypeStruct(shape, dtype,
                                sharding=jax.sharding.NamedSharding(mesh, spec))

  params = jax.eval_shape(lambda x: transformer.cast(cfg, x),
                          transformer.abstract_params(cfg))
  params = jax.tree.map(
      lambda x, s: x.update(sharding=s), params,
      mesh_lib.shardings(transformer.logical_axes(cfg), params, mesh))
  pool = paged.abstract_pool(cfg, layout, mesh)
  rows = functools.partial(array, (slots,))
  state = protocol.State(*(rows(jnp.int32, 'batch') for _ in range(3)),
                         rows(jnp.bool_, 'batch'))
  columns = len(protocol.INTS) + protocol.MAX_ENDS
  inputs = protocol.Inputs(array((slots, columns), jnp.int32, 'batch', None),
                           array((slots, 3), jnp.float32, 'batch', None),
                           array((slots, 162), jnp.int32, 'batch', None))
  key = jax.eval_shape(lambda: jax.random.key(0)).update(
      sharding=array((), jnp.int32).sharding)
  with jax.set_mesh(mesh):
    compiled = decode.decode.lower(cfg, layout, 32, False, params, pool, state,
                                   inputs, key, array((), jnp.int32)).compile()
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
