import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax import learner, losses
from exprl_jax import mesh as mesh_lib
from exprl_jax.config import Loss, Optim
from exprl_jax.models import transformer
from exprl_jax.types import Experience


def experience(small, rng, rows=8, columns=12):
  """A random batch: prompts of 2..5 tokens, completions of 1..7."""
  cfg, _ = small
  prompt = rng.integers(2, 6, rows)
  length = np.minimum(prompt + rng.integers(1, 8, rows), columns)
  column = np.arange(columns)[None, :]
  valid = column < length[:, None]
  f = lambda scale: (rng.standard_normal((rows, columns)) * scale
                     ).astype(np.float32)
  old = -3 + f(0.3)
  return Experience(
      rng.integers(0, cfg.vocab_size, (rows, columns)).astype(np.int32), valid,
      valid & (column >= prompt[:, None]), old, old, old + f(0.2), f(1.0))


def test_token_logprobs_are_those_of_the_plain_softmax(small, rng):
  cfg, params = small
  batch = experience(small, rng)
  b, t = batch.tokens.shape
  hidden = transformer.forward(
      cfg, params, batch.tokens, jnp.broadcast_to(jnp.arange(t)[None], (b, t)),
      segment_ids=batch.valid.astype(jnp.int32))
  logp = jax.nn.log_softmax(transformer.project(cfg, params, hidden) / 0.8)
  want = np.zeros((b, t))
  want[:, 1:] = np.take_along_axis(
      np.asarray(logp)[:, :-1], batch.tokens[:, 1:, None], axis=-1)[..., 0]
  entropy = np.zeros((b, t))
  entropy[:, 1:] = -(np.exp(logp) * logp).sum(-1)[:, :-1]
  for chunk in (1, 4, 5, 512):
    lp, ent = jax.jit(losses.token_logprobs, static_argnums=(0, 4, 5))(
        cfg, params, batch.tokens, batch.valid, 0.8, chunk)
    np.testing.assert_allclose(lp, want * batch.valid, atol=1e-5)
    np.testing.assert_allclose(ent, entropy * batch.valid, atol=1e-5)


def test_packed_sequences_are_what_they_are_alone(small, rng):
  cfg, params = small
  parts = [rng.integers(0, 40, n) for n in (5, 1, 7)]
  tokens = np.concatenate([*parts, np.zeros(3, int)])[None]
  ids = np.repeat([4, 2, 3, 0], [5, 1, 7, 3])[None]
  packed = losses.token_logprobs(cfg, params, tokens, jnp.asarray(ids), 0.8, 4)
  want = [losses.token_logprobs(cfg, params, p[None], jnp.ones((1, len(p))),
                                0.8) for p in parts if len(p) > 1]
  for x, (a, b) in zip(packed, zip(*want)):
    row = np.concatenate([a[0], [0.0], b[0], [0.0] * 3])
    np.testing.assert_allclose(x[0], row, atol=1e-5)


def test_chunks_do_not_change_the_gradient(small, rng):
  cfg, params = small
  batch = experience(small, rng)

  def loss(params, chunk):
    lp, _ = losses.token_logprobs(cfg, params, batch.tokens, batch.valid,
                                  chunk=chunk)
    return jnp.sum(lp * batch.advantages)

  grad = jax.jit(jax.grad(loss), static_argnums=1)
  close(grad(params, 3), grad(params, 512))


def close(a, b, tolerance=1e-5):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    scale = float(jnp.abs(y).max()) or 1.0
    np.testing.assert_allclose(x / scale, y / scale, atol=tolerance)


def test_k3_by_hand():
  # d = log 2: 2 - log 2 - 1. Equal: 0. Far apart: clamped at 10.
  ref = np.array([np.log(2.0), 0.0, 30.0], np.float32)
  np.testing.assert_allclose(losses.k3(np.zeros(3, np.float32), ref),
                             [1 - np.log(2.0), 0, 10], atol=1e-6)


@pytest.mark.parametrize('ratio, advantage, want', [
    (1.0, 2.0, -2.0),  # inside: -A r
    (1.5, 2.0, -2.0 * 1.28),  # clipped above, no gradient beyond
    (0.5, 2.0, -1.0),  # may still be raised
    (0.5, -2.0, 1.6),  # clipped below: -A (1 - .2)
    (1.5, -2.0, 3.0),  # may still be lowered
    (9.0, -2.0, 6.0),  # dual clip: -3 A
])
def test_policy_gradient_by_hand(ratio, advantage, want):
  f = lambda x: np.array([[x]], np.float32)
  batch = Experience(
      np.zeros((1, 1), np.int32), np.ones((1, 1), bool), np.ones((1, 1), bool),
      f(0), f(-1.0), f(-1.0 + np.log(ratio)), f(advantage))
  for run in (lambda g: g, jax.jit):
    loss, sums = run(lambda lp: losses.policy_gradient(
        lp, batch, 1, clip_low=0.2, clip_high=0.28, dual_clip=3.0, kl_coef=0.0)
    )(f(-1.0 + np.log(ratio)))
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(sums['policy/loss'], want, rtol=1e-5)


