"""Random examples for tests of the learner, and the padded rows of them."""

import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax import config as config_lib
from exprl_jax.config import Config, Loss, Optim, Rollout
from exprl_jax.rl import learner, optimizer
from exprl_jax.rl.experience import Example
from exprl_jax.rl.policy import Policy


def random_examples(small, rng, rows=8, columns=12):
  """Prompts of 2..5 tokens, completions of 1..7."""
  cfg, _ = small
  prompt = rng.integers(2, 6, rows)
  length = np.minimum(prompt + rng.integers(1, 8, rows), columns)
  out = []
  for p, n in zip(prompt, length):

    def f(scale, n=n):
      return (rng.standard_normal(n) * scale).astype(np.float32)

    old = -3 + f(0.3)
    out.append(
        Example(
            rng.integers(0, cfg.vocab_size, n).astype(np.int32),
            np.arange(n) >= p, old, old, old + f(0.2), f(1.0)))
  return out


def change(examples, **fields):
  """The examples with fields changed by functions of an example."""
  return [x._replace(**{k: f(x) for k, f in fields.items()}) for x in examples]


def tokens_of(examples):
  return [x.tokens for x in examples]


def padded(rows):
  """[B, T], zeros at the end."""
  out = np.zeros((len(rows), max(map(len, rows))), rows[0].dtype)
  for row, x in zip(out, rows):
    row[:len(x)] = x
  return out


def rows_of(examples):
  """tokens i32[B, T] and segment ids i32[B, T] of padded rows."""
  tokens = tokens_of(examples)
  ids = [np.ones(len(x), np.int32) for x in tokens]
  return jnp.asarray(padded(tokens)), jnp.asarray(padded(ids))


def close(a, b, tolerance=1e-5):
  """Trees are equal, by the largest entry of each array."""
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    scale = float(jnp.abs(y).max()) or 1.0
    np.testing.assert_allclose(x / scale, y / scale, atol=tolerance)


def config(group=2, loss=(), policy=(), steps=1, **optim):
  """With a huge epsilon Adam is gradient descent: parameters move by
  -gradient."""
  return Config(
      steps=steps, loss=Loss(**{'logprob_chunk': 5, **dict(loss)}),
      policy=config_lib.Model(**dict(policy)),
      rollout=Rollout(temperature=0.8, group_size=group, max_prompt_tokens=5,
                      max_new_tokens=7), optim=Optim(
                          **{
                              'lr': 1e6, 'b1': 0.0, 'b2': 0.0, 'eps': 1e6,
                              'weight_decay': 0.0, 'clip_norm': 1e9
                          } | optim))


def one_update(small, examples, mesh, reference=None, **options):
  """How one update moves the parameters, and its metrics."""
  cfg, params = small
  run = config(**options)
  state = optimizer.init_state(jax.tree.map(jnp.copy, params), run.optim, 1)
  state, values = learner.update(Policy(run, cfg, mesh, reference), state,
                                 examples, 2)
  return jax.tree.map(lambda a, b: a - b, state.params, params), values


def gradient(small, examples, mesh, reference=None, **options):
  """The gradient of one update, and its metrics."""
  cfg, params = small
  return learner.batch_gradient(Policy(config(**options), cfg, mesh, reference),
                                params, examples)
