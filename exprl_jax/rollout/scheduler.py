"""Which row decodes when, in which slot, on which pages: on the host."""

from collections import deque
from collections.abc import Sequence
import dataclasses
import time

import jax
import numpy as np

from exprl_jax.rollout.decode import INTS, MAX_ENDS, Inputs
from exprl_jax.rollout.pages import Pages


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the samples of a request are drawn; sampling.py has the meanings."""

  max_new_tokens: int  # the end token included
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  min_new_tokens: int = 0  # no end before so many
  eos_ids: tuple[int, ...] = ()  # end a row and stay in it
  stop_ids: tuple[int, ...] = ()  # likewise
  stop_strings: tuple[str, ...] = ()  # end a row with the token they end in


@dataclasses.dataclass(frozen=True)
class Request:
  """A prompt and how often to continue it; sample i has id `id` + i."""

  tokens: Sequence[int]
  id: int
  samples: int
  sampling: Sampling


@dataclasses.dataclass(frozen=True)
class Sample:
  """A completion.

  Attributes:
    tokens: i32[T], the end token included.
    logprobs: f32[T], of the distribution each was drawn from.
    ended: 'eos', 'stop' (a stop token or string) or 'length'.
  """

  tokens: np.ndarray
  logprobs: np.ndarray
  ended: str


class _Trunk:
  """A prompt in pages, off which samples still have to branch."""

  def __init__(self, request, device, pages):
    self.request, self.device, self.pages = request, device, pages
    self.admitted = 0  # samples

  def rest(self) -> Request:
    """What is left to be done."""
    return dataclasses.replace(
        self.request, id=self.request.id + self.admitted,
        samples=self.request.samples - self.admitted)


class _Row:
  """A sample in a slot."""

  def __init__(self, request, id_, slot, pages):
    self.request, self.id, self.slot, self.pages = request, id_, slot, pages
    self.tokens, self.logprobs = [], []
    self.fresh = True  # the device does not know it yet
    self.launched = 0  # tokens that chunks in flight may have decoded, too

  def last_position(self, chunk: int) -> int:
    """The last one that will be written after one more chunk."""
    start = len(self.request.tokens) - 1
    budget = self.request.sampling.max_new_tokens
    done = len(self.tokens) + self.launched
    return start + min(done + chunk, budget) - 1


class Run:
  """The scheduler of one call: queue, trunks, rows, pages.

  It sees nothing but what the devices of all processes computed, so it decides
  the same in every process.
  """

  def __init__(self, engine, requests: Sequence[Request], done):
    self._engine, self._options = engine, engine.options
    self._done = done
    self._queue = deque(requests)
    self._trunks: list[_Trunk] = []
    self._pages = [Pages(self._options.pages) for _ in range(engine.devices)]
    per_device = self._options.slots // engine.devices
    self._free = [list(range((d + 1) * per_device - 1, d * per_device - 1, -1))
                  for d in range(engine.devices)]
    self._per_device = per_device
    self.rows: list[_Row] = []  # oldest first
    self.results: dict[int, Sample] = {}
    self._collected = 0.0  # when
    slots = self._options.slots
    self._inputs = Inputs(np.zeros((slots, len(INTS) + MAX_ENDS), np.int32),
                           np.zeros((slots, 3), np.float32),
                           np.zeros((slots, engine.columns), np.int32))

  @property
  def unfinished(self) -> bool:
    """Whether anything is left to be launched."""
    return bool(self._queue or self._trunks or self.rows)

  # Launching: pages first for the rows that run, then for new ones.

  def launch(self):
    """Starts the next chunk; returns what `collect` wants, or None."""
    self._free_for_the_oldest()
    running = [row for row in self.rows if self._reserve(row)]
    running += self._admit()
    running = [r for r in running if r.launched + len(r.tokens)
               < r.request.sampling.max_new_tokens]
    if not running:
      return None
    steps = min(self._options.chunk, max(
        r.request.sampling.max_new_tokens - len(r.tokens) - r.launched
        for r in running))
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
    """Takes pages from trunks, then from the youngest, if the oldest of a
    device could not go on without."""
    for device, pages in enumerate(self._pages):
      rows = [r for r in self.rows if self._device(r) == device]
      while rows and not self._reserve(rows[0]):
        trunks = [t for t in self._trunks if t.device == device]
        if trunks:
          pages.release(trunks[-1].pages)
          self._trunks.remove(trunks[-1])
          self._queue.appendleft(trunks[-1].rest())
        else:
          row = rows.pop()
          self._leave(row)
          self._queue.appendleft(dataclasses.replace(
              row.request, id=row.id, samples=1))
          self._engine.stats.restarts += 1

  def _admit(self) -> list[_Row]:
    """Fills free slots while there are pages for a trunk and a first chunk."""
    new, prefills, copies = [], [], []
    while True:
      trunk = next((t for t in self._trunks if self._free[t.device]), None)
      if trunk is None:
        trunk = self._open_trunk()
        if trunk is None:
          break
        prefills.append(trunk)
      row = self._branch(trunk, copies)
      if row is None:
        break
      new.append(row)
    self._prefill(prefills)
    self._copy(copies)
    self.rows += new
    return new

  def _open_trunk(self) -> _Trunk | None:
    """Gives the next request pages on the device with most free slots."""
    device = max(range(len(self._free)), key=lambda d: len(self._free[d]))
    if not self._queue or not self._free[device]:
      return None
    request, page = self._queue[0], self._options.page
    first = len(request.tokens) - 1 + min(
        self._options.chunk, request.sampling.max_new_tokens)
    if self._pages[device].free < -(-first // page) + 1:
      return None
    pages = self._pages[device].take(-(-(len(request.tokens) - 1) // page))
    self._queue.popleft()
    trunk = _Trunk(request, device, pages)
    self._trunks.append(trunk)
    return trunk

  def _branch(self, trunk: _Trunk, copies) -> _Row | None:
    """A sample off the end of a trunk, or None if it has to wait."""
    pages, request = self._pages[trunk.device], trunk.request
    full, partial = divmod(len(request.tokens) - 1, self._options.page)
    last = trunk.admitted == request.samples - 1
    if last:  # it takes over
      row = _Row(request, request.id + trunk.admitted, -1, trunk.pages)
    else:
      own = pages.take(bool(partial))
      if own is None:
        return None
      row = _Row(request, request.id + trunk.admitted, -1,
                 trunk.pages[:full] + own)
    row.slot = self._free[trunk.device][-1]
    if not self._reserve(row):
      if not last:
        pages.release(own)
      return None
    if last:
      self._trunks.remove(trunk)
    else:
      pages.share(trunk.pages[:full])
      if partial:
        copies.append((trunk.device, trunk.pages[full], own[0]))
    self._free[trunk.device].pop()
    trunk.admitted += 1
    return row

  def _prefill(self, trunks: list[_Trunk]) -> None:
    """Runs the prompts, but for their last tokens, `prefill` at a time."""
    width, rows = self._options.prefill, self._engine.prefill_rows
    trunks = [t for t in trunks if len(t.request.tokens) > 1]
    waiting = [[t for t in trunks if t.device == d]
               for d in range(len(self._pages))]
    while any(waiting):
      batch = [w[:rows] for w in waiting]
      waiting = [w[rows:] for w in waiting]
      longest = max(len(t.request.tokens) - 1 for part in batch for t in part)
      for start in range(0, longest, width):
        shape = (len(batch) * rows, width)
        tokens, positions = np.zeros(shape, np.int32), np.full(shape, -1)
        table = np.zeros((shape[0], self._inputs.table.shape[1]), np.int32)
        for d, part in enumerate(batch):
          for i, trunk in enumerate(part):
            piece = trunk.request.tokens[start:start + width]
            piece = piece[:len(trunk.request.tokens) - 1 - start]
            n, at = len(piece), d * rows + i
            tokens[at, :n] = piece
            positions[at, :n] = start + np.arange(n)
            table[at, :len(trunk.pages)] = trunk.pages
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
      s, request = row.request.sampling, row.request
      at, prompt = row.slot, len(request.tokens)
      # Told again after a wait, the device goes on where it stopped.
      ints[at, :len(INTS)] = (
          row.fresh, 1, request.tokens[-1], prompt - 1, s.max_new_tokens,
          row.id, prompt + s.min_new_tokens - 1, s.top_k)
      ends = (*s.eos_ids, *s.stop_ids)
      ints[at, len(INTS):] = -1
      ints[at, len(INTS):len(INTS) + len(ends)] = ends
      floats[at] = s.temperature, s.top_p, s.min_p
      table[at, :len(row.pages)] = row.pages
    return Inputs(ints, floats, table)

  # Collecting: what a chunk has decoded.

  def collect(self, running, steps: int, out: jax.Array, started: float
              ) -> None:
    """Reads a chunk's results and retires the rows that have ended."""
    out = np.asarray(out.addressable_data(0))
    stats = self._engine.stats
    now = time.perf_counter()
    stats.decode_seconds += now - max(started, self._collected)
    self._collected = now
    chunk = self._options.chunk
    tokens, logprobs = out[:, :chunk], out[:, chunk:2 * chunk].view(np.float32)
    stats.steps += int(out[:, -2].max())
    for row in running:
      count, alive = out[row.slot, -2:]
      if row not in self.rows:
        continue  # sent back to the queue, or stopped by a string
      before = len(row.request.tokens) + len(row.tokens)
      stats.row_steps += int(count)
      stats.context += int(count) * before + int(count) * int(count) // 2
      row.launched -= steps
      row.tokens += tokens[row.slot, :count].tolist()
      row.logprobs += logprobs[row.slot, :count].tolist()
      ended = self._ended(row, bool(alive), int(count))
      if ended:
        self._leave(row)
        stats.tokens += len(row.tokens)
        self.results[row.id] = Sample(
            np.array(row.tokens, np.int32),
            np.array(row.logprobs, np.float32), ended)
        self._done(row.id, self.results[row.id])

  def _ended(self, row: _Row, alive: bool, count: int) -> str:
    """Why a row has ended, or ''; cuts it behind a stop string."""
    s = row.request.sampling
    if s.stop_strings:
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
