"""Adapters: laws of what they compute and what is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax.config import Mesh
from exprl_jax.models import config as model_config
from exprl_jax.models import head, lora, transformer
from exprl_jax.rl import kl as kl_lib
from exprl_jax.rl import losses
from exprl_jax.runtime import mesh as mesh_lib
from tests import conftest
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
