"""The scheduler's records: rows in slots, and prompt prefixes in pages."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from exprl_jax.rollout import protocol
from exprl_jax.rollout.options import Options
from exprl_jax.rollout.requests import FinishReason, Request, Sample

# Characters at the start of a text that may be parts of one, or a blank that
# the tokenizer drops there.
_EDGE = 4
DecodeText = Callable[[Sequence[int]], str]


class PromptPrefix:
  """A prompt in pages, off which samples have yet to fork.

  Attributes:
    request: with all its samples.
    device: where its pages are.
    pages: in order.
    forked: how many samples have forked off.
  """

  def __init__(self, request: Request, device: int, pages: list[int]) -> None:
    """A prefix that no sample has forked off."""
    self.request, self.device, self.pages = request, device, pages
    self.forked = 0

  @property
  def forks_last(self) -> bool:
    """Whether just one sample has yet to fork off."""
    return self.forked == self.request.samples - 1

  def next_sample(self) -> Request:
    """The request for the sample that forks next."""
    return self.request.part(self.forked, self.forked + 1)

  def unforked(self) -> Request:
    """The request for all samples that have yet to fork."""
    return self.request.part(self.forked, self.request.samples)


class Row:
  """A sample in a slot.

  Attributes:
    request: for this sample alone.
    slot: of all slots; each device has as many neighboring ones.
    pages: in order; those that are shared come first.
    context: the tokens that it continues.
    sampling: with budgets that leave out what was sampled in an earlier call.
    tokens: collected so far.
    is_new: the device does not know it yet.
    in_flight: tokens that chunks in flight may have decoded.
  """

  def __init__(self, request: Request, slot: int, pages: list[int]) -> None:
    """A row that has decoded nothing in this call."""
    self.request, self.slot, self.pages = request, slot, pages
    self.context = request.context(0)
    self._partial = request.partial[0] if request.partial else None
    done = len(self._partial.tokens) if self._partial else 0
    how = request.sampling
    self.sampling = dataclasses.replace(
        how, max_new_tokens=how.max_new_tokens - done,
        min_new_tokens=max(0, how.min_new_tokens - done))
    self.tokens: list[int] = []
    self._logprobs: list[float] = []
    self._read_logprobs: np.ndarray | None = None
    self.is_new = True
    self.in_flight = 0

  @property
  def budget(self) -> int:
    """Tokens that no chunk has been launched for."""
    return self.sampling.max_new_tokens - len(self.tokens) - self.in_flight

  def last_position(self, chunk: int) -> int:
    """The last position that one more chunk of so many tokens may write."""
    decoded = len(self.tokens) + self.in_flight
    return len(self.context) - 2 + min(decoded + chunk,
                                       self.sampling.max_new_tokens)

  def launch(self, steps: int) -> None:
    """Notes that a chunk of `steps` tokens is in flight."""
    self.is_new = False
    self.in_flight += steps

  def collect(self, outputs: protocol.Outputs, steps: int) -> int:
    """Appends the results of a chunk; returns how many tokens it decoded."""
    self.in_flight -= steps
    count, read_ids = int(outputs.num_tokens[self.slot]), self.sampling.read_ids
    if not self.tokens and read_ids:
      self._read_logprobs = outputs.read_logprobs[
          self.slot, :len(read_ids)].copy()
    self.tokens += outputs.tokens[self.slot, :count].tolist()
    self._logprobs += outputs.logprobs[self.slot, :count].tolist()
    return count

  def finish_reason(self, alive: bool, count: int,
                    decode_text: DecodeText | None) -> FinishReason | None:
    """Why the row has ended; None: it goes on.

    A row that has reached a stop string is cut behind the token it ends in.

    Args:
      alive: what the device says: no end token, and budget remains.
      count: tokens of the last chunk.
      decode_text: token ids -> text, for stop strings.
    """
    if decode_text and self._cut_at_stop_string(count, decode_text):
      return 'stop'
    if alive:
      return None
    if self.tokens[-1] in self.sampling.eos_ids:
      return 'eos'
    return 'stop' if self.tokens[-1] in self.sampling.stop_ids else 'length'

  def _cut_at_stop_string(self, count: int, decode_text: DecodeText) -> bool:
    """Looks at the last `count` tokens and what precedes them directly: all of
    the tokens again after each chunk would be their number squared."""
    strings = self.sampling.stop_strings
    if not strings:
      return False
    # 1. A string may begin in the text before, at most its length back.
    length, longest = len(self.tokens), max(map(len, strings))
    new = start = length - count
    while start and len(decode_text(self.tokens[start:new])) < longest + _EDGE:
      start = max(0, start - longest - _EDGE)

    def stops(end: int) -> bool:
      text = decode_text(self.tokens[start:end])
      return any(string in text for string in strings)

    # 2. The token that it ends in.
    if not stops(length):
      return False
    for n in range(new + 1, length + 1):
      if stops(n):
        del self.tokens[n:], self._logprobs[n:]
        return True
    return False

  def sample(self, finish_reason: FinishReason) -> Sample:
    """All tokens of the sample, those of earlier calls included."""
    tokens = np.array(self.tokens, np.int32)
    logprobs = np.array(self._logprobs, np.float32)
    if self._partial:
      tokens = np.concatenate([self._partial.tokens, tokens])
      logprobs = np.concatenate([self._partial.logprobs, logprobs])
    return Sample(tokens, logprobs, finish_reason, self._read_logprobs)


class Launch(NamedTuple):
  """A chunk in flight."""

  rows: list[Row]
  steps: int
  outputs: jax.Array  # packed: protocol.read_outputs
  started: float  # by time.perf_counter


def describe(rows: Sequence[Row], options: Options) -> protocol.Inputs:
  """Describes the slots to the devices; those of other rows are not active."""
  num_ints, num_ends = len(protocol.INTS), protocol.MAX_ENDS
  columns = num_ints + num_ends + protocol.MAX_READS
  inputs = protocol.Inputs(
      ints=np.zeros((options.slots, columns), np.int32), floats=np.zeros(
          (options.slots, len(protocol.FLOATS)), np.float32), table=np.zeros(
              (options.slots, options.columns), np.int32))
  for row in rows:
    how, length = row.sampling, len(row.context)
    # Token, position and budget are read where the row is new. After that,
    # also after a wait, the device knows them better.
    ints = {
        'is_new': row.is_new, 'active': True, 'token': row.context[-1],
        'position': length - 1, 'budget': how.max_new_tokens,
        'id': row.request.id, 'end_from': length + how.min_new_tokens - 1,
        'top_k': how.top_k
    }
    ends = [*how.eos_ids, *how.stop_ids]
    slot = inputs.ints[row.slot]
    slot[:num_ints] = [ints[name] for name in protocol.INTS]
    slot[num_ints:] = -1
    slot[num_ints:num_ints + len(ends)] = ends
    first_read = num_ints + num_ends
    slot[first_read:first_read + len(how.read_ids)] = how.read_ids
    inputs.floats[row.slot] = [getattr(how, name) for name in protocol.FLOATS]
    inputs.table[row.slot, :len(row.pages)] = row.pages
  return inputs
