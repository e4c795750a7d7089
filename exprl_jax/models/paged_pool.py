"""The pool that keys and values lie in: its shape, sharding and size."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Int

from exprl_jax.models.config import ModelConfig
from exprl_jax.models.paged_kernels import Kernel, split_heads
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import AnyArray


@dataclasses.dataclass(frozen=True)
class Layout:
  """The shape of a pool. Hashable, so it is a static argument of jit.

  Attributes:
    pages: number of pages of each layer on each device, with the dummy.
    page: tokens in a page.
    dtype: 'float32', 'bfloat16', 'float8_e4m3fn', or 'int8' with a scale per
      token and head.
    kernel: as paged_kernels.choose returns it.
  """

  pages: int
  page: int
  dtype: str
  kernel: Kernel


class Pool(NamedTuple):
  """Keys and values: `parts` devices, L layers of `pages` pages each.

  The reference multiplies contiguous matrices, so a page of keys is [K, H,
  page] and one of values [K, page, H]. The ragged kernel takes groups [page, 2
  * rows, lanes] of both, key, value, key, ..., in `keys`. K and the groups are
  those of all devices of the tensor axis.
  """

  keys: jax.Array  # [parts, L * pages, K, H, page], or
  # [parts, L * pages, groups, page, 2 * rows, lanes]
  values: jax.Array | None  # [parts, L * pages, K, page, H]
  key_scales: jax.Array | None  # f32[parts, L * pages, K, page], of int8
  value_scales: jax.Array | None


def heads_axis(cfg: ModelConfig, tensor: int) -> str | None:
  """The logical axis of heads, or None where all devices have all heads."""
  return 'kv_heads' if split_heads(cfg, tensor).parts > 1 else None


def abstract_pool(cfg: ModelConfig, layout: Layout,
                  mesh: jax.sharding.Mesh) -> Pool:
  """Returns a pool of ShapeDtypeStructs with shardings."""
  kernel, page, tensor = layout.kernel, layout.page, mesh.shape['tensor']
  parts = split_heads(cfg, tensor).parts
  heads = heads_axis(cfg, tensor)
  lead = (mesh_lib.batch_parts(mesh), cfg.num_layers * layout.pages)

  def array(shape: tuple[int, ...], dtype: str = layout.dtype) -> Any:
    axes = ('batch', None, heads, *(None,) * (len(shape) - 1))
    sharding = NamedSharding(mesh, mesh_lib.spec(axes, (*lead, *shape), mesh))
    return jax.ShapeDtypeStruct((*lead, *shape), dtype, sharding=sharding)

  if kernel.name == 'ragged':
    groups = parts * kernel.groups
    return Pool(array((groups, page, 2 * kernel.rows, kernel.lanes)), None,
                None, None)
  k, h = parts * kernel.rows, kernel.lanes
  scales = array((k, page), 'float32') if layout.dtype == 'int8' else None
  return Pool(array((k, h, page)), array((k, page, h)), scales, scales)


def token_bytes(cfg: ModelConfig, dtype: str) -> int:
  """Returns the bytes of one token's keys and values in all layers.

  Just what attention needs: without padding and repeated heads.
  """
  heads = 2 * cfg.num_layers * cfg.num_kv_heads
  return heads * _row_bytes(cfg.head_dim, dtype)


def token_bytes_per_device(cfg: ModelConfig, dtype: str, kernel: Kernel) -> int:
  """Returns the bytes that a token takes in the pool of each device.

  Args:
    cfg: the model.
    dtype: of the pages.
    kernel: as chosen for the mesh.
  """
  rows = 2 * cfg.num_layers * kernel.groups * kernel.rows
  return rows * _row_bytes(kernel.lanes, dtype)


def _row_bytes(numbers: int, dtype: str) -> int:
  """Bytes of one row of keys or values, with its scale."""
  return numbers * jnp.dtype(dtype).itemsize + (4 if dtype == 'int8' else 0)


def pool_specs(cfg: ModelConfig, pool: Pool, mesh: Any) -> Any:
  """Partitions a pool as `abstract_pool` does."""
  axis = heads_axis(cfg, mesh.shape['tensor'])
  return jax.tree.map(
      lambda x: mesh_lib.spec(('batch', None, axis, *(None,) *
                               (x.ndim - 3)), x.shape, mesh), pool)


def copy_pages(pool: Pool, cfg: ModelConfig, source: Int[AnyArray, 'parts n'],
               target: Int[AnyArray, 'parts n']) -> Pool:
  """Copies pages source[d, i] to target[d, i] in every layer of device d.

  No target is also a source. In one scatter, or on TPUs one after the other:
  there a scatter of pages of some shapes copies the whole pool, elsewhere each
  turn of a loop does.
  """

  def by_layer(x: jax.Array) -> jax.Array:  # [1, L * pages, ...]
    return x.reshape(cfg.num_layers, -1, *x.shape[2:])

  def scatter(x: jax.Array, source: AnyArray, target: AnyArray) -> jax.Array:
    layers = by_layer(x)
    return layers.at[:, target[0]].set(layers[:, source[0]]).reshape(x.shape)

  def loop(x: jax.Array, source: AnyArray, target: AnyArray) -> jax.Array:

    def copy_one(i: Any, x: jax.Array) -> jax.Array:
      layers = by_layer(x)
      page = jax.lax.dynamic_index_in_dim(layers, source[0, i], 1)
      return jax.lax.dynamic_update_index_in_dim(layers, page, target[0, i],
                                                 1).reshape(x.shape)

    return jax.lax.fori_loop(0, source.shape[1], copy_one, x)

  move = loop if mesh_lib.platform() == 'tpu' else scatter

  def copy_local(pool: Pool, source: AnyArray, target: AnyArray) -> Pool:
    return jax.tree.map(lambda x: move(x, source, target), pool)

  mesh: Any = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return copy_local(pool, source, target)
  rows = mesh_lib.spec(('batch', None), source.shape, mesh)
  pools = pool_specs(cfg, pool, mesh)
  return jax.shard_map(copy_local, in_specs=(pools, rows, rows),
                       out_specs=pools, check_vma=False)(pool, source, target)


def slots(layout: Layout, table: AnyArray, positions: AnyArray,
          layer: AnyArray | int) -> tuple[jax.Array, jax.Array]:
  """Returns each position's index into the pool and offset in the page, [B, T].
  """
  page = jnp.take_along_axis(table,
                             jnp.maximum(positions, 0) // layout.page, axis=1)
  page = jnp.where(positions < 0, 0, page)
  return page + layer * layout.pages, jnp.maximum(positions, 0) % layout.page


def narrow(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """Casts to the dtype of the pages; what is too large becomes the largest."""
  if jnp.dtype(dtype).itemsize == 1:  # 'float8_e4m3fn' would make it NaN
    largest = float(jnp.finfo(dtype).max)
    x = jnp.clip(x, -largest, largest)
  return x.astype(dtype)
