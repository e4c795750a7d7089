"""The devices' side of the engine: the pool and the programs that change it."""

import jax
from jaxtyping import Int
import numpy as np

from exprl_jax.models import paged
from exprl_jax.models.config import ModelConfig
from exprl_jax.rollout import decode
from exprl_jax.rollout.options import Options
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import Params


class Runner:
  """Runs the compiled programs, over a pool that outlives a call.

  The scheduler decides what runs, and needs just `prefill`, `copy`, `decode`,
  `move` and `devices`.

  Attributes:
    devices: parts that the rows of a batch are split into.
    weight_bytes: of the parameters, all copies of them.
  """

  def __init__(self, model: ModelConfig, mesh: jax.sharding.Mesh,
               options: Options) -> None:
    """Takes no memory before `start`.

    Args:
      model: the decoder.
      mesh: rows are split over its batch axes, heads over 'tensor'.
      options: resolved.
    """
    self._model, self._mesh = model, mesh
    self._layout, self._chunk = options.layout, options.chunk
    self._unrolled = mesh.devices.flat[0].platform != 'tpu'
    self.devices = mesh_lib.batch_parts(mesh)
    self._pool: paged.Pool | None = None
    self._state: decode.State | None = None
    self._params: Params = None
    self._key: jax.Array | None = None
    self.weight_bytes = 0

  def start(self, params: Params, key: jax.Array, options: Options) -> None:
    """Begins a call: takes the pool, if need be, and parameters and key.

    Args:
      params: as `decode.prepare` leaves them.
      key: a typed PRNG key.
      options: of the call.
    """
    if self._pool is None or options.layout != self._layout:
      self._pool = None  # before the other one is there
      self._layout = options.layout
      self._pool = decode.empty_pool(self._model, self._layout, self._mesh)
    self._state = decode.empty_state(self._mesh, options.slots)
    self._params, self._key = params, key
    self.weight_bytes = sum(x.nbytes * len(x.sharding.device_set) //
                            _num_shards(x) for x in jax.tree.leaves(params))

  def release(self) -> None:
    """Gives up the memory of pool and parameters until the next `start`."""
    self._pool = self._state = self._params = None

  def prefill(self, tokens: Int[np.ndarray, 'B T'],
              positions: Int[np.ndarray, 'B T'], table: Int[np.ndarray,
                                                            'B M']) -> None:
    """Writes the keys and values of tokens into pages.

    Args:
      tokens: i32[B, T], the rows of the first device first.
      positions: i32[B, T]; -1 for padding.
      table: i32[B, M], the pages of each row.
    """
    with jax.set_mesh(self._mesh):
      self._pool = decode.prefill(
          self._model, self._layout, self._params, self._pool,
          *mesh_lib.shard_rows((tokens, positions, table), self._mesh))

  def copy(self, source: Int[np.ndarray, 'devices n'],
           target: Int[np.ndarray, 'devices n']) -> None:
    """Copies page source[d, i] of device d to target[d, i]."""
    with jax.set_mesh(self._mesh):
      self._pool = decode.copy(
          self._model, self._pool,
          *mesh_lib.shard_rows((source, target), self._mesh))

  def move(self, source: Int[np.ndarray, ' B']) -> None:
    """Goes on with B slots: slot i has the row that slot source[i] had."""
    with jax.set_mesh(self._mesh):
      self._state = decode.move(self._state,
                                mesh_lib.shard_rows(source, self._mesh))

  def decode(self, inputs: decode.Inputs, steps: int) -> jax.Array:
    """Launches a chunk; its packed outputs are on their way to the host."""
    with jax.set_mesh(self._mesh):
      self._pool, self._state, outputs = decode.decode(
          self._model, self._layout, self._chunk, self._unrolled,
          self._params, self._pool, self._state,
          mesh_lib.shard_rows(inputs, self._mesh), self._key, np.int32(steps))
    outputs.copy_to_host_async()
    return outputs


def _num_shards(x: jax.Array) -> int:
  """Into how many different parts an array is split."""
  return x.size // max(1, int(np.prod(x.sharding.shard_shape(x.shape))))
