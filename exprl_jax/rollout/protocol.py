"""What host and devices tell each other about the slots, once a chunk.

1. The host describes every slot (`Inputs`): which rows are new to the device,
   which are active, how they are sampled, and where their pages are.
2. The devices read that (`read_inputs`), take over the new rows and decode up
   to `steps` tokens of every active row (decode.decode), without the host.
3. One array goes back (`pack_outputs`, `read_outputs`): tokens, their
   log-probabilities, how many each row has, and whether the row goes on.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from exprl_jax.rollout import sampling

MAX_ENDS = 8  # end and stop tokens of a row
MAX_READS = 8  # tokens whose log-probabilities a row may ask for
# Columns of Inputs.ints. `end_from`: no end token before that position.
INTS = ('is_new', 'active', 'token', 'position', 'budget', 'id', 'end_from',
        'top_k')
FLOATS = ('temperature', 'top_p', 'min_p')


class State(NamedTuple):
  """What stays on the devices between chunks, for each of B slots."""

  token: Int[Array, ' B']  # the next one to be fed to the model
  position: Int[Array, ' B']  # of that token
  budget: Int[Array, ' B']  # tokens that the row may still decode
  alive: Bool[Array, ' B']


class Inputs(NamedTuple):
  """What the host says about each of B slots before a chunk.

  C = len(INTS) + MAX_ENDS + MAX_READS; end and read tokens are filled up
  with -1. M is the number of pages that a row may have.
  """

  ints: Int[Array | np.ndarray, 'B C']  # i32: INTS, end tokens, read tokens
  floats: Float[Array | np.ndarray, 'B 3']  # f32: FLOATS
  table: Int[Array | np.ndarray, 'B M']  # i32: pages, in order


class Outputs(NamedTuple):
  """What a chunk of C tokens has decoded in each of B slots, on the host."""

  tokens: Int[np.ndarray, 'B C']
  logprobs: Float[np.ndarray, 'B C']
  read_logprobs: Float[np.ndarray, 'B 8']  # of rows new to this chunk
  num_tokens: Int[np.ndarray, ' B']  # columns that are filled
  alive: Bool[np.ndarray, ' B']


class Slots(NamedTuple):
  """Inputs by name, on the devices."""

  is_new: Bool[Array, ' B']
  active: Bool[Array, ' B']
  token: Int[Array, ' B']
  position: Int[Array, ' B']
  budget: Int[Array, ' B']
  id: Int[Array, ' B']
  end_from: Int[Array, ' B']
  ends: Int[Array, 'B 8']
  reads: Int[Array, 'B 8']
  settings: sampling.Settings
  table: Int[Array, 'B M']


def read_inputs(inputs: Inputs) -> Slots:
  """Takes the columns of Inputs apart, on the devices."""
  ints = dict(zip(INTS, inputs.ints.T))
  floats = dict(zip(FLOATS, inputs.floats.T))
  ends, reads = jnp.split(inputs.ints[:, len(INTS):], [MAX_ENDS], axis=1)
  settings = sampling.Settings(temperature=floats['temperature'],
                               top_k=ints['top_k'], top_p=floats['top_p'],
                               min_p=floats['min_p'])
  return Slots(is_new=ints['is_new'] == 1, active=ints['active'] == 1,
               token=ints['token'], position=ints['position'],
               budget=ints['budget'], id=ints['id'], end_from=ints['end_from'],
               ends=ends, reads=reads, settings=settings,
               table=jnp.asarray(inputs.table))


def pack_outputs(tokens: Int[Array, 'B C'], logprobs: Float[Array, 'B C'],
                 read_logprobs: Float[Array, 'B 8'], num_tokens: Int[Array,
                                                                     ' B'],
                 alive: Bool[Array, ' B']) -> Int[Array, 'B W']:
  """Packs what `read_outputs` reads: i32[B, 2 * C + MAX_READS + 2]."""
  bits = functools.partial(jax.lax.bitcast_convert_type, new_dtype=jnp.int32)
  return jnp.concatenate([
      tokens,
      bits(logprobs),
      bits(read_logprobs), num_tokens[:, None],
      alive.astype(jnp.int32)[:, None]
  ], axis=1)


def read_outputs(packed: jax.Array, chunk: int) -> Outputs:
  """Brings a chunk's results to the host; waits until they are computed.

  Args:
    packed: the third result of `decode`.
    chunk: as given to `decode`.
  """
  columns = np.asarray(packed.addressable_data(0))
  tokens, logprobs, read_logprobs, num_tokens, alive = np.split(
      columns, np.cumsum([chunk, chunk, MAX_READS, 1]), axis=1)
  return Outputs(tokens=tokens, logprobs=logprobs.view(np.float32),
                 read_logprobs=read_logprobs.view(np.float32),
                 num_tokens=num_tokens[:, 0], alive=alive[:, 0] == 1)
