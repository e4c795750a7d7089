"""What may stand in for the array of a matrix, and the product with any of it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


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

  base: jax.Array  # [*in, *out]
  a: jax.Array  # [in, rank]
  b: jax.Array  # [rank, out]

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the matrix."""
    return self.base.shape

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


def dense(x: jax.Array, w: jax.Array | Adapted,
          precision: jax.lax.PrecisionLike = None) -> jax.Array:
  """Multiplies x[..., D] by w[D, ...].

  Both are flattened to matrices, which XLA:CPU multiplies twice as fast.
  float32 means float32: TPUs and GPUs would round it by default.
  """
  if precision is None and x.dtype == jnp.float32:
    precision = jax.lax.Precision.HIGHEST
  if isinstance(w, Adapted):  # the base gets no gradient
    return dense(x, jax.lax.stop_gradient(w.base), precision) + dense(
        dense(x, w.a, precision), w.b, precision).reshape(
            *x.shape[:-1], *w.shape[1:])
  out = jax.lax.dot(x.reshape(-1, x.shape[-1]), w.reshape(w.shape[0], -1),
                    precision=precision)
  return out.reshape(*x.shape[:-1], *w.shape[1:])
