"""Laws of sampling: decode = forward, sampler = learner, alone = together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax import losses
from exprl_jax import mesh as mesh_lib
from exprl_jax.models import transformer
from exprl_jax.rollout import engine
from exprl_jax.types import InputError

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [3, 3]]
OPTIONS = engine.SampleConfig(
    group_size=4, max_prompt_tokens=7, max_new_tokens=9, temperature=0.8,
    eos_ids=(1, 2), pad_id=0)


def sample(small, mesh, prompts=PROMPTS, seed=0, first_id=0, **options):
  cfg, params = small
  return engine.sample(cfg, params, prompts, jax.random.key(seed),
                       dataclasses.replace(OPTIONS, **options), mesh, first_id)


def rows_of(rollout):
  """The completions as lists."""
  return [t[c].tolist() for t, c in zip(np.asarray(rollout.tokens),
                                        np.asarray(rollout.completion))]


def test_greedy_decoding_is_the_argmax_of_the_full_forward(small, one_device):
  cfg, params = small
  r = sample(small, one_device, temperature=0.0, group_size=1)
  b, t = r.tokens.shape
  hidden, _ = transformer.forward(
      cfg, params, r.tokens, jnp.broadcast_to(jnp.arange(t)[None], (b, t)),
      segment_ids=r.valid.astype(jnp.int32))
  best = jnp.argmax(transformer.project(cfg, params, hidden), axis=-1)
  wanted = np.asarray(r.completion)[:, 1:]
  assert wanted.sum() >= 4 * 3
  np.testing.assert_array_equal(np.asarray(r.tokens)[:, 1:][wanted],
                                np.asarray(best)[:, :-1][wanted])


def test_sampled_logprobs_are_the_learners(small, one_device):
  cfg, params = small
  r = sample(small, one_device)
  lp, _ = losses.token_logprobs(cfg, params, r.tokens, r.valid, 0.8)
  np.testing.assert_allclose(r.logprobs, jnp.where(r.completion, lp, 0.0),
                             atol=1e-5)


def test_rows_are_prompt_completion_padding(small, one_device):
  r = sample(small, one_device)
  for i, out in enumerate(rows_of(r)):
    prompt = PROMPTS[i // 4]
    n = len(prompt) + len(out)
    assert np.asarray(r.tokens)[i, :n].tolist() == prompt + out
    assert np.all(np.asarray(r.tokens)[i, n:] == OPTIONS.pad_id)
    assert np.asarray(r.valid)[i].sum() == n


def test_eos_stays_and_ends_the_row(small, one_device):
  r = sample(small, one_device)
  outs = rows_of(r)
  assert any(r.finished) and not all(r.finished), 'want both kinds'
  for out, finished in zip(outs, np.asarray(r.finished)):
    assert not set(out[:-1]) & set(OPTIONS.eos_ids)
    assert finished == (out[-1] in OPTIONS.eos_ids)
    assert finished or len(out) == OPTIONS.max_new_tokens


def test_a_sample_does_not_depend_on_who_shares_its_batch(small, one_device):
  together = rows_of(sample(small, one_device))
  alone = sample(small, one_device, prompts=PROMPTS[2:3], first_id=8)
  assert rows_of(alone) == together[8:12]
  assert together[8:12] != rows_of(sample(small, one_device, seed=1))[8:12]


@pytest.mark.parametrize('sizes', [
    dict(data=8, fsdp=1), dict(data=1, fsdp=8), dict(data=2, fsdp=2, tensor=2)])
def test_eight_devices_are_one(small, one_device, sizes):
  cfg, params = small
  mesh = mesh_lib.make_mesh(config_lib.Mesh(**sizes))
  shardings = mesh_lib.shardings(transformer.logical_axes(cfg), params, mesh)
  want = sample(small, one_device)
  got = sample((cfg, jax.device_put(params, shardings)), mesh)
  assert rows_of(got) == rows_of(want)
  np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-5)


def test_frequencies_are_those_of_the_softmax():
  """20,000 draws against p; seed 0; five standard errors."""
  n, temperature = 20_000, 0.7
  logits = jnp.array([1.0, 0.0, -1.0, 2.0])
  keys = jax.random.split(jax.random.key(0), n)
  token, logprob = engine.draw(jnp.tile(logits[None], (n, 1)), keys,
                               jnp.zeros(n, jnp.int32), temperature)
  p = np.asarray(jax.nn.softmax(logits / temperature))
  error = np.abs(np.bincount(token, minlength=4) / n - p)
  assert np.all(error < 5 * np.sqrt(p * (1 - p) / n))
  np.testing.assert_allclose(logprob, np.log(p)[token], rtol=1e-5)


def test_a_prompt_that_does_not_fit_is_named(small, one_device):
  with pytest.raises(InputError, match='prompt 1 has 8 tokens'):
    sample(small, one_device, prompts=[[1], [4] * 8])
