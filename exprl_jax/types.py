"""The nouns that the modules hand to each other.

Letters in shapes: P prompts, G samples per prompt, B = P * G rows, T tokens,
S steps (segments of a trace), V vocabulary. Arrays are numpy or jax arrays.

Per-token arrays are aligned with `tokens`: `logprobs[b, t]` belongs to
`tokens[b, t]` given `tokens[b, :t]`, so column 0 is always 0. The only place
that shifts by one is `losses.token_logprobs`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

# A nested dict of arrays: the parameters of a model, or adapters.
Params = Any


class InputError(ValueError):
  """What the user gave is wrong. The message is one line that says what it is
  (file, row, key or flag) and what to do; `main` prints it without a trace.
  """


class Checkpoint(NamedTuple):
  """A line of a rubric: something that a solution establishes."""

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
  checkpoints: tuple[Checkpoint, ...] = ()  # its lines, if it has any


class Rollout(NamedTuple):
  """Sampled rows: each is its prompt, then its completion, then padding.

  Rows of one group are neighbours: row `p * G + g` is sample g of prompt p.
  They are on the host, whole in every process.
  """

  tokens: np.ndarray  # i32[B, T]
  valid: np.ndarray  # bool[B, T] prompt or completion, not padding
  completion: np.ndarray  # bool[B, T] sampled tokens, the EOS included
  logprobs: np.ndarray  # f32[B, T] of the distribution sampled from
  finished: np.ndarray  # bool[B] ended by EOS, not by the token budget


class Scores(NamedTuple):
  """Rewards of B rows at S places each; outcome rewards have S = 1."""

  value: jax.Array  # f32[B, S] in [0, 1] for judges and graders
  step_end: jax.Array  # i32[B, S] column of the last token of the step
  valid: jax.Array  # bool[B, S] False: no such step, or no readable verdict


class Experience(NamedTuple):
  """What the learner consumes: [B, T] on the host, packed [R, L] on devices.
  """

  tokens: jax.Array  # i32
  segment_ids: jax.Array  # i32, on the host 1; 0 is padding
  weight: jax.Array  # f32, what the token's loss counts; 0: not trained
  sampler_logprobs: jax.Array  # f32, as the sampler computed them
  old_logprobs: jax.Array  # f32, of the policy before this batch's updates
  ref_logprobs: jax.Array  # f32, of the frozen KL reference
  advantages: jax.Array  # f32
  teacher_tokens: jax.Array | None = None  # i32, loss 'exact_kl': the same
  teacher_ids: jax.Array | None = None  # completions behind other prompts


class TrainState(NamedTuple):
  """What a checkpoint holds."""

  step: jax.Array  # i32[] optimiser steps taken
  skipped: jax.Array  # i32[] since then, for gradients that were not finite
  params: Any
  opt_state: Any
