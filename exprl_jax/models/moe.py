"""A mixture of experts without dropped tokens."""

import functools

import jax
import jax.numpy as jnp

from exprl_jax.models.config import ModelConfig
from exprl_jax.runtime import mesh as mesh_lib


def mixture(cfg: ModelConfig, x: jax.Array, router: jax.Array, gate: jax.Array,
            up: jax.Array, down: jax.Array, activation) -> jax.Array:
  """Each token's chosen experts, weighted by the router.

  The router runs in float32. On a mesh every device of the 'expert' axis has
  some experts whole, sees the tokens of all of them, and the parts are summed.

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
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return run((), (), x, weight, expert, gate, up, down)
  wide = mesh_lib.spec(('experts', None, 'mlp'), gate.shape, mesh)
  tall = mesh_lib.spec(('experts', 'mlp', None), down.shape, mesh)
  rows = mesh_lib.spec(('batch_of_experts', None, None), x.shape, mesh)
  expert_axes, mlp_axes = (mesh_lib.axes_of(wide[i]) for i in (0, 2))
  return jax.shard_map(functools.partial(run, expert_axes, mlp_axes),
                       in_specs=(rows, rows, rows, wide, wide, tall),
                       out_specs=rows, check_vma=False)(x, weight, expert, gate,
                                                        up, down)


def _experts(activation, expert_axes, mlp_axes, x, weight, expert, gate, up,
             down):
  """The experts of this device on its rows: sorted by expert, in groups."""
  b, t, d = x.shape
  here, k = gate.shape[0], expert.shape[-1]
  first = jax.lax.axis_index(expert_axes) * here if expert_axes else 0
  local = expert.reshape(-1) - first
  mine = (local >= 0) & (local < here)
  order = jnp.argsort(jnp.where(mine, local, here))  # others come last
  rows = x.reshape(-1, d)[order // k]
  sizes = jnp.bincount(jnp.where(mine, local, here), length=here + 1)[:here]
  sizes = sizes.astype(jnp.int32)
  dot = functools.partial(
      jax.lax.ragged_dot, group_sizes=sizes,
      precision='highest' if x.dtype == jnp.float32 else None)
  # What ragged_dot leaves in rows of no group is not defined: mask it.
  ours = mine[order][:, None]
  y = jnp.where(ours, activation(dot(rows, gate)) * dot(rows, up), 0.0)
  y = dot(y, down, preferred_element_type=jnp.float32)
  y = jnp.where(ours, y, 0.0)
  y *= weight.reshape(-1)[order][:, None]
  out = jnp.zeros((b * t, d), jnp.float32).at[order // k].add(y)
  if axes := (*expert_axes, *mlp_axes):
    out = jax.lax.psum(out, axes)
  return out.reshape(b, t, d).astype(x.dtype)
