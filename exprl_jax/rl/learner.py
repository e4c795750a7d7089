"""The update: from examples to new parameters.

The host packs examples into micro-batches; two programs do the rest.
`gradient` adds the gradient of one micro-batch to a total, `apply_gradient`
takes the optimizer step. As they are apart, the number of micro-batches may
change from step to step without a new compilation, and the optimizer's moments
need not be on the devices while gradients are computed (optim.offload).
"""

from collections.abc import Iterator, Sequence
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax.config import Config, Loss
from exprl_jax.models import head, head_kl, lora, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.rl import losses, packing
from exprl_jax.rl.experience import Example
from exprl_jax.rl.optimizer import apply_gradient, offload, onload
from exprl_jax.rl.policy import Policy
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import PackedBatch, Params, RunFailure, TrainState

apply = jax.jit(apply_gradient, static_argnums=(2, 3), donate_argnums=0)


class Gradient(NamedTuple):
  """The gradient of some micro-batches, and what is logged of them."""

  gradient: Params  # like the parameters that train
  sums: dict[str, jax.Array]  # over tokens
  largest: dict[str, jax.Array]


@functools.partial(
    jax.jit,
    static_argnames=('model', 'cfg', 'temperature', 'on_policy', 'lora_scale'),
    donate_argnames=('total',), keep_unused=True)
def gradient(model: ModelConfig, params: Params, batch: PackedBatch, cfg: Loss,
             *, temperature: float, on_policy: bool = True,
             base_params: Params | None = None, lora_scale: float | None = None,
             total: Gradient | None = None, resident: Params = ()) -> Gradient:
  """The gradient of a micro-batch's loss, added to `total`.

  Args:
    model: the policy.
    params: what trains: its parameters, or adapters.
    batch: packed rows; their weights make the losses of micro-batches add up.
    cfg: the loss; kind 'nll' is supervised.
    temperature: of the rollout; logits are divided by it here, too.
    on_policy: nothing was updated since the rollout: the policy before the
      update is the one in it, stop_gradient(logprobs).
    base_params: the frozen parameters under the adapters, or the teacher of
      'exact_kl'.
    lora_scale: of the adapters; None: there are none.
    total: the result for other micro-batches, donated.
    resident: not read: what else is on the devices. The compiler takes all
      memory that it does not know to be taken.
  """
  del resident
  adapters = lora_scale is not None

  def loss_of(params: Params) -> tuple[jax.Array, tuple[dict, dict]]:
    full = params
    if lora_scale is not None:
      full = lora.attach(base_params, params, lora_scale)
    hidden = head.hidden_states(model, full, batch.tokens, batch.segment_ids)
    logprobs, entropy = head.logprobs_from_hidden(
        model, full, hidden, batch.tokens, batch.segment_ids, temperature,
        cfg.logprob_chunk, train_head=not adapters)
    if cfg.kind == 'nll':
      loss = losses.nll(logprobs, batch.loss_weight)
      return loss, ({'sft/loss': loss}, {})
    old = (jax.lax.stop_gradient(logprobs) if on_policy else batch.old_logprobs)
    loss, logs = losses.policy_loss(logprobs, entropy,
                                    batch._replace(old_logprobs=old), cfg)
    if losses.kind(cfg.kind).teacher:
      loss = _teacher_kl(model, full, hidden, batch, base_params, temperature,
                         cfg.logprob_chunk, not adapters)
      logs[0]['policy/loss'] = loss
    return loss, logs

  grads, (sums, largest) = jax.grad(loss_of, has_aux=True)(params)
  if not adapters:  # or the compiler may give each device all of every gradient
    grads = jax.tree.map(lambda axes, g: mesh_lib.constrain(g, *axes),
                         transformer.logical_axes(model), grads,
                         is_leaf=lambda x: isinstance(x, tuple))
  new = Gradient(grads, sums, largest)
  return new if total is None else _add(total, new)


def _add(total: Gradient, new: Gradient) -> Gradient:
  """Of more micro-batches."""
  grads, sums = jax.tree.map(jnp.add, (total.gradient, total.sums),
                             (new.gradient, new.sums))
  return Gradient(grads, sums,
                  jax.tree.map(jnp.maximum, total.largest, new.largest))


add = jax.jit(_add, donate_argnums=0)


def _teacher_kl(model: ModelConfig, params: Params, hidden: jax.Array,
                batch: PackedBatch, teacher: Params, temperature: float,
                chunk: int, train_head: bool) -> jax.Array:
  """The weighted KL(policy || teacher) over the vocabulary."""
  assert batch.teacher_tokens is not None
  assert batch.teacher_segment_ids is not None
  kl = head_kl.exact_kl(
      model, params, hidden,
      head.hidden_states(model, teacher, batch.teacher_tokens,
                         batch.teacher_segment_ids), teacher, batch.segment_ids,
      temperature, chunk, train_head=train_head)
  return jnp.sum(batch.loss_weight * kl)


def summary(total: Gradient) -> dict[str, float]:
  """Metrics of one update: means over the tokens that train."""
  sums = {k: float(v) for k, v in total.sums.items()}
  out = {k: float(v) for k, v in total.largest.items()}
  weighted = {k: sums.pop(k) for k in ('policy/loss', 'sft/loss') if k in sums}
  n = max(sums.pop('tokens', 1.0), 1.0)
  out |= weighted | {k: v / n for k, v in sums.items()}
  if 'mismatch/ratio' in out:  # effective share of the samples
    out['mismatch/is_ess'] = out['mismatch/ratio']**2 / max(
        out.pop('mismatch/ratio_square'), 1e-9)
  return out


