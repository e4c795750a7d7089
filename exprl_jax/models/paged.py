"""Keys and values in pages, and attention over them.

The pool of a model is one array for all layers:

  [layer 0: page 0, 1, ..., pages - 1 | layer 1: page 0, 1, ... | ...]

Page p of layer i is at index i * pages + p, so one page table serves every
layer and one donated array is updated in place. Page 0 is a dummy that idle
rows write to.

The rows of a batch are split over devices, each with a pool of its own: page
numbers are local to it. Heads are split over the tensor axis. Where it has more
devices than the model has kv heads, several devices keep the same one
(paged_kernels.Split).

This module is what the rest of the package uses. paged_pool has the pool,
paged_kernels the choice of a kernel, paged_reference and paged_ragged the two.
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from exprl_jax.models import paged_ragged, paged_reference
from exprl_jax.models.config import ModelConfig
from exprl_jax.models.paged_kernels import (
    DTYPES,
    KERNELS,
    Kernel,
    Split,
    choose,
    split_heads,
)
from exprl_jax.models.paged_pool import (
    Layout,
    Pool,
    abstract_pool,
    copy_pages,
    heads_axis,
    pool_specs,
    token_bytes,
    token_bytes_per_device,
)
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import AnyArray

__all__ = [
    'DTYPES', 'KERNELS', 'Kernel', 'Layout', 'Pool', 'abstract_pool', 'attend',
    'choose', 'copy_pages', 'token_bytes', 'token_bytes_per_device'
]

_IMPLEMENTED = {
    'reference': paged_reference.attend, 'ragged': paged_ragged.attend
}


def attend(
    cfg: ModelConfig, layout: Layout, q: Float[Array, 'B T N H'],
    k: Float[Array, 'B T K H'], v: Float[Array, 'B T K H'], pool: Pool,
    table: Int[AnyArray,
               'B M'], positions: Int[AnyArray,
                                      'B T'], layer: Int[AnyArray, ''] | int,
    kind: Int[AnyArray, ''] | int) -> tuple[Float[Array, 'B T N H'], Pool]:
  """Writes new keys and values, then attends over all up to each position.

  Args:
    cfg: the model.
    layout: of the pool.
    q: [B, T, N, H], with the scale of the scores in them.
    k: [B, T, K, H].
    v: [B, T, K, H].
    pool: updated in place where it is donated.
    table: i32[B, M] pages of each row, in order; 0 where it has none.
    positions: i32[B, T], consecutive, then perhaps negative ones: for those
      the dummy page is written, and the output is meaningless.
    layer: index of the layer.
    kind: index into `cfg.kinds`.

  Returns:
    [B, T, N, H] in q's dtype, and the pool.
  """
  run = functools.partial(_IMPLEMENTED[layout.kernel.name], cfg, layout)
  mesh: Any = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return run(q, k, v, pool, table, positions, layer, kind)
  split = split_heads(cfg, mesh.shape['tensor'])
  queries, heads, rows, pools = _specs(cfg, split, q, k, pool, table, mesh)

  def local(q: jax.Array, k: jax.Array, v: jax.Array, *rest:
            Any) -> tuple[jax.Array, Pool]:
    return run(q, _own_head(split, k), _own_head(split, v), *rest)

  return jax.shard_map(
      local,
      in_specs=(queries, heads, heads, pools, rows, rows, jax.P(), jax.P()),
      out_specs=(queries, pools), check_vma=False)(q, k, v, pool, table,
                                                   positions, layer, kind)


def _specs(cfg: ModelConfig, split: Split, q: jax.Array, k: jax.Array,
           pool: Pool, table: AnyArray, mesh: Any) -> tuple[Any, ...]:
  """Partitions queries, keys (and values), rows of the page table, and pool.

  Keys are not split where several devices need the same.
  """
  axis = heads_axis(cfg, mesh.shape['tensor'])
  queries = mesh_lib.spec(('batch', None, axis, None), q.shape, mesh)
  kv_axis = axis if split.repeats == 1 else None
  heads = mesh_lib.spec(('batch', None, kv_axis, None), k.shape, mesh)
  rows = mesh_lib.spec(('batch', None), table.shape, mesh)
  return queries, heads, rows, pool_specs(cfg, pool, mesh)


def _own_head(split: Split, x: jax.Array) -> jax.Array:
  """Takes this device's head out of all, [B, T, K, H], if it is a repeated one.
  """
  if split.repeats == 1:
    return x
  head = jax.lax.axis_index('tensor') // split.repeats
  return jax.lax.dynamic_slice_in_dim(x, head, 1, axis=2)
