"""What the engine is asked for, and what it returns."""

from collections.abc import Sequence
import dataclasses
from typing import Literal, NamedTuple

import numpy as np

# 'eos'; 'stop', a stop token or string; 'length', the budget; 'unfinished',
# the call stopped before the end; 'dropped', the request had enough others.
FinishReason = Literal['eos', 'stop', 'length', 'unfinished', 'dropped']


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the samples of a request are drawn; see sampling.py."""

  max_new_tokens: int  # the end token included
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  min_new_tokens: int = 0  # no end token before so many
  eos_ids: tuple[int, ...] = ()  # end a row and stay in it
  stop_ids: tuple[int, ...] = ()  # likewise
  stop_strings: tuple[str, ...] = ()  # end a row with the token they end in
  read_ids: tuple[int, ...] = ()  # tokens for Sample.read_logprobs


class Fork(NamedTuple):
  """Where a sample leaves its request's tokens, and how it continues."""

  at: int  # it shares tokens[:at]
  suffix: Sequence[int]  # its own tokens, before the first that is sampled


@dataclasses.dataclass(frozen=True)
class Sample:
  """A completion.

  Attributes:
    tokens: i32[T], the end token included.
    logprobs: f32[T], of the distribution that each was drawn from.
    finish_reason: why it ended, or why it did not.
    read_logprobs: f32[len(read_ids)], log-probabilities of `read_ids` as first
      token, before temperature and truncation.
  """

  tokens: np.ndarray
  logprobs: np.ndarray
  finish_reason: FinishReason
  read_logprobs: np.ndarray | None = None


class SharedPrefix(NamedTuple):
  """The first `length` tokens of all requests that name the same `id`."""

  id: int
  length: int


@dataclasses.dataclass(frozen=True)
class Request:
  """A prompt and how often to continue it; sample i has id `id` + i.

  Attributes:
    tokens: the prompt; with `forks`, what samples share the beginning of.
    id: of the first sample; the ids of all samples are distinct.
    samples: how many.
    sampling: how they are drawn.
    forks: sample i continues tokens[:forks[i].at] + forks[i].suffix.
    partial: sample i continues partial[i] of an earlier call, unless it ended
      there; the budget counts from its first token.
    num_wanted: drop the rest when so many have ended; 0: all.
    group: the id of the request that this is a part of; -1: it is not one.
    shared_prefix: the tokens that its prompt shares with other requests, which
      should be its neighbors. They are computed once on each device.
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
    suffix = self.partial[i].tokens.tolist() if self.partial else ()
    return Fork(len(self.tokens), suffix)

  def longest(self) -> int:
    """Tokens that a sample may come to, with its prompt."""
    ends = [f.at + len(f.suffix) for f in self.forks]
    return max([len(self.tokens), *ends]) + self.sampling.max_new_tokens

  def context(self, i: int) -> list[int]:
    """The tokens that sample i continues."""
    at, suffix = self.fork(i)
    return [*self.tokens[:at], *suffix]

  def num_shared(self, i: int) -> int:
    """How many tokens of the prompt sample i need not compute.

    The last token of its context is never among them: it is decoded.
    """
    at, suffix = self.fork(i)
    return min(at, at + len(suffix) - 1)

  def prefix_length(self) -> int:
    """How many tokens of the prompt are prefilled: all that a sample shares."""
    return max(self.num_shared(i) for i in range(self.samples))

  def part(self, start: int, stop: int) -> 'Request':
    """The request for samples start..stop - 1 only."""
    return dataclasses.replace(self, id=self.id + start, samples=stop - start,
                               forks=self.forks[start:stop],
                               partial=self.partial[start:stop],
                               group=self.id if self.group < 0 else self.group)


# A sample that has no token yet.
NOTHING = Sample(np.zeros(0, np.int32), np.zeros(0, np.float32), 'unfinished')
