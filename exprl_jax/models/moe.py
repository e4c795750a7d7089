"""A mixture of experts without dropped tokens."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from exprl_jax.models.config import ModelConfig
from exprl_jax.runtime import mesh as mesh_lib

Activation = Callable[[jax.Array], jax.Array]


def mixture(cfg: ModelConfig, x: Float[Array, 'B T D'],
            router: Float[Array, 'D E'], gate: Float[Array, 'E D F'],
            up: Float[Array, 'E D F'], down: Float[Array, 'E F D'],
            activation: Activation) -> Float[Array, 'B T D']:
  """Sums each token's chosen experts, weighted by the router.

  The router runs in float32. On a mesh each device of the 'expert' axis holds
  some of the experts and runs them on the tokens of that axis; their outputs
  are then summed.

  Args:
    cfg: `experts_per_token` and `norm_topk`.
    x: [B, T, D].
    router: f32[D, E].
    gate: [E, D, F].
    up: [E, D, F].
    down: [E, F, D].
    activation: of the gate.

  Returns:
    [B, T, D] in x's dtype.
  """
  logits = jnp.einsum('btd,de->bte', x.astype(jnp.float32), router,
                      precision=jax.lax.Precision.HIGHEST)
  weight, expert = jax.lax.top_k(jax.nn.softmax(logits, axis=-1),
                                 cfg.experts_per_token)
  if cfg.norm_topk:
    weight /= weight.sum(axis=-1, keepdims=True)
  run = functools.partial(_experts, activation)
  mesh: Any = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return run((), (), x, weight, expert, gate, up, down)
  wide = mesh_lib.spec(('experts', None, 'mlp'), gate.shape, mesh)
  tall = mesh_lib.spec(('experts', 'mlp', None), down.shape, mesh)
  rows = mesh_lib.spec(('batch_of_experts', None, None), x.shape, mesh)
  expert_axes = mesh_lib.split_axes('experts', gate.shape[0], mesh)
  mlp_axes = mesh_lib.split_axes('mlp', gate.shape[2], mesh)
  return jax.shard_map(functools.partial(run, expert_axes, mlp_axes),
                       in_specs=(rows, rows, rows, wide, wide, tall),
                       out_specs=rows, check_vma=False)(x, weight, expert, gate,
                                                        up, down)


def _experts(activation: Activation, expert_axes: tuple[str, ...],
             mlp_axes: tuple[str, ...], x: jax.Array, weight: jax.Array,
             expert: jax.Array, gate: jax.Array, up: jax.Array,
             down: jax.Array) -> jax.Array:
  """Runs this device's experts on its rows, sorted by expert, in groups.

  With C = B * T * experts_per_token choices of the device's tokens:

    x [B, T, D] -> rows [C, D], by expert -> y [C, D] -> summed [B, T, D]
  """
  b, t, d = x.shape
  num_local, k = gate.shape[0], expert.shape[-1]
  # 1. Sort the choices by expert. Those of other devices' experts come last.
  first = jax.lax.axis_index(expert_axes) * num_local if expert_axes else 0
  local = expert.reshape(-1) - first
  is_local = (local >= 0) & (local < num_local)
  group = jnp.where(is_local, local, num_local)
  order = jnp.argsort(group)
  rows = x.reshape(-1, d)[order // k]
  sizes = jnp.bincount(group, length=num_local + 1)[:num_local]
  sizes = sizes.astype(jnp.int32)
  # 2. Each expert's MLP on its group of rows.
  dot = functools.partial(
      jax.lax.ragged_dot, group_sizes=sizes,
      precision='highest' if x.dtype == jnp.float32 else None)
  # ragged_dot does not define the rows that are in no group: mask them.
  in_group = is_local[order][:, None]
  y = jnp.where(in_group, activation(dot(rows, gate)) * dot(rows, up), 0.0)
  y = dot(y, down, preferred_element_type=jnp.float32)
  y = jnp.where(in_group, y, 0.0)
  y *= weight.reshape(-1)[order][:, None]
  # 3. Add up each token's choices, then the devices' parts.
  out = jnp.zeros((b * t, d), jnp.float32).at[order // k].add(y)
  if axes := (*expert_axes, *mlp_axes):
    out = jax.lax.psum(out, axes)
  return out.reshape(b, t, d).astype(x.dtype)
