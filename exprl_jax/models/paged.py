"""Keys and values in pages, and attention over them.

The pool of a model is one array for all layers:

  [layer 0: page 0, 1, ..., pages - 1 | layer 1: page 0, 1, ... | ...]

Page p of layer i is at index i * pages + p, so one page table serves every
layer and one donated array is updated in place. Page 0 is a dummy that idle
rows write to.

The rows of a batch are split over devices, each with a pool of its own: page
numbers are local to it. Heads are split over the tensor axis.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from exprl_jax.models.config import ModelConfig
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import AnyArray

_TILE = 16  # rows that walk over their pages together, on CPUs
# Largest score, sum of weights and weighted values, so far.
_Softmax = tuple[jax.Array, jax.Array, jax.Array]
KERNELS = ('auto', 'reference', 'ragged')


@dataclasses.dataclass(frozen=True)
class Layout:
  """The shape of a pool. Hashable, so it is a static argument of jit.

  Attributes:
    pages: number of pages of each layer on each device, with the dummy.
    page: tokens in a page.
    dtype: 'float32', 'bfloat16', or 'int8' with a scale per token and head.
    kernel: 'reference', plain JAX for every platform, or 'ragged', the Pallas
      ragged paged attention kernel for TPUs that ships with jax.
  """

  pages: int
  page: int
  dtype: str
  kernel: str


class Pool(NamedTuple):
  """Keys and values: `parts` devices, L layers of `pages` pages each.

  The reference multiplies contiguous matrices, so a page of keys is [K, H,
  page] and one of values [K, page, H]. The kernel takes both interleaved, k0,
  v0, k1, v1, ..., in `keys`.
  """

  keys: jax.Array  # [parts, L * pages, K, H, page], or [.., page, 2 * K, H]
  values: jax.Array | None  # [parts, L * pages, K, page, H]
  key_scales: jax.Array | None  # f32[parts, L * pages, K, page], of int8
  value_scales: jax.Array | None


def choose(kernel: str, dtype: str) -> str:
  """Chooses the kernel for this platform; int8 has the reference only."""
  if kernel != 'auto':
    return kernel
  on_tpu = jax.default_backend() == 'tpu' and dtype != 'int8'
  return 'ragged' if on_tpu else 'reference'


def abstract_pool(cfg: ModelConfig, layout: Layout,
                  mesh: jax.sharding.Mesh) -> Pool:
  """Returns a pool of ShapeDtypeStructs with shardings."""
  parts = mesh_lib.batch_parts(mesh)
  k, h, page = cfg.num_kv_heads, cfg.head_dim, layout.page
  lead = (parts, cfg.num_layers * layout.pages)

  def array(axes: tuple[str | None, ...], shape: tuple[int, ...],
            dtype: str = layout.dtype) -> Any:
    spec = mesh_lib.spec(('batch', None, *axes), (*lead, *shape), mesh)
    sharding = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct((*lead, *shape), dtype, sharding=sharding)

  if layout.kernel == 'ragged':
    return Pool(array((None, 'kv_heads', None), (page, 2 * k, h)), None, None,
                None)
  scales = None
  if layout.dtype == 'int8':
    scales = array(('kv_heads', None), (k, page), 'float32')
  return Pool(array(('kv_heads', None, None), (k, h, page)),
              array(('kv_heads', None, None), (k, page, h)), scales, scales)


def token_bytes(cfg: ModelConfig, dtype: str) -> int:
  """Returns the bytes of one token's keys and values in all layers."""
  heads = 2 * cfg.num_layers * cfg.num_kv_heads
  size = jnp.dtype(dtype).itemsize
  return heads * (cfg.head_dim * size + (4 if dtype == 'int8' else 0))


def copy_pages(pool: Pool, cfg: ModelConfig, source: Int[AnyArray, 'parts n'],
               target: Int[AnyArray, 'parts n']) -> Pool:
  """Copies pages source[d, i] to target[d, i] in every layer of device d."""

  def copy_local(x: jax.Array, source: AnyArray, target: AnyArray) -> jax.Array:
    # [L * pages, ...] -> [L, pages, ...] -> [L * pages, ...]
    x = x.reshape(cfg.num_layers, -1, *x.shape[1:])
    return x.at[:, target].set(x[:, source]).reshape(-1, *x.shape[2:])

  return jax.tree.map(lambda x: jax.vmap(copy_local)(x, source, target), pool)


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
  run = functools.partial(_ragged if layout.kernel == 'ragged' else _reference,
                          cfg, layout)
  mesh: Any = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return run(q, k, v, pool, table, positions, layer, kind)
  heads = mesh_lib.spec(('batch', None, 'kv_heads', None), k.shape, mesh)
  rows = mesh_lib.spec(('batch', None), table.shape, mesh)
  axes = (
      ('batch', None, None, 'kv_heads', None) if layout.kernel == 'ragged' else
      ('batch', None, 'kv_heads', None, None))  # scales: the first 4
  pools = jax.tree.map(lambda x: mesh_lib.spec(axes[:x.ndim], x.shape, mesh),
                       pool)
  return jax.shard_map(
      run, in_specs=(heads, heads, heads, pools, rows, rows, jax.P(), jax.P()),
      out_specs=(heads, pools), check_vma=False)(q, k, v, pool, table,
                                                 positions, layer, kind)


