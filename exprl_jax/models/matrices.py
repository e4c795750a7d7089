"""What may stand in for the array of a matrix, and the product with any of it.
"""

import dataclasses
import functools

import jax
from jax.experimental.layout import Layout, with_layout_constraint
import jax.numpy as jnp
from jax.typing import DTypeLike

from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
  """A matrix in eight bits: values * scale (quantization.py)."""

  values: jax.Array  # i8, the matrix's shape
  scale: jax.Array  # f32, one per output channel; input axes have size 1

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the matrix."""
    return self.values.shape

  def astype(self, dtype: DTypeLike) -> jax.Array:
    """Returns the matrix as an array."""
    return (self.values.astype(jnp.float32) * self.scale).astype(dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
  """A frozen matrix with a low-rank adapter: base + a b (lora.py)."""

  base: jax.Array  # [*in, *out]; may be Int8 until `astype`
  a: jax.Array  # [in, rank]
  b: jax.Array  # [rank, out]

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the matrix."""
    return self.base.shape

  @property
  def dtype(self) -> jnp.dtype:
    """The type of the matrix."""
    return self.base.dtype

  def astype(self, dtype: DTypeLike) -> 'Adapted':
    """Converts all three arrays."""
    return Adapted(self.base.astype(dtype), self.a.astype(dtype),
                   self.b.astype(dtype))

  def reshape(self, *shape: int) -> 'Adapted':
    """Reshapes the matrix; the adapter has only one shape."""
    return dataclasses.replace(self, base=self.base.reshape(*shape))

  def __getitem__(self, index: object) -> 'Adapted':
    """Returns itself: a flax variable is read as `variable[...]`."""
    return self


def is_int8(params: Params) -> bool:
  """Whether the layers' matrices are in int8, under adapters or not."""
  q = params['layers']['q']
  return isinstance(q.base if isinstance(q, Adapted) else q, Int8)


def dense(x: jax.Array, w: jax.Array | Adapted,
          precision: jax.lax.PrecisionLike = None) -> jax.Array:
  """Multiplies x[..., D] by w[D, ...].

  Both are flattened to matrices, which XLA:CPU multiplies twice as fast.
  float32 means float32: TPUs and GPUs would round it by default.
  """
  if precision is None and x.dtype == jnp.float32:
    precision = jax.lax.Precision.HIGHEST
  rows = x.reshape(-1, x.shape[-1])
  dot = functools.partial(jax.lax.dot, precision=precision)
  narrow = x.dtype == w.dtype == jnp.bfloat16 and mesh_lib.platform() == 'cpu'
  if isinstance(w, Adapted):
    # Summed in float32: of a product that is rounded already, a small change
    # would be lost. TPUs may round within `low`, by a share of the change
    # alone. The base gets no gradient.
    dot32 = functools.partial(dot, preferred_element_type=jnp.float32)
    base = jax.lax.stop_gradient(w.base).reshape(w.shape[0], -1)
    low = dot(dot32(rows, w.a), w.b.astype(jnp.float32))
    out = (_narrow_dot if narrow else dot32)(rows, base) + low
    out = out.astype(x.dtype)
  elif narrow:
    out = _narrow_dot(rows, w.reshape(w.shape[0], -1)).astype(x.dtype)
  else:
    out = dot(rows, w.reshape(w.shape[0], -1))
  return out.reshape(*x.shape[:-1], *w.shape[1:])


@jax.custom_vjp
def _narrow_dot(x: jax.Array, w: jax.Array) -> jax.Array:
  """f32[R, N] of bf16[R, D] and bf16[D, N], for CPUs.

  XLA:CPU multiplies bfloat16 at twice the rate of float32, on cores that have
  such instructions, only where the product is float32 and the left matrix is
  not a transposed one; otherwise it converts both to float32.
  """
  return jax.lax.dot(x, w, preferred_element_type=jnp.float32)


def _narrow_forward(
    x: jax.Array,
    w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _narrow_dot(x, w), (x, w)


def _narrow_backward(saved: tuple[jax.Array, jax.Array],
                     g: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Gradients in bfloat16, as those of a product in bfloat16 are."""
  x, w = saved
  g = g.astype(jnp.bfloat16)
  to_x = jax.lax.dot_general(g, w, (((1,), (1,)), ((), ())),
                             preferred_element_type=jnp.float32)
  to_w = _narrow_dot(with_layout_constraint(x.T, Layout((0, 1))), g)
  return to_x.astype(x.dtype), to_w.astype(w.dtype)


_narrow_dot.defvjp(_narrow_forward, _narrow_backward)
