"""A loss of your own: REINFORCE on the sign of the advantage.

  python -m exprl_jax.main --config=configs/tiny.py:grpo \\
    --config.loss.kind=docs/examples/sign_loss.py:sign

A loss takes `exprl_jax.rl.losses.Terms` (logprobs, log_ratio, advantages, mask,
segment_ids; f32[R, L] each) and `config.Loss`, and returns the loss per token
and the ratio that is logged. It runs inside jit.
"""

import jax.numpy as jnp


def sign(terms, cfg):
  """-sign(A) clip(r, 1 - clip_low, 1 + clip_high)."""
  ratio = jnp.exp(terms.log_ratio)
  clipped = jnp.clip(ratio, 1.0 - cfg.clip_low, 1.0 + cfg.clip_high)
  return -jnp.sign(terms.advantages) * clipped, ratio
