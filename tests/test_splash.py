"""Splash attention on packed rows, interpreted: what it computes and skips."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax.models import attention, head, splash, transformer
from exprl_jax.runtime import mesh as mesh_lib
from tests.conftest import SMALL

BLOCK = 128


def packing(rng, tokens, sequences, padding):
  """Segment ids of a row: random lengths, with padding at the end."""
  cuts = np.sort(rng.choice(tokens - padding, sequences - 1, replace=False))
  ids = np.zeros(tokens, np.int32)
  for i, part in enumerate(np.split(np.arange(tokens - padding), cuts), 1):
    ids[part] = i
  return ids


def visible(ids, window):
  """bool[T, T], from the definition."""
  ago = np.arange(len(ids))[:, None] - np.arange(len(ids))
  return ((ago >= 0) & ((ago < window) | (window == 0)) & (ids > 0) &
          (ids[:, None] == ids))


def by_blocks(mask, block):
  """bool[M, M]: blocks with a pair in them, and the diagonal."""
  m = len(mask) // block
  some = mask.reshape(m, block, m, block).any((1, 3))
  return some | np.eye(m, dtype=bool)


@pytest.mark.parametrize('window', [0, 1, 100, 129, 300])
@pytest.mark.parametrize('padding', [0, 77, 900])
def test_the_blocks_that_run_hold_every_pair(window, padding, rng):
  """Also of ids in no order; sorted ones leave nothing out to be skipped."""
  for sequences in (1, 4, 20):
    ids = packing(rng, 10 * BLOCK, sequences, padding)
    for row in (ids, rng.permutation(ids)):
      want = by_blocks(visible(row, window), BLOCK)
      first, last = map(np.asarray,
                        splash.needed(jnp.asarray(row[None]), BLOCK, window))
      m = np.arange(10)
      runs = (first.T <= m) & (m <= m[:, None])
      runs_by_key = (m <= m[:, None]) & (m[:, None] <= last)
      assert not np.any(want & ~runs) and not np.any(want & ~runs_by_key)
      if row is ids and not window:
        np.testing.assert_array_equal(runs, want)
        np.testing.assert_array_equal(runs_by_key, want)


def test_a_row_costs_its_segments():
  """Eight segments of two blocks cost eight triangles, not one large one."""
  ids = jnp.repeat(jnp.arange(1, 9), 2 * BLOCK)[None]
  for schedule in splash.schedules(ids, BLOCK, 0):
    assert int(schedule.block_mask.sum()) == 8 * 3
  for schedule in splash.schedules(jnp.ones_like(ids), BLOCK, 0):
    assert int(schedule.block_mask.sum()) == 16 * 17 // 2
  for schedule in splash.schedules(jnp.zeros_like(ids), BLOCK, 0):
    assert int(schedule.block_mask.sum()) == 16  # padding: its own blocks


@pytest.mark.parametrize('window', [0, 200])
def test_a_block_that_is_skipped_loads_nothing(window, rng):
  """In the order of the grid a step that does nothing keeps its data, and the
  others take each block from the first to the last that is needed.
  """
  ids = jnp.asarray([packing(rng, 9 * BLOCK, 5, 40) for _ in range(2)])
  first, last = splash.needed(ids, BLOCK, window)
  queries, keys = splash.schedules(ids, BLOCK, window)
  start = 9 * np.arange(2)[:, None]
  own = np.arange(18)
  for steps, runs, low, high in ((queries.data_next[0], queries.block_mask[0],
                                  (first + start).ravel(), own),
                                 (keys.data_next[0].T, keys.block_mask[0].T,
                                  own, (last + start).ravel())):
    steps, runs = np.asarray(steps), np.asarray(runs)
    for i in range(18):
      count = high[i] - low[i] + 1
      np.testing.assert_array_equal(steps[i][:count],
                                    np.arange(low[i], high[i] + 1))
      assert runs[i][:count].all() and not runs[i][count:].any()
      assert np.all(steps[i][count:] == high[i])


def rows_of(rng, tokens):
  """A packed row, one that is one segment, and one of padding."""
  return np.stack([
      packing(rng, tokens, 4, 50),
      np.ones(tokens, np.int32),
      np.zeros(tokens, np.int32)
  ])


def qkv(rng, rows, heads, kv_heads, head_dim):
  return tuple(
      jnp.asarray(
          rng.normal(size=(*rows.shape, n, head_dim)) * scale, jnp.float32)
      for n, scale in ((heads, head_dim**-0.5), (kv_heads, 1), (kv_heads, 1)))


def value_and_gradients(run, rows, x):
  """Of a function of the tokens that are no padding."""

  def value(q, k, v):
    out = run(q, k, v)
    return jnp.sum(jnp.sin(jnp.where(rows[..., None, None] > 0, out, 0))), out

  (_,
   out), gradients = jax.jit(jax.value_and_grad(value, (0, 1, 2),
                                                has_aux=True))(*x)
  return out, gradients


@pytest.mark.parametrize('head_dim, windows, softcap', [(64, (0, 150), 4.0),
                                                        (128, (0,), 0.0),
                                                        (256, (100,), 0.0)])
def test_values_and_gradients_are_those_of_the_einsum(head_dim, windows,
                                                      softcap, rng):
  """Four blocks a row; the length is no multiple of them."""
  rows = rows_of(rng, 4 * BLOCK - 20)
  x = qkv(rng, rows, 2, 1, head_dim)
  cfg = dataclasses.replace(SMALL, num_layers=len(windows), windows=windows,
                            head_dim=head_dim, attention_softcap=softcap,
                            attention='einsum')
  columns = jnp.tile(jnp.arange(rows.shape[1])[None], (len(rows), 1))
  view = attention.View(columns, rows, None)
  for kind in range(len(cfg.kinds)):
    want, want_gradients = value_and_gradients(
        lambda *x, kind=kind: attention.attend(cfg, *x, view, kind), rows, x)
    got, gradients = value_and_gradients(
        lambda *x, kind=kind: splash.attend(cfg, *x, rows, jnp.int32(kind),
                                            'saved', BLOCK), rows, x)
    assert np.all(np.isfinite(got))
    np.testing.assert_allclose(got[rows > 0], want[rows > 0], atol=1e-5)
    for g, w in zip(gradients, want_gradients, strict=True):
      np.testing.assert_allclose(g, w, atol=1e-5 * float(jnp.abs(w).max()))
      assert not np.any(np.asarray(g)[rows == 0])


def test_more_rows_than_a_small_number_counts(rng):
  """130 blocks on a device: more than fit into eight bits."""
  rows = np.stack([packing(rng, BLOCK, 3, 20) for _ in range(130)])
  x = qkv(rng, rows, 1, 1, 64)
  cfg = dataclasses.replace(SMALL, attention='einsum')
  columns = jnp.tile(jnp.arange(BLOCK)[None], (130, 1))
  want = attention.attend(cfg, *x, attention.View(columns, rows, None), 0)
  got = splash.attend(cfg, *x, rows, 0, 'saved', BLOCK)
  np.testing.assert_allclose(got[rows > 0], want[rows > 0], atol=1e-5)


@pytest.mark.parametrize('window', [0, 200])
def test_skipping_blocks_changes_no_bit(window, rng):
  """The same kernel with the library's own mask, which runs the triangle."""
  from jax.experimental.pallas.ops.tpu import splash_attention
  kernels = splash_attention.splash_attention_kernel
  masks = splash_attention.splash_attention_mask
  ids = packing(rng, 4 * BLOCK, 6, 100)
  rows, t = ids[None], len(ids)
  x = qkv(rng, rows, 2, 1, 64)
  mask = (masks.LocalMask(
      (t, t), (window - 1, 0), 0) if window else masks.CausalMask((t, t)))
  whole = kernels.make_splash_mqa_single_device(
      masks.MultiHeadMask([mask] * 2),
      block_sizes=kernels.BlockSizes(*[BLOCK] * 8), interpret=True)

  def triangle(q, k, v):
    out = whole(q[0].swapaxes(0, 1), k[0, :, 0], v[0, :, 0],
                kernels.SegmentIds(ids, ids))
    return out.swapaxes(0, 1)[None]

  cfg = dataclasses.replace(SMALL, windows=(window,) * 2)
  want, want_gradients = value_and_gradients(triangle, rows, x)
  got, gradients = value_and_gradients(
      lambda *x: splash.attend(cfg, *x, rows, 0, 'saved', BLOCK), rows, x)
  np.testing.assert_array_equal(got[rows > 0], want[rows > 0])
  for g, w in zip(gradients, want_gradients, strict=True):
    np.testing.assert_array_equal(g, w)


