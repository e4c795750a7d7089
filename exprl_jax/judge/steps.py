"""Cutting a trace into steps, on its token ids."""

from collections.abc import Sequence

from exprl_jax.tokenizer import Tokenizer


def delimiter_ids(tokenizer: Tokenizer, delimiter: str) -> frozenset[int]:
  """The tokens that are the delimiter and at most white space around it."""
  return frozenset(
      i for i in range(tokenizer.vocab_size)
      if tokenizer.decode([i]).strip() == delimiter)


def step_ends(ids: Sequence[int], delimiters: frozenset[int],
              max_steps: int) -> list[int]:
  """Where the steps of a trace end (exclusive); the last end is len(ids).

  A delimiter opens a step. A step of delimiters alone belongs to its
  successor, at the end of the trace to its predecessor; steps beyond
  `max_steps` are merged into the last one.

  Args:
    ids: the trace, without EOS.
    delimiters: tokens that open a step.
    max_steps: at least 1.

  Returns:
    No end for an empty trace, else 1 to `max_steps` of them.
  """
  ends, has_content = [], False
  for i, token in enumerate(ids):
    if token in delimiters:
      if has_content:
        ends.append(i)
      has_content = False
    else:
      has_content = True
  if not ids:
    return []
  if has_content or not ends:
    ends.append(len(ids))
  ends[-1] = len(ids)
  return ends[:max_steps - 1] + ends[-1:] if len(ends) > max_steps else ends
