"""Frozen models in int8: close to the exact ones, and int8 all the way."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax.data import tiny_world as world
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.models import config, hf, quantization, transformer
from exprl_jax.models.matrices import Int8
from exprl_jax.rollout import decode, engine, protocol
from exprl_jax.rollout import options as options_lib
from exprl_jax.rollout.requests import Request, Sampling
from exprl_jax.runtime import mesh as mesh_lib
from tests.conftest import JUDGE, POLICY, SMALL, SMALL_JSON
from tests.test_engine import generate, requests, rows_of
from tests.test_hf import assert_same
from tests.test_models import RICH, logits

MATRICES = {'q', 'k', 'v', 'o', 'gate', 'up', 'down'}
MOE_JSON = SMALL_JSON | {
    'model_type': 'qwen3_moe', 'num_experts': 4, 'num_experts_per_tok': 2,
    'moe_intermediate_size': 16, 'norm_topk_prob': True
}
GREEDY = Sampling(max_new_tokens=30, temperature=0.0, eos_ids=(1, 2))


@pytest.fixture(scope='module', params=['dense', 'experts'])
def model(request, small):
  if request.param == 'dense':
    return small
  cfg = config.parse_config(dict(MOE_JSON), '')
  return cfg, transformer.init(cfg, jax.random.key(1))


@pytest.fixture(scope='module')
def reference(model, one_device):
  """What the model in int8 says on one device."""
  cfg, params = model
  return generate((cfg, quantization.quantize(cfg, params)), one_device,
                  requests(GREEDY, samples=1))


@pytest.fixture
def folder(model, tmp_path):
  """The model as a Hugging Face directory."""
  cfg, params = model
  base = tmp_path / 'base'
  base.mkdir()
  (base / 'config.json').write_text(
      json.dumps(MOE_JSON if cfg.num_experts else SMALL_JSON))
  for file in ('tokenizer.json', 'tokenizer_config.json'):
    shutil.copy(POLICY / file, base)
  hf.save(tmp_path / 'model', cfg, params, base)
  return tmp_path / 'model'


def kl(cfg, exact, params, rows):
  """KL(exact || params) in nats f32[B, T] of the next-token distributions."""
  p, q = (jax.nn.log_softmax(logits(cfg, x, rows)) for x in (exact, params))
  return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def test_no_value_is_off_by_more_than_half_a_step(model):
  cfg, params = model
  got, cast = quantization.quantize(cfg, params), transformer.cast(cfg, params)
  wide = {
      'q': (cfg.num_heads, cfg.head_dim), 'down': (cfg.embed_dim,),
      'v': (cfg.num_kv_heads, cfg.head_dim), 'o': (cfg.embed_dim,),
      'gate': (cfg.mlp_dim,)
  }
  wide |= {'k': wide['v'], 'up': wide['gate']}
  experts = (cfg.num_experts,) if cfg.num_experts else ()
  for key, x in got['layers'].items():
    assert isinstance(x, Int8) == (key in MATRICES)
    if key in MATRICES:
      w = params['layers'][key]
      assert x.values.dtype == jnp.int8 and x.scale.dtype == jnp.float32
      lead = experts if key in ('gate', 'up', 'down') else ()
      # One scale for each layer, expert and output channel, and nothing else.
      assert tuple(n for n in x.scale.shape if n > 1) == (cfg.num_layers, *lead,
                                                          *wide[key])
      assert jnp.all(jnp.abs(w - x.astype('float32')) <= 0.5001 * x.scale)
      inputs = tuple(np.flatnonzero(np.array(x.scale.shape) == 1))
      assert jnp.all(jnp.abs(x.values).max(axis=inputs) == 127)
  assert_same({k: x for k, x in got['layers'].items() if k not in MATRICES},
              {k: x for k, x in cast['layers'].items() if k not in MATRICES})
  assert_same(
      *({k: v for k, v in x.items() if k != 'layers'} for x in (got, cast)))
  zero = quantization.int8('q', jnp.zeros((1, 3, 2, 2))).astype('bfloat16')
  assert zero.dtype == jnp.bfloat16 and not zero.any()


def test_a_quarter_of_float32_and_its_scales(model):
  cfg, params = model
  got = quantization.quantize(cfg, params)['layers']
  for key in MATRICES:
    w = params['layers'][key]
    assert sum(
        x.nbytes for x in jax.tree.leaves(got[key])) == (w.nbytes // 4 +
                                                         got[key].scale.nbytes)


def test_logits_are_close(model, rng):
  """KL in nats; a token near a tie of the router may go to another expert."""
  cfg, params = model
  off = kl(cfg, params, quantization.quantize(cfg, params),
           rng.integers(0, 40, (8, 30)))
  print(f'\nKL: median {jnp.median(off):.1e}, mean {off.mean():.1e}, '
        f'max {off.max():.1e}')
  assert 1e-7 < jnp.median(off) < 5e-4
  assert off.max() < 3e-3 or cfg.num_experts and off.mean() < 5e-3


def test_every_kind_of_parameter(rng):
  """Biases, post-norms, windows, soft-caps; in bfloat16."""
  cfg = dataclasses.replace(RICH, dtype='bfloat16')
  params = transformer.init(cfg, jax.random.key(1))
  off = kl(cfg, params, quantization.quantize(cfg, params),
           rng.integers(0, 40, (8, 30)))
  assert 1e-7 < jnp.median(off) < 1e-3


def test_the_shipped_judge_says_the_same(one_device):
  """In bfloat16 without int8 the mean is 4e-5, too."""
  tokenizer, fence = Tokenizer(JUDGE), '11 22 33 44'
  rows, last = np.zeros((32, 224), np.int32), np.zeros(32, int)
  for i, story in enumerate(world.stories('judge_accept')[:32]):
    text = tokenizer.render([{
        'role': 'system', 'content': 'rate from 1 to 5 how much of the '
        'reference the trace reaches'
    }, {
        'role': 'user', 'content': f'problem {story.question()} reference '
        f'{story.reference()} trace {fence} {story.worked()} {fence}'
    }])
    ids = tokenizer.encode(text + 'score ', special=True)
    last[i], rows[i, :len(ids)] = len(ids) - 1, ids
  cfg, exact = hf.load(JUDGE, one_device)
  _, params = hf.load(JUDGE, one_device, frozen=True, weights='int8')
  off = np.asarray(kl(cfg, exact, params, jnp.array(rows)))
  score = off[np.arange(32), last]
  off = off[np.arange(224) <= last[:, None]]
  print(f'\nKL: mean {off.mean():.1e}, max {off.max():.1e} of {off.size}; '
        f'of scores max {score.max():.1e}')
  assert off.mean() < 1e-4 and off.max() < 0.05 and score.max() < 2e-4


def test_greedy_decoding_is_the_argmax_of_the_full_forward(model, reference):
  cfg, params = model
  params = quantization.quantize(cfg, params)
  tokens, _, completion, _ = rows_of(requests(GREEDY, samples=1), reference)
  best = np.argmax(logits(cfg, params, jnp.array(tokens)), axis=-1)
  wanted = completion[:, 1:]
  assert wanted.sum() > 60
  np.testing.assert_array_equal(tokens[:, 1:][wanted], best[:, :-1][wanted])


def test_the_engine_counts_bytes_and_prepare_copies_nothing(model, one_device):
  cfg, params = model
  params = quantization.quantize(cfg, params)
  assert decode.prepare(cfg, params, one_device) is params
  generator = engine.Engine(
      cfg, one_device, engine.Options(slots=4, max_tokens=16, page=4,
                                      prefill=4))
  generator.generate(params, [Request([5], 0, 1, Sampling(2))],
                     jax.random.key(0))
  assert generator.weight_bytes == sum(
      x.size * x.dtype.itemsize for x in jax.tree.leaves(params))


@pytest.mark.parametrize('unrolled', [False, True])
def test_no_copy_outside_of_int8_while_decoding(one_device, unrolled):
  """XLA keeps a layer or two at a time, not all of them over the loop."""
  cfg = dataclasses.replace(SMALL, num_layers=16, embed_dim=128, mlp_dim=256)
  layout = engine.Options(slots=2, max_tokens=8, page=4, pages=4)
  layout = options_lib.resolve(layout, cfg, one_device).layout
  params, (pool, state), key = jax.eval_shape(lambda: (
      quantization.quantize(cfg, transformer.init(cfg, jax.random.key(0))),
      (decode.empty_pool(cfg, layout, one_device),
       decode.empty_state(one_device, 2)), jax.random.key(0)))
  columns = len(protocol.INTS) + protocol.MAX_ENDS + protocol.MAX_READS
  inputs = protocol.Inputs(*(jax.ShapeDtypeStruct((2, n), dtype)
                             for n, dtype in ((columns, 'int32'),
                                              (3, 'float32'), (2, 'int32'))))
  with jax.set_mesh(one_device):
    memory = decode.decode.lower(cfg, layout, 8, unrolled, params, pool, state,
                                 inputs, key, jax.ShapeDtypeStruct(
                                     (), 'int32')).compile().memory_analysis()
  layer = sum(x.values.size * 4 // cfg.num_layers
              for key, x in params['layers'].items()
              if key in MATRICES)
  assert memory.temp_size_in_bytes < 3 * layer


def test_only_frozen_models(small_folder, one_device):
  for how in (dict(weights='int8'), dict(weights='int4', frozen=True)):
    with pytest.raises(ValueError, match='only int8, of a frozen model'):
      hf.load(small_folder, one_device, **how)


def test_new_weights(small_folder, one_device):
  cfg, params = hf.load(small_folder, one_device, frozen=True, weights='int8',
                        random_key=jax.random.key(3))
  want = jax.eval_shape(lambda: quantization.quantize(
      cfg, transformer.init(cfg, jax.random.key(3))))
  form = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert form(params) == form(want) and params['layers']['q'].values.any()


@pytest.mark.parametrize('sizes, tensor', [
    pytest.param(dict(fsdp=4, tensor=2), 0, marks=pytest.mark.slow),
    (dict(fsdp=4, expert=2), 2)
])
def test_eight_devices_are_one(model, folder, reference, one_device, rng, sizes,
                               tensor):
  """Loaded, resharded for sampling, forward, decoded."""
  cfg, params = model
  want = quantization.quantize(cfg, params)
  _, one = hf.load(folder, one_device, frozen=True, weights='int8')
  assert_same(one, want)
  mesh = mesh_lib.make_mesh(config_lib.Mesh(**({'data': 1} | sizes)))
  _, loaded = hf.load(folder, mesh, frozen=True, weights='int8')
  assert_same(loaded, want)
  shardings = mesh_lib.shardings(transformer.logical_axes(cfg), params, mesh)
  for key in MATRICES:
    x, sharding = loaded['layers'][key], shardings['layers'][key]
    assert x.values.sharding == sharding
    # A device has the scales of its output channels.
    assert x.scale.sharding.shard_shape(x.scale.shape) == tuple(
        min(n, m) for n, m in zip(sharding.shard_shape(x.shape), x.scale.shape))
  sampling = mesh_lib.rollout_mesh(mesh, tensor)
  copy = decode.prepare(cfg, loaded, sampling)
  assert (copy is loaded) == (sampling is mesh)
  assert_same(copy, want)
  rows = rng.integers(0, 40, (8, 9))
  with jax.set_mesh(sampling):
    got = logits(cfg, copy, mesh_lib.shard_rows(rows, sampling))
  exact = logits(cfg, want, rows)
  np.testing.assert_allclose(got, exact, atol=1e-5 * float(exact.max()))
  samples = generate((cfg, copy), sampling, requests(GREEDY, samples=1))
  assert [s.tokens.tolist() for s in samples
         ] == [s.tokens.tolist() for s in reference]
