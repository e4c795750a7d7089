"""The update: from experience to new parameters.

The host lays a batch out in packed micro-batches; programs do the rest.
`gradient` adds the gradient of one micro-batch to a total, `apply_gradient`
takes the optimiser step. As they are apart, the number of micro-batches may
change from step to step without a new compilation, and the optimiser's moments
need not be on the devices while gradients are computed (optim.offload).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax

from exprl_jax.config import Config, Loss, Optim, longest
from exprl_jax.models import lora, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.rl import losses, packing
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import Experience, TrainState


def optimizer(cfg: Optim, total_steps: int) -> optax.GradientTransformation:
  """AdamW behind a global-norm clip."""

  def matrices(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not path[-1].key.endswith(('norm', 'bias')), params)

  return optax.chain(
      optax.clip_by_global_norm(cfg.clip_norm),
      optax.adamw(learning_rate(cfg, total_steps), cfg.b1, cfg.b2, cfg.eps,
                  weight_decay=cfg.weight_decay, mu_dtype=cfg.moments,
                  mask=matrices if cfg.decay == 'matrices' else None))


def learning_rate(cfg: Optim, total_steps: int) -> optax.Schedule:
  """Linear warm-up, then constant, or to 0 at `total_steps`."""
  left = max(total_steps - cfg.warmup_steps, 1)
  then = {
      'constant': optax.constant_schedule(cfg.lr),
      'linear': optax.linear_schedule(cfg.lr, 0.0, left),
      'cosine': optax.cosine_decay_schedule(cfg.lr, left)
  }[cfg.schedule]
  warm = optax.linear_schedule(0.0, cfg.lr, max(cfg.warmup_steps, 1))
  return optax.join_schedules([warm, then], [cfg.warmup_steps])


def init_state(params, cfg: Optim, total_steps: int) -> TrainState:
  """Step 0. The moments are sharded as the parameters are, counts are on all
  devices of their mesh. Updates donate the state, so `params` goes with it.
  """
  tx = optimizer(cfg, total_steps)
  state = TrainState(jnp.int32(0), jnp.int32(0), params, tx.init(params))
  sharding = jax.tree.leaves(params)[0].sharding
  if isinstance(sharding, NamedSharding):
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    state = jax.tree.map(
        lambda x: jax.device_put(x, everywhere) if x.ndim == 0 else x, state)
  return rest(state) if cfg.offload else state


def rest(state: TrainState) -> TrainState:
  """The state with its moments in host memory."""
  return _moved(state, 'pinned_host')


def _moved(state: TrainState, kind: str) -> TrainState:
  return state._replace(opt_state=jax.tree.map(
      lambda x: jax.device_put(x, x.sharding.with_memory_kind(kind))
      if x.ndim else x, state.opt_state))


def apply_gradient(state: TrainState, gradient, cfg: Optim,
                   total_steps: int) -> tuple[TrainState, dict[str, jax.Array]]:
  """One optimiser step; a gradient that is not finite is skipped, counted."""
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


_apply = jax.jit(apply_gradient, static_argnums=(2, 3), donate_argnums=0)


@functools.partial(
    jax.jit, static_argnames=('model', 'cfg', 'temperature', 'fresh', 'scale'),
    donate_argnames=('total',))
def gradient(model: ModelConfig, params, batch: Experience, cfg: Loss, *,
             temperature: float, fresh: bool = True, frozen=None,
             scale: float = 0.0, total=None):
  """The gradient of a micro-batch's loss, added to `total`.

  Args:
    model: the policy.
    params: what is trained: its parameters, or adapters.
    batch: packed rows [R, L]; weights make the micro-batches' losses add up.
    cfg: the loss; kind 'nll' is supervised.
    temperature: of the rollout; logits are divided by it here too.
    fresh: nothing was updated since the rollout: the policy before the update
      is the one in it, stop_gradient(logprobs).
    frozen: the parameters under the adapters, or the teacher of 'exact_kl'.
    scale: of the adapters; 0: there are none.
    total: what this returned for other micro-batches, donated.

  Returns:
    (gradient like params, sums over tokens, largest values): `summary` makes
    metrics of the latter two.
  """

  def loss_of(params):
    whole = lora.attach(frozen, params, scale) if scale else params
    hidden = losses.hidden_states(model, whole, batch.tokens, batch.segment_ids)
    lp, entropy = losses.read(model, whole, hidden, batch.tokens,
                              batch.segment_ids, temperature, cfg.logprob_chunk,
                              train_head=not scale)
    if cfg.kind == 'nll':
      loss = losses.nll(lp, batch.weight)
      return loss, ({'sft/loss': loss}, {})
    old = jax.lax.stop_gradient(lp) if fresh else batch.old_logprobs
    loss, logs = losses.policy_loss(lp, entropy,
                                    batch._replace(old_logprobs=old), cfg)
    if cfg.kind == 'exact_kl':
      kl = losses.exact_kl(
          model, whole, hidden,
          losses.hidden_states(model, frozen, batch.teacher_tokens,
                               batch.teacher_ids), frozen, batch.segment_ids,
          temperature, cfg.logprob_chunk, train_head=not scale)
      loss = jnp.sum(batch.weight * kl)
      logs[0]['policy/loss'] = loss
    return loss, logs

  grads, (sums, largest) = jax.grad(loss_of, has_aux=True)(params)
  if not scale:  # or the compiler may give each device all of every gradient
    grads = jax.tree.map(lambda axes, g: mesh_lib.constrain(g, *axes),
                         transformer.logical_axes(model), grads,
                         is_leaf=lambda x: isinstance(x, tuple))
  if total is not None:
    grads, sums = jax.tree.map(jnp.add, total[:2], (grads, sums))
    largest = jax.tree.map(jnp.maximum, total[2], largest)
  return grads, sums, largest


def summary(sums, largest) -> dict[str, float]:
  """Metrics of one update: means over its trained tokens."""
  sums = {k: float(v) for k, v in sums.items()}
  out = {k: float(v) for k, v in largest.items()}
  whole = {k: sums.pop(k) for k in ('policy/loss', 'sft/loss') if k in sums}
  n = max(sums.pop('tokens', 1.0), 1.0)
  out |= whole | {k: v / n for k, v in sums.items()}
  if 'mismatch/ratio' in out:  # effective share of the samples
    out['mismatch/is_ess'] = out['mismatch/ratio']**2 / max(
        out.pop('mismatch/ratio_square'), 1e-9)
  return out


def micro_rows(cfg: Optim, mesh: jax.sharding.Mesh) -> int:
  """Rows of a micro-batch on a mesh."""
  return cfg.micro_rows * mesh_lib.batch_parts(mesh)


def plan(valid: np.ndarray, config: Config,
         mesh: jax.sharding.Mesh) -> packing.Packing:
  """How sequences are packed: in the same shapes at every step."""
  return packing.plan(valid, config.optim.row_tokens or longest(config),
                      micro_rows(config.optim, mesh))


def update(config: Config, model: ModelConfig, state: TrainState,
           batch: Experience, mesh: jax.sharding.Mesh, group_size: int,
           frozen=None) -> tuple[TrainState, dict[str, float]]:
  """Takes `optim.updates` optimiser steps on a batch, whole groups together.

  Args:
    config: its loss, optim, rollout and policy.
    model: the policy.
    state: donated.
    batch: numpy arrays [B, T]; rows of a group are neighbours; weight > 0 is
      what trains.
    mesh: to train on.
    group_size: G.
    frozen: see `gradient`.

  Returns:
    The new state, and metrics averaged over the updates.

  Raises:
    RuntimeError: optim.max_skipped gradients in a row were not finite.
  """
  cfg, groups = config.optim, len(batch.tokens) // group_size
  total_steps, metrics = config.steps * cfg.updates, []
  for i in range(min(cfg.updates, groups)):
    rows = np.flatnonzero(
        np.arange(groups * group_size) // group_size % cfg.updates == i)
    part = jax.tree.map(lambda x, rows=rows: x[rows], batch)
    grads, logged = whole_gradient(config, model, state.params, part, mesh,
                                   frozen)
    state = _moved(state, 'device') if cfg.offload else state
    with jax.set_mesh(mesh):
      state, values = _apply(state, grads, cfg, total_steps)
    state = rest(state) if cfg.offload else state
    metrics.append(logged | jax.tree.map(float, values))
  if int(state.skipped) >= cfg.max_skipped:
    raise RuntimeError(
        f'{int(state.skipped)} gradients in a row were not finite (optim.'
        'max_skipped); look at mismatch/* and policy/ratio_max in metrics.'
        'jsonl. The last checkpoint is sound: start from it in a fresh workdir '
        '(policy.init=WORKDIR@STEP) with a lower optim.lr')
  return state, {
      k: math.fsum(m[k]
                   for m in metrics) / len(metrics)
      for k in (metrics[0] if metrics else {})
  }


def whole_gradient(config: Config, model: ModelConfig, params,
                   batch: Experience, mesh: jax.sharding.Mesh, frozen=None):
  """The gradient of one optimiser step, and metrics; arguments as `update`."""
  batch = batch._replace(weight=losses.token_weights(
      batch.weight > 0, config.loss.aggregation, config.rollout.max_new_tokens))
  layout, micro_batches = laid_out(batch, config, mesh)
  total = None
  with jax.set_mesh(mesh):
    for micro in micro_batches:
      total = gradient(model, params, micro, config.loss, frozen=frozen,
                       total=total, temperature=config.rollout.temperature
                       or 1.0, fresh=config.optim.updates == 1,
                       scale=lora.scale(config.policy))
  return total[0], summary(*total[1:]) | {'perf/packing_fill': layout.fill}


def laid_out(batch: Experience, config: Config, mesh: jax.sharding.Mesh):
  """The packing of a batch, and its micro-batches on the mesh, one by one.

  Every micro-batch has rows on all devices, so that none waits for another.
  """
  valid = batch.segment_ids > 0
  if batch.teacher_ids is not None:
    valid = valid | (batch.teacher_ids > 0)
  layout = plan(valid, config, mesh)
  packed = Experience(*(x if x is None else layout.pack(x) for x in batch))
  packed = packed._replace(segment_ids=layout.segment_ids(
      batch.segment_ids > 0))
  if batch.teacher_ids is not None:
    packed = packed._replace(teacher_ids=layout.segment_ids(
        batch.teacher_ids > 0))
  return layout, (mesh_lib.shard_rows(jax.tree.map(lambda x, i=i: x[i], packed),
                                      mesh)
                  for i in range(layout.micro_batches))


def logprobs(model: ModelConfig, params, tokens: np.ndarray, valid: np.ndarray,
             config: Config, mesh: jax.sharding.Mesh,
             frozen=None) -> np.ndarray:
  """Log-probabilities f32[B, T] of host arrays [B, T], without a gradient."""
  layout = plan(valid, config, mesh)
  rows = zip(layout.pack(tokens), layout.segment_ids(valid))
  scale = lora.scale(config.policy) if frozen is not None else 0.0
  with jax.set_mesh(mesh):
    out = [
        _logprobs(model, params, *mesh_lib.shard_rows(row, mesh), frozen, scale,
                  config.rollout.temperature or 1.0, config.loss.logprob_chunk)
        for row in rows
    ]
  return layout.unpack([mesh_lib.fetch(x) for x in out], tokens)


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def _logprobs(model, params, tokens, segment_ids, frozen, scale, temperature,
              chunk):
  whole = lora.attach(frozen, params, scale) if scale else params
  return losses.token_logprobs(model, whole, tokens, segment_ids, temperature,
                               chunk)[0]
