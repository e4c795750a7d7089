"""The losses by hand, with and without jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax.config import Loss
from exprl_jax.rl import kl as kl_lib
from exprl_jax.rl import losses
from exprl_jax.types import InputError, PackedBatch


def test_kl_estimates_by_hand():
  # d = log 2: k3 = 2 - log 2 - 1, k1 = -log 2. Far apart: clamped.
  ref = np.array([np.log(2.0), 0.0, 30.0], np.float32)
  zero = np.zeros(3, np.float32)
  np.testing.assert_allclose(kl_lib.estimate(zero, ref, 'k3', 10.0),
                             [1 - np.log(2.0), 0, 10], atol=1e-6)
  np.testing.assert_allclose(kl_lib.estimate(zero, ref, 'k1', 10.0),
                             [-np.log(2.0), 0, -10], atol=1e-6)
  # On the host as on the device.
  on_device = kl_lib.estimate(jnp.array(zero), jnp.array(ref), 'k3', 10.0)
  assert isinstance(on_device, jax.Array)
  np.testing.assert_allclose(on_device, kl_lib.estimate(zero, ref, 'k3', 10.0),
                             rtol=1e-6)


def one_token(ratio, advantage, *, sampler=0.0, old=-1.0, ref=-1.0):
  """A token with a ratio; its log-probabilities under policy and batch."""
  f = lambda x: np.array([[x]], np.float32)
  return f(old + np.log(ratio)), PackedBatch(np.zeros((1, 1), np.int32),
                                             np.ones((1, 1), np.int32), f(1),
                                             f(old + sampler), f(old), f(ref),
                                             f(advantage))


def loss_and_gradient(lp, batch, entropy=None, **options):
  cfg = Loss(**{'kl_coef': 0.0, 'clip_low': 0.2, 'clip_high': 0.28} | options)
  entropy = np.zeros_like(lp) if entropy is None else entropy
  lp, entropy, batch = jax.tree.map(jnp.asarray, (lp, entropy, batch))
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
  batch = PackedBatch(np.zeros((1, 5), np.int32), np.array([[1, 1, 1, 2, 2]]),
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


@pytest.mark.parametrize(
    'mode, weights',
    [
        ('token_truncate', [1.5, 0.8, 2.0, 0.9]),
        ('token_mask', [1.5, 0.8, 0.0, 0.9]),
        ('sequence_truncate', [1.2, 1.2, 2.0, 2.0]),  # 1.5 * .8 and 3 * .9
        ('sequence_mask', [1.2, 1.2, 0.0, 0.0]),
    ])
def test_importance_weights_by_hand(mode, weights):
  """Two sequences of two tokens in one row, behind a prompt of one."""
  ratios = np.log(np.array([[9.0, 1.5, 0.8, 9.0, 3.0, 0.9]], np.float32))
  ids = np.array([[1, 1, 1, 2, 2, 2]])
  mask = np.array([[0, 1, 1, 0, 1, 1]], bool)
  found = losses.sampler_weight(*map(jnp.asarray, (ratios, mask, ids)),
                                Loss(tis_cap=2.0, tis_mode=mode))
  np.testing.assert_allclose(np.asarray(found)[mask], weights, rtol=1e-5)


@pytest.mark.parametrize('kind', ['k1', 'k2', 'k3', 'k3+'])
def test_gradients_of_kl_estimates_in_expectation(kind, rng):
  """Over all outcomes of a softmax: k2 and k3+ have the gradient of the KL,
  k1 has none, and k3 is biased."""
  logits, other = jnp.asarray(rng.normal(size=(2, 7)), jnp.float32)
  log_softmax = jax.nn.log_softmax

  def kl(x):
    return jnp.sum(
        jnp.exp(log_softmax(x)) * (log_softmax(x) - log_softmax(other)))

  def estimated(x):
    p = jax.lax.stop_gradient(jnp.exp(log_softmax(x)))  # where samples are from
    return jnp.sum(
        p * kl_lib.estimate(log_softmax(x), log_softmax(other), kind, 10.0))

  value, found = jax.value_and_grad(estimated)(logits)
  want = {'k1': 0 * found, 'k2': jax.grad(kl)(logits)}
  want['k3+'] = want['k2']
  if kind in want:
    np.testing.assert_allclose(found, want[kind], atol=1e-6)
  else:
    assert np.abs(found - want['k2']).max() > 0.05
  if kind != 'k2':
    np.testing.assert_allclose(value, kl(logits), rtol=1e-5)


def test_kl_and_entropy_are_added_with_their_coefficients():
  lp, batch = one_token(1.0, 0.0, ref=-1 + np.log(2.0))
  batch = batch._replace(loss_weight=batch.loss_weight / 4)
  k3, k1 = 1 - np.log(2.0), -np.log(2.0)
  for options, want in (({}, k3), ({'kl_estimator': 'k1'}, k1),
                        ({'kl_in': 'reward'}, 0.0)):
    loss, _, _ = loss_and_gradient(lp, batch, kl_coef=0.5, **options)
    np.testing.assert_allclose(loss, 0.5 * want / 4, rtol=1e-6)
  loss, _, _ = loss_and_gradient(lp, batch, entropy=np.full((1, 1), 3.0),
                                 entropy_coef=0.1)
  np.testing.assert_allclose(loss, -0.3 / 4, rtol=1e-6)


def test_weights_by_hand():
  """Rows of 1, 3 and 0 trained tokens."""
  masks = [np.array(m, bool) for m in ([0, 1], [0, 1, 1, 1], [0, 0, 0])]
  want = {
      'token_mean': [1 / 4, 1 / 4], 'seq_mean_token_mean': [1 / 2, 1 / 6],
      'seq_mean_token_sum': [1 / 2, 1 / 2], 'fixed_length': [1 / 20, 1 / 20]
  }
  for name, weights in want.items():
    for got, mask, weight in zip(losses.token_weights(masks, name, 10), masks,
                                 [*weights, 9.0]):
      np.testing.assert_allclose(got, mask * weight, rtol=1e-6, err_msg=name)


def test_nll_by_hand():
  lp = jnp.log(jnp.array([[0.5, 0.25, 0.1]]))
  weight = jnp.array([[0.5, 0.5, 0.0]])
  np.testing.assert_allclose(losses.nll(lp, weight), np.log(8) / 2, rtol=1e-6)


def test_every_loss_says_which_of_its_keys_it_reads():
  """No loss changes with a key of another."""
  lp, batch = one_token(1.5, 2.0)
  _, down = one_token(9.0, -2.0)
  other = {'clip_low': 0.9, 'clip_high': 0.01, 'dual_clip': 1.1}
  for name, kind in losses.LOSSES.items():
    for b in (batch, down):
      base, _, _ = loss_and_gradient(lp, b, kind=name)
      for key in other.keys() - set(kind.keys):
        got, _, _ = loss_and_gradient(lp, b, kind=name, **{key: other[key]})
        assert got == base or kind.teacher, f'{name} {key}'


def test_a_loss_of_the_users_own_is_an_import_path(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('def half(terms, cfg):\n'
                  '  return -0.5 * terms.advantages * terms.logprobs, 1.0 + '
                  '0.0 * terms.log_ratio\n')
  lp, batch = one_token(1.0, 2.0)
  loss, gradient, _ = loss_and_gradient(lp, batch, kind=f'{path}:half')
  np.testing.assert_allclose([loss, gradient[0, 0]], [1.0, -1.0], rtol=1e-6)
  with pytest.raises(InputError, match='loss.kind=.*:none: AttributeError'):
    losses.kind(f'{path}:none')
  with pytest.raises(InputError, match="did you mean 'ppo'"):
    losses.kind('pppo')
