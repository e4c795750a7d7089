"""Attention over pages, on any mesh and with any dtype of the pages."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax.models import paged, paged_kernels, paged_pool, transformer
from exprl_jax.rollout import decode
from exprl_jax.rollout import options as options_lib
from exprl_jax.rollout.options import Options
from exprl_jax.runtime import chips
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError
from tests.conftest import SMALL
from tests.test_engine import generate, requests

FP8 = 'float8_e4m3fn'


def mesh_of(tensor, data=1):
  return mesh_lib.make_mesh(config_lib.Mesh(data, 1, 1, tensor),
                            jax.devices()[:data * tensor])


def heads(queries, kv_heads, head_dim=16):
  return dataclasses.replace(SMALL, num_heads=queries, num_kv_heads=kv_heads,
                             head_dim=head_dim)


def attend(cfg, mesh, dtype='float32', scale=1.0):
  """A prefill with a short and an idle row, then a token of each."""
  kernel = paged.choose('auto', cfg, mesh, dtype, 4, 3)
  layout = paged.Layout(8, 4, dtype, kernel)
  pool = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding),
                      paged.abstract_pool(cfg, layout, mesh))
  rng = np.random.default_rng(0)
  table = np.array([[3, 1, 5], [2, 4, 0], [0, 0, 0], [6, 7, 0]])
  outputs = []
  with jax.set_mesh(mesh):
    run = jax.jit(functools.partial(paged.attend, cfg, layout))
    for positions in ([[0, 1, 2, 3, 4, 5], [0, 1, 2, -1, -1, -1], [-1] * 6,
                       [*range(6)]], [[6], [3], [-1], [6]]):
      positions = np.array(positions)
      q, k, v = (rng.normal(size=(*positions.shape, n,
                                  cfg.head_dim)).astype('float32')
                 for n in (cfg.num_heads, cfg.num_kv_heads, cfg.num_kv_heads))
      out, pool = run(q / 4, k, v * np.float32(scale), pool, table, positions,
                      1, 0)
      outputs.append(np.asarray(out)[positions >= 0])
  return np.concatenate(outputs), pool, layout


# Heads are repeated; or all are on all devices: 3 heads and 6 queries cannot be
# shared by 4. (tests/test_engine.py has heads that are split.)
@pytest.mark.parametrize('queries, kv_heads, split, dtype', [
    (12, 2, (4, 1, 2), 'float32'),
    (12, 3, (1, 3, 1), 'float32'),
    (4, 1, (4, 1, 4), FP8),
    (12, 2, (4, 1, 2), 'int8'),
    pytest.param(8, 4, (4, 1, 1), FP8, marks=pytest.mark.slow),
    pytest.param(6, 2, (1, 2, 1), 'int8', marks=pytest.mark.slow),
])
def test_four_devices_attend_as_one_does(queries, kv_heads, split, dtype):
  cfg = heads(queries, kv_heads)
  assert paged_kernels.split_heads(cfg, 4) == split
  want, _, _ = attend(cfg, mesh_of(1), dtype)
  got, pool, layout = attend(cfg, mesh_of(4, data=2), dtype)
  np.testing.assert_allclose(got, want, atol=1e-5)
  # Each device holds its own heads, and no more than planned.
  held = sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(pool))
  token = paged.token_bytes_per_device(cfg, dtype, layout.kernel)
  assert held == token * layout.pages * layout.page
  assert token * split[0] == paged.token_bytes(cfg, dtype) * split[2]


def test_fp8_pages():
  """Three bits of mantissa: errors of up to 1/16 of a value."""
  exact, _, _ = attend(heads(4, 2), mesh_of(1))
  got, pool, _ = attend(heads(4, 2), mesh_of(1), FP8)
  assert pool.keys.dtype == FP8
  error = np.abs(got - exact)
  assert 1e-3 < error.max() < 0.25 and error.mean() < 0.03


def test_values_beyond_fp8_become_the_largest():
  """They would be NaN otherwise."""
  got, _, _ = attend(heads(4, 2), mesh_of(1), FP8, scale=1e4)
  assert 400 < np.abs(got).max() < 448.1


@pytest.mark.slow
def test_the_engine_samples_over_fp8_pages(small, one_device):
  """First tokens, of which all see the same: they are nearly as probable."""
  exact, got = ([
      s.logprobs[0] for s in generate(small, one_device, requests(
          samples=1), slots=8, chunk=4, dtype=dtype)
  ] for dtype in ('float32', 'fp8'))
  np.testing.assert_allclose(got, exact, atol=0.3)
  assert np.abs(np.subtract(got, exact)).max() > 1e-5


def test_the_choice_on_cpus(one_device):
  """The reference; the kernel for TPUs must not be asked for."""
  options = Options(slots=3, max_tokens=24, page=4, dtype='fp8')
  got = options_lib.resolve(options, SMALL, one_device)
  assert (got.dtype, got.kernel.name, got.kernel.tile) == (FP8, 'reference', 16)
  assert hash(got.layout) == hash(
      options_lib.resolve(got, SMALL, one_device).layout)
  with pytest.raises(InputError, match="^judge.kernel='ragged' runs on TPUs"):
    options_lib.resolve(
        dataclasses.replace(options, kernel='ragged', config_section='judge'),
        SMALL, one_device)


def ragged(cfg, dtype='bfloat16', chip='TPU v5 lite', tensor=1, page=128,
           columns=162):
  split = paged_kernels.split_heads(cfg, tensor)
  return paged_kernels.ragged(cfg, split, dtype, page, columns,
                              chips.find(chip))


# By hand: Qwen2.5-0.5B, Llama-3.2-1B, SmolLM2-135M, Phi-2, Qwen3-4B,
# Qwen2.5-7B, Gemma 2 2B, Gemma 3 1B, ...:
# (heads per row, lanes, rows of a group, groups).
@pytest.mark.parametrize('head_dim, queries, kv_heads, dtype, wanted', [
    (64, 14, 2, 'bfloat16', (2, 128, 1, 1)),
    (64, 32, 8, 'bfloat16', (2, 128, 4, 1)),
    (64, 9, 3, 'bfloat16', (2, 128, 2, 1)),
    (80, 32, 32, 'bfloat16', (1, 128, 32, 1)),
    (128, 32, 8, 'bfloat16', (1, 128, 8, 1)),
    (128, 28, 4, 'bfloat16', (1, 128, 4, 1)),
    (256, 8, 4, 'bfloat16', (1, 256, 1, 4)),
    (256, 4, 1, 'bfloat16', (1, 256, 1, 1)),
    (128, 32, 8, FP8, (1, 128, 8, 1)),
    (128, 4, 1, FP8, (1, 128, 2, 1)),
    (256, 8, 4, FP8, (1, 256, 2, 2)),
    (128, 40, 10, 'bfloat16', (1, 128, 2, 5)),
])
def test_layouts(head_dim, queries, kv_heads, dtype, wanted):
  cfg = heads(queries, kv_heads, head_dim)
  got = ragged(cfg, dtype)
  assert (got.heads_per_row, got.lanes, got.rows, got.groups) == wanted
  bare = paged.token_bytes(cfg, dtype)
  padded = got.lanes * got.rows * got.groups / (head_dim * kv_heads)
  assert paged.token_bytes_per_device(cfg, dtype, got) == bare * padded


def test_what_the_kernel_cannot_run():
  assert ragged(heads(4, 2, 256), 'float32') is None
  assert ragged(heads(4, 2), 'int8') is None


def test_blocks_follow_the_chip():
  """By hand: 240 FLOPs a byte on v5e, 560 on v6e; 4 queries for each key."""
  v5e, v6e = (ragged(heads(32, 8, 128), chip=chip)
              for chip in ('TPU v5 lite', 'TPU v6 lite'))
  assert v5e.decode == v6e.decode == (16, 2)
  assert (v5e.prefill, v6e.prefill) == ((8, 64), (8, 128))
  # Short rows, small pages: a quarter of 2,048 tokens; 16 pages at most.
  assert ragged(heads(32, 8, 128), columns=16).decode.pages == 4
  assert ragged(heads(32, 8, 128), page=16).decode.pages == 16
  assert ragged(heads(32, 8, 128), columns=3).prefill.pages == 3


@pytest.mark.parametrize('chip', ['TPU v4', 'TPU v5', 'TPU v6 lite', 'new'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', FP8])
def test_blocks_fit_into_vmem(chip, dtype):
  sizes = itertools.product((32, 64, 80, 128, 256), (1, 2, 3, 8), (1, 7, 16))
  for head_dim, kv_heads, group in sizes:
    kernel = ragged(heads(group * kv_heads, kv_heads, head_dim), dtype, chip)
    if not kernel:
      assert (head_dim, dtype) == (256, 'float32')
      continue
    for blocks in (kernel.decode, kernel.prefill):
      assert min(blocks) >= 1
      taken = paged_kernels.vmem_bytes(kernel, group * kernel.heads_per_row,
                                       jnp.dtype(dtype).itemsize, 128, blocks)
      assert sum(taken) <= kernel.vmem


def test_narrowing_keeps_what_fits():
  x = jnp.array([448.0, -500.0, 0.5])
  np.testing.assert_array_equal(
      paged_pool.narrow(x, FP8).astype('float32'), [448.0, -448.0, 0.5])
  assert paged_pool.narrow(x, jnp.bfloat16).astype('float32')[1] == -500


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('page', [32, 512])
def test_a_long_prefill_is_the_full_forward_pass(small, one_device, rng, page,
                                                 dtype):
  """Several pages at a time, and pages of more tokens than that."""
  cfg = dataclasses.replace(small[0], dtype=dtype)
  width, rows = 320, 2
  tokens = rng.integers(0, 40, (rows, 2 * width)).astype(np.int32)
  options = options_lib.resolve(
      Options(slots=rows, max_tokens=2 * width, page=page, dtype=dtype), cfg,
      one_device)
  assert options.dtype == 'float32'  # as pages of CPUs are
  columns = options.pages_for(2 * width)
  table = 1 + np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
  pool = decode.empty_pool(cfg, options.layout, one_device)
  params = transformer.cast(cfg, small[1])
  run = jax.jit(transformer.forward_paged, static_argnums=(0, 1))
  got = []
  for start in (0, width):
    positions = np.tile(np.arange(start, start + width), (rows, 1))
    hidden, pool = run(cfg, options.layout, params,
                       tokens[:, start:start + width], positions, pool, table)
    got.append(hidden)
  want = jax.jit(transformer.forward,
                 static_argnums=0)(cfg, params, tokens,
                                   np.tile(np.arange(2 * width), (rows, 1)),
                                   np.ones_like(tokens))
  np.testing.assert_allclose(jnp.concatenate(got, axis=1), want,
                             atol=1e-4 if dtype == 'float32' else 0.1)