def update(policy: Policy, state: TrainState, examples: Sequence[Example],
           group_size: int) -> tuple[TrainState, dict[str, float]]:
  """Takes `optim.updates` optimizer steps, each on its share of the groups.

  Args:
    policy: with its config: loss, optim, rollout.
    state: donated.
    examples: rows of a group are neighbors.
    group_size: G; the rows of a group stay together.

  Returns:
    The new state, and metrics averaged over the updates that have them.

  Raises:
    RunFailure: optim.max_skipped gradients in a row were not finite.
  """
  cfg, groups = policy.config.optim, len(examples) // group_size
  total_steps = policy.config.steps * cfg.updates
  metrics = []
  for i in range(min(cfg.updates, groups)):
    part = [
        examples[g * group_size + k]
        for g in range(i, groups, cfg.updates)
        for k in range(group_size)
    ]
    grads, logged = batch_gradient(policy, state.params, part,
                                   () if cfg.offload else state.opt_state)
    state = onload(state) if cfg.offload else state
    with jax.set_mesh(policy.mesh):
      state, values = apply(state, grads, cfg, total_steps)
    state = offload(state) if cfg.offload else state
    metrics.append(logged | jax.tree.map(float, values))
  if int(state.skipped) >= cfg.max_skipped:
    raise RunFailure(
        f'{int(state.skipped)} gradients in a row were not finite (optim.'
        'max_skipped); look at mismatch/* and policy/ratio_max in metrics.'
        'jsonl. The last checkpoint is sound: start from it in a fresh workdir '
        '(policy.init=WORKDIR@STEP) with a lower optim.lr')
  return state, _mean(metrics)


def _mean(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
  """Over the updates that have a value."""
  out = {}
  for name in dict.fromkeys(k for m in metrics for k in m):
    found = [m[name] for m in metrics if name in m]
    out[name] = math.fsum(found) / len(found)
  return out


def batch_gradient(
    policy: Policy, params: Params, examples: Sequence[Example],
    moments: Params = ()
) -> tuple[Params, dict[str, float]]:
  """The gradient of one optimizer step over micro-batches, and its metrics.

  Where nothing has credit it is 0, and nothing is computed or measured.

  Args:
    policy: with its config.
    params: what trains.
    examples: of the step.
    moments: the optimizer's, where they stay on the devices.
  """
  config, total = policy.config, None
  if losses.only_credit_trains(config.loss) and not any(
      x.advantages[x.loss_mask].any() for x in examples):
    return jax.tree.map(lambda x: jnp.zeros_like(x, device=x.sharding),
                        params), {}
  resident = resident_arrays(policy.base_params(config.loss), policy.frozen,
                             policy.resident, moments)
  plan, micro_batches = pack(examples, config, policy.mesh)
  # A program that adds to a total is another one, which CPUs take long to
  # compile; on TPUs it leaves more memory than an addition of its own.
  fused = policy.mesh.devices.flat[0].platform != 'cpu'
  with jax.set_mesh(policy.mesh):
    for batch in micro_batches:
      new = gradient(policy.model, params, batch, config.loss,
                     total=total if fused else None,
                     base_params=policy.base_params(config.loss),
                     temperature=config.rollout.temperature or 1.0,
                     on_policy=config.optim.updates == 1,
                     lora_scale=policy.lora_scale, resident=resident)
      total = new if fused or total is None else add(total, new)
  assert total is not None, 'an update has examples'
  return total.gradient, summary(total) | {'perf/packing_fill': plan.fill}


def resident_arrays(base_params: Params | None, *trees: Params) -> list:
  """Lists arrays that `gradient` does not read, each once.

  Args:
    base_params: that it does read.
    *trees: of arrays, or of their ShapeDtypeStructs.
  """
  seen = {id(x) for x in jax.tree.leaves(base_params)}
  leaves = {id(x): x for x in jax.tree.leaves(trees) if id(x) not in seen}
  return list(leaves.values())


def pack(
    examples: Sequence[Example], config: Config,
    mesh: jax.sharding.Mesh) -> tuple[packing.Packing, Iterator[PackedBatch]]:
  """How examples are packed, and their micro-batches, one by one.

  Every micro-batch has rows on all devices, so that none waits for another.
  A teacher's sequence shares the place of its example: both are as wide as the
  longer of the two, and their completions end in the same column.
  """
  weights = losses.token_weights([x.loss_mask for x in examples],
                                 config.loss.aggregation,
                                 config.rollout.max_new_tokens)
  own = [len(x.tokens) for x in examples]
  teacher = [x.teacher_tokens for x in examples if x.teacher_tokens is not None]
  others = [len(x) for x in teacher] or own
  plan = packing.plan_batch(list(map(max, own, others)), config, mesh)

  def micro_batch(i: int) -> PackedBatch:

    def put(sequences: Sequence[np.ndarray]) -> jax.Array:
      return mesh_lib.shard_rows(plan.pack(sequences, i), mesh)

    def segments(lengths: Sequence[int]) -> jax.Array:
      return mesh_lib.shard_rows(plan.segment_ids(lengths, i), mesh)

    batch = PackedBatch(
        tokens=put([x.tokens for x in examples
                   ]), segment_ids=segments(own), loss_weight=put(weights),
        rollout_logprobs=put([x.rollout_logprobs for x in examples]),
        old_logprobs=put([x.old_logprobs for x in examples]),
        ref_logprobs=put([x.ref_logprobs for x in examples]),
        advantages=put([x.advantages for x in examples]))
    if not teacher:
      return batch
    return batch._replace(teacher_tokens=put(teacher),
                          teacher_segment_ids=segments(others))

  return plan, map(micro_batch, range(plan.micro_batches))
