"""The engine's programs: empty pool, prefill passes, page copies, decode."""

import functools

import jax
import jax.numpy as jnp

from exprl_jax.models import lora, paged
from exprl_jax.models.abstract import sharded_params
from exprl_jax.models.config import ModelConfig, for_length
from exprl_jax.rollout import decode, protocol
from exprl_jax.rollout.options import Options, resolve
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime.programs import Program, abstract
from exprl_jax.types import Params


def programs(model: ModelConfig, mesh: jax.sharding.Mesh, options: Options,
             owner: str, adapters: Params | None = None) -> list[Program]:
  """Lists what an engine of these sizes may run on a mesh.

  Args:
    model: the decoder.
    mesh: to sample on.
    options: as given to the engine.
    owner: begins the names: 'policy', 'judge'.
    adapters: abstract, if the parameters have any.
  """
  model = for_length(model, options.max_tokens)
  options = resolve(options, model, mesh)
  layout = options.layout
  params = sharded_params(model, mesh, frozen=True,
                          int8=options.weights == 'int8')
  if adapters:
    adapters = jax.tree.map(lambda x, s: x.update(sharding=s), adapters,
                            lora.shardings(params, adapters))
    params = lora.attach(params, adapters)
  pool = paged.abstract_pool(model, layout, mesh)
  devices = mesh_lib.batch_parts(mesh)
  array = functools.partial(abstract, mesh)
  pages = array((devices, options.slots // devices), jnp.int32, 'batch', None)
  out = [
      Program(f'{owner}/empty', decode.empty_pool, (model, layout, mesh), {},
              mesh),
      Program(f'{owner}/copy', decode.copy, (model, pool, pages, pages), {},
              mesh),
      _decode(model, mesh, options, layout, params, pool, owner)
  ]
  shapes = {(rows * devices, width)
            for width in options.prefill_widths()
            for rows in options.prefill_rows(width, devices)}
  for rows, width in sorted(shapes):
    tokens = array((rows, width), jnp.int32, 'batch', None)
    table = array((rows, options.columns), jnp.int32, 'batch', None)
    out.append(
        Program(f'{owner}/prefill_{rows}x{width}', decode.prefill,
                (model, layout, params, pool, tokens, tokens, table), {}, mesh))
  return out


def _decode(model: ModelConfig, mesh: jax.sharding.Mesh, options: Options,
            layout: paged.Layout, params: object, pool: paged.Pool,
            owner: str) -> Program:
  """The chunk of decoding, for all slots."""
  array, slots = functools.partial(abstract, mesh), options.slots
  row = functools.partial(array, (slots,))
  state = protocol.State(token=row(jnp.int32,
                                   'batch'), position=row(jnp.int32, 'batch'),
                         budget=row(jnp.int32,
                                    'batch'), alive=row(jnp.bool_, 'batch'))
  columns = len(protocol.INTS) + protocol.MAX_ENDS + protocol.MAX_READS
  inputs = protocol.Inputs(
      ints=array((slots, columns), jnp.int32, 'batch', None), floats=array(
          (slots, len(protocol.FLOATS)), jnp.float32, 'batch', None),
      table=array((slots, options.columns), jnp.int32, 'batch', None))
  # Of no mesh, as the runner gives them: with one it is another program.
  key, steps = jax.eval_shape(lambda: (jax.random.key(0), jnp.int32(0)))
  unrolled = mesh.devices.flat[0].platform != 'tpu'
  return Program(f'{owner}/decode', decode.decode,
                 (model, layout, options.chunk, unrolled, params, pool, state,
                  inputs, key, steps), {}, mesh)


def sampling_copy(model: ModelConfig, params: Params, mesh: jax.sharding.Mesh,
                  owner: str) -> Program:
  """Lists the copy of parameters to sample with: decode.prepare.

  Args:
    model: the decoder.
    params: abstract, as they are held otherwise.
    mesh: to sample on.
    owner: begins the name.
  """
  convert = decode.converter(model, mesh, '')[1]
  return Program(f'{owner}/sampling_copy', convert, (params,), {}, mesh)
