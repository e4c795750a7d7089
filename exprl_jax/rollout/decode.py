"""The engine's compiled programs: prefill, copy and decode."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from exprl_jax.models import head, lora, paged, quantization, transformer
from exprl_jax.models.abstract import sharded_params
from exprl_jax.models.config import ModelConfig
from exprl_jax.models.matrices import is_int8
from exprl_jax.rollout import sampling
from exprl_jax.rollout.protocol import (
    Inputs,
    Slots,
    State,
    pack_outputs,
    read_inputs,
)
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import Params


class _Carry(NamedTuple):
  """What the decoding loop hands from one token to the next."""

  step: Int[Array, '']
  state: State
  pool: paged.Pool
  tokens: Int[Array, 'B C']
  logprobs: Float[Array, 'B C']
  read_logprobs: Float[Array, 'B 8']
  num_tokens: Int[Array, ' B']


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def empty_pool(model: ModelConfig, layout: paged.Layout,
               mesh: jax.sharding.Mesh) -> paged.Pool:
  """Makes a pool of zeros."""
  return jax.tree.map(
      lambda x: jax.lax.with_sharding_constraint(jnp.zeros(x.shape, x.dtype), x.
                                                 sharding),
      paged.abstract_pool(model, layout, mesh))


@functools.partial(jax.jit, static_argnums=(0, 1))
def empty_state(mesh: jax.sharding.Mesh, slots: int) -> State:
  """Makes the State of slots that nobody uses."""
  rows = NamedSharding(mesh, mesh_lib.spec(('batch',), (slots,), mesh))

  def row(dtype: jnp.dtype) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.zeros(slots, dtype), rows)

  return State(token=row(jnp.int32), position=row(jnp.int32),
               budget=row(jnp.int32), alive=row(jnp.bool_))


@jax.jit
def move(state: State, source: Int[Array, ' B']) -> State:
  """Moves rows to other slots: slot i takes over what slot source[i] has."""
  return jax.tree.map(lambda x: mesh_lib.constrain(x[source], 'batch'), state)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def prefill(model: ModelConfig, layout: paged.Layout, params: Params,
            pool: paged.Pool, tokens: Int[Array, 'B T'],
            positions: Int[Array, 'B T'], table: Int[Array,
                                                     'B M']) -> paged.Pool:
  """Adds the keys and values of tokens to the pool, which is donated."""
  return transformer.forward_paged(model, layout, params, tokens, positions,
                                   pool, table)[1]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def copy(model: ModelConfig, pool: paged.Pool, source: Int[Array, 'devices n'],
         target: Int[Array, 'devices n']) -> paged.Pool:
  """Copies pages on each device: paged.copy_pages, in place."""
  return paged.copy_pages(pool, model, source, target)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=(5, 6))
def decode(
    model: ModelConfig, layout: paged.Layout, chunk: int, unrolled: bool,
    params: Params, pool: paged.Pool, state: State, inputs: Inputs,
    key: Key[Array, ''],
    steps: Int[Array, '']) -> tuple[paged.Pool, State, Int[Array, 'B W']]:
  """Decodes up to `steps` tokens of every active row.

  Args:
    model: the decoder.
    layout: of the pool.
    chunk: C, the width of the result; at least `steps`.
    unrolled: take the layers apart first: transformer.split_layers.
    params: as `prepare` leaves them.
    pool: donated.
    state: donated.
    inputs: the host's description of the slots.
    key: a typed PRNG key.
    steps: i32[].

  Returns:
    The pool, the state, and an array i32[B, 2 * C + MAX_READS + 2] for
    `read_outputs`, replicated.
  """
  # 1. Take over the rows that are new.
  slots = read_inputs(inputs)
  state = _enter(state, slots)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, slots.id)
  if unrolled:
    params = transformer.split_layers(model, params)

  # 2. Decode, until no active row is alive or the chunk is full.
  def goes_on(carry: _Carry) -> jax.Array:
    alive = carry.state.alive & slots.active
    return (carry.step < steps) & alive.any()

  def decode_one(carry: _Carry) -> _Carry:
    return _decode_token(model, layout, params, slots, carry, keys)

  carry = jax.lax.while_loop(goes_on, decode_one,
                             _first_carry(chunk, state, pool, slots))

  # 3. Pack the results into one array, which is one transfer to the host.
  packed = pack_outputs(carry.tokens, carry.logprobs, carry.read_logprobs,
                        carry.num_tokens, carry.state.alive)
  mesh = jax.sharding.get_abstract_mesh()
  # As they came in: the next chunk is the same program.
  state = jax.tree.map(lambda x: mesh_lib.constrain(x, 'batch'), carry.state)
  return carry.pool, state, jax.lax.with_sharding_constraint(
      packed, NamedSharding(mesh, PartitionSpec()))


def _enter(state: State, slots: Slots) -> State:
  """Puts new rows into their slots; the others stay as they were."""
  new = State(token=slots.token, position=slots.position, budget=slots.budget,
              alive=slots.is_new)
  return jax.tree.map(lambda new, old: jnp.where(slots.is_new, new, old), new,
                      state)


def _first_carry(chunk: int, state: State, pool: paged.Pool,
                 slots: Slots) -> _Carry:
  blank = jnp.zeros((len(slots.active), chunk), jnp.int32)
  return _Carry(step=jnp.int32(0), state=state, pool=pool, tokens=blank,
                logprobs=blank.astype(jnp.float32),
                read_logprobs=slots.reads.astype(jnp.float32),
                num_tokens=jnp.zeros(len(slots.active), jnp.int32))


def _decode_token(model: ModelConfig, layout: paged.Layout, params: Params,
                  slots: Slots, carry: _Carry, keys: Key[Array,
                                                         ' B']) -> _Carry:
  """Decodes the next token of every active row."""
  # 1. Run the model over the last token. Rows that wait, and those that have
  # ended, write nothing: their position is negative.
  state, i = carry.state, carry.step
  active = state.alive & slots.active
  position = jnp.where(active, state.position, -1)[:, None]
  hidden, pool = transformer.forward_paged(model, layout, params,
                                           state.token[:, None], position,
                                           carry.pool, slots.table)
  logits = head.project(model, params, hidden[:, 0])

  # 2. Read the log-probabilities that new rows have asked for.
  read_logprobs = jax.lax.cond(
      (i == 0) & jnp.any(slots.is_new[:, None] & (slots.reads >= 0)),
      lambda logits, _: _log_softmax_at(logits, slots.reads),
      lambda _, before: before, logits, carry.read_logprobs)

  # 3. Keep rows from ending before `min_new_tokens`.
  early = active & (state.position + 1 < slots.end_from)
  logits = jax.lax.cond(
      early.any(),
      lambda logits, early: _without_ends(logits, slots.ends, early),
      lambda logits, _: logits, logits, early)

  # 4. Draw a token and move on.
  token, logprob = sampling.draw(logits, keys, state.position + 1,
                                 slots.settings)
  return _Carry(step=i + 1, state=_advance(state, slots, active, token),
                pool=pool, tokens=carry.tokens.at[:, i].set(token),
                logprobs=carry.logprobs.at[:, i].set(logprob),
                read_logprobs=read_logprobs,
                num_tokens=carry.num_tokens + active)


def _log_softmax_at(logits: Float[Array, 'B V'],
                    ids: Int[Array, 'B K']) -> Float[Array, 'B K']:
  picked = jnp.take_along_axis(logits, jnp.maximum(ids, 0), axis=1)
  return picked - jax.nn.logsumexp(logits, axis=1, keepdims=True)


def _without_ends(logits: Float[Array, 'B V'], ends: Int[Array, 'B K'],
                  early: Bool[Array, ' B']) -> Float[Array, 'B V']:
  """Sets the end tokens of rows that may not end yet to -inf."""
  rows, vocab_size = jnp.arange(len(logits)), logits.shape[1]
  column = jnp.where(early[:, None] & (ends >= 0), ends, vocab_size)
  return logits.at[rows[:, None], column].set(-jnp.inf, mode='drop')


def _advance(state: State, slots: Slots, active: Bool[Array, ' B'],
             token: Int[Array, ' B']) -> State:
  """The state of every slot behind a drawn token."""
  budget = state.budget - active
  goes_on = ~(token[:, None] == slots.ends).any(axis=1) & (budget > 0)
  return State(token=jnp.where(active, token,
                               state.token), position=state.position + active,
               budget=budget, alive=jnp.where(active, goes_on, state.alive))


def prepare(cfg: ModelConfig, params: Params,
            mesh: jax.sharding.Mesh) -> Params:
  """Casts and shards a policy's parameters for sampling on `mesh`.

  Training spreads parameters over all devices; sampling reads them at every
  token and wants them replicated, or tensor parallel. Matrices in int8 stay
  in int8. Parameters that are as they should be are returned as they are.
  Adapters stay in float32, beside the matrices and split as they are. Devices
  that do not train are sent what those that do have cast.
  """
  plain, adapters = lora.detach(params)
  wanted, convert = converter(cfg, mesh, 'int8' if is_int8(plain) else '')
  if is_prepared(plain, wanted):
    ready = plain
  elif plain['embedding'].sharding.device_set == set(mesh.devices.flat):
    ready = convert(plain)
  else:
    cast = plain if is_int8(plain) else transformer.cast(cfg, plain)
    ready = jax.device_put(cast, jax.tree.map(lambda x: x.sharding, wanted))
  if not adapters['layers']:
    return ready
  adapters = jax.device_put(adapters, lora.shardings(wanted, adapters))
  return lora.attach(ready, adapters)


def is_prepared(params: Params, wanted: Params) -> bool:
  """Whether parameters are as they should be for sampling.

  Args:
    params: arrays, or ShapeDtypeStructs with shardings.
    wanted: ShapeDtypeStructs with shardings.
  """
  same = jax.tree.map(
      lambda x, w: x.dtype == w.dtype and x.sharding.is_equivalent_to(
          w.sharding, len(x.shape)), params, wanted)
  return all(jax.tree.leaves(same))


@functools.cache
def converter(cfg: ModelConfig, mesh: jax.sharding.Mesh,
              weights: str) -> tuple[Params, jax.stages.Wrapped]:
  """The abstract parameters for sampling, and the program that makes them."""
  int8 = bool(weights)
  cast = functools.partial(quantization.quantize if int8 else transformer.cast,
                           cfg)
  wanted = sharded_params(cfg, mesh, frozen=True, int8=int8)
  shardings = jax.tree.map(lambda x: x.sharding, wanted)

  def convert(params: Params) -> Params:
    # Layer by layer: to change the sharding of an array, XLA may hold all of it
    # on every device.
    rest = {k: v for k, v in params.items() if k != 'layers'}

    def one(layer: Params) -> Params:
      # The barrier keeps XLA from doing it to all layers, each time.
      layer = jax.lax.optimization_barrier(layer)
      stacked = jax.tree.map(lambda x: x[None], layer)
      out = cast(rest | {'layers': stacked})['layers']
      out = jax.lax.with_sharding_constraint(out, shardings['layers'])
      return jax.tree.map(lambda x: x[0], out)

    layers = jax.lax.map(one, params['layers'])
    return cast(params) | {'layers': layers}

  return wanted, jax.jit(convert, out_shardings=shardings)
