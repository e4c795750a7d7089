"""Laws of the update."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax.config import Loss, Optim
from exprl_jax.models import head, transformer
from exprl_jax.rl import kl as kl_lib
from exprl_jax.rl import learner, losses, optimizer
from exprl_jax.rl.policy import Policy
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import RunFailure
from tests.experience import (
    change,
    close,
    config,
    gradient,
    one_update,
    padded,
    random_examples,
    rows_of,
    tokens_of,
)


def test_neither_packing_nor_micro_batches_change_the_gradient(
    small, rng, one_device):
  examples = random_examples(small, rng)
  loss = {'aggregation': 'seq_mean_token_mean', 'entropy_coef': 0.01}
  whole, values = gradient(small, examples, one_device, micro_rows=8, loss=loss)
  for sizes in ({'micro_rows': 3}, {'row_tokens': 30, 'micro_rows': 1}):
    parts, part_values = gradient(small, examples, one_device, loss=loss,
                                  **sizes)
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
  examples = random_examples(small, rng)
  if kind == 'gspo':
    examples = change(
        examples,
        advantages=lambda x: np.full_like(x.advantages, x.advantages[0]))
  loss = {'kind': kind, 'aggregation': 'seq_mean_token_mean', 'tis_cap': 0.0}
  weight = padded(
      losses.token_weights([x.loss_mask for x in examples],
                           'seq_mean_token_mean', 1))
  advantages = padded([x.advantages for x in examples])
  ref = padded([x.ref_logprobs for x in examples])

  def reinforce(params):
    lp, _ = head.token_logprobs(cfg, params, *rows_of(examples), 0.8)
    kl = kl_lib.estimate(lp, ref, 'k3', 10.0)
    return jnp.sum(weight * (-lp * advantages + Loss().kl_coef * kl))

  got, values = gradient(small, examples, one_device, micro_rows=8, loss=loss)
  close(got, jax.jit(jax.grad(reinforce))(params))
  assert values['policy/ratio_max'] == 1.0


def test_the_loss_starts_at_zero(small, rng, one_device):
  """Of group advantages, which sum to zero, when rows count the same."""
  examples = random_examples(small, rng)
  a = np.tile([1.0, -1.0], 4).astype(np.float32)
  examples = [
      x._replace(advantages=np.full(len(x.tokens), value))
      for x, value in zip(examples, a)
  ]
  _, values = gradient(
      small, examples, one_device, micro_rows=8,
      loss={'aggregation': 'seq_mean_token_mean', 'tis_cap': 0.0})
  assert abs(values['policy/loss']) < 1e-6


def test_mismatch_is_none_where_sampler_and_learner_agree(
    small, rng, one_device):
  cfg, params = small
  examples = random_examples(small, rng)
  lp = Policy(config(), cfg, one_device).logprobs(params, tokens_of(examples))
  examples = [x._replace(rollout_logprobs=y) for x, y in zip(examples, lp)]
  _, values = gradient(small, examples, one_device)
  np.testing.assert_allclose([
      values['mismatch/ratio'], values['mismatch/ratio_max'],
      values['mismatch/is_ess']
  ], 1.0, atol=1e-5)
  assert values['mismatch/logprob_abs_diff'] < 1e-5
  assert values['mismatch/is_clipped_frac'] == 0


def test_log_probabilities_of_packed_rows_come_back(small, rng, one_device):
  cfg, params = small
  examples = random_examples(small, rng)
  want, _ = head.token_logprobs(cfg, params, *rows_of(examples), 0.8)
  for sizes in ({'micro_rows': 8}, {'row_tokens': 40, 'micro_rows': 2}):
    got = Policy(config(**sizes), cfg,
                 one_device).logprobs(params, tokens_of(examples))
    assert [len(x) for x in got] == [len(x.tokens) for x in examples]
    np.testing.assert_allclose(padded(got), want, atol=1e-5)


@pytest.mark.slow
def test_updates_take_whole_groups(small, rng, one_device):
  """Two updates of a batch whose second half of groups does not train are one
  update on the first half."""
  examples = random_examples(small, rng)
  cfg, params = small
  old = Policy(config(), cfg, one_device).logprobs(params, tokens_of(examples))
  # Groups 0 and 2 go to the first update, 1 and 3 to the second.
  trains = np.repeat([True, False, True, False], 2)
  examples = [
      x._replace(old_logprobs=y, loss_mask=x.loss_mask & t)
      for x, y, t in zip(examples, old, trains)
  ]
  twice, _ = one_update(small, examples, one_device, updates=2)
  once, _ = one_update(small, [examples[i] for i in (0, 1, 4, 5)], one_device)
  close(twice, once, 2e-4)


def test_an_update_without_credit_is_not_computed(small, rng, one_device,
                                                  monkeypatch):
  """It moves what the full one moves: moments and decay go on."""
  cfg, params = small
  examples = random_examples(small, rng)
  nothing = change(examples, advantages=lambda x: 0 * x.advantages)
  run = config(loss={'kl_coef': 0.0}, lr=1e-3, b1=0.9, b2=0.99,
               weight_decay=0.1, eps=1e-8)
  assert losses.only_credit_trains(run.loss)
  for other in ({'kl_coef': 0.1}, {'entropy_coef': 0.1}, {'kind': 'exact_kl'}):
    assert not losses.only_credit_trains(dataclasses.replace(run.loss, **other))

  def trained():
    state = optimizer.init_state(jax.tree.map(jnp.copy, params), run.optim, 4)
    seen = []
    for part in (examples, nothing):
      state, values = learner.update(Policy(run, cfg, one_device), state, part,
                                     2)
      seen.append(values)
    return state, seen

  state, (first, second) = trained()
  assert 'policy/entropy' in first and 'policy/entropy' not in second
  assert second['optim/grad_norm'] == 0 and int(state.step) == 2
  monkeypatch.setattr(losses, 'only_credit_trains', lambda cfg: False)
  full, (_, computed) = trained()
  assert computed['policy/loss'] == 0
  for a, b in zip(*map(jax.tree.leaves, (state, full))):
    np.testing.assert_array_equal(a, b)


def test_a_gradient_that_is_not_finite_is_skipped(small, rng, one_device):
  examples = random_examples(small, rng)
  bad = change(examples, advantages=lambda x: x.advantages * np.nan)
  moved, values = one_update(small, bad, one_device)
  assert values['optim/skipped_steps'] == 1
  assert all(not np.any(x) for x in jax.tree.leaves(moved))
  with pytest.raises(RunFailure, match='optim.max_skipped'):
    one_update(small, bad, one_device, max_skipped=1)


def test_one_good_gradient_ends_the_count_of_bad_ones(small, rng, one_device):
  """What is skipped takes no step of the schedule either."""
  cfg, params = small
  examples = random_examples(small, rng)
  bad = change(examples, advantages=lambda x: x.advantages * np.nan)
  run = config(max_skipped=2, lr=1.0, schedule='linear', steps=4)
  state = optimizer.init_state(jax.tree.map(jnp.copy, params), run.optim, 4)
  for part, count, rate in ((bad, 1, 1.0), (examples, 0, 1.0), (bad, 1, 0.75)):
    state, values = learner.update(Policy(run, cfg, one_device), state, part, 2)
    assert int(state.skipped) == count
    assert values['optim/lr'] == rate
  assert int(state.step) == 1


def test_eight_devices_update_as_one(small, rng, one_device):
  cfg, params = small
  examples = random_examples(small, rng)
  want, _ = gradient(small, examples, one_device)
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=2, fsdp=2, tensor=2))
  spread = jax.device_put(
      params, mesh_lib.shardings(transformer.logical_axes(cfg), params, mesh))
  for sizes in ({'row_tokens': 30}, {'micro_rows': 2}):
    got, _ = gradient((cfg, spread), examples, mesh, **sizes)
    close(got, want)


@pytest.mark.slow
def test_moments_in_host_memory_change_nothing(small, rng, one_device):
  cfg, params = small
  examples, states = random_examples(small, rng), []
  for offload in (False, True):
    run = config(offload=offload, lr=1e-3, b1=0.9, b2=0.99, eps=1e-8)
    state = optimizer.init_state(jax.tree.map(jnp.copy, params), run.optim, 1)
    for _ in range(2):
      state, _ = learner.update(Policy(run, cfg, one_device), state, examples,
                                2)
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
  optim = Optim(lr=1.0, weight_decay=0.1, decay='matrices', mu_dtype='bfloat16')
  state = optimizer.init_state(jax.tree.map(jnp.copy, params), optim, 1)
  (adam,) = [
      s for s in jax.tree.leaves(state.opt_state,
                                 is_leaf=lambda s: hasattr(s, 'mu'))
      if hasattr(s, 'mu')
  ]
  assert {x.dtype.name for x in jax.tree.leaves(adam.mu)} == {'bfloat16'}
  assert {x.dtype.name for x in jax.tree.leaves(adam.nu)} == {'float32'}
  zero = jax.tree.map(jnp.zeros_like, params)
  after, _ = optimizer.apply_gradient(state, zero, optim, 1)
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
  f = optimizer.learning_rate(Optim(lr=1.0, schedule=schedule, warmup_steps=2),
                              4)
  np.testing.assert_allclose([f(i) for i in range(5)], want, atol=1e-6)


def test_moments_are_sharded_as_their_parameters(small):
  cfg, params = small
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=1, fsdp=4, tensor=2))
  params = jax.device_put(
      params, mesh_lib.shardings(transformer.logical_axes(cfg), params, mesh))
  state = optimizer.init_state(params, Optim(), 1)
  (adam,) = [
      s for s in jax.tree.leaves(state.opt_state,
                                 is_leaf=lambda s: hasattr(s, 'mu'))
      if hasattr(s, 'mu')
  ]
  for moment in (adam.mu, adam.nu):
    for x, y in zip(jax.tree.leaves(moment), jax.tree.leaves(params)):
      assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
