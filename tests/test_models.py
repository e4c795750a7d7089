"""The decoder: packing, meshes, remat, precision, implementations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax.models import attention, head, matrices, transformer
from exprl_jax.rollout import decode
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError
from tests.conftest import SMALL

# A model with everything: windows, soft-caps, experts, biases, post-norms.
RICH = dataclasses.replace(SMALL, num_layers=3, windows=(3, 0, 3),
                           attention_softcap=5.0, logit_softcap=10.0,
                           qkv_bias=True, norm_offset=True, post_norms=True,
                           embed_scaled=True, num_experts=4,
                           experts_per_token=2, mlp_dim=16, num_heads=8,
                           num_kv_heads=4)


@pytest.fixture(scope='module', params=['small', 'rich'])
def model(request, small):
  if request.param == 'small':
    return small
  return RICH, transformer.init(RICH, jax.random.key(1))


@functools.partial(jax.jit, static_argnums=0)
def logits(cfg, params, rows):
  b, t = rows.shape
  hidden = transformer.forward(cfg, params, rows,
                               jnp.broadcast_to(jnp.arange(t)[None], (b, t)),
                               segment_ids=jnp.ones((b, t), jnp.int32))
  return head.project(cfg, params, hidden)


def test_padding_and_packing_do_not_reach_into_a_segment(model, rng):
  cfg, params = model
  a, b = rng.integers(0, 40, 5), rng.integers(0, 40, 6)
  tokens = jnp.array([[*a, *b, 0, 0]])
  positions = jnp.array([[*range(5), *range(6), 0, 0]])
  segments = jnp.array([[1] * 5 + [2] * 6 + [0] * 2])
  hidden = transformer.forward(cfg, params, tokens, positions,
                               segment_ids=segments)
  packed = head.project(cfg, params, hidden)[0]
  for part, ids in ((packed[:5], a), (packed[5:11], b)):
    np.testing.assert_allclose(part,
                               logits(cfg, params, jnp.array([ids]))[0],
                               atol=1e-5)


@pytest.mark.parametrize('sizes', [
    pytest.param(dict(fsdp=8), marks=pytest.mark.slow),
    pytest.param(dict(fsdp=4, tensor=2), marks=pytest.mark.slow),
    pytest.param(dict(data=2, fsdp=2, tensor=2), marks=pytest.mark.slow),
    dict(fsdp=2, expert=2, tensor=2),
    pytest.param(dict(fsdp=2, expert=4), marks=pytest.mark.slow)
])
def test_eight_devices_are_one(model, rng, sizes):
  """Logits and gradients, with parameters sharded by their logical axes."""
  cfg, params = model
  rows = rng.integers(0, 40, (8, 9))

  def loss(params, rows):
    out = logits(cfg, params, rows)
    return jnp.sum(jax.nn.log_softmax(out)[..., 3]), out

  step = jax.jit(jax.value_and_grad(loss, has_aux=True))
  want = step(params, rows)
  mesh = mesh_lib.make_mesh(config_lib.Mesh(**({'data': 1} | sizes)))
  shardings = mesh_lib.shardings(transformer.logical_axes(cfg), params, mesh)
  with jax.set_mesh(mesh):
    got = step(jax.device_put(params, shardings),
               mesh_lib.shard_rows(rows, mesh))
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(x, y, atol=1e-5 * float(jnp.abs(y).max()))


@pytest.mark.parametrize('tensor', [1, 2, 4])
def test_sampling_shards_differently_than_training(model, rng, tensor):
  cfg, params = model
  rows = rng.integers(0, 40, (8, 9))
  want = logits(cfg, params, rows)
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=1, fsdp=8))
  sampling = mesh_lib.rollout_mesh(mesh, tensor)
  assert sampling.shape['data'] * sampling.shape['tensor'] == 8
  trained = jax.device_put(
      params, mesh_lib.shardings(transformer.logical_axes(cfg), params, mesh))
  copy = decode.prepare(cfg, trained, sampling)
  q = copy['layers']['q']  # [L, D, N, H], heads over tensor, the rest whole
  assert q.sharding.shard_shape(q.shape)[2] == cfg.num_heads // tensor
  assert q.sharding.shard_shape(q.shape)[1] == cfg.embed_dim
  with jax.set_mesh(sampling):
    got = logits(cfg, copy, mesh_lib.shard_rows(rows, sampling))
  np.testing.assert_allclose(got, want, atol=1e-5 * float(want.max()))


def test_prepare_is_no_copy_where_nothing_changes(small):
  cfg, params = small
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=1, fsdp=8))
  params = jax.device_put(
      params, mesh_lib.shardings(transformer.logical_axes(cfg), params, mesh))
  assert decode.prepare(cfg, params, mesh) is params
  # Also as an update leaves them, with shardings spelled in another way.
  updated = jax.jit(lambda p: jax.tree.map(lambda x: x * 2.0, p))(params)
  assert decode.prepare(cfg, updated, mesh) is updated


def test_remat_changes_nothing(model, rng):
  cfg, params = model
  rows = rng.integers(0, 40, (2, 9))
  loss = lambda remat: jax.jit(
      jax.grad(lambda p: logits(dataclasses.replace(cfg, remat=remat), p, rows).
               sum()))(params)
  want = loss('none')
  modes = ['full'] if cfg.num_experts else [*transformer.REMAT][1:]
  for remat in modes:
    for x, y in zip(jax.tree.leaves(loss(remat)), jax.tree.leaves(want)):
      np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4, err_msg=remat)


def test_remat_saves_what_its_name_says(small):
  """Residuals of the backward pass, counted: full < save_attention < none."""
  cfg, params = small
  rows = jnp.zeros((2, 64), jnp.int32)

  def size(remat):
    c = dataclasses.replace(cfg, remat=remat)
    out = jax.eval_shape(
        lambda p: jax.vjp(lambda p: logits(c, p, rows).sum(), p)[1], params)
    return sum(x.size for x in jax.tree.leaves(out))

  sizes = [size(r) for r in ('full', 'save_attention', 'dots', 'none')]
  assert sizes == sorted(sizes) and len(set(sizes)) == 4


def test_bfloat16_products_are_close(small, rng):
  """Relative to the spread of the logits; bfloat16 has 8 bits."""
  cfg, params = small
  cfg16 = dataclasses.replace(cfg, dtype='bfloat16')
  rows = rng.integers(0, 40, (2, 9))
  want, got = logits(cfg, params, rows), logits(cfg16, params, rows)
  assert got.dtype == jnp.float32
  assert 0 < float(jnp.abs(got - want).max()) < 0.1 * float(want.std())
  # The sampler's copy computes the very same.
  copy = transformer.cast(cfg16, params)
  assert copy['layers']['q'].dtype == jnp.bfloat16
  assert copy['layers']['q_norm'].dtype == jnp.float32
  np.testing.assert_array_equal(logits(cfg16, copy, rows), got)


def attention_case(windows, softcap, rng):
  """(config, function of (q, k, v) under an implementation, q, k, v)."""
  cfg = dataclasses.replace(SMALL, num_layers=len(windows), windows=windows,
                            head_dim=64, attention_softcap=softcap)
  q, k, v = (jnp.asarray(rng.normal(size=(2, 150, n, 64)), jnp.float32)
             for n in (4, 2, 2))
  segments = jnp.asarray(np.repeat([[1, 2, 0], [1, 1, 2]], 50, axis=1))
  view = attention.View(jnp.tile(jnp.arange(150)[None], (2, 1)), segments, None)

  def run(name, kind, q, k, v):
    out = attention.attend(dataclasses.replace(cfg, attention=name), q, k, v,
                           view, kind)
    return jnp.where(segments[..., None, None] > 0, out, 0.0)

  return run, q, k, v


@pytest.mark.parametrize('name', ['dot_product', 'splash'])
@pytest.mark.parametrize('windows, softcap', [((0,), 0.0), ((0, 33), 0.0),
                                              ((0, 33), 4.0)])
def test_implementations_of_attention_agree(name, windows, softcap, rng):
  """Values and gradients; off a TPU splash is interpreted."""
  run, *qkv = attention_case(windows, softcap, rng)
  for kind in range(len(windows)):
    value = lambda name, *x, kind=kind: jnp.sum(jnp.sin(run(name, kind, *x)))
    got = jax.jit(jax.value_and_grad(value, (1, 2, 3)), static_argnums=0)(name,
                                                                          *qkv)
    want = jax.value_and_grad(value, (1, 2, 3))('einsum', *qkv)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
      np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-3)


def test_splash_on_a_mesh(rng):
  run, *qkv = attention_case((0,), 0.0, rng)
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=2, fsdp=1, tensor=2),
                            jax.devices()[:4])
  with jax.set_mesh(mesh):
    got = jax.jit(run, static_argnums=(0, 1))('splash', 0, *qkv)
  np.testing.assert_allclose(got, run('einsum', 0, *qkv), atol=2e-3)


def test_mesh_errors():
  with pytest.raises(InputError, match='wants 3 devices, there are 8; -1'):
    mesh_lib.make_mesh(config_lib.Mesh(data=3, fsdp=1))
  with pytest.raises(InputError, match='wants 16 devices or a multiple'):
    mesh_lib.make_mesh(config_lib.Mesh(data=16, fsdp=-1))
  with pytest.raises(InputError, match='at most one of them is -1'):
    mesh_lib.make_mesh(config_lib.Mesh(data=-1, fsdp=-1))
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=2, fsdp=4))
  with pytest.raises(InputError, match='twice'):
    mesh_lib.spec(('embed', 'embed'), (8, 8), mesh)
  with pytest.raises(InputError, match='rollout_tensor=3 does not divide'):
    mesh_lib.rollout_mesh(mesh, 3)


def test_an_axis_that_does_not_divide_is_replicated_and_said_so(caplog):
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=2, fsdp=4))
  with caplog.at_level('WARNING', logger='absl'):
    assert mesh_lib.spec(('embed',), (7,), mesh) == jax.P()
    assert mesh_lib.spec(('batch',), (6,), mesh)[0] == 'data'
  assert "axis 'embed' of size 7 does not divide over" in caplog.text
  assert 'it is replicated' in caplog.text
  assert "only over ('data',)" in caplog.text


@pytest.mark.parametrize('softcap', [0.0, 5.0])
@pytest.mark.parametrize('windows', [(), (150,)], ids=str)
def test_attention_in_blocks_is_attention(rng, windows, softcap):
  """Three blocks of queries, the last one short; segments and padding."""
  cfg = dataclasses.replace(SMALL, windows=windows, attention_softcap=softcap,
                            attention='einsum')
  width, heads, kv_heads = 300, 4, 2
  segments = np.repeat([[1, 2, 0]], [170, 110, 20], axis=1)
  view = attention.View(np.arange(width)[None], segments, None)
  q, k, v = (jnp.asarray(rng.normal(size=(1, width, n, 8)), jnp.float32)
             for n in (heads, kv_heads, kv_heads))
  seen = attention.visible(cfg, view, 0)

  def plain(q, k, v):
    k, v = (jnp.repeat(x, heads // kv_heads, axis=2) for x in (k, v))
    scores = jnp.einsum('btnh,bsnh->bnts', q, k, precision='highest')
    if softcap:
      scores = softcap * jnp.tanh(scores / softcap)
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30), axis=-1)
    return jnp.einsum('bnts,bsnh->btnh', weights, v, precision='highest')

  blocks = lambda q, k, v: attention.attend(cfg, q, k, v, view, 0)
  real = np.array(segments[0] > 0)
  weight = jnp.asarray(
      rng.normal(size=q.shape) * real[:, None, None], jnp.float32)
  got, want = (jax.jit(
      jax.value_and_grad(lambda *x, run=run: (run(*x) * weight).sum(),
                         argnums=(0, 1, 2)))(q, k, v)
               for run in (blocks, plain))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got,
               want)


def test_products_in_bfloat16_on_cpus(rng):
  """As the products of the rounded numbers, and their gradients."""
  x, w, g = (jnp.asarray(rng.normal(size=s), jnp.bfloat16)
             for s in ((3, 20, 24), (24, 4, 8), (3, 20, 4, 8)))
  f32 = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32), tree)

  def run(x, w):
    out, back = jax.vjp(matrices.dense, x, w)
    return f32((out, back(g.astype(out.dtype))))

  got, want = jax.jit(run)(x, w), jax.jit(run)(*f32((x, w)))
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-1), got,
      want)
  # Hidden states in float32 keep 16 bits where the head is in bfloat16.
  for rows in (3, 60):
    wide = jnp.asarray(rng.normal(size=(rows, 24)), jnp.float32)
    np.testing.assert_allclose(
        jax.jit(matrices.dense)(wide, w.reshape(24, -1)),
        matrices.dense(wide,
                       f32(w).reshape(24, -1)), atol=1e-3)
