"""The learner's programs: gradient, optimizer step, log-probabilities."""

import functools

import jax
import jax.numpy as jnp

from exprl_jax.config import Config
from exprl_jax.models import lora
from exprl_jax.models.abstract import sharded_params
from exprl_jax.models.config import ModelConfig
from exprl_jax.rl import learner, optimizer, packing, policy
from exprl_jax.runtime.programs import Program, abstract
from exprl_jax.types import PackedBatch, Params, TrainState


def programs(config: Config, model: ModelConfig,
             mesh: jax.sharding.Mesh) -> list[Program]:
  """Lists the programs of an update on a mesh.

  'learner/gradient' is that of the first micro-batch, 'learner/add_gradient'
  that of the others. Losses with a teacher's tokens are listed without them.
  """
  row = functools.partial(
      abstract, mesh,
      (packing.micro_rows(config, mesh), packing.row_tokens(config)))
  ids, value = (row(x, 'batch', None) for x in (jnp.int32, jnp.float32))
  batch = PackedBatch(tokens=ids, segment_ids=ids, loss_weight=value,
                      rollout_logprobs=value, old_logprobs=value,
                      ref_logprobs=value, advantages=value)
  scale, frozen = lora.scale(config.policy), None
  params = sharded_params(model, mesh)
  if scale is not None:
    frozen = sharded_params(model, mesh, frozen=True)
    params = _adapters(config, model, mesh, frozen)
  options = dict(temperature=config.rollout.temperature or 1.0,
                 on_policy=config.optim.updates == 1, base_params=frozen,
                 lora_scale=scale)
  first = Program('learner/gradient', learner.gradient,
                  (model, params, batch, config.loss), options, mesh)
  total_steps = config.steps * config.optim.updates
  return [
      first,
      first._replace(name='learner/add_gradient',
                     kwargs=options | {'total': _total(first, params)}),
      Program('learner/apply_gradient', learner.apply,
              (_state(config, params, mesh), params, config.optim, total_steps),
              {}, mesh),
      Program('policy/logprobs', policy.packed_logprobs,
              (model, params, batch.tokens, batch.segment_ids, frozen, scale,
               options['temperature'], config.loss.logprob_chunk), {}, mesh)
  ]


def _adapters(config: Config, model: ModelConfig, mesh: jax.sharding.Mesh,
              frozen: Params) -> Params:
  """Adapters are replicated."""
  shapes = jax.eval_shape(
      lambda params, key: lora.init(model, params, config.policy.lora_rank, key
                                   ), frozen, jax.random.key(0))
  return jax.tree.map(lambda x: abstract(mesh, x.shape, x.dtype), shapes)


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


def _state(config: Config, params: Params,
           mesh: jax.sharding.Mesh) -> TrainState:
  """Moments are sharded as the parameters of their shape are."""
  tx = optimizer.optimizer(config.optim, config.steps)
  by_shape = {x.shape: x.sharding for x in jax.tree.leaves(params)}
  count = abstract(mesh, (), jnp.int32)
  moments = jax.tree.map(
      lambda x: x.update(sharding=by_shape.get(x.shape, count.sharding)),
      jax.eval_shape(tx.init, params))
  return TrainState(count, count, params, moments)