def test_blocks_split_a_row_evenly():
  for tokens in (1, 128, 1000, 1025, 2560, 20480, 32769):
    for dim, dtype, window, most in ((128, 'bfloat16', 0,
                                      1024), (256, 'bfloat16', 0,
                                              512), (64, 'float32', 0, 512),
                                     (128, 'bfloat16', 1024,
                                      512), (128, 'bfloat16', 4096, 1024)):
      block = splash.block_size(tokens, dim, dtype, window)
      assert block % 128 == 0 and block <= most
      blocks = -(-tokens // block)
      assert blocks * block - tokens < 128 * blocks
      assert blocks == -(-tokens // most)


@pytest.mark.parametrize('name', ['einsum', 'splash'])
@pytest.mark.parametrize('heads, kv_heads', [(4, 2), (12, 3)])
def test_more_devices_than_kv_heads_split_the_queries(name, heads, kv_heads,
                                                      rng):
  """tensor=4 computes as one device does, and each device its own heads."""
  rows = np.stack([packing(rng, 100, 3, 9) for _ in range(2)])
  x = qkv(rng, rows, heads, kv_heads, 16)
  cfg = dataclasses.replace(SMALL, attention=name)
  view = attention.View(jnp.tile(jnp.arange(100)[None], (2, 1)), rows, None)
  run = lambda *x: attention.attend(cfg, *x, view, 0)
  want, want_gradients = value_and_gradients(run, rows, x)
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=2, fsdp=1, tensor=4))
  split = jax.NamedSharding(mesh, jax.P('data', None, 'tensor'))
  with jax.set_mesh(mesh):
    q = jax.device_put(x[0], split)
    got, gradients = value_and_gradients(run, rows, (q, *x[1:]))
  assert got.sharding.is_equivalent_to(split, 4)
  np.testing.assert_allclose(got[rows > 0], want[rows > 0], atol=1e-5)
  for g, w in zip(gradients, want_gradients, strict=True):
    np.testing.assert_allclose(g, w, atol=1e-5 * float(jnp.abs(w).max()))


