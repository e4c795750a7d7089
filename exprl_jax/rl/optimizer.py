"""AdamW on sharded parameters, its schedule, and moments in host memory."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import optax

from exprl_jax.config import Optim
from exprl_jax.types import Params, TrainState


def optimizer(cfg: Optim, total_steps: int) -> optax.GradientTransformation:
  """AdamW behind a global-norm clip."""

  def matrices(params: Params) -> Params:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not path[-1].key.endswith(('norm', 'bias')), params)

  return optax.chain(
      optax.clip_by_global_norm(cfg.clip_norm),
      optax.adamw(learning_rate(cfg, total_steps), cfg.b1, cfg.b2, cfg.eps,
                  weight_decay=cfg.weight_decay, mu_dtype=cfg.mu_dtype,
                  mask=matrices if cfg.decay == 'matrices' else None))


def learning_rate(cfg: Optim, total_steps: int) -> optax.Schedule:
  """Linear warm-up, then constant, or to 0 at `total_steps`."""
  decay_steps = max(total_steps - cfg.warmup_steps, 1)
  after = {
      'constant': optax.constant_schedule(cfg.lr),
      'linear': optax.linear_schedule(cfg.lr, 0.0, decay_steps),
      'cosine': optax.cosine_decay_schedule(cfg.lr, decay_steps)
  }[cfg.schedule]
  warmup = optax.linear_schedule(0.0, cfg.lr, max(cfg.warmup_steps, 1))
  return optax.join_schedules([warmup, after], [cfg.warmup_steps])


def init_state(params: Params, cfg: Optim, total_steps: int) -> TrainState:
  """The state at step 0.

  Moments are sharded as the parameters are, counts are replicated on their
  mesh. Updates donate the state, so `params` goes with it.
  """
  tx = optimizer(cfg, total_steps)
  state = TrainState(jnp.int32(0), jnp.int32(0), params, tx.init(params))
  sharding = jax.tree.leaves(params)[0].sharding
  if isinstance(sharding, NamedSharding):
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    state = jax.tree.map(
        lambda x: jax.device_put(x, replicated) if x.ndim == 0 else x, state)
  return offload(state) if cfg.offload else state


def offload(state: TrainState) -> TrainState:
  """Moves the moments to host memory."""
  return _move_moments(state, 'pinned_host')


def onload(state: TrainState) -> TrainState:
  """Moves the moments to the devices."""
  return _move_moments(state, 'device')


def _move_moments(state: TrainState, memory_kind: str) -> TrainState:
  return state._replace(opt_state=jax.tree.map(
      lambda x: jax.device_put(x, x.sharding.with_memory_kind(memory_kind))
      if x.ndim else x, state.opt_state))


def apply_gradient(state: TrainState, gradient: Params, cfg: Optim,
                   total_steps: int) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes one optimizer step; skips and counts a gradient that is not finite.
  """
  tx = optimizer(cfg, total_steps)
  norm = optax.tree.norm(gradient)
  updates, opt_state = tx.update(gradient, state.opt_state, state.params)
  new = TrainState(state.step + 1, jnp.zeros_like(state.skipped),
                   optax.apply_updates(state.params, updates), opt_state)
  finite = jnp.isfinite(norm)
  rate = learning_rate(cfg, total_steps)(state.step)
  state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new,
                       state._replace(skipped=state.skipped + 1))
  return state, {
      'optim/grad_norm': norm, 'optim/lr': rate,
      'optim/skipped_steps': 1.0 - finite
  }
