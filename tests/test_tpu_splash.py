"""Splash attention compiled for TPUs, without a TPU.

  pip install -e ".[test,tpu]"
  python -m pytest -m slow tests/test_tpu_splash.py
"""

import dataclasses
import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import pytest

from exprl_jax import config as config_lib
from exprl_jax.models import attention
from exprl_jax.runtime import mesh as mesh_lib
from tests.conftest import SMALL

pytestmark = [
    pytest.mark.skipif(not importlib.util.find_spec('libtpu'),
                       reason='pip install -e ".[tpu]"'),
    # Of libtpu, which looks for the host it is not on.
    pytest.mark.filterwarnings('ignore')
]
SLOW = pytest.mark.slow


def devices(name):
  """Of a slice; no host has them."""
  from jax.experimental import topologies
  os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
  return topologies.get_topology_desc(platform='tpu', topology_name=name,
                                      chip_config_name='default',
                                      chips_per_host_bounds=(2, 2, 1),
                                      num_slices=1, wrap=(False,) * 3).devices


def compile_gradient(name, dtype, heads, kv_heads, head_dim, tokens, windows=(),
                     tensor=1, rows=1):
  """Attention of packed rows and its gradient, with attention='auto'."""
  chips = devices(name)
  mesh = mesh_lib.make_mesh(config_lib.Mesh(1,
                                            len(chips) // tensor, 1, tensor),
                            chips)
  cfg = dataclasses.replace(SMALL, windows=windows, head_dim=head_dim,
                            num_layers=len(windows) or 1, attention='auto')
  rows *= len(chips) // tensor

  def array(axes, *shape, dtype=dtype):
    split = mesh_lib.spec(axes, shape, mesh)
    return jax.ShapeDtypeStruct(shape, dtype,
                                sharding=jax.NamedSharding(mesh, split))

  def value(q, k, v, ids, kind):
    view = attention.View(ids, ids, None)
    out = attention.attend(cfg, q, k, v, view, kind)
    return jnp.sum(out.astype(jnp.float32)**2)

  ids = array(('batch', None), rows, tokens, dtype='int32')
  q = array(('batch', None, 'heads', None), rows, tokens, heads, head_dim)
  k = array(('batch', None, 'kv_heads', None), rows, tokens, kv_heads, head_dim)
  with jax.set_mesh(mesh):
    return jax.jit(jax.value_and_grad(value, (0, 1, 2))).lower(
        q, k, k, ids, array((), dtype='int32')).compile()


def kernels(compiled):
  """The operands of each kernel, as text."""
  return re.findall(r'custom-call\(.*custom_call_target="tpu_custom_call"',
                    compiled.as_text())


def test_auto_compiles_to_the_kernel():
  """On a host that has no TPU; the mesh says what the program runs on."""
  compiled = compile_gradient('v5e:2x2', 'bfloat16', 4, 2, 32, 300)
  assert len(kernels(compiled)) == 3  # forward, dq, dkv


@SLOW
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
@pytest.mark.parametrize('head_dim', [32, 64, 80, 128, 256])
def test_head_sizes(head_dim, dtype):
  """The blocks that are chosen fit into the memory of the smallest chip."""
  assert kernels(compile_gradient('v5e:2x2', dtype, 8, 4, head_dim, 20480))


@SLOW
@pytest.mark.parametrize('name', ['v6e:2x2', 'v5:2x2x1'])
@pytest.mark.parametrize('head_dim, dtype', [(32, 'float32'), (128, 'bfloat16'),
                                             (256, 'bfloat16')])
def test_generations(name, head_dim, dtype):
  assert kernels(compile_gradient(name, dtype, 8, 4, head_dim, 20480))


@SLOW
@pytest.mark.parametrize('windows', [(512, 0), (4096, 0), (100,)])
def test_windows(windows):
  compiled = compile_gradient('v5e:2x2', 'bfloat16', 8, 4, 128, 8192, windows)
  assert len(kernels(compiled)) == 3 * len(windows)


@SLOW
def test_rows_of_a_device_take_one_call_and_no_copy_of_the_logsumexp():
  """4 rows of 8,192: residuals, transposes and little more."""
  compiled = compile_gradient('v5e:2x2', 'bfloat16', 32, 8, 128, 8192, rows=4)
  assert len(kernels(compiled)) == 3
  wide = 4 * 8192 * 32 * 128 * 4  # the logsumexp as the kernel writes it
  assert compiled.memory_analysis().temp_size_in_bytes < 2 * wide


@SLOW
def test_many_short_rows_fit_into_scalar_memory():
  """What steers the kernel has an entry for each row."""
  assert kernels(
      compile_gradient('v5e:2x2', 'bfloat16', 4, 1, 128, 256, rows=1024))


@SLOW
def test_a_tensor_axis_above_the_kv_heads_splits_the_queries():
  """8 query heads, 2 kv heads on 4 chips: each has one kv head, 2 queries."""
  compiled = compile_gradient('v5e:2x4', 'bfloat16', 8, 2, 128, 2048, tensor=4)
  text = compiled.as_text()
  assert kernels(compiled)
  assert 'bf16[2,2048,128]' in text
  assert 'bf16[2,4,2048,128]' not in text  # all of them
