"""Which kernel attends over pages, in what layout and in what block sizes.

`choose` is the one place that decides. Names are 'reference', plain JAX for
every platform and dtype, and 'ragged', jax's ragged paged attention for TPUs.

The ragged kernel reads rows of 128 lanes. Heads of fewer numbers share a row;
heads of more take several, which the kernel can read only where a block of
memory holds the keys and values of few heads. A page is therefore split into
`groups`, of `rows` pairs (key, value) each, and the kernel treats a group as a
sequence of its own.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from exprl_jax.models.config import ModelConfig
from exprl_jax.runtime import chips
from exprl_jax.types import InputError

KERNELS = ('auto', 'reference', 'ragged')
# Names of dtypes in the config that NumPy has under another name.
DTYPES = {'fp8': 'float8_e4m3fn'}

_MIB = 2**20
_LANES = 128
_MAX_PAGES = 16  # of a block: each is a DMA of its own, in an unrolled loop
_TILE = 16  # rows that walk over their pages together, on CPUs
# VMEM of a core, in MiB. Chips that are not listed get what the smallest has.
_VMEM = {'v4': 16, 'v5e': 128, 'v5p': 64, 'v6e': 128, 'tpu7x': 64}
_SMALLEST_VMEM, _MOST_VMEM = 16, 64
_RIDGE = 240  # FLOPs a byte, of chips that are not listed


class Split(NamedTuple):
  """How the heads of a model are split over the tensor axis.

  Attributes:
    parts: devices with different heads: the axis, or 1, if all have all.
    kv_heads: on each device.
    repeats: devices that have the same kv head, each with some of its queries.
  """

  parts: int
  kv_heads: int
  repeats: int


def split_heads(cfg: ModelConfig, tensor: int) -> Split:
  """Splits heads over `tensor` devices.

  Fewer kv heads than devices are repeated, if that makes one for each.
  """
  queries, heads = cfg.num_heads, cfg.num_kv_heads
  if heads % tensor == 0:
    return Split(tensor, heads // tensor, 1)
  if tensor % heads == 0 and queries % tensor == 0:
    return Split(tensor, 1, tensor // heads)
  return Split(1, heads, 1)


class Blocks(NamedTuple):
  """What the ragged kernel works on at a time: pages of a row, and queries."""

  pages: int
  queries: int


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A kernel, and how keys and values lie in its pages.

  Attributes:
    name: 'reference' or 'ragged'.
    heads_per_row: kv heads side by side in a row.
    lanes: numbers in a row.
    rows: of keys, and as many of values, in a group.
    groups: of a page, on each device.
    decode: blocks where each row has one query.
    prefill: blocks otherwise.
    vmem: bytes of VMEM that the ragged kernel may take.
    tile: rows that the reference attends for at a time, where each has one
      query; 0: all.
  """

  name: str
  heads_per_row: int
  lanes: int
  rows: int
  groups: int = 1
  decode: Blocks = Blocks(0, 0)
  prefill: Blocks = Blocks(0, 0)
  vmem: int = 0
  tile: int = 0

  def describe(self) -> str:
    """One line for the log."""
    if self.name == 'reference':
      return f'kernel reference, {self.rows} kv heads of {self.lanes} a device'
    return (f'kernel {self.name}, {self.groups} x {self.rows} rows of '
            f'{self.lanes} lanes a device, kv heads per row: '
            f'{self.heads_per_row}; '
            f'blocks of {self.decode.pages} pages x {self.decode.queries} '
            f'queries in decoding, {self.prefill.pages} x '
            f'{self.prefill.queries} in prefill')


def choose(requested: str, cfg: ModelConfig, mesh: jax.sharding.Mesh,
           dtype: str, page: int, columns: int,
           section: str = 'rollout') -> Kernel:
  """Chooses by the devices of the mesh, which may be absent.

  Args:
    requested: one of KERNELS.
    cfg: the model.
    mesh: heads are split over its 'tensor'.
    dtype: of the pages.
    page: tokens in a page.
    columns: of a page table.
    section: of the config, for errors.

  Raises:
    InputError: the ragged kernel is requested, and cannot run.
  """
  device = mesh.devices.flat[0]
  split = split_heads(cfg, mesh.shape['tensor'])
  on_tpu = device.platform == 'tpu'
  kernel = None
  if on_tpu and requested != 'reference':
    kernel = ragged(cfg, split, dtype, page, columns,
                    chips.find(device.device_kind))
  if kernel:
    return kernel
  if requested == 'ragged' and not on_tpu:
    raise InputError(f"{section}.kernel='ragged' runs on TPUs, these devices "
                     f"are of platform {device.platform!r}; 'auto' fits both")
  if requested == 'ragged':
    raise InputError(
        f"{section}.kernel='ragged' has no pages of {dtype} for heads of "
        f"{cfg.head_dim}; 'auto' takes the reference, and {section}.kv_dtype="
        "'fp8' would fit")
  return reference(cfg, split, tiled=device.platform == 'cpu')


def reference(cfg: ModelConfig, split: Split, tiled: bool = False) -> Kernel:
  """The reference: a head is a row."""
  return Kernel('reference', 1, cfg.head_dim, split.kv_heads,
                tile=_TILE if tiled else 0)


