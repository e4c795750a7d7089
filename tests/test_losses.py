"""The losses by hand, and laws of the update."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax.config import Config, Loss, Optim, Rollout
from exprl_jax.models import transformer
from exprl_jax.rl import learner, losses
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import Experience


def experience(small, rng, rows=8, columns=12):
  """A random batch: prompts of 2..5 tokens, completions of 1..7."""
  cfg, _ = small
  prompt = rng.integers(2, 6, rows)
  length = np.minimum(prompt + rng.integers(1, 8, rows), columns)
  column = np.arange(columns)[None, :]
  valid = column < length[:, None]
  f = lambda scale: (rng.standard_normal(
      (rows, columns)) * scale).astype(np.float32)
  old = -3 + f(0.3)
  return Experience(
      rng.integers(0, cfg.vocab_size, (rows, columns)).astype(np.int32),
      valid.astype(np.int32),
      (valid & (column >= prompt[:, None])).astype(np.float32), old, old,
      old + f(0.2), f(1.0))


def valid(batch):
  return batch.segment_ids > 0


def test_token_logprobs_are_those_of_the_plain_softmax(small, rng):
  cfg, params = small
  batch = experience(small, rng)
  b, t = batch.tokens.shape
  hidden = transformer.forward(cfg, params, batch.tokens,
                               jnp.broadcast_to(jnp.arange(t)[None], (b, t)),
                               segment_ids=valid(batch).astype(jnp.int32))
  logp = jax.nn.log_softmax(transformer.project(cfg, params, hidden) / 0.8)
  want = np.zeros((b, t))
  want[:, 1:] = np.take_along_axis(
      np.asarray(logp)[:, :-1], batch.tokens[:, 1:, None], axis=-1)[..., 0]
  entropy = np.zeros((b, t))
  entropy[:, 1:] = -(np.exp(logp) * logp).sum(-1)[:, :-1]
  for chunk in (1, 4, 5, 512):
    lp, ent = jax.jit(losses.token_logprobs,
                      static_argnums=(0, 4, 5))(cfg, params, batch.tokens,
                                                valid(batch), 0.8, chunk)
    np.testing.assert_allclose(lp, want * valid(batch), atol=1e-5)
    np.testing.assert_allclose(ent, entropy * valid(batch), atol=1e-5)


def test_packed_sequences_are_what_they_are_alone(small, rng):
  cfg, params = small
  parts = [rng.integers(0, 40, n) for n in (5, 1, 7)]
  tokens = np.concatenate([*parts, np.zeros(3, int)])[None]
  ids = np.repeat([4, 2, 3, 0], [5, 1, 7, 3])[None]
  packed = losses.token_logprobs(cfg, params, tokens, jnp.asarray(ids), 0.8, 4)
  want = [
      losses.token_logprobs(cfg, params, p[None], jnp.ones((1, len(p))), 0.8)
      for p in parts
      if len(p) > 1
  ]
  for x, (a, b) in zip(packed, zip(*want)):
    row = np.concatenate([a[0], [0.0], b[0], [0.0] * 3])
    np.testing.assert_allclose(x[0], row, atol=1e-5)


def test_chunks_do_not_change_the_gradient(small, rng):
  cfg, params = small
  batch = experience(small, rng)

  def loss(params, chunk):
    lp, _ = losses.token_logprobs(cfg, params, batch.tokens, valid(batch),
                                  chunk=chunk)
    return jnp.sum(lp * batch.advantages)

  grad = jax.jit(jax.grad(loss), static_argnums=1)
  close(grad(params, 3), grad(params, 512))


def close(a, b, tolerance=1e-5):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    scale = float(jnp.abs(y).max()) or 1.0
    np.testing.assert_allclose(x / scale, y / scale, atol=tolerance)


def test_the_gradient_is_that_of_the_plain_softmax(small, rng):
  """Of log-probabilities and entropy, with every number of chunks."""
  cfg, params = small
  cfg = dataclasses.replace(cfg, logit_softcap=3.0)
  batch = experience(small, rng)
  by = rng.standard_normal((2, *batch.tokens.shape)).astype(np.float32)

  def plain(params):
    hidden = losses.hidden_states(cfg, params, batch.tokens, batch.segment_ids)
    logp = jax.nn.log_softmax(transformer.project(cfg, params, hidden) / 0.8)
    picked = jnp.take_along_axis(logp[:, :-1], batch.tokens[:, 1:, None], -1)
    entropy = -(jnp.exp(logp) * logp).sum(-1)[:, :-1]
    return jnp.sum(by[0][:, 1:] * picked[..., 0] + by[1][:, 1:] * entropy,
                   where=valid(batch)[:, 1:])

  def chunked(params, chunk):
    lp, entropy = losses.token_logprobs(cfg, params, batch.tokens,
                                        batch.segment_ids, 0.8, chunk)
    return jnp.sum(by[0] * lp + by[1] * entropy)

  want = jax.jit(jax.grad(plain))(params)
  for chunk in (1, 4, 512):
    close(jax.jit(jax.grad(chunked), static_argnums=1)(params, chunk), want)


def test_kl_estimates_by_hand():
  # d = log 2: k3 = 2 - log 2 - 1, k1 = -log 2. Far apart: clamped.
  ref = np.array([np.log(2.0), 0.0, 30.0], np.float32)
  zero = np.zeros(3, np.float32)
  np.testing.assert_allclose(losses.kl_estimate(zero, ref, 'k3', 10.0),
                             [1 - np.log(2.0), 0, 10], atol=1e-6)
  np.testing.assert_allclose(losses.kl_estimate(zero, ref, 'k1', 10.0),
                             [-np.log(2.0), 0, -10], atol=1e-6)


def one_token(ratio, advantage, *, sampler=0.0, old=-1.0, ref=-1.0):
  """A token with a ratio; its log-probabilities under policy and batch."""
  f = lambda x: np.array([[x]], np.float32)
  return f(old + np.log(ratio)), Experience(np.zeros((1, 1), np.int32),
                                            np.ones((1, 1), np.int32), f(1),
                                            f(old + sampler), f(old), f(ref),
                                            f(advantage))


def loss_and_gradient(lp, batch, entropy=None, **options):
  cfg = Loss(**{'kl_coef': 0.0, 'clip_low': 0.2, 'clip_high': 0.28} | options)
  entropy = np.zeros_like(lp) if entropy is None else entropy
  f = lambda lp: losses.policy_loss(lp, entropy, batch, cfg)
  (loss, logs), gradient = jax.value_and_grad(f, has_aux=True)(lp)
  jitted = jax.jit(jax.value_and_grad(f, has_aux=True))(lp)
  np.testing.assert_allclose(jitted[1], gradient, rtol=1e-6)
  np.testing.assert_allclose(jitted[0][0], loss, rtol=1e-6)
  return float(loss), np.asarray(gradient), logs


@pytest.mark.parametrize(
    'ratio, advantage, want, slope',
    [
        (1.0, 2.0, -2.0, -2.0),  # inside: -A r
        (1.5, 2.0, -2.0 * 1.28, 0.0),  # clipped above, no gradient beyond
        (0.5, 2.0, -1.0, -1.0),  # may still be raised
        (0.5, -2.0, 1.6, 0.0),  # clipped below: -A (1 - .2)
        (1.5, -2.0, 3.0, 3.0),  # may still be lowered
        (9.0, -2.0, 6.0, 0.0),  # dual clip: -3 A
    ])
def test_ppo_by_hand(ratio, advantage, want, slope):
  loss, gradient, _ = loss_and_gradient(*one_token(ratio, advantage))
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  np.testing.assert_allclose(gradient, [[slope]], rtol=1e-5, atol=1e-7)
  loss, _, _ = loss_and_gradient(*one_token(9.0, -2.0), dual_clip=0.0)
  np.testing.assert_allclose(loss, 18.0, rtol=1e-5)


@pytest.mark.parametrize('ratio, weight', [(1.0, 1.0), (1.5, 1.28), (0.5, 0.8)])
def test_cispo_by_hand(ratio, weight):
  """The clipped ratio weighs REINFORCE; nothing is cut off."""
  loss, gradient, _ = loss_and_gradient(*one_token(ratio, 2.0), kind='cispo')
  np.testing.assert_allclose(loss, -2 * weight * (np.log(ratio) - 1), rtol=1e-5)
  np.testing.assert_allclose(gradient, [[-2 * weight]], rtol=1e-5)


def test_reinforce_by_hand():
  loss, gradient, _ = loss_and_gradient(*one_token(1.5, 2.0), kind='reinforce')
  np.testing.assert_allclose(loss, -2 * (np.log(1.5) - 1), rtol=1e-5)
  np.testing.assert_allclose(gradient, [[-2.0]], rtol=1e-6)


def test_gspo_by_hand():
  """Two sequences in one row; log-ratios (.1, .3 | -.2): means .2 and -.2."""
  f = lambda *x: np.array([x], np.float32)
  batch = Experience(np.zeros((1, 5), np.int32), np.array([[1, 1, 1, 2, 2]]),
                     f(0, 0.25, 0.25, 0, 0.5),
                     *(f(0, 0, 0, 0, 0),) * 3, f(0, 2, 2, 0, -1))
  lp = f(0, 0.1, 0.3, 0, -0.2)
  loss, gradient, _ = loss_and_gradient(lp, batch, kind='gspo', clip_low=0.3)
  a, b = np.exp(0.2), np.exp(-0.2)
  np.testing.assert_allclose(loss, -2 * a / 2 + b / 2, rtol=1e-5)
  # A token's gradient is its own: with A the same along a sequence and weights
  # of its mean, that of the sequence's ratio.
  np.testing.assert_allclose(gradient, f(0, -a / 2, -a / 2, 0, b / 2),
                             rtol=1e-5)
  steps = batch._replace(advantages=f(0, 1, -1, 0, 0))
  _, gradient, _ = loss_and_gradient(lp, steps, kind='gspo', clip_low=0.3)
  np.testing.assert_allclose(gradient, f(0, -a / 4, a / 4, 0, 0), rtol=1e-5)
  _, gradient, _ = loss_and_gradient(lp, batch, kind='gspo', clip_high=0.1)
  assert not gradient[0, :3].any(), 'clipped as a sequence'


def test_sampler_mismatch_is_weighed_and_capped():
  """w = exp(old - sampler) = e^.5 = 1.65, or the cap; 1 where they agree."""
  for cap, weight in ((2.0, np.exp(0.5)), (1.2, 1.2), (0.0, 1.0)):
    loss, gradient, (sums, largest) = loss_and_gradient(
        *one_token(1.0, 2.0, sampler=-0.5), tis_cap=cap)
    np.testing.assert_allclose([loss, gradient[0, 0]], -2 * weight, rtol=1e-5)
    np.testing.assert_allclose(largest['mismatch/ratio_max'], np.exp(0.5),
                               rtol=1e-5)  # as it is, not capped
    assert sums['mismatch/is_clipped_frac'] == (cap == 1.2)
  loss, _, _ = loss_and_gradient(*one_token(1.0, 2.0), tis_cap=0.5)
  np.testing.assert_allclose(loss, -1.0)  # the cap itself
  loss, _, _ = loss_and_gradient(*one_token(1.0, 2.0), tis_cap=1.0)
  np.testing.assert_allclose(loss, -2.0)


def test_kl_and_entropy_are_added_with_their_coefficients():
  lp, batch = one_token(1.0, 0.0, ref=-1 + np.log(2.0))
  batch = batch._replace(weight=batch.weight / 4)
  k3, k1 = 1 - np.log(2.0), -np.log(2.0)
  for options, want in (({}, k3), ({'kl': 'k1'}, k1), ({'kl_in': 'reward'},
                                                       0.0)):
    loss, _, _ = loss_and_gradient(lp, batch, kl_coef=0.5, **options)
    np.testing.assert_allclose(loss, 0.5 * want / 4, rtol=1e-6)
  loss, _, _ = loss_and_gradient(lp, batch, entropy=np.full((1, 1), 3.0),
                                 entropy_coef=0.1)
  np.testing.assert_allclose(loss, -0.3 / 4, rtol=1e-6)


def test_weights_by_hand():
  """Rows of 1, 3 and 0 trained tokens."""
  mask = np.array([[0, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]], bool)
  want = {
      'token_mean': [1 / 4, 1 / 4], 'seq_mean_token_mean': [1 / 2, 1 / 6],
      'seq_mean_token_sum': [1 / 2, 1 / 2], 'fixed_length': [1 / 20, 1 / 20]
  }
  for name, (first, second) in want.items():
    np.testing.assert_allclose(losses.token_weights(mask, name, 10),
                               mask * np.array([[first], [second], [9.0]]),
                               rtol=1e-6, err_msg=name)


def config(group=2, loss=(), policy=(), **optim):
  """With a huge epsilon Adam is gradient descent: parameters move by
  -gradient."""
  return Config(
      steps=1, loss=Loss(**{'logprob_chunk': 5, **dict(loss)}),
      policy=config_lib.Model(**dict(policy)),
      rollout=Rollout(temperature=0.8, group_size=group, max_prompt_tokens=5,
                      max_new_tokens=7), optim=Optim(
                          **{
                              'lr': 1e6, 'b1': 0.0, 'b2': 0.0, 'eps': 1e6,
                              'weight_decay': 0.0, 'clip_norm': 1e9
                          } | optim))


def one_update(small, batch, mesh, frozen=None, **options):
  """How one update moves the parameters, and its metrics."""
  cfg, params = small
  run = config(**options)
  state = learner.init_state(jax.tree.map(jnp.copy, params), run.optim, 1)
  state, values = learner.update(run, cfg, state, batch, mesh, 2, frozen)
  return jax.tree.map(lambda a, b: a - b, state.params, params), values


def gradient(small, batch, mesh, frozen=None, **options):
  """The gradient of one update, and its metrics."""
  return learner.whole_gradient(config(**options), *small, batch, mesh, frozen)


def test_neither_packing_nor_micro_batches_change_the_gradient(
    small, rng, one_device):
  batch = experience(small, rng)
  loss = {'aggregation': 'seq_mean_token_mean', 'entropy_coef': 0.01}
  whole, values = gradient(small, batch, one_device, micro_rows=8, loss=loss)
  for sizes in ({'micro_rows': 3}, {'row_tokens': 30, 'micro_rows': 1}):
    parts, part_values = gradient(small, batch, one_device, loss=loss, **sizes)
    close(parts, whole)
    fill, part_fill = (
        v.pop('perf/packing_fill') for v in (dict(values), part_values))
    assert (part_fill > fill) == ('row_tokens' in sizes)
    for name, value in part_values.items():
      np.testing.assert_allclose(value, values[name], rtol=1e-5, atol=1e-6,
                                 err_msg=name)


@pytest.mark.parametrize('kind', ['ppo', 'gspo'])
def test_the_first_update_is_reinforce(small, rng, one_device, kind):
  """With one update the ratio is 1: the gradient is A * grad(log p), whatever
  the batch says of the policy before it. For gspo A is one number a row."""
  cfg, params = small
  batch = experience(small, rng)
  if kind == 'gspo':
    batch = batch._replace(advantages=np.repeat(batch.advantages[:, :1], 12, 1))
  loss = {'kind': kind, 'aggregation': 'seq_mean_token_mean', 'tis_cap': 0.0}
  weight = losses.token_weights(batch.weight > 0, 'seq_mean_token_mean', 1)

  def reinforce(params):
    lp, _ = losses.token_logprobs(cfg, params, batch.tokens, valid(batch), 0.8)
    kl = losses.kl_estimate(lp, batch.ref_logprobs, 'k3', 10.0)
    return jnp.sum(weight * (-lp * batch.advantages + Loss().kl_coef * kl))

  got, values = gradient(small, batch, one_device, micro_rows=8, loss=loss)
  close(got, jax.jit(jax.grad(reinforce))(params))
  assert values['policy/ratio_max'] == 1.0


def test_the_loss_starts_at_zero(small, rng, one_device):
  """Of group advantages, which sum to zero, when rows count the same."""
  batch = experience(small, rng)
  a = np.tile([1.0, -1.0], 4).astype(np.float32)
  batch = batch._replace(advantages=np.repeat(a[:, None], 12, 1))
  _, values = gradient(
      small, batch, one_device, micro_rows=8,
      loss={'aggregation': 'seq_mean_token_mean', 'tis_cap': 0.0})
  assert abs(values['policy/loss']) < 1e-6


def test_mismatch_is_none_where_sampler_and_learner_agree(
    small, rng, one_device):
  cfg, params = small
  batch = experience(small, rng)
  lp = learner.logprobs(cfg, params, batch.tokens, valid(batch), config(),
                        one_device)
  _, values = gradient(small, batch._replace(sampler_logprobs=lp), one_device)
  np.testing.assert_allclose([
      values['mismatch/ratio'], values['mismatch/ratio_max'],
      values['mismatch/is_ess']
  ], 1.0, atol=1e-5)
  assert values['mismatch/logprob_abs_diff'] < 1e-5
  assert values['mismatch/is_clipped_frac'] == 0


def test_log_probabilities_of_packed_rows_come_back(small, rng, one_device):
  cfg, params = small
  batch = experience(small, rng)
  want, _ = losses.token_logprobs(cfg, params, batch.tokens, valid(batch), 0.8)
  for sizes in ({'micro_rows': 8}, {'row_tokens': 40, 'micro_rows': 2}):
    got = learner.logprobs(cfg, params, batch.tokens, valid(batch),
                           config(**sizes), one_device)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_updates_take_whole_groups(small, rng, one_device):
  """Two updates of a batch whose second half of groups does not train are one
  update on the first half."""
  batch = experience(small, rng)
  cfg, params = small
  old = learner.logprobs(cfg, params, batch.tokens, valid(batch), config(),
                         one_device)
  batch = batch._replace(old_logprobs=old)
  # Groups 0 and 2 go to the first update, 1 and 3 to the second.
  quiet = np.repeat([False, True, False, True], 2)[:, None]
  batch = batch._replace(weight=batch.weight * ~quiet)
  twice, _ = one_update(small, batch, one_device, updates=2)
  once, _ = one_update(
      small, jax.tree.map(lambda x: np.asarray(x)[[0, 1, 4, 5]], batch),
      one_device)
  close(twice, once, 2e-4)


def test_a_gradient_that_is_not_finite_is_skipped(small, rng, one_device):
  batch = experience(small, rng)
  bad = batch._replace(advantages=batch.advantages * np.nan)
  moved, values = one_update(small, bad, one_device)
  assert values['optim/skipped_steps'] == 1
  assert all(not np.any(x) for x in jax.tree.leaves(moved))
  with pytest.raises(RuntimeError, match='optim.max_skipped'):
    one_update(small, bad, one_device, max_skipped=1)


def test_one_good_gradient_ends_the_count_of_bad_ones(small, rng, one_device):
  """What is skipped takes no step of the schedule either."""
  cfg, params = small
  batch = experience(small, rng)
  bad = batch._replace(advantages=batch.advantages * np.nan)
  run = dataclasses.replace(config(max_skipped=2, lr=1.0, schedule='linear'),
                            steps=4)
  state = learner.init_state(jax.tree.map(jnp.copy, params), run.optim, 4)
  for part, count, rate in ((bad, 1, 1.0), (batch, 0, 1.0), (bad, 1, 0.75)):
    state, values = learner.update(run, cfg, state, part, one_device, 2)
    assert int(state.skipped) == count
    assert values['optim/lr'] == rate
  assert int(state.step) == 1


def test_eight_devices_update_as_one(small, rng, one_device):
  cfg, params = small
  batch = experience(small, rng)
  want, _ = gradient(small, batch, one_device)
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=2, fsdp=2, tensor=2))
  spread = jax.device_put(
      params, mesh_lib.shardings(transformer.logical_axes(cfg), params, mesh))
  for sizes in ({'row_tokens': 30}, {'micro_rows': 2}):
    got, _ = gradient((cfg, spread), batch, mesh, **sizes)
    close(got, want)


def test_moments_in_host_memory_change_nothing(small, rng, one_device):
  cfg, params = small
  batch, states = experience(small, rng), []
  for offload in (False, True):
    run = config(offload=offload, lr=1e-3, b1=0.9, b2=0.99, eps=1e-8)
    state = learner.init_state(jax.tree.map(jnp.copy, params), run.optim, 1)
    for _ in range(2):
      state, _ = learner.update(run, cfg, state, batch, one_device, 2)
    kinds = {
        x.sharding.memory_kind
        for x in jax.tree.leaves(state.opt_state)
        if x.ndim
    }
    assert kinds == {'pinned_host' if offload else 'device'}
    states.append(state)
  for a, b in zip(*map(jax.tree.leaves, states)):
    np.testing.assert_array_equal(a, b)


def test_decay_of_matrices_only_and_moments_in_bfloat16(small):
  cfg, params = small
  optim = Optim(lr=1.0, weight_decay=0.1, decay='matrices', moments='bfloat16')
  state = learner.init_state(jax.tree.map(jnp.copy, params), optim, 1)
  (adam,) = [
      s for s in jax.tree.leaves(state.opt_state,
                                 is_leaf=lambda s: hasattr(s, 'mu'))
      if hasattr(s, 'mu')
  ]
  assert {x.dtype.name for x in jax.tree.leaves(adam.mu)} == {'bfloat16'}
  assert {x.dtype.name for x in jax.tree.leaves(adam.nu)} == {'float32'}
  zero = jax.tree.map(jnp.zeros_like, params)
  after, _ = learner.apply_gradient(state, zero, optim, 1)
  for name, share in (('final_norm', 1.0), ('embedding', 0.9)):
    np.testing.assert_allclose(after.params[name], share * params[name],
                               rtol=1e-5)
  for name, share in (('q_norm', 1.0), ('q', 0.9)):
    np.testing.assert_allclose(after.params['layers'][name],
                               share * params['layers'][name], rtol=1e-5)


@pytest.mark.parametrize('schedule, want',
                         [('constant', [0.0, 0.5, 1.0, 1.0, 1.0]),
                          ('linear', [0.0, 0.5, 1.0, 0.5, 0.0]),
                          ('cosine', [0.0, 0.5, 1.0, 0.5, 0.0])])
def test_schedules_by_hand(schedule, want):
  f = learner.learning_rate(Optim(lr=1.0, schedule=schedule, warmup_steps=2), 4)
  np.testing.assert_allclose([f(i) for i in range(5)], want, atol=1e-6)


def test_moments_are_sharded_as_their_parameters(small):
  cfg, params = small
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=1, fsdp=4, tensor=2))
  params = jax.device_put(
      params, mesh_lib.shardings(transformer.logical_axes(cfg), params, mesh))
  state = learner.init_state(params, Optim(), 1)
  (adam,) = [
      s for s in jax.tree.leaves(state.opt_state,
                                 is_leaf=lambda s: hasattr(s, 'mu'))
      if hasattr(s, 'mu')
  ]
  for moment in (adam.mu, adam.nu):
    for x, y in zip(jax.tree.leaves(moment), jax.tree.leaves(params)):
      assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


def test_nll_by_hand():
  lp = jnp.log(jnp.array([[0.5, 0.25, 0.1]]))
  weight = jnp.array([[0.5, 0.5, 0.0]])
  np.testing.assert_allclose(losses.nll(lp, weight), np.log(8) / 2, rtol=1e-6)
