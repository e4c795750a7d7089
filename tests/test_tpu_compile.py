"""Ahead-of-time compilation for real TPU topologies, without a TPU.

  pip install -e ".[test,tpu]"
  python -m pytest -m slow -s tests/test_tpu_compile.py

docs/tpu.md has the memory figures that these tests print.
"""

import dataclasses
import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest

from exprl_jax import config as config_lib
from exprl_jax import losses
from exprl_jax import mesh as mesh_lib
from exprl_jax.models import transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.models.rope import Rope
from tests.conftest import SMALL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec('libtpu'),
                       reason='pip install -e ".[tpu]"'),
    # Of libtpu, which looks for the host it is not on.
    pytest.mark.filterwarnings('ignore')]

QWEN3_4B = ModelConfig(
    vocab_size=151936, num_layers=36, embed_dim=2560, mlp_dim=9728,
    num_heads=32, num_kv_heads=8, head_dim=128, norm_eps=1e-6,
    tied_embedding=True, rope=Rope(5e6), qk_norm=True, dtype='bfloat16',
    remat='full', attention='splash')
V5E_BYTES = 15.75 * 2**30  # of a chip, usable


@pytest.fixture(scope='module')
def v5e_8():
  """The devices of a v5e:2x4 slice."""
  os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
  from jax.experimental import topologies
  return topologies.get_topology_desc(
      platform='tpu', topology_name='v5e:2x4', chip_config_name='default',
      chips_per_host_bounds=(2, 2, 1), num_slices=1,
      wrap=(False, False, False)).devices


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
    return jax.grad(lambda p: losses.token_logprobs(
        cfg, p, tokens, segment_ids)[0].sum())(params)

  with jax.set_mesh(mesh):
    return jax.jit(gradient, out_shardings=shardings).lower(
        params, ids, ids).compile()


@pytest.mark.parametrize('sizes', [dict(data=1, fsdp=8),
                                   dict(data=1, fsdp=4, tensor=2)])
def test_qwen3_4b_trains_on_8192_tokens_a_row(v5e_8, sizes):
  compiled = compile_gradient(QWEN3_4B, v5e_8, sizes['fsdp'], 8192, **sizes)
  memory = compiled.memory_analysis()
  print(f'\n{sizes}: arguments {memory.argument_size_in_bytes / 1e9:.2f} GB, '
        f'peak {memory.peak_memory_in_bytes / 1e9:.2f} GB a chip')
  text = compiled.as_text()
  assert text.count('tpu_custom_call') >= 4  # forward, again, dq, dkv
  assert memory.peak_memory_in_bytes < V5E_BYTES


@pytest.mark.parametrize('head_dim', [64, 128, 256])
def test_splash_attention_with_segments_windows_and_soft_caps(v5e_8, head_dim):
  """Two kinds of layers in one scan, also where heads do not fill lanes."""
  cfg = dataclasses.replace(
      SMALL, vocab_size=512, embed_dim=256, num_layers=4, head_dim=head_dim,
      windows=(0, 256, 0, 256), attention_softcap=50.0, attention='splash',
      dtype='bfloat16')
  compiled = compile_gradient(cfg, v5e_8, 4, 1000, data=1, fsdp=4, tensor=2)
  assert compiled.as_text().count('tpu_custom_call') >= 6
