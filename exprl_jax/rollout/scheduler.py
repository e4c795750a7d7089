"""Which row decodes when, in which slot, on which pages: on the host."""

import collections
from collections import deque
from collections.abc import Sequence
import dataclasses
import itertools
import time

import jax
import numpy as np

from exprl_jax.rollout.decode import INTS, MAX_ENDS, MAX_READS, Inputs
from exprl_jax.rollout.pages import Pages
from exprl_jax.rollout.requests import Request, Sample, SharedPrefix

# A prefilling pass costs about as much as so many more tokens of it.
_PASS_COST = 128


class _Trunk:
  """A prompt in pages, off which samples still have to branch."""

  def __init__(self, request, device, pages):
    self.request, self.device, self.pages = request, device, pages
    self.admitted = 0  # samples

  def rest(self) -> Request:
    """What is left to be done."""
    return self.request.part(self.admitted, self.request.samples)


class _Row:
  """A sample in a slot."""

  def __init__(self, request, slot, pages):
    self.request, self.slot, self.pages = request, slot, pages
    self.context = request.context(0)
    self.begun = request.partial[0] if request.partial else None
    already, how = len(self.begun.tokens) if self.begun else 0, request.sampling
    self.sampling = dataclasses.replace(
        how, max_new_tokens=how.max_new_tokens - already,
        min_new_tokens=max(0, how.min_new_tokens - already))
    self.tokens, self.logprobs, self.read = [], [], None
    self.fresh = True  # the device does not know it yet
    self.launched = 0  # tokens that chunks in flight may have decoded, too

  def last_position(self, chunk: int) -> int:
    """The last one that will be written after one more chunk."""
    done = len(self.tokens) + self.launched
    return len(self.context) - 2 + min(done + chunk,
                                       self.sampling.max_new_tokens)

  def sample(self, ended: str) -> Sample:
    """All of it, with what had begun."""
    tokens = np.array(self.tokens, np.int32)
    logprobs = np.array(self.logprobs, np.float32)
    if self.begun:
      tokens = np.concatenate([self.begun.tokens, tokens])
      logprobs = np.concatenate([self.begun.logprobs, logprobs])
    return Sample(tokens, logprobs, ended, self.read)

  @property
  def budget(self) -> int:
    """Tokens that no chunk has been launched for."""
    return self.sampling.max_new_tokens - len(self.tokens) - self.launched


