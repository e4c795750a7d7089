"""Keys and values in pages, and attention over them.

The pool of a model is one array for all layers: page p of layer i is at index
i * pages + p, so one page table serves every layer and one donated array is
updated in place. Page 0 is a dummy, where idle rows write.

The rows of a batch are split over D devices, and each of them has a pool of
its own: page numbers are local. Heads are split over the tensor axis.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from exprl_jax.models.config import ModelConfig
from exprl_jax.runtime import mesh as mesh_lib

_TILE = 16  # rows that walk together, on CPUs
KERNELS = ('auto', 'reference', 'ragged')


@dataclasses.dataclass(frozen=True)
class Layout:
  """The shape of a pool. Hashable, so it is a static argument of jit.

  Attributes:
    pages: of each layer on each device, the dummy included.
    page: tokens in one.
    dtype: 'float32', 'bfloat16', or 'int8' with a scale per token and head.
    kernel: 'reference', plain JAX for every platform, or 'ragged', the Pallas
      ragged paged attention kernel for TPUs that ships with jax.
  """

  pages: int
  page: int
  dtype: str
  kernel: str


class Pool(NamedTuple):
  """Keys and values of L layers on D devices, P pages each.

  The reference wants its matrices contiguous, so keys lie [head, H, page] and
  values [head, page, H]; the kernel wants them interleaved, all in `keys`.
  """

  keys: jax.Array  # [D, L * P, K, H, page], or [D, L * P, page, 2 K, H]
  values: jax.Array | None  # [D, L * P, K, page, H]
  key_scales: jax.Array | None  # f32[D, L * P, K, page], of int8
  value_scales: jax.Array | None


def choose(kernel: str, dtype: str) -> str:
  """The kernel for this platform. int8 has the reference only."""
  if kernel != 'auto':
    return kernel
  on_tpu = jax.default_backend() == 'tpu' and dtype != 'int8'
  return 'ragged' if on_tpu else 'reference'


def abstract_pool(cfg: ModelConfig, layout: Layout,
                  mesh: jax.sharding.Mesh) -> Pool:
  """ShapeDtypeStructs with shardings."""
  parts = mesh_lib.batch_parts(mesh)
  k, h, page = cfg.num_kv_heads, cfg.head_dim, layout.page
  lead = (parts, cfg.num_layers * layout.pages)

  def array(axes, shape, dtype=layout.dtype):
    axes = ('batch', None, *axes)
    sharding = NamedSharding(mesh, mesh_lib.spec(axes, (*lead, *shape), mesh))
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
  """Of one token's keys and values in all layers."""
  head = 2 * cfg.num_layers * cfg.num_kv_heads
  size = jnp.dtype(dtype).itemsize
  return head * (cfg.head_dim * size + (4 if dtype == 'int8' else 0))


def copy_pages(pool: Pool, cfg: ModelConfig, source: jax.Array,
               target: jax.Array) -> Pool:
  """Copies pages source[d, i] to target[d, i] in every layer; i32[D, n]."""

  def one(x):

    def local(x, source, target):  # [L * P, ...]
      x = x.reshape(cfg.num_layers, -1, *x.shape[1:])
      return x.at[:, target].set(x[:, source]).reshape(-1, *x.shape[2:])

    return jax.vmap(local)(x, source, target)

  return jax.tree.map(one, pool)


def attend(cfg: ModelConfig, layout: Layout, q: jax.Array, k: jax.Array,
           v: jax.Array, pool: Pool, table: jax.Array, positions: jax.Array,
           layer: jax.Array | int,
           kind: jax.Array | int) -> tuple[jax.Array, Pool]:
  """Writes new keys and values, then attends over all up to each position.

  Args:
    cfg: the model.
    layout: of the pool.
    q: [B, T, N, H], with the scale of the scores in them.
    k: [B, T, K, H].
    v: [B, T, K, H].
    pool: updated in place where it is donated.
    table: i32[B, M] pages of each row, in order; 0 where it has none.
    positions: i32[B, T], neighbours, then perhaps negative ones: nothing is
      written for them, and what comes out is meaningless.
    layer: i32[].
    kind: index into `cfg.kinds`.

  Returns:
    [B, T, N, H] in q's dtype, and the pool.
  """
  run = functools.partial(_ragged if layout.kernel == 'ragged' else _reference,
                          cfg, layout)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return run(q, k, v, pool, table, positions, layer, kind)
  heads = mesh_lib.spec(('batch', None, 'kv_heads', None), k.shape, mesh)
  rows = mesh_lib.spec(('batch', None), table.shape, mesh)
  axis = {
      x.ndim: mesh_lib.spec(('batch', None, 'kv_heads', None, None)[:x.ndim],
                            x.shape, mesh) for x in jax.tree.leaves(pool)
  }
  if layout.kernel == 'ragged':
    axis = {
        5: mesh_lib.spec(('batch', None, None, 'kv_heads', None),
                         pool.keys.shape, mesh)
    }
  pools = jax.tree.map(lambda x: axis[x.ndim], pool)
  return jax.shard_map(
      run, in_specs=(heads, heads, heads, pools, rows, rows, jax.P(), jax.P()),
      out_specs=(heads, pools), check_vma=False)(q, k, v, pool, table,
                                                 positions, layer, kind)