def ragged(cfg: ModelConfig, split: Split, dtype: str, page: int, columns: int,
           chip: chips.Chip | None) -> Kernel | None:
  """The ragged kernel for one generation of TPUs; None: it cannot run."""
  if dtype == 'int8':  # the kernel has one scale for all pages
    return None
  packed = _pack(cfg.head_dim, split.kv_heads, jnp.dtype(dtype).itemsize)
  if packed is None:
    return None
  heads_per_row, lanes, rows, groups = packed
  kernel = Kernel('ragged', heads_per_row, lanes, rows, groups,
                  vmem=_vmem(chip))
  queries = heads_per_row * _queries(cfg, split)
  decode, prefill = _blocks(kernel, queries, dtype, page, columns, chip)
  return dataclasses.replace(kernel, decode=decode, prefill=prefill)


def _queries(cfg: ModelConfig, split: Split) -> int:
  """Query heads of a kv head on a device."""
  return cfg.num_heads // (split.parts * split.kv_heads)


def _pack(head_dim: int, kv_heads: int,
          itemsize: int) -> tuple[int, int, int, int] | None:
  """Returns (heads per row, lanes, rows of a group, groups of a page).

  It is the arrangement with the fewest rows, then with the fewest groups.
  """
  per_row = max(1, min(_LANES // head_dim, kv_heads))
  lanes = -(-per_row * head_dim // _LANES) * _LANES
  least = -(-kv_heads // per_row)
  for rows in (least, least + 1):
    for groups in range(1, rows + 1):
      if rows % groups == 0 and _readable(rows // groups, lanes, itemsize):
        return per_row, lanes, rows // groups, groups
  return None


def _readable(rows: int, lanes: int, itemsize: int) -> bool:
  """Whether the kernel takes groups of so many pairs of rows.

  XLA must tile them without padding; and the kernel reads every n-th row, which
  in rows of more than 128 lanes the compiler has for n = 1 only. A row here is
  one of 32-bit words, which hold several narrow rows.
  """
  if 2 * rows * itemsize % 4:
    return False
  words = 2 * rows * itemsize // 4
  return words == 1 or lanes == _LANES and (words in (2, 4) or words % 8 == 0)


def _vmem(chip: chips.Chip | None) -> int:
  size = _VMEM.get(chip.name, _SMALLEST_VMEM) if chip else _SMALLEST_VMEM
  return min(size * 3 // 4, _MOST_VMEM) * _MIB


def _blocks(kernel: Kernel, queries: int, dtype: str, page: int, columns: int,
            chip: chips.Chip | None) -> tuple[Blocks, Blocks]:
  """Returns the blocks of decoding and of prefill.

  Args:
    kernel: its layout and VMEM.
    queries: query heads of a row of keys.
    dtype: of the pages.
    page: tokens in a page.
    columns: of a page table.
    chip: of the mesh, if it is known.
  """
  itemsize = jnp.dtype(dtype).itemsize

  def pages(most: int) -> int:
    # Blocks are read in full. A quarter of the longest row, at least 512
    # tokens, wastes little where rows are of all lengths.
    tokens = min(most, max(512, columns * page // 4))
    return max(1, min(_MAX_PAGES, columns, tokens // page))

  # 1. Decoding: as many queries as fill the 8 sublanes of a register.
  decode = Blocks(pages(2048), max(1, 8 // queries))
  # 2. Prefill: enough queries for a block of keys to be computed on for as long
  # as the next one takes to arrive: 2 / itemsize FLOPs a byte for each query.
  ridge = chip.flops / chip.bandwidth if chip else _RIDGE
  enough = max(1.0, ridge * itemsize / 2 / queries)
  prefill = Blocks(pages(1024),
                   min(128, max(16, 2**math.ceil(math.log2(enough)))))
  # 3. Both fit into VMEM.
  return (_fitting(kernel, queries, itemsize, page,
                   decode), _fitting(kernel, queries, itemsize, page, prefill))


def _fitting(kernel: Kernel, queries: int, itemsize: int, page: int,
             blocks: Blocks) -> Blocks:
  """Halves pages or queries, whichever takes more, until both fit."""
  while blocks != (1, 1):
    sizes = vmem_bytes(kernel, queries, itemsize, page, blocks)
    if sum(sizes) <= kernel.vmem:
      break
    if blocks.queries == 1 or blocks.pages > 1 and sizes[0] >= sizes[1]:
      blocks = Blocks(blocks.pages // 2, blocks.queries)
    else:
      blocks = Blocks(blocks.pages, blocks.queries // 2)
  return blocks


def vmem_bytes(kernel: Kernel, queries: int, itemsize: int, page: int,
               blocks: Blocks) -> tuple[int, int]:
  """Bounds what the kernel takes, by its code and by what compiling it needed.

  Returns:
    Bytes that grow with the pages of a block, and bytes of its queries alone.
  """
  rows, tokens = kernel.rows, blocks.pages * page
  asked = blocks.queries * queries
  # 1. Two buffers of keys and values, one of them being filled; the scores; and
  # keys and values in float32, of which narrow ones need several copies.
  copies = 4 if itemsize == 1 else 1
  keys = rows * tokens * (4 * kernel.lanes * itemsize + 5 * asked +
                          4 * copies * kernel.lanes)
  # 2. Maxima and sums, spread over 128 lanes; the output in float32; and two
  # buffers each of queries and outputs.
  return keys, rows * asked * (2 * 4 * _LANES + (4 + 4 * 4) * kernel.lanes)
