"""The engine's programs, with attention over pages, compiled for real TPUs.

No TPU is needed, just libtpu. docs/performance.md, "Kernels", has the table
that these cases cover.
"""

import dataclasses
import importlib.util
import os

import pytest

from exprl_jax import config as config_lib
from exprl_jax.judge import factory
from exprl_jax.models import paged
from exprl_jax.models.config import read_config
from exprl_jax.rollout import options as options_lib
from exprl_jax.rollout import programs, sampler
from exprl_jax.rollout.options import Options
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError
from tests.conftest import POLICY, SMALL
from tests.test_programs import tiny

pytestmark = [
    pytest.mark.skipif(not importlib.util.find_spec('libtpu'),
                       reason='pip install -e ".[tpu]"'),
    # Of libtpu, which looks for the host it is not on.
    pytest.mark.filterwarnings('ignore')
]


def tpu_mesh(name='v5e:1x1', tensor=1, chip='default'):
  """A mesh of absent devices; what tensor leaves is data."""
  from jax.experimental import topologies
  os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
  bounds = (1, 1, 1) if name.endswith(':1x1') else (2, 2, 1)
  devices = topologies.get_topology_desc(platform='tpu', topology_name=name,
                                         chip_config_name=chip,
                                         chips_per_host_bounds=bounds,
                                         num_slices=1,
                                         wrap=(False,) * 3).devices
  return mesh_lib.make_mesh(config_lib.Mesh(-1, 1, 1, tensor), devices)


def compile_engine(cfg, mesh, options, owner='policy'):
  """Compiles decoding and the widest prefill: {name: its memory}.

  The pool is updated in place, it is as large as planned, and nothing of its
  size is made beside it.
  """
  resolved = options_lib.resolve(options, cfg, mesh)
  planned = (
      paged.token_bytes_per_device(cfg, resolved.dtype, resolved.kernel) *
      resolved.page * resolved.pages)
  listed = {p.name: p for p in programs.programs(cfg, mesh, options, owner)}
  prefill = max((n for n in listed if 'prefill' in n),
                key=lambda n: int(n.split('x')[-1]))
  for name in (f'{owner}/decode', prefill):
    compiled = listed[name].compile()
    memory = compiled.memory_analysis()
    print(f'\n{cfg.head_dim} x {cfg.num_kv_heads} {resolved.dtype} {name} '
          f'{resolved.kernel.describe()}; pool {planned / 1e6:.1f} MB, aliased '
          f'{memory.alias_size_in_bytes / 1e6:.1f}, temporaries '
          f'{memory.temp_size_in_bytes / 1e6:.1f}')
    assert ('tpu_custom_call'
            in compiled.as_text()) == (resolved.kernel.name == 'ragged')
    small = 2**16  # state, and what tiles of small arrays are padded to
    assert planned <= memory.alias_size_in_bytes < planned + small
    assert memory.temp_size_in_bytes < 0.5 * planned


def model(head_dim, kv_heads, queries, dtype='bfloat16', **changes):
  return dataclasses.replace(SMALL, head_dim=head_dim, num_kv_heads=kv_heads,
                             num_heads=queries, embed_dim=256, mlp_dim=256,
                             vocab_size=512, dtype=dtype, **changes)


def sizes(dtype='bfloat16', **changes):
  return dataclasses.replace(
      Options(slots=32, max_tokens=1024, page=64, pages=1024, chunk=8,
              prefill=128, dtype=dtype), **changes)


def test_the_tiny_configs_engines():
  """Heads of 32 numbers, in float32: policy and judge."""
  config, mesh = tiny(), tpu_mesh()
  policy = read_config(POLICY)
  options = sampler.engine_options(config, policy)
  compile_engine(policy, mesh, dataclasses.replace(options, pages=1024))
  judge, options = factory.engine_options(config)
  compile_engine(judge, mesh, dataclasses.replace(options, pages=1024), 'judge')


def test_fewer_kv_heads_than_devices():
  """Heads as in Qwen2.5-1.5B: 12 queries and 2 keys, over 4 devices."""
  mesh = tpu_mesh('v5e:2x2', tensor=4)
  compile_engine(model(128, 2, 12), mesh, sizes())


@pytest.mark.slow
@pytest.mark.parametrize('tensor', [1, 4])
@pytest.mark.parametrize('dtype', ['bfloat16', 'fp8'])
@pytest.mark.parametrize('head_dim, kv_heads, queries',
                         [(32, 8, 16), (64, 2, 14), (64, 3, 9), (64, 8, 32),
                          (80, 4, 8), (96, 32, 32), (128, 8, 32), (128, 4, 28),
                          (256, 4, 8), (256, 1, 4)])
def test_every_layout_on_v5e(head_dim, kv_heads, queries, dtype, tensor):
  mesh = tpu_mesh('v5e:2x2', tensor)
  compile_engine(model(head_dim, kv_heads, queries), mesh, sizes(dtype))


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['bfloat16', 'fp8', 'float32'])
@pytest.mark.parametrize('name, chip', [('v4:2x2x1', 'megacore'),
                                        ('v5:2x2x1', 'megacore'),
                                        ('v6e:2x2', 'default'),
                                        ('tpu7x:2x2x1', 'default')])
def test_every_generation(name, chip, dtype):
  """Rows of 20,480 tokens, eight kv heads: blocks are cut to the VMEM."""
  mesh = tpu_mesh(name, 1, chip)
  held = 'float32' if dtype == 'float32' else 'bfloat16'
  compile_engine(model(128, 8, 32, held, windows=(0, 1024)), mesh,
                 sizes(dtype, page=128, max_tokens=20480, prefill=256))


@pytest.mark.slow
def test_more_rows_than_the_scalar_memory_has_page_tables():
  """1,024 tables of 260 columns; all at once need 1.5 of 1 MiB."""
  compile_engine(model(128, 1, 4), tpu_mesh(),
                 sizes(slots=1024, max_tokens=16384, pages=4096))


@pytest.mark.slow
def test_int8_pages_take_the_reference():
  mesh = tpu_mesh('v5e:2x2', 2)
  resolved = options_lib.resolve(sizes('int8'), model(64, 2, 4), mesh)
  assert resolved.kernel.name == 'reference'
  listed = programs.programs(model(64, 2, 4), mesh, sizes('int8'), 'policy')
  for program in listed:
    program.compile()
  with pytest.raises(InputError, match="kv_dtype='fp8' would fit"):
    options_lib.resolve(sizes('int8', kernel='ragged'), model(64, 2, 4), mesh)