def _places(layout, table, positions, layer):
  """(index into the pool, offset in the page) of each position, [B, T]."""
  page = jnp.take_along_axis(table,
                             jnp.maximum(positions, 0) // layout.page, axis=1)
  page = jnp.where(positions < 0, 0, page)
  return page + layer * layout.pages, jnp.maximum(positions, 0) % layout.page


def _reference(cfg, layout, q, k, v, pool, table, positions, layer, kind):
  """Softmax while walking over pages, as far as the longest row of a tile
  goes. Rows are put into tiles by length: short ones do not wait for long."""
  b, t, n, h = q.shape
  heads = k.shape[2]
  pool = _write(pool, k, v, *_places(layout, table, positions, layer))
  q = q.reshape(b, t, heads, n // heads, h).transpose(0, 2, 3, 1, 4)
  q = q.reshape(b, heads, -1, h)  # [B, K, G * T, H]
  attend_to = functools.partial(_walk, cfg, layout, pool, layer, kind)
  if t == 1 and jax.default_backend() == 'cpu':
    order = jnp.argsort(jnp.max(positions, axis=1))
    order = jnp.pad(order, (0, -b % _TILE), mode='edge')

    def tile(i, out):
      rows = jax.lax.dynamic_slice(order, (i * _TILE,), (_TILE,))
      return out.at[rows].set(attend_to(q[rows], table[rows], positions[rows]))

    out = jax.lax.fori_loop(0, len(order) // _TILE, tile, jnp.zeros(q.shape))
  else:
    out = attend_to(q, table, positions)
  out = out.reshape(b, heads, n // heads, t, h).transpose(0, 3, 1, 2, 4)
  return out.reshape(b, t, n, h).astype(k.dtype), pool


def _walk(cfg, layout, pool, layer, kind, q, table, positions):
  """What queries [B, K, G * T, H] find in the pages of their rows."""
  t = positions.shape[1]
  window = jnp.array(cfg.kinds)[kind]
  precision = 'highest' if q.dtype == jnp.float32 else None

  def visit(i, carry):
    highest, total, out = carry
    index = table[:, i] + layer * layout.pages
    keys, values = pool.keys[0, index], pool.values[0, index]
    scores = jnp.einsum('bkqh,bkhp->bkqp', q, keys.astype(q.dtype),
                        precision=precision, preferred_element_type=jnp.float32)
    if layout.dtype == 'int8':
      scores *= pool.key_scales[0, index][:, :, None]
    if cfg.attention_softcap:
      scores = cfg.attention_softcap * jnp.tanh(scores / cfg.attention_softcap)
    ago = positions[:, :, None] - (
        i * layout.page + jnp.arange(layout.page))[None, None]  # [B, T, page]
    seen = ago >= 0
    if any(cfg.kinds):
      seen &= (window == 0) | (ago < window)
    seen = jnp.tile(seen[:, None], (1, 1, q.shape[2] // t, 1))
    scores = jnp.where(seen, scores, -1e30)
    new = jnp.maximum(highest, scores.max(axis=-1))
    weight = jnp.where(seen, jnp.exp(scores - new[..., None]), 0.0)
    decay = jnp.exp(highest - new)
    total = total * decay + weight.sum(axis=-1)
    if layout.dtype == 'int8':
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


def _write(pool, k, v, index, offset):
  if pool.key_scales is None:
    return pool._replace(
        keys=pool.keys.at[0, index, :, :,
                          offset].set(k.astype(pool.keys.dtype)),
        values=pool.values.at[0, index, :,
                              offset].set(v.astype(pool.values.dtype)))
  (k, key_scale), (v, value_scale) = _quantise(k), _quantise(v)
  return Pool(pool.keys.at[0, index, :, :,
                           offset].set(k), pool.values.at[0, index, :,
                                                          offset].set(v),
              pool.key_scales.at[0, index, :, offset].set(key_scale),
              pool.value_scales.at[0, index, :, offset].set(value_scale))


def _quantise(x):
  """int8 and a scale per token and head."""
  x = x.astype(jnp.float32)
  scale = jnp.maximum(jnp.abs(x).max(axis=-1), 1e-30) / 127.0
  return jnp.round(x / scale[..., None]).astype(jnp.int8), scale


def _ragged(cfg, layout, q, k, v, pool, table, positions, layer, kind):
  """The Pallas kernel; its block sizes are given, since its own choice asks
  for a TPU that a compilation ahead of time does not have."""
  from jax.experimental.pallas.ops.tpu import ragged_paged_attention as kernel
  b, t, n, h = q.shape
  index, offset = _places(layout, table, positions, layer)
  both = jnp.stack([k, v], axis=3).reshape(b, t, -1, h)  # k0, v0, k1, v1, ...
  pages = pool.keys[0].at[index, offset].set(both.astype(pool.keys.dtype))

  def run(window, q, pages):
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
