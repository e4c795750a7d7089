"""The nouns that the modules hand to each other.

Letters in shapes: P prompts, G samples per prompt, B = P * G rows, T tokens of
a completion, S steps, R packed rows of L tokens, V vocabulary.

A trajectory stays ragged, an array of its own length, until `rl/packing.py`
packs it: what a step holds on the host grows with its tokens, not with rows
times the token budget. `logprobs[t]` belongs to token t given the tokens before
it; the only place that shifts by one is `models/head.py`.
"""

import dataclasses
from typing import Any, Literal, NamedTuple
import unicodedata

from jaxtyping import Array, Bool, Float, Int
import numpy as np

# A nested dict of arrays: the parameters of a model, or adapters.
Params = Any

# Of numpy on the host, of jax inside jit.
AnyArray = Array | np.ndarray

# Why a sample ended: 'unfinished' where its rollout stopped before it did,
# 'dropped' where its group had enough samples without it.
FinishReason = Literal['eos', 'stop', 'length', 'unfinished', 'dropped']

# Control characters that `printable` may keep where a text has lines.
LINES = '\n\t'


class InputError(ValueError):
  """What the user gave is wrong. The message is one line that says what it is
  (file, row, key or flag) and what to do; `main` prints it without a trace. It
  may quote data: `str` makes it `printable`.
  """

  def __str__(self) -> str:
    return printable(super().__str__())


def printable(text: str, keep: str = '') -> str:
  r"""Escapes what a terminal or a browser would obey instead of showing.

  These are control characters (ANSI escapes among them), marks that change the
  direction of text, other invisible characters, and lone surrogates, which no
  UTF-8 file can hold. Spaces and the letters of all scripts stay.

  Args:
    text: of data or of a model.
    keep: characters to leave, such as `LINES`.
  """
  if text.isprintable():
    return text
  return ''.join(c if c.isprintable() or c in keep or unicodedata.category(c) ==
                 'Zs' else repr(c)[1:-1] for c in text)


class RunFailure(InputError):
  """The run's own verdict: it cannot go on, and the same again would not help
  (a judge that cannot be read, nothing to train on, gradients that are not
  finite). What was earned is saved.
  """


class StartAgain(Exception):
  """The run stopped for a reason outside of it; the same command resumes it."""


class Unfinished(RuntimeError):
  """A run has trained and saved, but its report or model was not written. The
  message is one line: what failed, and that run='report' writes it.
  """


class RubricItem(NamedTuple):
  """One line of a rubric: something that a solution has to establish."""

  text: str
  points: float  # positive


@dataclasses.dataclass(frozen=True)
class Problem:
  """One row of a problem file.

  The policy is given `question` and nothing else. `solution` is the hidden
  reference: only a judge, an SFT target or a teacher may read it.
  """

  id: str
  question: str
  solution: str = ''
  answer: str = ''
  domain: str = 'math'
  rubric: str = ''  # as text
  rubric_items: tuple[RubricItem, ...] = ()  # its lines, if it is a list


class Labeled(NamedTuple):
  """A trace with its true scores, for a judge to learn from."""

  problem: Problem
  steps: list[str]  # texts, as the judge is asked about them
  labels: list[float]  # of the trace up to each step, in [0, 1]; nan: not known


class Trajectory(NamedTuple):
  """One sampled completion, on the host."""

  prompt: np.ndarray  # i32[P]
  completion: np.ndarray  # i32[T], the end token included
  logprobs: np.ndarray  # f32[T], of the distribution that was sampled from
  finish_reason: FinishReason
  step_ends: tuple[int, ...] = ()  # where each step ends in the completion,
  # exclusive; the last one is T

  @property
  def tokens(self) -> np.ndarray:
    """i32[P + T]: prompt and completion."""
    return np.concatenate([self.prompt, self.completion])

  @property
  def finished(self) -> bool:
    """Ended by itself, not by the token budget."""
    return self.finish_reason != 'length'


class Group(NamedTuple):
  """The G samples of a problem."""

  problem: Problem
  trajectories: list[Trajectory]


class Scores(NamedTuple):
  """Rewards of B rows at up to S steps each; one score a row has S = 1.

  `valid` is a mask: False where there is no such step, or where it has no
  readable score. There are no sentinel values.
  """

  value: Float[AnyArray, 'B S']  # [0, 1] of judges and graders
  valid: Bool[AnyArray, 'B S']


class PackedBatch(NamedTuple):
  """A micro-batch on the devices: sequences packed into R rows of L tokens."""

  tokens: Int[Array, 'R L']
  segment_ids: Int[Array, 'R L']  # of each sequence; 0: padding
  loss_weight: Float[Array, 'R L']  # of a token's loss; 0: none
  rollout_logprobs: Float[Array, 'R L']  # by the sampler
  old_logprobs: Float[Array, 'R L']  # before this batch's updates
  ref_logprobs: Float[Array, 'R L']  # of the frozen KL reference
  advantages: Float[Array, 'R L']
  # The same completions behind the teacher's prompts (loss 'exact_kl').
  teacher_tokens: Int[Array, 'R L'] | None = None
  teacher_segment_ids: Int[Array, 'R L'] | None = None


class TrainState(NamedTuple):
  """What a checkpoint holds."""

  step: Int[Array, '']  # optimizer steps taken
  skipped: Int[Array, '']  # since then, for gradients that were not finite
  params: Params
  opt_state: Any
