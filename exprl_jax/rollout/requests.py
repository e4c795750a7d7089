"""What the engine is asked for, and what it gives."""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np


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
  read_ids: tuple[int, ...] = ()  # whose log-probabilities are read


class Fork(NamedTuple):
  """Where a sample leaves its request's tokens, and what it goes on with."""

  at: int  # it shares tokens[:at]
  suffix: Sequence[int]  # its own, before it is sampled from


@dataclasses.dataclass(frozen=True)
class Sample:
  """A completion.

  Attributes:
    tokens: i32[T], the end token included.
    logprobs: f32[T], of the distribution each was drawn from.
    finish_reason: 'eos', 'stop' (a stop token or string) or 'length';
      'unfinished' where the call stopped before the end, 'dropped' where the
      request had enough finished samples.
    read_logprobs: f32[len(read_ids)], log-probabilities of `read_ids` as first
      token, before temperature and truncation.
  """

  tokens: np.ndarray
  logprobs: np.ndarray
  finish_reason: str
  read_logprobs: np.ndarray | None = None


class SharedPrefix(NamedTuple):
  """The first `length` tokens of all requests that name the same `id`."""

  id: int
  length: int


@dataclasses.dataclass(frozen=True)
class Request:
  """A prompt and how often to continue it; sample i has id `id` + i.

  Attributes:
    tokens: the prompt; with `forks` it is a trunk.
    id: of the first sample; the ids of all requests are distinct.
    samples: how many.
    sampling: how they are drawn.
    forks: sample i continues tokens[:forks[i].at] + forks[i].suffix.
    partial: sample i goes on with partial[i] of an earlier call, unless it has
      ended there; the budget counts from its beginning.
    num_wanted: stop the rest when so many have ended; 0: all.
    group: the id that the request had when it was made (`part`).
    shared_prefix: the tokens that its prompt shares with other requests, which
      should be its neighbors; computed once on each device that needs it.
  """

  tokens: Sequence[int]
  id: int
  samples: int
  sampling: Sampling
  forks: Sequence[Fork] = ()
  partial: Sequence[Sample] = ()
  num_wanted: int = 0
  group: int = -1
  shared_prefix: SharedPrefix | None = None

  def fork(self, i: int) -> Fork:
    """Where sample i leaves the tokens."""
    if self.forks:
      return self.forks[i]
    begun = self.partial[i].tokens.tolist() if self.partial else ()
    return Fork(len(self.tokens), begun)

  def context(self, i: int) -> list[int]:
    """What sample i continues."""
    at, suffix = self.fork(i)
    return [*self.tokens[:at], *suffix]

  def shared(self, i: int) -> int:
    """Tokens of the trunk that sample i need not compute.

    The last of the context is never among them: decoding starts with it.
    """
    at, suffix = self.fork(i)
    return min(at, at + len(suffix) - 1)

  def trunk_length(self) -> int:
    """Tokens of the trunk that are computed: as far as samples share it."""
    return max(self.shared(i) for i in range(self.samples))

  def part(self, start: int, stop: int) -> 'Request':
    """Samples start..stop - 1 only."""
    return dataclasses.replace(self, id=self.id + start, samples=stop - start,
                               forks=self.forks[start:stop],
                               partial=self.partial[start:stop],
                               group=self.id if self.group < 0 else self.group)


# A sample that has yet to begin.
NOTHING = Sample(np.zeros(0, np.int32), np.zeros(0, np.float32), 'unfinished')
