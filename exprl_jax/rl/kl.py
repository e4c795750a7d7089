"""Estimates of the KL divergence from sampled tokens."""

from typing import Any

from jaxtyping import Array, Float
import numpy as np


def estimate(logprobs: Float[Array | np.ndarray, '...'],
             ref_logprobs: Float[Array | np.ndarray, '...'], kind: str,
             clamp: float) -> Float[Array | np.ndarray, '...']:
  """Estimates KL(policy || reference) per token.

  With d = ref - policy, clipped to [-20, 20]: k1 is -d, k3 is e^d - d - 1,
  which is never negative. Either is clipped to [-clamp, clamp].

  Args:
    logprobs: of the sampled tokens under the policy.
    ref_logprobs: under the reference.
    kind: 'k1' or 'k3'.
    clamp: nats per token.
  """
  xp: Any = logprobs.__array_namespace__()  # numpy, or jax.numpy
  d = xp.clip(ref_logprobs - logprobs, -20.0, 20.0)
  value = -d if kind == 'k1' else xp.exp(d) - d - 1.0
  return xp.clip(value, -clamp, clamp)