def test_a_model_on_more_devices_than_kv_heads(rng):
  """Gradients of log-probabilities, two kv heads on four devices."""
  cfg = dataclasses.replace(SMALL, attention='einsum')
  params = transformer.init(cfg, jax.random.key(0))
  rows = np.stack([packing(rng, 60, 3, 9) for _ in range(2)])
  tokens = rng.integers(0, cfg.vocab_size, rows.shape).astype(np.int32)
  gradient = jax.jit(
      jax.grad(lambda p, tokens, rows: head.token_logprobs(
          cfg, p, tokens, rows)[0].sum()))
  want = gradient(params, tokens, rows)
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=2, fsdp=1, tensor=4))
  shardings = mesh_lib.shardings(transformer.logical_axes(cfg), params, mesh)
  with jax.set_mesh(mesh):
    got = gradient(jax.device_put(params, shardings),
                   *mesh_lib.shard_rows((tokens, rows), mesh))
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(g, w, atol=1e-5 * float(jnp.abs(w).max()))


def test_auto_is_the_implementation_of_a_platform():
  auto = dataclasses.replace(SMALL, attention='auto')
  for platform, name in (('tpu', 'splash'), ('gpu', 'dot_product'), ('cpu',
                                                                     'einsum')):
    assert attention.for_platform(auto, platform).attention == name
    named = dataclasses.replace(SMALL, attention='splash')
    assert attention.for_platform(named, platform) == named
  view = attention.View(jnp.arange(4)[None], jnp.ones((1, 4), jnp.int32), None)
  assert attention.choose(auto, view) == 'einsum'  # of this process