class Run:
  """The scheduler of one call: queue, trunks, rows, pages.

  It sees nothing but what the devices of all processes computed, so it decides
  the same in every process.
  """

  def __init__(self, engine, requests: Sequence[Request], done):
    self._engine, self._options = engine, engine.options
    self._done = done
    self._queue: deque[Request] = deque()
    self._samples_of = {r.id: r.samples for r in requests}
    self._ended_of = dict.fromkeys(self._samples_of, 0)
    self.complete = 0  # requests
    self._trunks: list[_Trunk] = []  # open: samples are left to branch off
    self._closed: list[tuple[int, list[int]]] = []  # (device, pages) that are
    # free once the copies of this round of admissions are made
    self._roots: dict[tuple[int, SharedPrefix],
                      list[int]] = {}  # by device: pages
    self._in_need: collections.Counter = collections.Counter()  # of the queue
    self._pages = [Pages(self._options.pages) for _ in range(engine.devices)]
    per_device = self._options.slots // engine.devices
    self._free = [
        list(range((d + 1) * per_device - 1, d * per_device - 1, -1))
        for d in range(engine.devices)
    ]
    self._per_device = per_device
    self.rows: list[_Row] = []  # oldest first
    self.results: dict[int, Sample] = {}
    self._collected = 0.0  # when
    slots = self._options.slots
    self._inputs = Inputs(
        np.zeros((slots, len(INTS) + MAX_ENDS + MAX_READS), np.int32),
        np.zeros((slots, 3), np.float32),
        np.zeros((slots, engine.columns), np.int32))
    for request in requests:
      self._enqueue(request)

  def _enqueue(self, request: Request) -> None:
    """Queues the samples that have not ended, neighbours together."""
    ended = [s.finish_reason != 'unfinished' for s in request.partial
            ] or ([False] * request.samples)
    for done, group in itertools.groupby(range(request.samples),
                                         ended.__getitem__):
      indices = list(group)
      part = request.part(indices[0], indices[-1] + 1)
      if not done:
        self._in_need[part.shared_prefix] += 1
        self._queue.append(part)
        continue
      for i in range(part.samples):
        self._finish(part.part(i, i + 1), part.partial[i])

  def _requeue(self, request: Request) -> None:
    self._in_need[request.shared_prefix] += 1
    self._queue.appendleft(request)

  @property
  def unfinished(self) -> bool:
    """Whether anything is left to be launched."""
    return bool(self._queue or self._trunks or self.rows)

  @property
  def drains(self) -> bool:
    """Whether the last rows decode and nothing is left to join them."""
    return bool(self.rows) and not self._queue and not self._trunks

  # Launching: pages first for the rows that run, then for new ones.

  def launch(self):
    """Starts the next chunk; returns what `collect` wants, or None."""
    self._free_for_the_oldest()
    running = [row for row in self.rows if self._reserve(row)]
    running += self._admit()
    running = [row for row in running if row.budget > 0]
    if not running:
      return None
    steps = min(self._options.chunk, max(row.budget for row in running))
    started = time.perf_counter()
    out = self._engine.decode(self._describe(running), steps)
    for row in running:
      row.fresh, row.launched = False, row.launched + steps
    return running, steps, out, started

  def _device(self, row: _Row) -> int:
    return row.slot // self._per_device

  def _reserve(self, row: _Row) -> bool:
    """Takes the pages that a row's next chunk may write; False: it waits."""
    last = row.last_position(self._options.chunk)
    missing = last // self._options.page + 1 - len(row.pages)
    taken = self._pages[self._device(row)].take(max(missing, 0))
    if taken is None:
      return False
    row.pages += taken
    return True

  def _free_for_the_oldest(self) -> None:
    """Takes pages from roots, then from trunks, then from the youngest, if
    the oldest of a device could not go on without."""
    for device, pages in enumerate(self._pages):
      rows = [r for r in self.rows if self._device(r) == device]
      while rows and not self._reserve(rows[0]):
        trunks = [t for t in self._trunks if t.device == device]
        roots = [r for r in self._roots if r[0] == device]
        if roots:
          pages.release(self._roots.pop(roots[-1]))
        elif trunks:
          pages.release(trunks[-1].pages)
          self._trunks.remove(trunks[-1])
          self._requeue(trunks[-1].rest())
        else:
          row = rows.pop()
          self._leave(row)
          self._requeue(row.request)
          self._engine.stats.restarts += 1

  def _admit(self) -> list[_Row]:
    """Fills free slots while there are pages for a trunk and a first chunk."""
    new, closed = self._fill_slots()
    if closed and not new:  # now with the pages of roots
      new, _ = self._fill_slots()
    self.rows += new
    return new

  def _fill_slots(self) -> tuple[list[_Row], bool]:
    """New rows, and whether pages were given back."""
    new, roots, splits, prompts, copies, suffixes = [], [], [], [], [], []
    while True:
      trunk = next((t for t in self._trunks if self._free[t.device]), None)
      if trunk is None:
        trunk = self._open_trunk(roots, splits, prompts)
        if trunk is None:
          break
      row = self._branch(trunk, copies)
      if row is None:
        if not new and not self.rows:  # nothing else will give pages back
          self._close_roots(
              lambda where, _: where == trunk.device)  # noqa: B023
        break
      new.append(row)
      suffixes.append((self._device(row), row.context, row.request.shared(0),
                       len(row.context) - 1, row.pages))
    self._prefill(roots)
    self._copy(splits)
    self._prefill(prompts)
    self._copy(copies)
    for device, pages in self._closed:
      self._pages[device].release(pages)
    closed, self._closed = bool(self._closed), []
    self._prefill(suffixes)
    return new, closed

  def _open_trunk(self, roots, splits, prompts) -> _Trunk | None:
    """Gives the next request pages, on the device that has its root or most
    free slots; None: it has to wait."""
    if not self._queue:
      return None
    request, page = self._queue[0], self._options.page
    device = max(
        range(len(self._free)), key=lambda d:
        (bool(self._free[d]) and
         (d, request.shared_prefix) in self._roots, len(self._free[d])))
    if not self._free[device]:
      return None
    pages, length = self._pages[device], request.trunk_length()
    first = len(request.context(0)) - 1 + min(self._options.chunk,
                                              request.sampling.max_new_tokens)
    need = -(-max(first, length) // page) + 1
    root, begun = self._open_root(request, device, need, roots)
    full, partial = divmod(begun, page)
    if pages.free < need - full:
      self._close_roots(lambda where, _: where == device)
      return None
    pages.share(root[:full])
    own = pages.take(-(-length // page) - full)
    if partial:
      splits.append((device, root[full], own[0]))
    trunk = _Trunk(request, device, root[:full] + own)
    prompts.append((device, request.tokens, begun, length, trunk.pages))
    self._trunks.append(trunk)
    self._queue.popleft()
    self._in_need[request.shared_prefix] -= 1
    self._close_roots(lambda _, root: not self._in_need[root])
    return trunk

  def _open_root(self, request: Request, device: int, need: int,
                 roots) -> tuple[list[int], int]:
    """Pages of a request's root and how many of its tokens are in them: none
    where it has no root, or there is no room for one."""
    root, pages = request.shared_prefix, self._pages[device]
    if root and (device, root) not in self._roots:
      count = -(-root.length // self._options.page)
      if pages.free < need + count:
        root = None
      else:
        self._roots[device, root] = pages.take(count)
        roots.append(
            (device, request.tokens, 0, root.length, self._roots[device, root]))
    if not root:
      return [], 0
    return (self._roots[device, root], min(root.length, request.trunk_length()))

  def _close_roots(self, concerns) -> None:
    """Gives up roots; their pages are free when this round's copies are made.
    """
    for device, root in [r for r in self._roots if concerns(*r)]:
      self._closed.append((device, self._roots.pop((device, root))))

  def _branch(self, trunk: _Trunk, copies) -> _Row | None:
    """A sample off the end of a trunk, or None if it has to wait."""
    pages, slot = self._pages[trunk.device], self._free[trunk.device][-1]
    request = trunk.request.part(trunk.admitted, trunk.admitted + 1)
    full, partial = divmod(request.shared(0), self._options.page)
    last = trunk.admitted == trunk.request.samples - 1
    # It writes into the partial page: nobody else may have that.
    inherits = last and full + bool(partial) == len(
        trunk.pages) and (not partial or pages.owners(trunk.pages[full]) == 1)
    own = pages.take(0 if inherits else bool(partial))
    if own is None:
      return None
    row = _Row(request, slot,
               list(trunk.pages) if inherits else trunk.pages[:full] + own)
    if not self._reserve(row):
      pages.release(own)
      return None
    if not inherits:
      pages.share(trunk.pages[:full])
      if partial:
        copies.append((trunk.device, trunk.pages[full], own[0]))
    if last:
      self._trunks.remove(trunk)
      if not inherits:
        self._closed.append((trunk.device, trunk.pages))
    self._free[trunk.device].pop()
    trunk.admitted += 1
    return row

  def _prefill(self, jobs) -> None:
    """Runs (device, tokens, start, stop, pages): tokens[start:stop], whose
    past is in the pages. Jobs of about the same length go together, in passes
    of the shape that computes least for nothing."""
    widths = self._options.widths or (self._options.prefill,)
    groups = collections.defaultdict(lambda: [[] for _ in self._pages])
    for job in jobs:
      length = job[3] - job[2]
      if length > 0:
        about = next((w for w in widths if length <= w), widths[-1])
        groups[about][job[0]].append(job)
    for group in groups.values():
      longest = max(
          stop - start for part in group for _, _, start, stop, _ in part)
      most = max(map(len, group))
      _, rows, width = min(
          (-(-longest // w) * -(-most // rows) * (rows * w + _PASS_COST), rows,
           w) for w in widths for rows in self._engine.prefill_rows(w))
      for first in range(0, most, rows):
        self._prefill_batch([part[first:first + rows] for part in group], rows,
                            width)

  def _prefill_batch(self, batch, rows: int, width: int) -> None:
    """Up to `rows` jobs on each device, `width` tokens at a time."""
    longest = max(
        stop - start for part in batch for _, _, start, stop, _ in part)
    for done in range(0, longest, width):
      shape = (len(batch) * rows, width)
      tokens, positions = np.zeros(shape, np.int32), np.full(shape, -1)
      table = np.zeros((shape[0], self._inputs.table.shape[1]), np.int32)
      for d, part in enumerate(batch):
        for i, (_, ids, start, stop, pages) in enumerate(part):
          first = start + done
          piece = ids[first:min(first + width, stop)]
          n, at = len(piece), d * rows + i
          tokens[at, :n] = piece
          positions[at, :n] = first + np.arange(n)
          table[at, :len(pages)] = pages
          self._engine.stats.prefilled += n
      self._engine.prefill(tokens, positions.astype(np.int32), table)

  def _copy(self, copies: list[tuple[int, int, int]]) -> None:
    """(device, from, to); the rest of the program's width copies the dummy."""
    if not copies:
      return
    arrays = np.zeros((2, len(self._pages), self._per_device), np.int32)
    count = [0] * len(self._pages)
    for device, source, target in copies:
      arrays[:, device, count[device]] = source, target
      count[device] += 1
    self._engine.copy(*arrays)

  def _describe(self, running: list[_Row]) -> Inputs:
    """The slots as the host wants them."""
    ints, floats, table = (x.copy() for x in self._inputs)
    for row in running:
      at, s, prompt = row.slot, row.sampling, len(row.context)
      # Told again after a wait, the device goes on where it stopped.
      ints[at, :len(INTS)] = (row.fresh, 1, row.context[-1], prompt - 1,
                              s.max_new_tokens, row.request.id,
                              prompt + s.min_new_tokens - 1, s.top_k)
      ends = (*s.eos_ids, *s.stop_ids)
      ints[at, len(INTS):] = -1
      ints[at, len(INTS):len(INTS) + len(ends)] = ends
      reads = len(INTS) + MAX_ENDS
      ints[at, reads:reads + len(s.read_ids)] = s.read_ids
      floats[at] = s.temperature, s.top_p, s.min_p
      table[at, :len(row.pages)] = row.pages
    return Inputs(ints, floats, table)

  # Collecting: what a chunk has decoded.

  def collect(self, running, steps: int, out: jax.Array,
              started: float) -> None:
    """Reads a chunk's results and retires the rows that have ended."""
    out = np.asarray(out.addressable_data(0))
    stats = self._engine.stats
    now = time.perf_counter()
    stats.decode_seconds += now - max(started, self._collected)
    self._collected = now
    chunk = self._options.chunk
    tokens, logprobs = out[:, :chunk], out[:, chunk:2 * chunk].view(np.float32)
    read = out[:, 2 * chunk:2 * chunk + MAX_READS].view(np.float32)
    stats.steps += int(out[:, -2].max())
    for row in running:
      count, alive = out[row.slot, -2:]
      if row not in self.rows:
        continue  # sent back to the queue, or stopped by a string
      before = len(row.context) + len(row.tokens)
      stats.row_steps += int(count)
      stats.context += int(count) * before + int(count) * int(count) // 2
      row.launched -= steps
      if not row.tokens and row.sampling.read_ids:
        row.read = read[row.slot, :len(row.sampling.read_ids)].copy()
      row.tokens += tokens[row.slot, :count].tolist()
      row.logprobs += logprobs[row.slot, :count].tolist()
      ended = self._ended(row, bool(alive), int(count))
      if ended:
        self._leave(row)
        stats.tokens += len(row.tokens)
        self._finish(row.request, row.sample(ended))

  def _finish(self, request: Request, sample: Sample) -> None:
    """Notes a sample; drops the others of its group if these are enough."""
    self.results[request.id] = sample
    self._done(request.id, sample)
    ended = self._ended_of[request.group] = self._ended_of[request.group] + 1
    if ended == (request.num_wanted or self._samples_of[request.group]):
      self.complete += 1
      self._drop(lambda r: r.group == request.group, 'dropped')

  def stop(self) -> None:
    """Ends everything that is left as 'unfinished'."""
    self._drop(lambda request: True, 'unfinished')

  def _drop(self, concerns, ended: str) -> None:
    for row in [r for r in self.rows if concerns(r.request)]:
      self._leave(row)
      self._engine.stats.tokens += len(row.tokens)
      self.results[row.request.id] = row.sample(ended)
    for trunk in [t for t in self._trunks if concerns(t.request)]:
      self._pages[trunk.device].release(trunk.pages)
      self._trunks.remove(trunk)
      self._give_up(trunk.rest(), ended)
    for request in [r for r in self._queue if concerns(r)]:
      self._queue.remove(request)
      self._in_need[request.shared_prefix] -= 1
      self._give_up(request, ended)
    self._close_roots(lambda _, root: not self._in_need[root])

  def _give_up(self, request: Request, ended: str) -> None:
    """Results of samples that are in no slot: as far as they had come."""
    nothing = Sample(np.zeros(0, np.int32), np.zeros(0, np.float32), ended)
    for i in range(request.samples):
      self.results[request.id + i] = dataclasses.replace(
          request.partial[i] if request.partial else nothing,
          finish_reason=ended)

  def _ended(self, row: _Row, alive: bool, count: int) -> str:
    """Why a row has ended, or ''; cuts it behind a stop string."""
    s = row.sampling
    text = self._engine.decode_text(row.tokens) if s.stop_strings else ''
    if any(stop in text for stop in s.stop_strings):
      for n in range(len(row.tokens) - count + 1, len(row.tokens) + 1):
        text = self._engine.decode_text(row.tokens[:n])
        if any(stop in text for stop in s.stop_strings):
          del row.tokens[n:], row.logprobs[n:]
          return 'stop'
    if alive:
      return ''
    if row.tokens[-1] in s.eos_ids:
      return 'eos'
    return 'stop' if row.tokens[-1] in s.stop_ids else 'length'

  def _leave(self, row: _Row) -> None:
    self.rows.remove(row)
    device = self._device(row)
    self._pages[device].release(row.pages)
    self._free[device].append(row.slot)
