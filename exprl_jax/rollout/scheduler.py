"""Which row decodes when, in which slot, on which pages: on the host."""

from collections import deque
from collections.abc import Callable, Sequence
import dataclasses
import itertools
import time

import numpy as np

from exprl_jax.rollout import options as options_lib
from exprl_jax.rollout import prefill, protocol
from exprl_jax.rollout.options import Options
from exprl_jax.rollout.pages import Pages
from exprl_jax.rollout.prefixes import Prefixes
from exprl_jax.rollout.requests import NOTHING, FinishReason, Request, Sample
from exprl_jax.rollout.rows import (
    DecodeText,
    Launch,
    PromptPrefix,
    Row,
    describe,
)
from exprl_jax.rollout.runner import Runner
from exprl_jax.rollout.stats import Stats


class Scheduler:
  """Schedules the requests of one call.

  A request waits in the queue. When a slot is free its prompt prefix is
  prefilled; its samples fork off that, each a row in a slot. When pages run
  out the youngest rows go back to the queue.

  Decisions depend on nothing but what the devices of all processes have
  computed, so they are the same in every process.

  Attributes:
    rows: in slots, the oldest first.
    results: samples that are done, by id.
    complete: requests that have all the samples they want.
  """

  def __init__(self, requests: Sequence[Request], runner: Runner,
               options: Options, stats: Stats,
               on_finish: Callable[[int, Sample], None],
               decode_text: DecodeText | None) -> None:
    """Queues requests; partial samples that have ended are results at once.

    Args:
      requests: checked (validation.py).
      runner: runs what is decided.
      options: of the call (options.fit).
      stats: counts are added to it.
      on_finish: called with each sample's id as it ends.
      decode_text: token ids -> text, for stop strings.
    """
    self._runner, self._options, self._stats = runner, options, stats
    self._on_finish, self._decode_text = on_finish, decode_text
    self._prefiller = prefill.Prefiller(runner, options, stats)
    self._queue: deque[Request] = deque()
    self._open_prefixes: list[PromptPrefix] = []  # samples have yet to fork
    self.rows: list[Row] = []
    self.results: dict[int, Sample] = {}
    self.complete = 0
    self._num_samples = {r.id: r.samples for r in requests}  # by group
    self._num_ended = dict.fromkeys(self._num_samples, 0)
    self._collected = 0.0  # when the last chunk was
    self._pages = [Pages(options.pages) for _ in range(runner.devices)]
    self._prefixes = Prefixes(self._pages, options)
    self._free_slots = self._slots_of_devices()
    for request in requests:
      self._enqueue(request)

  @property
  def unfinished(self) -> bool:
    """Whether anything has yet to be launched or collected."""
    return bool(self._queue or self._open_prefixes or self.rows)

  @property
  def draining(self) -> bool:
    """Whether the last rows decode, and no other will join them."""
    return bool(self.rows) and not self._queue and not self._open_prefixes

  # The queue.

  def _enqueue(self, request: Request) -> None:
    """Queues the samples that have not ended, neighbors together."""
    ended = [s.finish_reason != 'unfinished' for s in request.partial
            ] or ([False] * request.samples)
    for has_ended, group in itertools.groupby(range(request.samples),
                                              ended.__getitem__):
      indices = list(group)
      part = request.part(indices[0], indices[-1] + 1)
      if not has_ended:
        self._prefixes.enqueue(part)
        self._queue.append(part)
        continue
      for i in range(part.samples):
        self._finish(part.part(i, i + 1), part.partial[i])

  def _requeue(self, request: Request) -> None:
    self._prefixes.enqueue(request)
    self._queue.appendleft(request)

  # Launching.

  def launch(self) -> Launch | None:
    """Starts the next chunk; None: there is no row that could run."""
    self._move_to_fewer_slots()
    # 1. The oldest row of each device gets the pages it needs.
    self._preempt_for_the_oldest()
    # 2. Then the other rows, oldest first; those that get none wait.
    running = [row for row in self.rows if self._reserve(row)]
    # 3. Free slots are filled with what is left.
    running += self._admit()
    # 4. A row whose whole budget is in flight has nothing to decode.
    running = [row for row in running if row.budget > 0]
    if not running:
      return None
    steps = min(self._options.chunk, max(row.budget for row in running))
    started = time.perf_counter()
    outputs = self._runner.decode(describe(running, self._options), steps)
    for row in running:
      row.launch(steps)
    return Launch(running, steps, outputs, started)

  def _device_of(self, slot: int) -> int:
    return slot * self._runner.devices // self._options.slots

  def _slots_of_devices(self) -> list[list[int]]:
    """The slots of each device, the first one last."""
    each = self._options.slots // self._runner.devices
    return [[*range((d + 1) * each - 1, d * each - 1, -1)]
            for d in range(self._runner.devices)]

  def _move_to_fewer_slots(self) -> None:
    """Moves the last rows together, where fewer slots decode faster."""
    if not self.draining:
      return
    devices, old = self._runner.devices, self._options
    on = [[r
           for r in self.rows
           if self._device_of(r.slot) == d]
          for d in range(devices)]
    slots = options_lib.shrunk(old, max(map(len, on)), devices)
    if slots == old.slots:
      return
    self._options = dataclasses.replace(old, slots=slots)
    self._prefiller = prefill.Prefiller(self._runner, self._options,
                                        self._stats)
    self._free_slots = self._slots_of_devices()
    source = np.zeros(slots, np.int32)
    for device, rows in enumerate(on):
      for row in rows:
        source[slot := self._free_slots[device].pop()] = row.slot
        row.slot = slot
    self._runner.move(source)

  def _reserve(self, row: Row) -> bool:
    """Takes the pages that a row's next chunk may write; False: it waits."""
    last = row.last_position(self._options.chunk)
    missing = self._options.pages_for(last + 1) - len(row.pages)
    taken = self._pages[self._device_of(row.slot)].take(max(missing, 0))
    if taken is None:
      return False
    row.pages += taken
    return True

  def _preempt_for_the_oldest(self) -> None:
    """Frees pages where the oldest row of a device could not go on.

    Shared prefixes go first, then prompt prefixes, then the youngest rows.
    """
    rows_of: list[list[Row]] = [[] for _ in self._pages]
    for row in self.rows:
      rows_of[self._device_of(row.slot)].append(row)
    for device, (pages, rows) in enumerate(zip(self._pages, rows_of)):
      while rows and not self._reserve(rows[0]):
        prefixes = [p for p in self._open_prefixes if p.device == device]
        if self._prefixes.evict(device):
          continue
        if prefixes:
          pages.release(prefixes[-1].pages)
          self._open_prefixes.remove(prefixes[-1])
          self._requeue(prefixes[-1].unforked())
        else:
          row = rows.pop()
          self._leave(row)
          self._requeue(row.request)
          self._stats.preemptions += 1

  # Filling slots.

  def _admit(self) -> list[Row]:
    """Fills free slots while there are pages for a prompt and a chunk."""
    new, released = self._fill_slots()
    if released and not new:  # the released pages may suffice
      new, _ = self._fill_slots()
    self.rows += new
    return new

  def _fill_slots(self) -> tuple[list[Row], bool]:
    """Returns the new rows, and whether pages were released."""
    new: list[Row] = []
    plan = prefill.Plan()
    # 1. Plan: open prompt prefixes and fork rows off them.
    while (prefix := self._next_prefix(plan)) is not None:
      row = self._fork(prefix, plan)
      if row is None:
        if not new and not self.rows:  # nothing else will give pages back
          self._prefixes.close_device(prefix.device)
        break
      new.append(row)
    # 2. Run the passes and copies that these rows need.
    self._prefiller.run(plan)
    # 3. Release the pages that just the copies needed.
    return new, self._prefixes.release_closed()

  def _next_prefix(self, plan: prefill.Plan) -> PromptPrefix | None:
    """A prompt prefix on a device with a free slot; a new one if need be."""
    for prefix in self._open_prefixes:
      if self._free_slots[prefix.device]:
        return prefix
    return self._open_prefix(plan)

  def _open_prefix(self, plan: prefill.Plan) -> PromptPrefix | None:
    """Gives the next request pages for its prompt; None: it has to wait."""
    if not self._queue:
      return None
    request = self._queue[0]
    device = self._choose_device(request)
    if not self._free_slots[device]:
      return None
    prefix = self._prefixes.open(request, device, plan)
    if prefix is None:
      return None
    self._open_prefixes.append(prefix)
    self._queue.popleft()
    self._prefixes.dequeue(request)
    self._prefixes.close_unneeded()
    return prefix

  def _choose_device(self, request: Request) -> int:
    """The device that has the shared prefix, else the one with most slots."""

    def preference(device: int) -> tuple[bool, int]:
      slots = len(self._free_slots[device])
      return (slots > 0
              and self._prefixes.is_on(device, request.shared_prefix), slots)

    return max(range(self._runner.devices), key=preference)

  def _fork(self, prefix: PromptPrefix, plan: prefill.Plan) -> Row | None:
    """Forks the next sample off a prompt prefix; None: it has to wait."""
    device, pages = prefix.device, self._pages[prefix.device]
    request, is_last = prefix.next_sample(), prefix.forks_last
    num_shared = request.num_shared(0)
    full, partial = divmod(num_shared, self._options.page)
    # 1. The row writes into the partial page, so it copies that. The last row
    # takes the pages over instead, if nobody else has the partial one.
    takes_over = (is_last and full + bool(partial) == len(prefix.pages)
                  and (not partial or pages.owners(prefix.pages[full]) == 1))
    own = pages.take(0 if takes_over else bool(partial))
    if own is None:
      return None
    # 2. It needs the pages of a first chunk, too.
    slot = self._free_slots[device][-1]
    row = Row(request, slot,
              list(prefix.pages) if takes_over else prefix.pages[:full] + own)
    if not self._reserve(row):
      pages.release(own)
      return None
    # 3. Share the full pages and plan what has to run.
    if not takes_over:
      pages.share(prefix.pages[:full])
      if partial:
        plan.row_copies.append(prefill.Copy(device, prefix.pages[full], own[0]))
    plan.suffixes.append(
        prefill.Job(device, row.context, num_shared,
                    len(row.context) - 1, row.pages))
    # 4. Occupy the slot; behind the last fork the prefix is closed.
    self._free_slots[device].pop()
    prefix.forked += 1
    if is_last:
      self._open_prefixes.remove(prefix)
      if not takes_over:
        self._prefixes.close(device, prefix.pages)
    return row

  # Collecting.

  def collect(self, launch: Launch) -> None:
    """Waits for a chunk's results and retires the rows that have ended."""
    outputs = protocol.read_outputs(launch.outputs, self._options.chunk)
    stats, now = self._stats, time.perf_counter()
    stats.decode_seconds += now - max(launch.started, self._collected)
    self._collected = now
    stats.steps += int(outputs.num_tokens.max())
    stats.slot_steps += int(outputs.num_tokens.max()) * self._options.slots
    for row in launch.rows:
      if row not in self.rows:
        continue  # preempted, dropped, or stopped by a string, since launched
      before = len(row.context) + len(row.tokens)
      count = row.collect(outputs, launch.steps)
      stats.row_steps += count
      stats.context += count * before + count * count // 2
      reason = row.finish_reason(bool(outputs.alive[row.slot]), count,
                                 self._decode_text)
      if reason:
        self._leave(row)
        stats.tokens += len(row.tokens)
        self._finish(row.request, row.sample(reason))

  def _finish(self, request: Request, sample: Sample) -> None:
    """Notes a sample; drops the rest of its group if it has enough."""
    self.results[request.id] = sample
    self._on_finish(request.id, sample)
    self._num_ended[request.group] += 1
    wanted = request.num_wanted or self._num_samples[request.group]
    if self._num_ended[request.group] == wanted:
      self.complete += 1
      self._drop(lambda r: r.group == request.group, 'dropped')

  def stop(self) -> None:
    """Ends all samples that have not ended as 'unfinished'."""
    self._drop(lambda request: True, 'unfinished')

  def _drop(self, selects: Callable[[Request], bool],
            reason: FinishReason) -> None:
    """Ends what is selected: rows, prompt prefixes, requests in the queue."""
    for row in [r for r in self.rows if selects(r.request)]:
      self._leave(row)
      self._stats.tokens += len(row.tokens)
      self.results[row.request.id] = row.sample(reason)
    for prefix in [p for p in self._open_prefixes if selects(p.request)]:
      self._pages[prefix.device].release(prefix.pages)
      self._open_prefixes.remove(prefix)
      self._give_up(prefix.unforked(), reason)
    for request in [r for r in self._queue if selects(r)]:
      self._queue.remove(request)
      self._prefixes.dequeue(request)
      self._give_up(request, reason)
    self._prefixes.close_unneeded()

  def _give_up(self, request: Request, reason: FinishReason) -> None:
    """Ends samples that are in no slot, with what earlier calls sampled."""
    for i in range(request.samples):
      sample = request.partial[i] if request.partial else NOTHING
      self.results[request.id + i] = dataclasses.replace(
          sample, finish_reason=reason)

  def _leave(self, row: Row) -> None:
    """Frees the slot and the pages of a row."""
    device = self._device_of(row.slot)
    self.rows.remove(row)
    self._pages[device].release(row.pages)
    self._free_slots[device].append(row.slot)
