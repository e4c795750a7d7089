"""Adapters: laws of what they compute and what is trained."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from exprl_jax.config import Mesh
from exprl_jax.models import config as model_config
from exprl_jax.models import head, lora, quantization, transformer
from exprl_jax.models.matrices import Adapted, dense, is_int8
from exprl_jax.rl import kl as kl_lib
from exprl_jax.rl import losses
from exprl_jax.rollout import decode
from exprl_jax.rollout import options as options_lib
from exprl_jax.rollout.engine import Options
from exprl_jax.runtime import mesh as mesh_lib
from tests import conftest, test_engine, test_train
from tests.experience import close, gradient, padded, random_examples, rows_of

MOE = model_config.parse_config(
    conftest.SMALL_JSON | {
        'model_type': 'qwen3_moe', 'num_experts': 4, 'num_experts_per_tok': 2,
        'moe_intermediate_size': 16, 'norm_topk_prob': True
    }, 'MOE')


def adapted(cfg, seed=0):
  """Parameters, and adapters that change something."""
  params = transformer.init(cfg, jax.random.key(seed))
  adapters = lora.init(cfg, params, 3, jax.random.key(1))
  noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape)
  return params, jax.tree.map(noise, adapters)


@pytest.mark.parametrize('cfg', [conftest.SMALL, MOE], ids=['dense', 'moe'])
def test_attached_is_merged(cfg, rng):
  params, adapters = adapted(cfg)
  tokens = rng.integers(0, 40, (2, 9))
  ids = np.ones((2, 9), np.int32)
  run = jax.jit(head.token_logprobs, static_argnums=0)
  plain, _ = run(cfg, params, tokens, ids)
  a, _ = run(cfg, lora.attach(params, adapters, 0.5), tokens, ids)
  b, _ = run(cfg, lora.merge(params, adapters, 0.5), tokens, ids)
  np.testing.assert_allclose(a, b, atol=2e-5)
  assert np.abs(a - plain).max() > 0.01
  assert ('gate' in adapters['layers']) == (cfg is conftest.SMALL)


def test_initial_adapters_change_nothing(small, rng):
  cfg, params = small
  adapters = lora.init(cfg, params, 4, jax.random.key(1))
  for a, b in zip(jax.tree.leaves(lora.merge(params, adapters, 8.0)),
                  jax.tree.leaves(params)):
    np.testing.assert_array_equal(a, b)


def test_the_gradient_is_that_of_the_merged_matrices(small, rng, one_device):
  """d/dA and d/dB through W + scale A B, by the learner and by autodiff."""
  cfg, _ = small
  params, adapters = adapted(cfg)
  examples = random_examples(small, rng)
  got, _ = gradient((cfg, adapters), examples, one_device, params,
                    policy={'lora_rank': 3,
                            'lora_alpha': 1.5}, loss={'tis_cap': 0.0})
  weight = padded(
      losses.token_weights([x.loss_mask for x in examples], 'token_mean', 1))
  advantages = padded([x.advantages for x in examples])
  ref = padded([x.ref_logprobs for x in examples])

  def loss(adapters):
    lp, _ = head.token_logprobs(cfg, lora.merge(params, adapters, 0.5),
                                *rows_of(examples), 0.8)
    kl = kl_lib.estimate(lp, ref, 'k3', 10.0)
    return jnp.sum(weight * (-lp * advantages + 1e-3 * kl))

  close(got, jax.jit(jax.grad(loss))(adapters), 2e-5)


@pytest.mark.slow
def test_an_update_of_adapters_on_a_mesh(small, rng, one_device):
  cfg, _ = small
  params, adapters = adapted(cfg)
  examples, policy = random_examples(small, rng), {'lora_rank': 3}
  want, _ = gradient((cfg, adapters), examples, one_device, params,
                     policy=policy)
  mesh = mesh_lib.make_mesh(Mesh(data=2, fsdp=2, tensor=2))
  params = jax.device_put(
      params, mesh_lib.shardings(transformer.logical_axes(cfg), params, mesh))
  with jax.set_mesh(mesh):
    initial = lora.init(cfg, params, 3, jax.random.key(1))
  adapters = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding),
                          adapters, initial)
  got, _ = gradient((cfg, adapters), examples, mesh, params, policy=policy)
  close(got, want, 2e-5)


# In the sampler.


def scaled(params, adapters, size):
  """Adapters with |A B| / |W| = size in every layer and matrix."""

  def one(name, a, b):
    w = params['layers'][name]
    axes = tuple(range(1, w.ndim))
    change = jnp.linalg.norm(a @ b, axis=(1, 2))
    whole = jnp.sqrt(jnp.sum(w.astype(jnp.float32)**2, axis=axes))
    return {'a': a, 'b': b * (size * whole / change)[:, None, None]}

  return {'layers': {n: one(n, **ab) for n, ab in adapters['layers'].items()}}


def arrived(change, truth):
  """The share of a true change that a computed one has."""
  change, truth = (np.asarray(x, np.float64) for x in (change, truth))
  return (change * truth).sum() / (truth**2).sum()


@pytest.mark.parametrize('size, lost', [(1e-4, 0.1), (1e-3, 0.7)])
def test_a_small_change_arrives_in_bfloat16(rng, size, lost):
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  w, x = (draw(*s).astype(jnp.bfloat16) for s in ((256, 512), (1024, 256)))
  ab = draw(256, 4), draw(4, 512)
  ab = scaled({'layers': {'q': w[None]}},
              {'layers': {'q': {'a': ab[0][None], 'b': ab[1][None]}}}, size)
  a, b = (ab['layers']['q'][k][0] for k in 'ab')
  low = lambda a, b: Adapted(w, a, b).astype(jnp.bfloat16)
  truth = x.astype(jnp.float32) @ (a @ b)
  run = jax.jit(dense)
  found = run(x, low(a, b)) - run(x, low(a, 0 * b)).astype(jnp.float32)
  assert arrived(found, truth) == pytest.approx(1, abs=0.03)
  merged = (w + a @ b).astype(jnp.bfloat16)
  found = run(x, merged) - run(x, w).astype(jnp.float32)
  assert arrived(found, truth) < lost


def paged_logprobs(cfg, mesh, tokens):
  """parameters -> log-probs of the tokens, by what prefill and decode run."""
  rows, width = tokens.shape
  options = options_lib.resolve(
      Options(slots=rows, max_tokens=width, page=width, pages=rows + 2), cfg,
      mesh)
  pool = decode.empty_pool(cfg, options.layout, mesh)
  positions = jnp.tile(jnp.arange(width), (rows, 1))
  table = jnp.arange(1, rows + 1)[:, None]

  @jax.jit
  def run(params):
    hidden, _ = transformer.forward_paged(cfg, options.layout, params, tokens,
                                          positions, pool, table)
    logits = jax.nn.log_softmax(head.project(cfg, params, hidden[:, :-1]))
    return jnp.take_along_axis(logits, tokens[:, 1:, None], axis=2)

  return lambda params: np.asarray(run(decode.prepare(cfg, params, mesh)))


@pytest.mark.parametrize(
    'size, draws, within, lost',
    [(1e-3, 2, 0.1, 0.75),
     pytest.param(1e-4, 16, 0.25, 0.2, marks=pytest.mark.slow)])
def test_a_small_change_arrives_in_the_sampler(policy, one_device, rng, size,
                                               draws, within, lost):
  """Against float32; merged into bfloat16 most of it is lost."""
  cfg, params, _ = policy
  half = dataclasses.replace(cfg, dtype='bfloat16')
  base = transformer.cast(half, params)
  exact = jax.tree.map(lambda x: x.astype(jnp.float32), base)
  tokens = rng.integers(5, 190, (64, 128))
  in_full, in_half = (
      paged_logprobs(c, one_device, tokens) for c in (cfg, half))
  adapters = lora.init(cfg, params, 4, jax.random.key(0))
  before = in_half(lora.attach(base, adapters))
  plain, plain_exact = in_half(base), in_full(exact)
  truth, found, merged = [], [], []
  for i in range(draws):
    noise = lambda x, i=i: jax.random.normal(jax.random.key(i), x.shape)
    some = scaled(base, jax.tree.map(noise, adapters), size)
    truth.append(in_full(lora.attach(exact, some)) - plain_exact)
    found.append(in_half(lora.attach(base, some)) - before)
    rounded = transformer.cast(half, lora.merge(base, some, 1.0))
    merged.append(in_half(rounded) - plain)
  assert arrived(found, truth) == pytest.approx(1, abs=within)
  assert arrived(merged, truth) < lost


SETUPS = [
    pytest.param(('dense', 'float32'), marks=pytest.mark.slow),
    ('dense', 'int8'),
    pytest.param(('moe', 'float32'), marks=pytest.mark.slow)
]


@pytest.fixture(scope='module', params=SETUPS, ids=lambda x: '-'.join(x))
def sampled(request, one_device):
  """A model, with adapters attached, and its samples on one device."""
  kind, weights = request.param
  cfg = conftest.SMALL if kind == 'dense' else MOE
  params, adapters = adapted(cfg)
  if weights == 'int8':
    params = quantization.quantize(cfg, params)
  whole = lora.attach(params, adapters, 0.5)
  work = test_engine.requests()
  return cfg, whole, work, test_engine.generate((cfg, whole), one_device, work)


def test_decoding_with_adapters_is_the_full_forward(sampled):
  cfg, whole, work, samples = sampled
  tokens, valid, completion, logprobs = test_engine.rows_of(work, samples)
  run = jax.jit(head.token_logprobs, static_argnums=(0, 4))
  lp, _ = run(cfg, whole, tokens, valid, 0.8)
  np.testing.assert_allclose(logprobs, np.where(completion, lp, 0), atol=2e-5)
  plain, _ = run(cfg, lora.detach(whole)[0], tokens, valid, 0.8)
  assert np.abs(plain - lp)[completion].max() > 0.1


@pytest.mark.parametrize(
    'sizes, tensor', [(dict(fsdp=4, tensor=2), 0),
                      pytest.param(dict(fsdp=8), 2, marks=pytest.mark.slow)],
    ids=str)
def test_eight_devices_sample_as_one(sampled, sizes, tensor):
  cfg, whole, work, samples = sampled
  mesh = mesh_lib.make_mesh(Mesh(**({'data': 1} | sizes)))
  sampling = mesh_lib.rollout_mesh(mesh, tensor)
  params, adapters = lora.detach(whole)
  axes = (quantization if is_int8(params) else transformer).logical_axes(cfg)
  whole = lora.attach(
      jax.device_put(params, mesh_lib.shardings(axes, params, mesh)),
      jax.device_put(adapters, NamedSharding(mesh, PartitionSpec())))
  ready = decode.prepare(cfg, whole, sampling)
  down, up = ready['layers']['o'].a, ready['layers']['q'].b
  assert down.dtype == up.dtype == np.float32
  assert down.sharding.spec[1] == up.sharding.spec[2] == 'tensor'
  for got, want in zip(test_engine.generate((cfg, whole), sampling, work),
                       samples):
    assert got.tokens.tolist() == want.tokens.tolist()
    np.testing.assert_allclose(got.logprobs, want.logprobs, atol=3e-5)


def test_the_samplers_copy_is_the_base_and_the_adapters(sampled, one_device):
  cfg, whole, _, _ = sampled
  ready = decode.prepare(cfg, whole, one_device)
  base, adapters = lora.detach(ready)
  for got, want in zip(jax.tree.leaves(base),
                       jax.tree.leaves(lora.detach(whole)[0])):
    assert got is want or got.unsafe_buffer_pointer(
    ) == want.unsafe_buffer_pointer()
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(adapters))


@pytest.mark.slow
@pytest.mark.parametrize('size', [1e-3, 0.1])
def test_the_learner_and_the_sampler_agree_as_without_adapters(
    policy, one_device, size):
  """In bfloat16, on the same tokens: metrics mismatch/*."""
  cfg = dataclasses.replace(policy[0], dtype='bfloat16')
  base = transformer.cast(cfg, policy[1])
  adapters = lora.init(cfg, base, 4, jax.random.key(0))
  noise = lambda x: jax.random.normal(jax.random.key(1), x.shape)
  some = scaled(base, jax.tree.map(noise, adapters), size)
  work = test_engine.requests(samples=24)
  run = jax.jit(head.token_logprobs, static_argnums=(0, 4))

  def gap(learner, sampler):
    samples = test_engine.generate((cfg, sampler), one_device, work)
    tokens, valid, completion, logprobs = test_engine.rows_of(work, samples)
    lp, _ = run(cfg, learner, tokens, valid, 0.8)
    return np.abs(lp - logprobs)[completion].mean()

  full, whole = gap(base, base), lora.attach(base, some)
  merged = transformer.cast(cfg, lora.merge(base, some, 1.0))
  assert gap(whole, whole) < min(1.15 * full, gap(whole, merged))


@pytest.mark.slow
def test_a_run_with_adapters_has_the_mismatch_of_a_full_one(tmp_path):
  gaps = []
  for name, flags in (('full', ['--config.optim.lr=3e-4']), ('lora', [
      '--config.policy.lora_rank=4', '--config.optim.lr=1e-3'
  ])):
    rows = test_train.run('tiny:grpo', tmp_path / name, *test_train.GROUPS,
                          '--config.compare=', '--config.eval.problems=',
                          '--config.policy.dtype=bfloat16', *flags)
    gaps.append(
        np.mean([
            r['mismatch/logprob_abs_diff'] for r in rows if 'policy/loss' in r
        ]))
  assert gaps[1] < 1.3 * gaps[0]
