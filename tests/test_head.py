"""Log-probabilities in chunks of the vocabulary's projection."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax.models import head, transformer
from tests.experience import close, random_examples, rows_of


def test_token_logprobs_are_those_of_the_plain_softmax(small, rng):
  cfg, params = small
  tokens, ids = rows_of(random_examples(small, rng))
  b, t = tokens.shape
  hidden = transformer.forward(cfg, params, tokens,
                               jnp.broadcast_to(jnp.arange(t)[None], (b, t)),
                               segment_ids=ids)
  logp = jax.nn.log_softmax(head.project(cfg, params, hidden) / 0.8)
  want = np.zeros((b, t))
  want[:, 1:] = np.take_along_axis(
      np.asarray(logp)[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
  entropy = np.zeros((b, t))
  entropy[:, 1:] = -(np.exp(logp) * logp).sum(-1)[:, :-1]
  for chunk in (1, 4, 5, 512):
    lp, ent = jax.jit(head.token_logprobs,
                      static_argnums=(0, 4, 5))(cfg, params, tokens, ids, 0.8,
                                                chunk)
    np.testing.assert_allclose(lp, want * (ids > 0), atol=1e-5)
    np.testing.assert_allclose(ent, entropy * (ids > 0), atol=1e-5)


def test_packed_sequences_are_what_they_are_alone(small, rng):
  cfg, params = small
  parts = [rng.integers(0, 40, n) for n in (5, 1, 7)]
  tokens = jnp.asarray(np.concatenate([*parts, np.zeros(3, int)])[None])
  ids = np.repeat([4, 2, 3, 0], [5, 1, 7, 3])[None]
  packed = head.token_logprobs(cfg, params, tokens, jnp.asarray(ids), 0.8, 4)
  want = [
      head.token_logprobs(cfg, params, jnp.asarray(p[None]),
                          jnp.ones((1, len(p)), jnp.int32), 0.8)
      for p in parts
      if len(p) > 1
  ]
  for x, (a, b) in zip(packed, zip(*want)):
    row = np.concatenate([a[0], [0.0], b[0], [0.0] * 3])
    np.testing.assert_allclose(x[0], row, atol=1e-5)


def test_chunks_do_not_change_the_gradient(small, rng):
  cfg, params = small
  tokens, ids = rows_of(random_examples(small, rng))
  by = rng.standard_normal(tokens.shape).astype(np.float32)

  def loss(params, chunk):
    lp, _ = head.token_logprobs(cfg, params, tokens, ids, chunk=chunk)
    return jnp.sum(lp * by)

  grad = jax.jit(jax.grad(loss), static_argnums=1)
  close(grad(params, 3), grad(params, 512))


def test_the_gradient_is_that_of_the_plain_softmax(small, rng):
  """Of log-probabilities and entropy, with every number of chunks."""
  cfg, params = small
  cfg = dataclasses.replace(cfg, logit_softcap=3.0)
  tokens, ids = rows_of(random_examples(small, rng))
  by = rng.standard_normal((2, *tokens.shape)).astype(np.float32)

  def plain(params):
    hidden = head.hidden_states(cfg, params, tokens, ids)
    logp = jax.nn.log_softmax(head.project(cfg, params, hidden) / 0.8)
    picked = jnp.take_along_axis(logp[:, :-1], tokens[:, 1:, None], -1)
    entropy = -(jnp.exp(logp) * logp).sum(-1)[:, :-1]
    return jnp.sum(by[0][:, 1:] * picked[..., 0] + by[1][:, 1:] * entropy,
                   where=ids[:, 1:] > 0)

  def chunked(params, chunk):
    lp, entropy = head.token_logprobs(cfg, params, tokens, ids, 0.8, chunk)
    return jnp.sum(by[0] * lp + by[1] * entropy)

  want = jax.jit(jax.grad(plain))(params)
  for chunk in (1, 4, 512):
    close(jax.jit(jax.grad(chunked), static_argnums=1)(params, chunk), want)
