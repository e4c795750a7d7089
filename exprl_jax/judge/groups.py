"""Group-relative judging: several traces of a problem in one reading.

The judge reads them together and scores each, so that a score also says how a
trace compares with the others. Which traces meet in a reading, and in what
order, depends on the traces alone: no sample is always the first one.
"""

from collections.abc import Sequence
import hashlib
import itertools
from typing import NamedTuple

from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.judge import layout, prompts
from exprl_jax.types import Problem

# Tokens in a reading beside those of each trace: its number, a nonce, a gap.
_AROUND = 64


class Place(NamedTuple):
  """Where a trace is read."""

  reading: int
  member: int  # of the reading, from 0


def readings(
    problems: Sequence[Problem], texts: Sequence[str],
    size: int) -> tuple[list[tuple[Problem, list[str]]], list[Place | None]]:
  """Deals traces out to readings of at most `size`, of about equal size.

  Args:
    problems: of the traces.
    texts: of the traces.
    size: see above.

  Returns:
    The problem and the traces of each reading, and the place of each trace:
    equal ones have the same, blank ones have none.
  """
  # 1. The different traces of each problem, by digest.
  own: dict[Problem, dict[str, None]] = {}
  for problem, text in zip(problems, texts):
    if text.strip():
      own.setdefault(problem, {})[text] = None
  # 2. Readings.
  out: list[tuple[Problem, list[str]]] = []
  places: dict[tuple[Problem, str], Place] = {}
  for problem, different in own.items():
    ordered = sorted(different, key=_digest)
    count = -(-len(ordered) // size)
    for members in (ordered[i::count] for i in range(count)):
      for i, text in enumerate(members):
        places[problem, text] = Place(len(out), i)
      out.append((problem, members))
  return out, [places.get(pair) for pair in zip(problems, texts)]


def _digest(text: str) -> bytes:
  return hashlib.blake2b(text.encode(), digest_size=16).digest()


def lay_out(tokenizer: Tokenizer, problem: Problem, texts: Sequence[str],
            max_tokens: int) -> layout.Trace:
  """Makes one trace of those of a reading, asked about as if each was a step.

  Args:
    tokenizer: the judge's.
    problem: of the traces.
    texts: of the traces.
    max_tokens: longer ones lose their middle.
  """
  nonce = prompts.nonce(problem, list(texts))
  cut = [layout.prefixes(tokenizer, [text], max_tokens)[-1] for text in texts]
  together = f'\n{nonce}\n'.join(
      f'Work {i}:\n{text}' for i, text in enumerate(cut, start=1))
  return layout.Trace(problem, list(itertools.repeat(together, len(texts))),
                      nonce, [[(str(i + 1), 1.0)] for i in range(len(texts))])


def room(max_trace_tokens: int, size: int) -> int:
  """Counts the tokens that the traces of a reading may take."""
  return size * (max_trace_tokens + _AROUND)
