"""The engine's sizes: what its programs are compiled for."""

from collections.abc import Sequence
import dataclasses
import functools

from absl import logging
import jax
import numpy as np

from exprl_jax.models import paged
from exprl_jax.models.abstract import sharded_params
from exprl_jax.models.config import ModelConfig
from exprl_jax.rollout.requests import Request
from exprl_jax.runtime import chips
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError

_PASS_TOKENS = 1024  # on each device, of a prefill pass
_WIDTHS = (16, 64)  # of passes that follow the requests, and the widest
_FEW_SLOTS = 16  # fewer are not worth a program for the end of a call


class NoRoomError(InputError):
  """Beside all that is alive, pages for a single row do not fit."""


@dataclasses.dataclass(frozen=True)
class Options:
  """The engine's sizes.

  Attributes:
    slots: rows that decode at a time, on all devices together.
    max_tokens: of a row, prompt and completion.
    page: tokens in a page.
    pages: on each device, of every layer; 0: enough for all slots at
      max_tokens, or what fits beside all that is alive at that time.
    chunk: tokens that a row decodes before the host looks again.
    prefill: tokens of a prompt in one prefill pass.
    dtype: of the pages: that of the model, 'fp8' or 'int8'.
    kernel: one of paged.KERNELS; resolved: the kernel itself.
    ahead: launch a chunk before the results of the last one are read, so that
      the device never waits for the host. None: except on CPUs.
    widths: of prefill passes; each job takes the one that wastes least. One
      program is compiled for each, when it is first needed. (): `prefill`
      alone, for prompts of similar length.
    elastic: slots follow the requests of each call (`fit`), and so do pages
      where none are given. None: on CPUs, where a row costs time and a page
      memory whether they are used or not.
    given_pages: resolved: pages were given.
    weights: 'int8' where the parameters are in int8.
    reserved: bytes on each device of all that is alive beside the pages, with
      the parameters; None: the parameters alone.
    share: of the memory that is left, what pages may take.
    margin: share of a device's memory that stays free.
    config_section: section of the config that the sizes come from, for errors.
  """

  slots: int
  max_tokens: int
  page: int = 128
  pages: int = 0
  chunk: int = 32
  prefill: int = 256
  dtype: str = 'float32'
  kernel: str | paged.Kernel = 'auto'
  ahead: bool | None = None
  widths: tuple[int, ...] = ()
  elastic: bool | None = None
  given_pages: bool | None = None
  weights: str = ''
  reserved: int | None = None
  share: float = 1.0
  margin: float = 0.05
  config_section: str = 'rollout'

  @property
  def columns(self) -> int:
    """Columns of a page table. Prefill passes may end behind max_tokens."""
    return self.pages_for(self.max_tokens + self.prefill)

  @property
  def layout(self) -> paged.Layout:
    """The shape of the pool; only resolved sizes have one."""
    assert isinstance(self.kernel, paged.Kernel)
    return paged.Layout(self.pages, self.page, self.dtype, self.kernel)

  def pages_for(self, tokens: int) -> int:
    """How many pages hold so many tokens."""
    return -(-tokens // self.page)

  def prefill_widths(self) -> tuple[int, ...]:
    """Tokens a row that a prefill pass may have."""
    return self.widths or (self.prefill,)

  def prefill_rows(self, width: int, devices: int) -> list[int]:
    """Rows on each device that a prefill pass of `width` tokens may have."""
    most = max(1, min(self.slots // devices, _PASS_TOKENS // width))
    if not self.widths:
      return [most]
    return [rows for k in range(3) if (rows := most // 4**k)]


def resolve(options: Options, model: ModelConfig,
            mesh: jax.sharding.Mesh) -> Options:
  """Replaces what is left to the engine by what the mesh and memory want.

  Slots are rounded up to a multiple of the devices.

  Raises:
    InputError: the pages cannot hold a single row, or the kernel that is
      requested cannot run.
    NoRoomError: memory for the pages of a single row is not left.
  """
  devices = mesh_lib.batch_parts(mesh)
  slots = -(-options.slots // devices) * devices
  on_cpu = mesh.devices.flat[0].platform == 'cpu'
  ahead = not on_cpu if options.ahead is None else options.ahead
  elastic = on_cpu if options.elastic is None else options.elastic
  widths = options.widths
  if elastic and not widths:
    widths = (*(w for w in _WIDTHS if w < options.prefill), options.prefill)
  options = _with_kernel(options, model, mesh)
  given = options.pages
  given_pages = options.given_pages
  if given_pages is None:
    given_pages = given > 0
  pages = given or _pages_that_fit(options, model, mesh, slots // devices)
  options = dataclasses.replace(options, slots=slots, ahead=ahead, pages=pages,
                                elastic=elastic, widths=widths,
                                given_pages=given_pages)
  # A row, the dummy page, and a copy of the row's last, partial page.
  least = options.pages_for(options.max_tokens) + 2
  if pages < least:
    if given:
      raise InputError(
          f'{options.config_section}.pages={pages} of {options.page} tokens: a '
          f'row of {options.max_tokens} tokens needs {least}')
    raise NoRoomError(
        f'{options.config_section}: a row of {options.max_tokens} tokens needs '
        f'{least} pages of {options.page} tokens, and only {max(pages, 0)} fit '
        f'beside {(options.reserved or 0) / 1e9:.1f} GB on a device; '
        "run='plan' says what to change")
  return options


def fit(options: Options, requests: Sequence[Request], devices: int,
        least_pages: int = 0) -> Options:
  """The sizes for a call, where they are elastic: slots for its samples, and
  pages for its longest.

  Each is a power of two (slots times the devices), and at most what the options
  have: few programs serve calls of all sizes.

  Args:
    options: resolved.
    requests: of the call.
    devices: that the slots are split over.
    least_pages: that an earlier call had.
  """
  if not options.elastic or not requests:
    return options
  # All samples of a request are on one device.
  rows = -(-len(requests) // devices) * max(r.samples for r in requests)
  rows = min(_power_of_two(rows), options.slots // devices)
  options = dataclasses.replace(options, slots=rows * devices)
  if options.given_pages:
    return options
  longest = max(r.longest() for r in requests)
  # As for all slots, and one more prompt, which may be a prefix of its own.
  each = options.pages_for(longest) + 1
  pages = min(options.pages, _power_of_two((rows + 1) * each + 2))
  return dataclasses.replace(options, pages=max(pages, least_pages))


def shrunk(options: Options, rows: int, devices: int) -> int:
  """The slots to go on with at the end of a call: a quarter, or as they are.

  Args:
    options: of the call.
    rows: that still decode, on the device that has most of them.
    devices: that the slots are split over.
  """
  fewer = options.slots // 4
  shrinks = (options.elastic and not options.ahead
             and options.slots > _FEW_SLOTS and fewer % devices == 0
             and rows <= fewer // devices)
  return fewer if shrinks else options.slots


def _power_of_two(count: int) -> int:
  return 1 << (count - 1).bit_length()


def _with_kernel(options: Options, model: ModelConfig,
                 mesh: jax.sharding.Mesh) -> Options:
  """Replaces the kernel's name by the kernel, and 'fp8' by its full name."""
  if isinstance(options.kernel, paged.Kernel):
    return options
  dtype = paged.DTYPES.get(options.dtype, options.dtype)
  if dtype == 'bfloat16' and mesh.devices.flat[0].platform == 'cpu':
    dtype = 'float32'  # XLA:CPU would convert all pages to write one token
  kernel = paged.choose(options.kernel, model, mesh, dtype, options.page,
                        options.columns, options.config_section)
  _log_once(
      f'{options.config_section}: {dtype} pages of {options.page} tokens, '
      f'{kernel.describe()}')
  return dataclasses.replace(options, dtype=dtype, kernel=kernel)


@functools.cache
def _log_once(line: str) -> None:
  logging.info('%s', line)


def _pages_that_fit(options: Options, model: ModelConfig,
                    mesh: jax.sharding.Mesh, slots: int) -> int:
  """Pages for all slots of a device at max_tokens, or as memory allows.

  What is free at the moment does not matter: what will be alive together is
  added up.
  """
  wanted = slots * (options.pages_for(options.max_tokens) + 1) + 2
  limit = chips.memory_limit(mesh.local_devices[0])
  if limit is None:
    return wanted
  taken = options.reserved
  if taken is None:
    taken = weight_bytes(options, model, mesh)
  taken += workspace(options, model, mesh)
  free = (limit * (1 - options.margin) - taken) * options.share
  assert isinstance(options.kernel, paged.Kernel)
  page_bytes = options.page * paged.token_bytes_per_device(
      model, options.dtype, options.kernel)
  fit = int(free / page_bytes)
  # All processes must take the same.
  if jax.process_count() > 1:
    fit = int(np.min(mesh_lib.gather(np.asarray(fit, np.int32))))
  return min(wanted, fit)


def weight_bytes(options: Options, model: ModelConfig,
                 mesh: jax.sharding.Mesh) -> int:
  """Bytes on each device of the parameters to sample with."""
  return mesh_lib.device_bytes(
      sharded_params(model, mesh, frozen=True, int8=options.weights == 'int8'))


def pool_bytes(options: Options, model: ModelConfig,
               mesh: jax.sharding.Mesh) -> int:
  """Bytes on each device of the pool of pages."""
  layout = resolve(options, model, mesh).layout
  return mesh_lib.device_bytes(paged.abstract_pool(model, layout, mesh))


def workspace(options: Options, model: ModelConfig,
              mesh: jax.sharding.Mesh) -> int:
  """Bytes on each device that decoding and prefill passes take, at most.

  An estimate for sizing the pool; run='plan' compiles the programs and has
  their true sizes. Decoding holds up to 18 arrays of logits where a row
  truncates its distribution; both relayout some of the weights.
  """
  tensor = mesh.shape['tensor']
  rows = -(-options.slots // mesh_lib.batch_parts(mesh))
  logits = 18 * 4 * rows * -(-model.vocab_size // tensor)
  width = model.embed_dim * 4 + 3 * 2 * model.mlp_dim // tensor
  passes = 4 * _PASS_TOKENS * width
  return max(logits, passes) + weight_bytes(options, model, mesh) // 8
