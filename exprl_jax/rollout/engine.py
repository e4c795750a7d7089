"""Generation: slots that are always busy, over keys and values in pages.

A fixed number of rows ("slots") decode together, `chunk` tokens at a time in
one jitted while_loop. Between chunks the host retires the rows that have
ended, gives their pages back and fills their slots from the queue.

A request is a prompt and a number of samples. Its prompt is prefilled once,
but for its last token, into a trunk; each sample is a branch off the trunk's
end: it shares the full pages, copies the last, partial one, and starts by
decoding the prompt's last token.

When the pages run out, rows wait; the oldest always gets what it needs, if
need be from the youngest, which starts again later. A sample is a function of
(key, its id, its prompt, the parameters), so nothing of this shows in it.
"""

from collections import deque
from collections.abc import Callable, Sequence
import dataclasses
import sys
import time

import jax
import numpy as np
import tqdm

from exprl_jax.models import paged
from exprl_jax.models.config import ModelConfig
from exprl_jax.rollout import decode
from exprl_jax.rollout.requests import Request, Sample
from exprl_jax.rollout.scheduler import Run
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Options:
  """The engine's shape: what its programs are compiled for.

  Attributes:
    slots: rows that decode at a time, on all devices together.
    max_tokens: of a row, prompt and completion.
    page: tokens in a page.
    pages: on each device, of every layer; 0: enough for all slots at
      max_tokens, or what fits into 90 % of the memory that is free.
    chunk: tokens a row decodes between two looks of the host.
    prefill: tokens of a prompt per prefilling pass.
    dtype: of the pages: that of the model, or 'int8'.
    kernel: one of paged.KERNELS.
    ahead: launch a chunk before the last one's results are read, so that the
      device never waits for the host. None: except on CPUs.
    widths: of prefilling passes, to choose from by what is to be done, each
      compiled when it is first needed; (): `prefill` alone, which is better
      where prompts are alike and nothing should compile later.
    group: of the config's keys that the sizes come from, for errors.
  """

  slots: int
  max_tokens: int
  page: int = 128
  pages: int = 0
  chunk: int = 32
  prefill: int = 256
  dtype: str = 'float32'
  kernel: str = 'auto'
  ahead: bool | None = None
  widths: tuple[int, ...] = ()
  group: str = 'rollout'


class Stats:
  """What a call of `generate` did."""

  def __init__(self):
    self.seconds = self.decode_seconds = 0.0
    self.steps = self.row_steps = self.tokens = self.prefilled = 0
    self.restarts = self.context = 0


# Bytes a second of a device's memory, from the makers' data sheets.
_BANDWIDTH = {
    'TPU v4': 1.228e12, 'TPU v5 lite': 0.819e12, 'TPU v5': 2.765e12,
    'TPU v6 lite': 1.64e12, 'NVIDIA A100-SXM4-80GB': 2.039e12,
    'NVIDIA H100 80GB HBM3': 3.35e12, 'NVIDIA H200': 4.8e12
}


