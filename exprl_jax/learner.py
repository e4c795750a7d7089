"""The update: from experience to new parameters."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import optax

from exprl_jax import losses
from exprl_jax.config import Loss, Optim
from exprl_jax.models.config import ModelConfig
from exprl_jax.types import Experience, TrainState


def optimizer(cfg: Optim, total_steps: int) -> optax.GradientTransformation:
  """AdamW behind a global-norm clip; fp32, decay on all parameters."""
  return optax.chain(
      optax.clip_by_global_norm(cfg.clip_norm),
      optax.adamw(learning_rate(cfg, total_steps), cfg.b1, cfg.b2, cfg.eps,
                  weight_decay=cfg.weight_decay))


def learning_rate(cfg: Optim, total_steps: int) -> optax.Schedule:
  """Linear warm-up, then constant or cosine to 0 at `total_steps`."""
  if cfg.schedule == 'cosine':
    return optax.warmup_cosine_decay_schedule(
        0.0 if cfg.warmup_steps else cfg.lr, cfg.lr, cfg.warmup_steps,
        max(total_steps, cfg.warmup_steps + 1))
  return optax.join_schedules(
      [optax.linear_schedule(0.0, cfg.lr, max(cfg.warmup_steps, 1)),
       optax.constant_schedule(cfg.lr)], [cfg.warmup_steps])


def init_state(params, cfg: Optim, total_steps: int) -> TrainState:
  """Step 0. The moments are sharded as the parameters are, counts are on all
  devices of their mesh. Updates donate the state, so `params` goes with it.
  """
  tx = optimizer(cfg, total_steps)
  state = TrainState(jnp.int32(0), params, tx.init(params))
  sharding = jax.tree.leaves(params)[0].sharding
  if not isinstance(sharding, NamedSharding):
    return state
  everywhere = NamedSharding(sharding.mesh, PartitionSpec())
  return jax.tree.map(
      lambda x: jax.device_put(x, everywhere) if x.ndim == 0 else x, state)


def apply_gradient(state: TrainState, gradient, cfg: Optim, total_steps: int
                   ) -> tuple[TrainState, dict[str, jax.Array]]:
  """One optimiser step; a gradient that is not finite is skipped, counted."""
  tx = optimizer(cfg, total_steps)
  norm = optax.tree.norm(gradient)
  updates, opt_state = tx.update(gradient, state.opt_state, state.params)
  new = TrainState(state.step + 1, optax.apply_updates(state.params, updates),
                   opt_state)
  finite = jnp.isfinite(norm)
  state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new,
                       state._replace(step=state.step + 1))
  return state, {'optim/grad_norm': norm,
                 'optim/lr': learning_rate(cfg, total_steps)(state.step - 1),
                 'optim/skipped_steps': 1.0 - finite}


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6))
def logprobs(model: ModelConfig, params, tokens: jax.Array, valid: jax.Array,
             temperature: float, chunk: int, micro_batches: int) -> jax.Array:
  """Log-probabilities f32[B, T] without a gradient, by micro-batches."""
  def one(inputs):
    return losses.token_logprobs(model, params, *inputs, temperature, chunk)[0]
  if micro_batches == 1:
    return one((tokens, valid))
  out = jax.lax.map(one, strided((tokens, valid), micro_batches))
  return out.swapaxes(0, 1).reshape(tokens.shape)


def accumulate(f, parts):
  """The sum of f over the leading axis of `parts`, one part at a time."""
  first = jax.tree.map(lambda x: x[0], parts)
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                      jax.eval_shape(f, first))
  add = lambda total, part: (jax.tree.map(jnp.add, total, f(part)), None)
  return jax.lax.scan(add, zero, parts)[0]


def strided(tree, n: int):
  """[B, ...] -> [n, B / n, ...], taking every n-th row.

  Blocks of rows would put each micro-batch on a part of the devices only.
  """
  return jax.tree.map(
      lambda x: x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1),
      tree)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6, 7),
                   donate_argnums=(1,))
def update(model: ModelConfig, state: TrainState, batch: Experience,
           loss_cfg: Loss, cfg: Optim, temperature: float, group_size: int,
           total_steps: int) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes `cfg.updates` optimiser steps on a batch, whole groups together.

  Args:
    model: the policy.
    state: donated.
    batch: B rows; rows of a group are neighbours.
    loss_cfg: clips and KL.
    cfg: the optimiser.
    temperature: of the rollout; logits are divided by it here too.
    group_size: G.
    total_steps: of the schedule, in optimiser steps.

  Returns:
    The new state, and metrics averaged over the updates.
  """
  def micro(params, rows, num_tokens):
    lp, entropy = losses.token_logprobs(
        model, params, rows.tokens, rows.valid, temperature,
        loss_cfg.logprob_chunk)
    if cfg.updates == 1:  # the policy before the update is this one
      rows = rows._replace(old_logprobs=jax.lax.stop_gradient(lp))
    loss, sums = losses.policy_gradient(
        lp, rows, num_tokens, clip_low=loss_cfg.clip_low,
        clip_high=loss_cfg.clip_high, dual_clip=loss_cfg.dual_clip,
        kl_coef=loss_cfg.kl_coef)
    gap = jnp.abs(rows.old_logprobs - rows.sampler_logprobs)
    sums |= {'policy/entropy': jnp.sum(entropy, where=rows.loss_mask),
             'mismatch/logprob_abs_diff': jnp.sum(gap, where=rows.loss_mask)}
    return loss, sums

  def one_update(state, rows):
    num_tokens = jnp.maximum(rows.loss_mask.sum(), 1)
    grad = jax.grad(micro, has_aux=True)

    gradient, sums = accumulate(
        lambda part: grad(state.params, part, num_tokens),
        strided(rows, cfg.micro_batches))
    metrics = {k: v / num_tokens for k, v in sums.items()}
    state, more = apply_gradient(state, gradient, cfg, total_steps)
    return state, metrics | more

  groups = jax.tree.map(
      lambda x: x.reshape(-1, group_size, *x.shape[1:]), batch)
  groups = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]),
                        strided(groups, cfg.updates))
  state, metrics = jax.lax.scan(one_update, state, groups)
  return state, jax.tree.map(jnp.mean, metrics)
