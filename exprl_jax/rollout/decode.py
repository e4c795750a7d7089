"""The jitted programs of the engine: prefill, fork, decode."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from exprl_jax.models import paged, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.rollout import sampling
from exprl_jax.runtime import mesh as mesh_lib

MAX_ENDS = 8  # end and stop tokens of a row
MAX_READS = 8  # tokens whose probabilities a row is asked for
INTS = ('fresh', 'run', 'token', 'position', 'left', 'id', 'end_from', 'top_k')


class State(NamedTuple):
  """What stays on the device between chunks, by slot."""

  token: jax.Array  # i32[S] the next one to be read
  position: jax.Array  # i32[S] its position
  left: jax.Array  # i32[S] tokens of the budget
  alive: jax.Array  # bool[S]


class Inputs(NamedTuple):
  """What the host says of every slot before a chunk."""

  ints: np.ndarray  # i32[S, 8 + MAX_ENDS + MAX_READS]: INTS, ends, reads
  floats: np.ndarray  # f32[S, 3]: temperature, top_p, min_p
  table: np.ndarray  # i32[S, M]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty(model, layout, mesh, slots):
  """A pool of zeros and the State of slots that nobody uses."""
  abstract = paged.abstract_pool(model, layout, mesh)
  rows = NamedSharding(mesh, mesh_lib.spec(('batch',), (slots,), mesh))
  pool = jax.tree.map(
      lambda x: jax.lax.with_sharding_constraint(jnp.zeros(x.shape, x.dtype), x.
                                                 sharding), abstract)
  zero = jax.lax.with_sharding_constraint(jnp.zeros(slots, jnp.int32), rows)
  return pool, State(zero, zero + 0, zero + 0, zero > 0)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def prefill(model, layout, params, pool, tokens, positions, table):
  """The pool with the keys and values of tokens i32[B, C] in it."""
  return transformer.forward_paged(model, layout, params, tokens, positions,
                                   pool, table)[1]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def copy(model, pool, source, target):
  """paged.copy_pages, in place."""
  return paged.copy_pages(pool, model, source, target)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=(5, 6))
def decode(model, layout, chunk, unrolled, params, pool, state, inputs, key,
           steps):
  """Up to `steps` <= `chunk` tokens of every running slot.

  Args:
    model: the decoder.
    layout: of the pool.
    chunk: width of the result.
    unrolled: take the layers apart first: transformer.split_layers.
    params: as `prepare` leaves them.
    pool: donated.
    state: donated.
    inputs: of the host.
    key: a typed PRNG key.
    steps: i32[].

  Returns the pool, the state and one array i32[S, 2 * chunk + MAX_READS + 2]
  for the host: tokens, bits of the log-probabilities, bits of what was read,
  how many, and whether the row goes on.
  """
  told = dict(zip(INTS, inputs.ints.T))
  ends, reads = jnp.split(inputs.ints[:, len(INTS):], [MAX_ENDS], axis=1)
  fresh, run = told['fresh'] == 1, told['run'] == 1
  state = jax.tree.map(
      lambda new, old: jnp.where(fresh, new, old),
      State(told['token'], told['position'], told['left'], fresh), state)
  settings = sampling.Settings(inputs.floats[:, 0], told['top_k'],
                               inputs.floats[:, 1], inputs.floats[:, 2])
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, told['id'])
  slots = len(run)
  rows = jnp.arange(slots)
  if unrolled:
    params = transformer.split_layers(model, params)

  def forbid_ends(logits, early):
    column = jnp.where(early[:, None] & (ends >= 0), ends, model.vocab_size)
    return logits.at[rows[:, None], column].set(-jnp.inf, mode='drop')

  def look(logits):
    picked = jnp.take_along_axis(logits, jnp.maximum(reads, 0), axis=1)
    return picked - jax.nn.logsumexp(logits, axis=1, keepdims=True)

  def step(carry):
    i, s, pool, tokens, logprobs, read, count = carry
    active = s.alive & run
    position = jnp.where(active, s.position, -1)
    hidden, pool = transformer.forward_paged(model, layout, params,
                                             s.token[:, None], position[:,
                                                                        None],
                                             pool, inputs.table)
    logits = transformer.project(model, params, hidden[:, 0])
    read = jax.lax.cond((i == 0) & jnp.any(fresh[:, None] & (reads >= 0)),
                        lambda logits, _: look(logits), lambda _, read: read,
                        logits, read)
    early = active & (s.position + 1 < told['end_from'])
    logits = jax.lax.cond(early.any(), forbid_ends, lambda x, _: x, logits,
                          early)
    token, logprob = sampling.draw(logits, keys, s.position + 1, settings)
    left = s.left - active
    goes_on = ~(token[:, None] == ends).any(axis=1) & (left > 0)
    new = State(jnp.where(active, token, s.token), s.position + active, left,
                jnp.where(active, goes_on, s.alive))
    return (i + 1, new, pool, tokens.at[:, i].set(token),
            logprobs.at[:, i].set(logprob), read, count + active)

  def going(carry):
    i, s, *_ = carry
    return (i < steps) & (s.alive & run).any()

  blank = jnp.zeros((slots, chunk), jnp.int32)
  _, state, pool, tokens, logprobs, read, count = jax.lax.while_loop(
      going, step, (jnp.int32(0), state, pool, blank, blank.astype(
          jnp.float32), reads.astype(jnp.float32), jnp.zeros(slots, jnp.int32)))
  bits = functools.partial(jax.lax.bitcast_convert_type, new_dtype=jnp.int32)
  out = jnp.concatenate([
      tokens,
      bits(logprobs),
      bits(read), count[:, None],
      state.alive.astype(jnp.int32)[:, None]
  ], axis=1)
  mesh = jax.sharding.get_abstract_mesh()
  return pool, state, jax.lax.with_sharding_constraint(
      out, NamedSharding(mesh, PartitionSpec()))


def prepare(cfg: ModelConfig, params, mesh: jax.sharding.Mesh):
  """The policy's parameters for sampling: cast, and sharded for `mesh`.

  Training spreads them over all devices; sampling wants whole copies, or
  tensor parallel ones. Where nothing changes these are the same arrays.
  Matrices in int8 stay in int8.
  """
  wanted, convert = _converter(cfg, mesh,
                               'int8' if transformer.quantised(params) else '')
  same = jax.tree.map(
      lambda x, w: x.dtype == w.dtype and x.sharding.is_equivalent_to(
          w.sharding, x.ndim), params, wanted)
  return params if all(jax.tree.leaves(same)) else convert(params)


@functools.cache
def _converter(cfg, mesh, weights):
  cast = functools.partial(
      transformer.quantise if weights else transformer.cast, cfg)
  wanted = jax.eval_shape(cast, transformer.abstract_params(cfg))
  shardings = mesh_lib.shardings(transformer.logical_axes(cfg, weights), wanted,
                                 mesh)
  wanted = jax.tree.map(lambda x, s: x.update(sharding=s), wanted, shardings)
  return wanted, jax.jit(cast, out_shardings=shardings)
