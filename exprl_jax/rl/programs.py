"""The learner's programs: gradient, optimizer step, log-probabilities."""

import functools

import jax
import jax.numpy as jnp

from exprl_jax.config import Config
from exprl_jax.models import lora
from exprl_jax.models.abstract import sharded_params
from exprl_jax.models.config import ModelConfig
from exprl_jax.rl import learner, losses, optimizer, packing, policy
from exprl_jax.runtime.programs import Program, abstract
from exprl_jax.types import PackedBatch, Params, TrainState


def programs(config: Config, model: ModelConfig, mesh: jax.sharding.Mesh,
             reference: bool = False, judge: Params = ()) -> list[Program]:
  """Lists the programs of an update on a mesh.

  'learner/gradient' is that of the first micro-batch, 'learner/add_gradient'
  that of the others. Losses with a teacher's tokens are listed without them.

  Args:
    config: of the run.
    model: that trains.
    mesh: to train on.
    reference: a frozen copy is kept beside it.
    judge: its abstract parameters, if they are other arrays than those, and
      those of other frozen models.
  """
  row = functools.partial(
      abstract, mesh,
      (packing.micro_rows(config, mesh), packing.row_tokens(config)))
  ids, value = (row(x, 'batch', None) for x in (jnp.int32, jnp.float32))
  batch = PackedBatch(tokens=ids, segment_ids=ids, loss_weight=value,
                      rollout_logprobs=value, old_logprobs=value,
                      ref_logprobs=value, advantages=value)
  scale = lora.scale(config.policy)
  copy = (sharded_params(model, mesh, frozen=True)
          if reference or scale is not None else None)
  teacher = config.loss.kind != 'nll' and losses.kind(config.loss.kind).teacher
  frozen = copy if scale is not None or teacher else None
  before = state(config, model, mesh)
  params = before.params
  options = dict(
      temperature=config.rollout.temperature or 1.0,
      on_policy=config.optim.updates == 1, base_params=frozen,
      lora_scale=scale, resident=learner.resident_arrays(
          frozen, copy or (), judge,
          () if config.optim.offload else before.opt_state))

  def logprobs(owner: str, params: Params, base: Params | None,
               scale: float | None) -> Program:
    return Program(f'{owner}/logprobs', policy.packed_logprobs,
                   (model, params, batch.tokens, batch.segment_ids, base, scale,
                    options['temperature'], config.loss.logprob_chunk), {},
                   mesh)

  first = Program('learner/gradient', learner.gradient,
                  (model, params, batch, config.loss), options, mesh)
  total_steps = config.steps * config.optim.updates
  return [
      first,
      first._replace(name='learner/add_gradient',
                     kwargs=options | {'total': _total(first, params)}),
      Program('learner/apply_gradient', learner.apply,
              (before, params, config.optim, total_steps), {}, mesh),
      logprobs('policy', params, frozen, scale)
  ] + ([logprobs('reference', copy, None, None)] if copy else [])


def _total(first: Program, params: Params) -> learner.Gradient:
  """The result of the first micro-batch, which the others add to."""
  model, _, batch, loss = first.args
  with jax.set_mesh(first.mesh):
    out = jax.eval_shape(
        lambda params, batch: learner.gradient(model, params, batch, loss, **
                                               first.kwargs), params, batch)
  scalar = functools.partial(abstract, first.mesh, ())
  return learner.Gradient(params,
                          jax.tree.map(lambda x: scalar(x.dtype), out.sums),
                          jax.tree.map(lambda x: scalar(x.dtype), out.largest))


def state(config: Config, model: ModelConfig,
          mesh: jax.sharding.Mesh) -> TrainState:
  """The training state; moments are sharded as parameters of their shape are.
  """
  params = _trained(config, model, mesh)
  tx = optimizer.optimizer(config.optim, config.steps)
  by_shape = {x.shape: x.sharding for x in jax.tree.leaves(params)}
  count = abstract(mesh, (), jnp.int32)
  moments = jax.tree.map(
      lambda x: x.update(sharding=by_shape.get(x.shape, count.sharding)),
      jax.eval_shape(tx.init, params))
  return TrainState(count, count, params, moments)


def _trained(config: Config, model: ModelConfig,
             mesh: jax.sharding.Mesh) -> Params:
  """What trains: all parameters, or adapters, which are replicated."""
  if not config.policy.lora_rank:
    return sharded_params(model, mesh)
  shapes = jax.eval_shape(
      lambda params, key: lora.init(model, params, config.policy.lora_rank, key
                                   ), sharded_params(model, mesh, frozen=True),
      jax.random.key(0))
  return jax.tree.map(lambda x: abstract(mesh, x.shape, x.dtype), shapes)
