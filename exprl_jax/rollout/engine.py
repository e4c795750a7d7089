"""Generation: slots that are always busy, over keys and values in pages.

A number of rows ("slots") decode together, `chunk` tokens at a time in one
compiled loop. Between chunks the host retires the rows that have ended,
releases their pages and fills their slots from the queue. On CPUs slots and
pages follow the requests of the call, and the last rows move to fewer slots
(options.fit, options.shrunk).

A request is a prompt and a number of samples. All of its prompt but the last
token is prefilled once, into a prompt prefix. Each sample forks off the end of
that: it shares the full pages, copies the last, partial one, and starts by
decoding the prompt's last token.

When pages run out, rows wait. The oldest always gets what it needs, if need be
from the youngest, which is preempted and starts again later. A sample is a
function of (key, its id, its prompt, the parameters), so none of this shows in
it.
"""

from collections import deque
from collections.abc import Callable, Sequence
import sys
import time

import jax
import tqdm

from exprl_jax.models import paged
from exprl_jax.models.config import ModelConfig, for_length
from exprl_jax.rollout import stats as stats_lib
from exprl_jax.rollout import validation
from exprl_jax.rollout.options import Options, fit, resolve
from exprl_jax.rollout.requests import Request, Sample
from exprl_jax.rollout.rows import DecodeText, Launch
from exprl_jax.rollout.runner import Runner
from exprl_jax.rollout.scheduler import Scheduler
from exprl_jax.runtime import chips, stopping
from exprl_jax.types import Params


class Engine:
  """Generates on a mesh. Its programs and its pool outlive a call.

  Attributes:
    options: resolved: what was left to the engine is filled in.
    stats: of the last call.
  """

  def __init__(self, model: ModelConfig, mesh: jax.sharding.Mesh,
               options: Options, decode_text: DecodeText | None = None) -> None:
    """Sizes the pool; takes no memory before `generate`.

    Args:
      model: the decoder.
      mesh: rows are split over its batch axes, heads over 'tensor'.
      options: sizes.
      decode_text: token ids -> text, for stop strings.

    Raises:
      InputError: the pool cannot hold a single row, or the model's rope is not
        implemented for rows of options.max_tokens.
    """
    model = for_length(model, options.max_tokens)
    self._model, self._mesh, self._decode_text = model, mesh, decode_text
    self.options = resolve(options, model, mesh)
    self.stats = stats_lib.Stats()
    self._runner = Runner(model, mesh, self.options)
    self._least_pages = 0

  @property
  def weight_bytes(self) -> int:
    """Bytes of the last call's parameters, all copies of them."""
    return self._runner.weight_bytes

  def release(self) -> None:
    """Gives up the memory of pool and parameters until the next call."""
    self._runner.release()

  def generate(
      self, params: Params, requests: Sequence[Request], key: jax.Array,
      on_finish: Callable[[int, Sample],
                          None] = lambda id_, sample: None, stop_after: int = 0,
      while_draining: Callable[[], None] | None = None) -> list[Sample]:
    """Samples all requests.

    Args:
      params: as `decode.prepare` leaves them.
      requests: any number; ids are distinct.
      key: a typed PRNG key.
      on_finish: called with each sample's id as it ends.
      stop_after: stop when so many requests are complete; 0: all.
      while_draining: called between two chunks while the last rows decode.

    Returns:
      The samples, request by request.

    Raises:
      InputError: a prompt is empty, or a row does not fit.
    """
    for i, request in enumerate(requests):
      validation.check(i, request, self.options, bool(self._decode_text))
    start = time.perf_counter()
    self.stats = stats_lib.Stats()
    sizes = fit(self.options, requests, self._runner.devices, self._least_pages)
    self._least_pages = sizes.pages  # other pools are other programs
    self._runner.start(params, key, sizes)
    scheduler = Scheduler(requests, self._runner, sizes, self.stats, on_finish,
                          self._decode_text)
    in_flight: deque[Launch] = deque()
    with _progress_bar(self.options.config_section,
                       sum(r.samples for r in requests)) as bar:
      while scheduler.unfinished or in_flight:
        stopping.poll('generation')
        # 1. Launch a chunk, if a row can run.
        launch = scheduler.launch()
        if launch:
          in_flight.append(launch)
        elif not in_flight:
          raise RuntimeError('the scheduler has work but nothing that can run')
        # 2. Collect the oldest chunk, unless there is time for another launch.
        if launch and len(in_flight) <= bool(self.options.ahead):
          continue
        scheduler.collect(in_flight.popleft())
        # 3. Stop early, or use the time in which slots are idle.
        if scheduler.complete >= (stop_after or len(requests)):
          scheduler.stop()
          in_flight.clear()
        if while_draining and scheduler.draining:
          while_draining()
        self._show(bar, scheduler, start)
    self.stats.seconds = time.perf_counter() - start
    return [
        scheduler.results[r.id + i] for r in requests for i in range(r.samples)
    ]

  def _show(self, bar: tqdm.tqdm, scheduler: Scheduler, start: float) -> None:
    rate = self.stats.tokens / (time.perf_counter() - start)
    bar.update(len(scheduler.results) - bar.n)
    bar.set_postfix_str(f'{rate:.0f} tokens/s, {len(scheduler.rows)} slots',
                        refresh=False)

  def metrics(self) -> dict[str, float]:
    """Returns 'rollout/...' and 'perf/...' of the last call.

    perf/decode_roofline_frac (Stats.decode_roofline) is left out where the
    device's bandwidth is not known.
    """
    out = self.stats.metrics()
    chip = chips.find(jax.devices()[0].device_kind)
    if chip and self.stats.decode_seconds:
      out['perf/decode_roofline_frac'] = self.stats.decode_roofline(
          self.weight_bytes, paged.token_bytes(self._model, self.options.dtype),
          chip.bandwidth * self._mesh.size)
    return out


def _progress_bar(name: str, total: int) -> tqdm.tqdm:
  return tqdm.tqdm(total=total, desc=name, unit='row', delay=5,
                   dynamic_ncols=True,
                   mininterval=0.5 if sys.stderr.isatty() else 30,
                   disable=jax.process_index() > 0, leave=False)
