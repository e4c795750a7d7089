"""The ragged kernel computes what the reference does, for every layout.

The kernel itself runs here, in Pallas' interpreter for TPUs.
"""

import dataclasses
import functools
import importlib

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax.models import paged, paged_kernels, paged_ragged
from tests.conftest import SMALL

pallas = importlib.import_module(
    'jax.experimental.pallas.ops.tpu.ragged_paged_attention.kernel')
FP8 = 'float8_e4m3fn'


class Block:
  """A block of keys and values that was read from VMEM.

  The interpreter cannot read through the reshape and the bitcast of a
  reference that the kernel uses: it reads first, and they apply to arrays.
  """

  def __init__(self, x):
    self.x, self.dtype = x, x.dtype

  def __getitem__(self, index):
    return self.x[index]

  def reshape(self, *shape):
    return Block(self.x.reshape(shape))

  def bitcast(self, dtype):
    """Rows n * i, ..., n * i + n - 1 are one of words, the first one low."""
    n = 4 // self.dtype.itemsize
    x = self.x.reshape(-1, n, self.x.shape[1]).swapaxes(1, 2)
    return Block(jax.lax.bitcast_convert_type(x, dtype))


@pytest.fixture
def interpreted(monkeypatch):
  """Runs TPU kernels on the CPU."""
  wait = pallas.MultiPageAsyncCopyDescriptor.wait
  monkeypatch.setattr(pallas.MultiPageAsyncCopyDescriptor, 'wait',
                      lambda self: Block(wait(self)[...]))
  with pltpu.force_tpu_interpret_mode():
    yield


def both(cfg, dtype, page=4, columns=4):
  """The two kernels, with blocks of two pages and few queries.

  The interpreter wants no more queries in a block than a row of keys has.
  """
  split = paged_kernels.split_heads(cfg, 1)
  ragged = paged_kernels.ragged(cfg, split, dtype, page, columns, None)
  few = min(4, ragged.heads_per_row * cfg.num_heads // cfg.num_kv_heads)
  blocks = paged_kernels.Blocks(2, few)
  return (paged_kernels.reference(cfg, split),
          dataclasses.replace(ragged, decode=blocks, prefill=blocks))


def outputs(cfg, kernel, dtype, mesh):
  """A prefill with a short and an idle row, then two tokens of each."""
  rng = np.random.default_rng(0)
  layout = paged.Layout(8, 4, dtype, kernel)
  pool = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                      paged.abstract_pool(cfg, layout, mesh))
  table = jnp.array([[3, 1, 5, 7], [2, 4, 0, 0], [0, 0, 0, 0]])
  prefill = [[*range(10)], [0, 1, 2, *[-1] * 7], [-1] * 10]
  steps = prefill, [[10], [3], [-1]], [[11], [4], [-1]]
  attend = jax.jit(functools.partial(paged.attend, cfg, layout))
  dtype = jnp.float32 if dtype == 'float32' else jnp.bfloat16
  out = []
  for positions in steps:
    positions = np.array(positions)
    q, k, v = (rng.normal(size=(*positions.shape, n,
                                cfg.head_dim)).astype(dtype)
               for n in (cfg.num_heads, cfg.num_kv_heads, cfg.num_kv_heads))
    q *= q.dtype.type(cfg.head_dim**-0.5)
    x, pool = attend(q, k, v, pool, table, positions, 1, 0)
    assert x.dtype == q.dtype
    out.append(np.asarray(x, np.float32)[positions >= 0])
  return np.concatenate(out)


def slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow)


# Heads of 128 numbers and more have a row of their own; smaller ones share it.
@pytest.mark.parametrize('head_dim, kv_heads, queries, dtype, layout', [
    slow(32, 8, 16, 'float32', (4, 128, 2, 1)),
    slow(32, 2, 4, 'bfloat16', (2, 128, 1, 1)),
    (32, 3, 3, FP8, (3, 128, 2, 1)),
    slow(64, 2, 14, 'bfloat16', (2, 128, 1, 1)),
    slow(64, 3, 9, 'bfloat16', (2, 128, 2, 1)),
    slow(64, 8, 8, FP8, (2, 128, 4, 1)),
    slow(80, 1, 4, 'float32', (1, 128, 1, 1)),
    slow(80, 3, 6, 'bfloat16', (1, 128, 1, 3)),
    slow(128, 8, 16, 'bfloat16', (1, 128, 8, 1)),
    slow(128, 3, 6, 'float32', (1, 128, 1, 3)),
    slow(128, 1, 2, FP8, (1, 128, 2, 1)),
    (256, 2, 4, 'bfloat16', (1, 256, 1, 2)),
    slow(256, 3, 6, FP8, (1, 256, 2, 2)),
])
def test_the_kernel_computes_what_the_reference_does(interpreted, one_device,
                                                     head_dim, kv_heads,
                                                     queries, dtype, layout):
  cfg = dataclasses.replace(SMALL, head_dim=head_dim, num_heads=queries,
                            num_kv_heads=kv_heads)
  reference, ragged = both(cfg, dtype)
  assert (ragged.heads_per_row, ragged.lanes, ragged.rows,
          ragged.groups) == layout
  want = outputs(cfg, reference, dtype, one_device)
  got = outputs(cfg, ragged, dtype, one_device)
  tolerance = 1e-5 if dtype == 'float32' else 2e-2
  np.testing.assert_allclose(got, want, atol=tolerance)
  assert np.abs(want).max() > 0.5


@pytest.mark.parametrize(
    'window, softcap, head_dim',
    [(3, 2.0, 64), slow(6, 0.0, 128),
     slow(0, 0.5, 32)])
def test_windows_and_soft_caps(interpreted, one_device, window, softcap,
                               head_dim):
  """Also where the window hides the first pages from the kernel."""
  cfg = dataclasses.replace(SMALL, head_dim=head_dim, windows=(window,) * 2,
                            attention_softcap=softcap)
  reference, ragged = both(cfg, 'float32')
  want = outputs(cfg, reference, 'float32', one_device)
  np.testing.assert_allclose(outputs(cfg, ragged, 'float32', one_device), want,
                             atol=1e-5)
  plain = dataclasses.replace(cfg, windows=(), attention_softcap=0.0)
  assert np.abs(want -
                outputs(plain, reference, 'float32', one_device)).max() > 0.01


@pytest.mark.slow
def test_page_tables_beyond_the_scalar_memory(interpreted, one_device,
                                              monkeypatch):
  """The rows are attended for in several calls: here two, of two and one."""
  reference, ragged = both(SMALL, 'float32')
  want = outputs(SMALL, reference, 'float32', one_device)
  monkeypatch.setattr(paged_ragged, '_TABLE_BYTES', 1024)
  got = outputs(SMALL, ragged, 'float32', one_device)
  np.testing.assert_allclose(got, want, atol=1e-5)
