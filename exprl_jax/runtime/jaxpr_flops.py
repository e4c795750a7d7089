"""Counts the multiplications of matrices in a traced program."""

import math
from typing import Any

import jax


def count(jaxpr: Any, unknown_trips: float = 1.0) -> float:
  """Adds up the floating-point operations of all matrix products.

  A product of [m, k] and [k, n] is 2 m k n. Loops count as often as they run,
  of a `cond` the cheapest branch (the others are rare: truncated sampling),
  Pallas kernels not at all: how much of their grid they skip is not in the
  program.

  Args:
    jaxpr: of `jax.jit(f).trace(...)`, of all devices together.
    unknown_trips: of `while` loops, whose number of trips is not known; loops
      inside of them count once.
  """
  return sum(_count_equation(eqn, unknown_trips) for eqn in jaxpr.eqns)


def _count_equation(eqn: Any, trips: float) -> float:
  name, params = eqn.primitive.name, eqn.params
  if name == 'dot_general':
    return _dot(eqn)
  if name == 'ragged_dot_general' or name == 'ragged_dot':
    rows, inputs = eqn.invars[0].aval.shape
    return 2.0 * rows * inputs * eqn.outvars[0].aval.shape[-1]
  if name == 'pallas_call':
    return 0.0
  if name == 'scan':
    return params['length'] * count(_inner(params['jaxpr']), trips)
  if name == 'while':
    return trips * count(_inner(params['body_jaxpr']), 1.0)
  if name == 'cond':
    return min(count(_inner(b), trips) for b in params['branches'])
  times = 1.0
  if name == 'shard_map':  # its shapes are those of one device
    times = params['mesh'].size
  return times * sum(
      count(_inner(x), trips)
      for x in jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr)
      if _is_jaxpr(x))


def _dot(eqn: Any) -> float:
  (contract, _), _ = eqn.params['dimension_numbers']
  left = eqn.invars[0].aval.shape
  return (2.0 * math.prod(eqn.outvars[0].aval.shape) *
          math.prod(left[i] for i in contract))


def _is_jaxpr(x: Any) -> bool:
  return hasattr(_inner(x), 'eqns')


def _inner(x: Any) -> Any:
  """The jaxpr of a ClosedJaxpr."""
  return getattr(x, 'jaxpr', x)
