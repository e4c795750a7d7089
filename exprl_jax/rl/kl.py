"""Estimates of the KL divergence from sampled tokens."""

from typing import Any

import jax
from jaxtyping import Array, Float
import numpy as np


def estimate(logprobs: Float[Array | np.ndarray, '...'],
             ref_logprobs: Float[Array | np.ndarray, '...'], kind: str,
             clamp: float) -> Float[Array | np.ndarray, '...']:
  """Estimates KL(policy || reference) per token.

  With d = ref - policy, clipped to [-20, 20]: k1 is -d, k2 is d^2 / 2, k3 is
  e^d - d - 1; the latter two are never negative. All are clipped to [-clamp,
  clamp]. As a term of the loss, what counts is the gradient: that of k2 is an
  unbiased estimate of the gradient of the KL, that of k3 is not, and that of k1
  is 0 on average (arXiv 2510.01555). 'k3+' has the value of k3 and the gradient
  of k2.

  Args:
    logprobs: of the sampled tokens under the policy.
    ref_logprobs: under the reference.
    kind: 'k1', 'k2', 'k3' or 'k3+'.
    clamp: nats per token.
  """
  xp: Any = logprobs.__array_namespace__()  # numpy, or jax.numpy
  d = xp.clip(ref_logprobs - logprobs, -20.0, 20.0)
  square, bregman = d * d / 2, xp.exp(d) - d - 1.0
  value = {'k1': -d, 'k2': square}.get(kind, bregman)
  value = xp.clip(value, -clamp, clamp)
  if kind == 'k3+' and xp is not np:
    square = xp.clip(square, -clamp, clamp)
    value = square + jax.lax.stop_gradient(value - square)
  return value
