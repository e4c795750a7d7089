"""The decoder against an independent one in NumPy, and files in and out."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from exprl_jax import config as config_lib
from exprl_jax import mesh as mesh_lib
from exprl_jax.models import config, hf, transformer
from exprl_jax.types import InputError
from tests.conftest import POLICY


def numpy_qwen3(folder, ids):
  """Logits of one sequence, straight from the files, one head at a time."""
  c = json.loads((folder / 'config.json').read_text())
  w = safetensors.numpy.load_file(folder / 'model.safetensors')
  heads, kv, h = (c['num_attention_heads'], c['num_key_value_heads'],
                  c['head_dim'])
  norm = lambda x, g: x / np.sqrt(
      (x**2).mean(-1, keepdims=True) + c['rms_norm_eps']) * g
  n = len(ids)
  angle = np.arange(n)[:, None] / c['rope_theta'] ** (
      np.arange(0, h, 2) / h)[None]
  cos, sin = (np.concatenate([f(angle)] * 2, axis=1) for f in (np.cos, np.sin))
  rotate = lambda x: x * cos + np.concatenate(
      [-x[:, h // 2:], x[:, :h // 2]], axis=1) * sin
  x = w['model.embed_tokens.weight'][ids]
  for i in range(c['num_hidden_layers']):
    p = lambda name, i=i: w[f'model.layers.{i}.{name}.weight']
    y = norm(x, p('input_layernorm'))
    q, k, v = (y @ p(f'self_attn.{name}_proj').T for name in 'qkv')
    out = []
    for j in range(heads):
      g = j // (heads // kv)
      qj = rotate(norm(q[:, j * h:(j + 1) * h], p('self_attn.q_norm')))
      kj = rotate(norm(k[:, g * h:(g + 1) * h], p('self_attn.k_norm')))
      s = np.where(np.tri(n, dtype=bool), qj @ kj.T / np.sqrt(h), -np.inf)
      s = np.exp(s - s.max(-1, keepdims=True))
      out.append(s / s.sum(-1, keepdims=True) @ v[:, g * h:(g + 1) * h])
    x = x + np.concatenate(out, axis=1) @ p('self_attn.o_proj').T
    y = norm(x, p('post_attention_layernorm'))
    gate = y @ p('mlp.gate_proj').T
    x = x + (gate / (1 + np.exp(-gate)) * (y @ p('mlp.up_proj').T)
             ) @ p('mlp.down_proj').T
  head = w.get('lm_head.weight', w['model.embed_tokens.weight'])
  return norm(x, w['model.norm.weight']) @ head.T


@functools.partial(jax.jit, static_argnums=0)
def logits(cfg, params, rows):
  b, t = rows.shape
  hidden, _ = transformer.forward(
      cfg, params, rows, jnp.broadcast_to(jnp.arange(t)[None], (b, t)),
      transformer.causal_mask(jnp.ones((b, t), jnp.int32)))
  return transformer.project(cfg, params, hidden)


def test_logits_are_those_of_the_numpy_model(policy, small, one_device, rng,
                                             tmp_path):
  cfg, params = small
  hf.save(tmp_path, cfg, params, POLICY)  # untied, grouped heads, random
  for folder in (POLICY, tmp_path):
    model, loaded = hf.load(folder, one_device)
    ids = rng.integers(0, model.vocab_size, 17)
    np.testing.assert_allclose(logits(model, loaded, jnp.array([ids]))[0],
                               numpy_qwen3(folder, ids), atol=2e-4)


def test_saved_and_loaded_parameters_are_bit_equal(small, one_device, tmp_path):
  cfg, params = small
  hf.save(tmp_path, cfg, params, POLICY)
  loaded_cfg, loaded = hf.load(tmp_path, one_device)
  assert loaded_cfg == cfg
  assert jax.tree.structure(loaded) == jax.tree.structure(params)
  for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params)):
    np.testing.assert_array_equal(a, b)


def test_bfloat16_files(small, one_device, tmp_path):
  cfg, params = small
  hf.save(tmp_path, cfg, params, POLICY, dtype='bfloat16')
  _, loaded = hf.load(tmp_path, one_device)
  np.testing.assert_array_equal(
      loaded['embedding'],
      params['embedding'].astype(jnp.bfloat16).astype(jnp.float32))


def test_padding_and_packing_do_not_reach_into_a_segment(small, rng):
  cfg, params = small
  a, b = rng.integers(0, 40, 5), rng.integers(0, 40, 6)
  tokens = jnp.array([[*a, *b, 0, 0]])
  positions = jnp.array([[*range(5), *range(6), 0, 0]])
  segments = jnp.array([[1] * 5 + [2] * 6 + [0] * 2])
  hidden, _ = transformer.forward(cfg, params, tokens, positions,
                                  transformer.causal_mask(segments))
  packed = transformer.project(cfg, params, hidden)[0]
  for part, ids in ((packed[:5], a), (packed[5:11], b)):
    np.testing.assert_allclose(part, logits(cfg, params, jnp.array([ids]))[0],
                               atol=1e-4)


@pytest.mark.parametrize('sizes', [
    dict(fsdp=8), dict(fsdp=4, tensor=2), dict(data=2, fsdp=2, tensor=2)])
def test_eight_devices_are_one(small, rng, sizes):
  """Logits and gradients, with parameters sharded by their logical axes."""
  cfg, params = small
  rows = rng.integers(0, 40, (8, 9))

  def loss(params, rows):
    return jnp.sum(jax.nn.log_softmax(logits(cfg, params, rows))[..., 3])

  want = jax.jit(jax.value_and_grad(loss))(params, rows)
  mesh = mesh_lib.make_mesh(config_lib.Mesh(**({'data': 1} | sizes)))
  shardings = mesh_lib.shardings(transformer.logical_axes(cfg), params, mesh)
  with jax.set_mesh(mesh):
    got = jax.jit(jax.value_and_grad(loss))(
        jax.device_put(params, shardings), mesh_lib.shard_rows(rows, mesh))
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(x, y, atol=2e-5 * float(jnp.abs(y).max()))


def test_remat_changes_nothing(small, rng):
  cfg, params = small
  rows = rng.integers(0, 40, (2, 9))
  loss = lambda c: jax.jit(jax.grad(lambda p: logits(c, p, rows).sum()))(params)
  for x, y in zip(jax.tree.leaves(loss(cfg)), jax.tree.leaves(
      loss(dataclasses.replace(cfg, remat=True)))):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


def test_bfloat16_products_are_close(small, rng):
  """Relative to the spread of the logits; bfloat16 has 8 bits."""
  cfg, params = small
  rows = rng.integers(0, 40, (2, 9))
  want = logits(cfg, params, rows)
  got = logits(dataclasses.replace(cfg, dtype='bfloat16'), params, rows)
  assert got.dtype == jnp.float32
  assert 0 < float(jnp.abs(got - want).max()) < 0.1 * float(want.std())


@pytest.fixture
def folder(tmp_path):
  return shutil.copytree(POLICY, tmp_path / 'model')


def edit_config(folder, **values):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize('values, message', [
    (dict(model_type='gpt2'), "model_type 'gpt2' is not implemented"),
    (dict(attention_bias=True), 'only attention_bias=False'),
    (dict(rope_scaling={'rope_type': 'yarn'}), 'only rope_scaling=None'),
    (dict(new_switch=1), r"keys \['new_switch'\] are not implemented"),
    (dict(num_hidden_layers=4), 'model.layers.3.*is missing'),
    (dict(num_hidden_layers=2), 'tensors that the model does not have'),
    (dict(intermediate_size=128), r'down_proj.weight: shape \(80, 256\)'),
])
def test_a_config_that_does_not_fit_is_named(folder, one_device, values,
                                             message):
  edit_config(folder, **values)
  with pytest.raises(InputError, match=message):
    hf.load(folder, one_device)


def test_both_spellings_of_rope(folder):
  want = config.read_config(folder).rope_theta
  raw = json.loads((folder / 'config.json').read_text())
  del raw['rope_theta']
  raw['rope_parameters'] = {'rope_theta': want, 'rope_type': 'default'}
  (folder / 'config.json').write_text(json.dumps(raw))
  assert config.read_config(folder).rope_theta == want == 1e4


def test_missing_and_corrupt_files_are_named(folder, one_device):
  with pytest.raises(InputError, match='nowhere: no config.json'):
    hf.load(folder / 'nowhere', one_device)
  weights = folder / 'model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-1000])
  with pytest.raises(InputError, match='model.safetensors: corrupt or cut'):
    hf.load(folder, one_device)
  weights.unlink()
  with pytest.raises(InputError, match='no \\*.safetensors'):
    hf.load(folder, one_device)


def test_mesh_errors():
  with pytest.raises(InputError, match='wants 3 devices, there are 8'):
    mesh_lib.make_mesh(config_lib.Mesh(data=3, fsdp=1))
  with pytest.raises(InputError, match='at most one of them is -1'):
    mesh_lib.make_mesh(config_lib.Mesh(data=-1, fsdp=-1))
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=2, fsdp=4))
  with pytest.raises(InputError, match='twice'):
    mesh_lib.spec(('embed', 'embed'), (8, 8), mesh)
  assert mesh_lib.spec(('embed',), (7,), mesh)[0] is None  # does not divide