def test_the_kl_term_is_added_with_its_coefficient():
  f = lambda x: np.array([[x, x]], np.float32)
  mask = np.array([[True, False]])
  batch = Experience(np.zeros((1, 2), np.int32), mask, mask, f(0), f(0),
                     f(np.log(2.0)), f(0))
  loss, _ = losses.policy_gradient(
      f(0), batch, 4, clip_low=0.2, clip_high=0.2, dual_clip=0.0, kl_coef=0.5)
  np.testing.assert_allclose(loss, 0.5 * (1 - np.log(2.0)) / 4, rtol=1e-6)


def one_update(small, batch, **optim):
  cfg, params = small
  # With a huge epsilon Adam is gradient descent: parameters move by -gradient.
  optim = Optim(lr=1e6, b1=0.0, b2=0.0, eps=1e6, weight_decay=0.0,
                clip_norm=1e9, **optim)
  state = learner.init_state(jax.tree.map(jnp.copy, params), optim, 1)
  state, values = learner.update(cfg, state, batch, Loss(logprob_chunk=5),
                                 optim, 0.8, 2, 1)
  return jax.tree.map(lambda a, b: a - b, state.params, params), values


def test_micro_batches_do_not_change_the_update(small, rng):
  batch = experience(small, rng)
  whole, values = one_update(small, batch)
  for n in (2, 8):
    parts, part_values = one_update(small, batch, micro_batches=n)
    close(parts, whole, 2e-4)
    np.testing.assert_allclose(part_values['policy/loss'],
                               values['policy/loss'], rtol=1e-4)


def test_the_first_update_is_reinforce(small, rng):
  """With one update the ratio is 1: the gradient is A * grad(log p)."""
  cfg, params = small
  batch = experience(small, rng)._replace()

  def reinforce(params):
    lp, _ = losses.token_logprobs(cfg, params, batch.tokens, batch.valid, 0.8)
    kl = losses.k3(lp, batch.ref_logprobs)
    return jnp.sum(-lp * batch.advantages + Loss().kl_coef * kl,
                   where=batch.loss_mask) / batch.loss_mask.sum()

  moved, _ = one_update(small, batch)
  want = jax.tree.map(lambda g: -g, jax.jit(jax.grad(reinforce))(params))
  close(moved, want, 2e-4)


def test_updates_take_whole_groups(small, rng):
  """Two updates of a batch whose second half of groups has no advantage and
  no KL are one update on the first half."""
  batch = experience(small, rng)
  cfg, params = small
  old = learner.logprobs(cfg, params, batch.tokens, batch.valid, 0.8, 5, 1)
  batch = batch._replace(old_logprobs=old)
  # Groups 0 and 2 go to the first update, 1 and 3 to the second.
  quiet = np.repeat([False, True, False, True], 2)[:, None]
  batch = batch._replace(loss_mask=batch.loss_mask & ~quiet)
  twice, _ = one_update(small, batch, updates=2)
  once, _ = one_update(small, jax.tree.map(
      lambda x: np.asarray(x)[[0, 1, 4, 5]], batch))
  close(twice, once, 2e-4)


def test_a_gradient_that_is_not_finite_is_skipped(small, rng):
  batch = experience(small, rng)
  bad = batch._replace(advantages=batch.advantages * np.nan)
  moved, values = one_update(small, bad)
  assert values['optim/skipped_steps'] == 1
  assert all(not np.any(x) for x in jax.tree.leaves(moved))


def test_moments_are_sharded_as_their_parameters(small):
  cfg, params = small
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=1, fsdp=4, tensor=2))
  params = jax.device_put(params, mesh_lib.shardings(
      transformer.logical_axes(cfg), params, mesh))
  state = learner.init_state(params, Optim(), 1)
  (adam,) = [s for s in jax.tree.leaves(
      state.opt_state, is_leaf=lambda s: hasattr(s, 'mu')) if hasattr(s, 'mu')]
  for moment in (adam.mu, adam.nu):
    for x, y in zip(jax.tree.leaves(moment), jax.tree.leaves(params)):
      assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


def test_nll_by_hand():
  lp = jnp.log(jnp.array([[0.5, 0.25, 0.1]]))
  mask = jnp.array([[True, True, False]])
  np.testing.assert_allclose(losses.nll(lp, mask, 2), np.log(8) / 2, rtol=1e-6)