def _slots(layout: Layout, table: AnyArray, positions: AnyArray,
           layer: AnyArray | int) -> tuple[jax.Array, jax.Array]:
  """Returns each position's index into the pool and offset in the page, [B, T].
  """
  page = jnp.take_along_axis(table,
                             jnp.maximum(positions, 0) // layout.page, axis=1)
  page = jnp.where(positions < 0, 0, page)
  return page + layer * layout.pages, jnp.maximum(positions, 0) % layout.page


def _reference(cfg: ModelConfig, layout: Layout, q: jax.Array, k: jax.Array,
               v: jax.Array, pool: Pool, table: AnyArray, positions: AnyArray,
               layer: AnyArray | int,
               kind: AnyArray | int) -> tuple[jax.Array, Pool]:
  """Attends page by page, with a running softmax.

  A tile of rows walks over pages until its longest row ends. Rows are sorted
  into tiles by length, so that short ones do not wait for long ones.
  """
  b, t, n, h = q.shape
  heads = k.shape[2]
  # 1. [B, T, N, H] -> [B, K, G * T, H], the G = N / K queries of a kv head.
  pool = _write(pool, k, v, *_slots(layout, table, positions, layer))
  q = q.reshape(b, t, heads, n // heads, h).transpose(0, 2, 3, 1, 4)
  q = q.reshape(b, heads, -1, h)
  attend_to = functools.partial(_walk, cfg, layout, pool, layer, kind)
  # 2. Tile by tile, where decoding on CPUs.
  if t == 1 and jax.default_backend() == 'cpu':
    order = jnp.argsort(jnp.max(positions, axis=1))
    order = jnp.pad(order, (0, -b % _TILE), mode='edge')

    def tile(i: jax.Array, out: jax.Array) -> jax.Array:
      rows = jax.lax.dynamic_slice(order, (i * _TILE,), (_TILE,))
      return out.at[rows].set(attend_to(q[rows], table[rows], positions[rows]))

    out = jax.lax.fori_loop(0, len(order) // _TILE, tile, jnp.zeros(q.shape))
  else:
    out = attend_to(q, table, positions)
  # 3. And back to [B, T, N, H].
  out = out.reshape(b, heads, n // heads, t, h).transpose(0, 3, 1, 2, 4)
  return out.reshape(b, t, n, h).astype(k.dtype), pool


def _walk(cfg: ModelConfig, layout: Layout, pool: Pool, layer: AnyArray | int,
          kind: AnyArray | int, q: jax.Array, table: AnyArray,
          positions: AnyArray) -> jax.Array:
  """Computes attention of queries [B, K, G * T, H] over their rows' pages."""
  window = jnp.array(cfg.kinds)[kind]
  precision = 'highest' if q.dtype == jnp.float32 else None

  def visit(i: jax.Array, state: _Softmax) -> _Softmax:
    highest, total, out = state
    # 1. Scores [B, K, G * T, page] of page i of each row.
    index = table[:, i] + layer * layout.pages
    keys, values = pool.keys[0, index], _present(pool.values)[0, index]
    scores = jnp.einsum('bkqh,bkhp->bkqp', q, keys.astype(q.dtype),
                        precision=precision, preferred_element_type=jnp.float32)
    if pool.key_scales is not None:
      scores *= pool.key_scales[0, index][:, :, None]
    if cfg.attention_softcap:
      scores = cfg.attention_softcap * jnp.tanh(scores / cfg.attention_softcap)
    seen = _visible(cfg, layout, i, q.shape[2], positions, window)
    scores = jnp.where(seen, scores, -1e30)
    # 2. What was summed so far, relative to the new largest score.
    new = jnp.maximum(highest, scores.max(axis=-1))
    weight = jnp.where(seen, jnp.exp(scores - new[..., None]), 0.0)
    decay = jnp.exp(highest - new)
    # 3. Add this page's weights and weighted values.
    total = total * decay + weight.sum(axis=-1)
    if pool.value_scales is not None:
      weight *= pool.value_scales[0, index][:, :, None]
    out = out * decay[..., None] + jnp.einsum(
        'bkqp,bkph->bkqh', weight.astype(q.dtype), values.astype(q.dtype),
        precision=precision, preferred_element_type=jnp.float32)
    return new, total, out

  shape = q.shape[:3]
  last = jnp.max(positions) // layout.page + 1
  _, total, out = jax.lax.fori_loop(
      0, last, visit,
      (jnp.full(shape, -1e30), jnp.zeros(shape), jnp.zeros(q.shape)))
  return out / jnp.maximum(total, 1e-30)[..., None]


def _visible(cfg: ModelConfig, layout: Layout, i: jax.Array, queries: int,
             positions: AnyArray, window: jax.Array) -> jax.Array:
  """Marks what queries [G * T] see of a row's page i: bool[B, 1, G * T, page].
  """
  ago = positions[:, :, None] - (
      i * layout.page + jnp.arange(layout.page))[None, None]  # [B, T, page]
  seen = ago >= 0
  if any(cfg.kinds):
    seen &= (window == 0) | (ago < window)
  return jnp.tile(seen[:, None], (1, 1, queries // positions.shape[1], 1))


def _write(pool: Pool, k: jax.Array, v: jax.Array, index: jax.Array,
           offset: jax.Array) -> Pool:
  """Writes k and v [B, T, K, H] to their slots [B, T]."""
  values = _present(pool.values)
  if pool.key_scales is None:
    return pool._replace(
        keys=pool.keys.at[0, index, :, :,
                          offset].set(k.astype(pool.keys.dtype)),
        values=values.at[0, index, :, offset].set(v.astype(values.dtype)))
  (k, key_scale), (v, value_scale) = _quantize(k), _quantize(v)
  return Pool(
      pool.keys.at[0, index, :, :, offset].set(k), values.at[0, index, :,
                                                             offset].set(v),
      pool.key_scales.at[0, index, :, offset].set(key_scale),
      _present(pool.value_scales).at[0, index, :, offset].set(value_scale))


def _present(x: jax.Array | None) -> jax.Array:
  """Returns an array that this kind of pool has."""
  assert x is not None
  return x


def _quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Rounds [B, T, K, H] to int8, with scales [B, T, K]."""
  x = x.astype(jnp.float32)
  scale = jnp.maximum(jnp.abs(x).max(axis=-1), 1e-30) / 127.0
  return jnp.round(x / scale[..., None]).astype(jnp.int8), scale


def _ragged(cfg: ModelConfig, layout: Layout, q: jax.Array, k: jax.Array,
            v: jax.Array, pool: Pool, table: AnyArray, positions: AnyArray,
            layer: AnyArray | int,
            kind: AnyArray | int) -> tuple[jax.Array, Pool]:
  """Runs the Pallas kernel.

  It is given block sizes: to choose them it would query a TPU, which a
  compilation ahead of time does not have.
  """
  from jax.experimental.pallas.ops.tpu import ragged_paged_attention as kernel
  b, t, n, h = q.shape
  index, offset = _slots(layout, table, positions, layer)
  both = jnp.stack([k, v], axis=3).reshape(b, t, -1, h)  # k0, v0, k1, v1, ...
  pages = pool.keys[0].at[index, offset].set(both.astype(pool.keys.dtype))

  def run(window: int, q: jax.Array, pages: jax.Array) -> jax.Array:
    return kernel.ragged_paged_attention(
        q.reshape(b * t, n, h), pages,
        jnp.maximum(positions[:, 0], 0) + t, table + layer * layout.pages,
        jnp.arange(b + 1, dtype=jnp.int32) * t, jnp.array([b], jnp.int32),
        sm_scale=1.0, sliding_window=window or None,
        soft_cap=cfg.attention_softcap or None,
        num_kv_pages_per_block=max(1, min(1024 // layout.page, table.shape[1])),
        num_queries_per_block=8 if t == 1 else 32,
        vmem_limit_bytes=64 * 2**20).reshape(b, t, n, h)

  branches = [functools.partial(run, window) for window in cfg.kinds]
  out = (branches[0](q, pages) if len(branches) == 1 else jax.lax.switch(
      kind, branches, q, pages))
  return out, pool._replace(keys=pages[None])