class Engine:
  """Generates on a mesh. Its programs and its pool outlive a call."""

  def __init__(self, model: ModelConfig, mesh: jax.sharding.Mesh,
               options: Options, decode_text: Callable | None = None):
    """Sizes the pool; no memory is taken before `generate`.

    Args:
      model: the decoder.
      mesh: rows are split over its batch axes, heads over 'tensor'.
      options: see there.
      decode_text: token ids -> text, for stop strings.

    Raises:
      InputError: the pool cannot hold a single row.
    """
    self.model, self.mesh, self.decode_text = model, mesh, decode_text
    platform = mesh.devices.flat[0].platform
    self._unrolled = platform != 'tpu'
    self.devices = mesh_lib.batch_parts(mesh)
    slots = -(-options.slots // self.devices) * self.devices
    self.columns = -(-(options.max_tokens + options.prefill) // options.page)
    kernel = paged.choose(options.kernel, options.dtype)
    ahead = options.ahead
    if ahead is None:
      ahead = platform != 'cpu'
    self.options = options = dataclasses.replace(
        options, slots=slots, kernel=kernel, ahead=ahead, pages=options.pages
        or self._pages_that_fit(options, slots))
    self.layout = paged.Layout(options.pages, options.page, options.dtype,
                               kernel)
    row = -(-options.max_tokens // options.page)
    if options.pages < row + 2:
      raise InputError(
          f'{options.group}.pages={options.pages} of {options.page} tokens: a '
          f'row of {options.max_tokens} tokens needs {row + 2}')
    self._pool = self._state = None
    self.weight_bytes = 0
    self.stats = Stats()

  def _pages_that_fit(self, options: Options, slots: int) -> int:
    wanted = slots // self.devices * (-(-options.max_tokens // options.page) +
                                      1) + 2
    memory = self.mesh.local_devices[0].memory_stats() or {}
    if 'bytes_limit' not in memory:
      return wanted
    free = memory['bytes_limit'] - memory['bytes_in_use']
    page = paged.token_bytes(self.model, options.dtype) * options.page
    fit = int(0.9 * free * self.mesh.shape['tensor'] / page)
    # All processes must take the same.
    return min(wanted, int(np.min(mesh_lib.gather(np.int32(fit)))))

  def prefill_rows(self, width: int) -> list[int]:
    """Prompts that a prefilling pass of `width` tokens may have on each device.
    """
    most = max(1, min(self.options.slots // self.devices, 1024 // width))
    if not self.options.widths:
      return [most]
    return [rows for k in range(3) if (rows := most // 4**k)]

  def release(self) -> None:
    """Gives the memory of pool and parameters back until the next call."""
    self._pool = self._state = self._params = None

  def generate(self, params, requests: Sequence[Request], key: jax.Array,
               done: Callable[[int, Sample],
                              None] = lambda id_, sample: None, until: int = 0,
               meanwhile: Callable[[], None] | None = None) -> list[Sample]:
    """All samples of all requests, request by request.

    Args:
      params: as `prepare` leaves them.
      requests: any number; ids are distinct.
      key: a typed PRNG key.
      done: called with each sample's id as it ends.
      until: stop when so many requests are complete; 0: all.
      meanwhile: called between two chunks while the last rows decode.

    Returns:
      One Sample for each, request by request.

    Raises:
      InputError: a prompt is empty, or a row does not fit.
    """
    for i, request in enumerate(requests):
      self._check(i, request)
    start = time.perf_counter()
    self._begin(params, key)
    run = Run(self, requests, done)
    inflight = deque()
    total = sum(r.samples for r in requests)
    with tqdm.tqdm(total=total, desc='rollout', unit='row', delay=5,
                   mininterval=0.5 if sys.stderr.isatty() else 30,
                   disable=jax.process_index() > 0, leave=False) as progress:
      while run.unfinished or inflight:
        launched = run.launch()
        if launched:
          inflight.append(launched)
        elif not inflight:
          raise RuntimeError('the scheduler has work but nothing that can run')
        if inflight and (len(inflight) > self.options.ahead or not launched):
          run.collect(*inflight.popleft())
          if run.complete >= (until or len(requests)):
            run.stop()
            inflight.clear()
          if meanwhile and run.drains:
            meanwhile()
          progress.update(len(run.results) - progress.n)
          progress.set_postfix_str(
              f'{self.stats.tokens / (time.perf_counter() - start):.0f} '
              f'tokens/s, {len(run.rows)} slots', refresh=False)
    self.stats.seconds = time.perf_counter() - start
    return [run.results[r.id + i] for r in requests for i in range(r.samples)]

  def metrics(self) -> dict[str, float]:
    """'rollout/...' and 'perf/...' of the last call.

    perf/decode_roofline_frac = (steps * weight bytes * D + context * bytes of
    a token's keys and values) / (decode seconds * bandwidth of all devices),
    where `context` sums the lengths of all live rows over all steps and D is
    the number of devices that hold a copy of the weights. It is left out where
    the device's bandwidth is not known.
    """
    stats = self.stats
    out = {
        'perf/tokens_per_s': stats.tokens / max(stats.seconds, 1e-9),
        'rollout/slot_occupancy': stats.row_steps /
        max(stats.steps * self.options.slots, 1),
        'rollout/prefill_tokens': float(stats.prefilled),
        'rollout/restarts': float(stats.restarts)
    }
    bandwidth = _BANDWIDTH.get(jax.devices()[0].device_kind)
    if bandwidth and stats.decode_seconds:
      moved = (stats.steps * self.weight_bytes +
               stats.context * paged.token_bytes(self.model, self.layout.dtype))
      out['perf/decode_roofline_frac'] = moved / (stats.decode_seconds *
                                                  bandwidth * self.mesh.size)
    return out

  def _check(self, i: int, request: Request) -> None:
    ends = len(request.sampling.eos_ids) + len(request.sampling.stop_ids)
    if len(request.sampling.read_ids) > decode.MAX_READS:
      raise InputError(f'prompt {i}: at most {decode.MAX_READS} read_ids')
    if request.shared_prefix and request.shared_prefix.length > len(
        request.tokens):
      raise InputError(f'prompt {i} has {len(request.tokens)} tokens, its root '
                       f'{request.shared_prefix.length}')
    if request.forks and len(request.forks) != request.samples:
      raise InputError(f'prompt {i}: {len(request.forks)} forks for '
                       f'{request.samples} samples')
    begun = request.partial or [None] * request.samples
    page = self.options.page
    for sample, old in enumerate(begun):
      at, suffix = request.fork(sample)
      length = at + len(suffix)
      rows = length + request.sampling.max_new_tokens
      rows -= len(old.tokens) if old else 0
      if not 0 < length or not 0 <= at <= len(request.tokens):
        raise InputError(f'prompt {i} is empty' if not length else
                         f'prompt {i} forks at {at} of {len(request.tokens)}')
      if rows > self.options.max_tokens:
        raise InputError(
            f'prompt {i} has {length} tokens; with '
            f'{request.sampling.max_new_tokens} new ones that is {rows} of at '
            f'most {self.options.max_tokens}')
      # The trunk and the row's first chunk, but for the full pages that they
      # share; later the row may take the trunk's pages.
      first = length - 1 + min(self.options.chunk, rows - length)
      need = (-(-request.trunk_length() // page) + -(-first // page) -
              request.shared(sample) // page)
      if need > self.options.pages - 1:
        raise InputError(f'prompt {i}: sample {sample} and its trunk need '
                         f'{need} pages, {self.options.group}.pages='
                         f'{self.options.pages}')
    if ends > decode.MAX_ENDS:
      raise InputError(f'{ends} end and stop tokens; at most {decode.MAX_ENDS}')
    if request.sampling.stop_strings and not self.decode_text:
      raise InputError('stop strings need a tokenizer')

  def _begin(self, params, key) -> None:
    self.stats = Stats()
    if self._pool is None:
      self._pool, self._state = decode.empty(self.model, self.layout, self.mesh,
                                             self.options.slots)
    self._params, self._key = params, key
    self.weight_bytes = sum(x.nbytes * len(x.sharding.device_set) // _parts(x)
                            for x in jax.tree.leaves(params))

  def _put(self, tree):
    return mesh_lib.shard_rows(tree, self.mesh)

  def prefill(self, tokens, positions, table) -> None:
    """Writes prompts into pages: i32[D * R, C], i32[D * R, C], i32[.., M]."""
    with jax.set_mesh(self.mesh):
      self._pool = decode.prefill(self.model, self.layout, self._params,
                                  self._pool,
                                  *self._put((tokens, positions, table)))

  def copy(self, source, target) -> None:
    """Copies pages; i32[D, n] page numbers on each device."""
    with jax.set_mesh(self.mesh):
      self._pool = decode.copy(self.model, self._pool,
                               *self._put((source, target)))

  def decode(self, inputs: decode.Inputs, steps: int) -> jax.Array:
    """Launches a chunk; the result is on its way to the host."""
    with jax.set_mesh(self.mesh):
      self._pool, self._state, out = decode.decode(self.model, self.layout,
                                                   self.options.chunk,
                                                   self._unrolled, self._params,
                                                   self._pool, self._state,
                                                   self._put(inputs), self._key,
                                                   np.int32(steps))
    out.copy_to_host_async()
    return out


def _parts(x: jax.Array) -> int:
  return x.size // max(1, int(np.prod(x.sharding.shard_shape(x.shape))))
