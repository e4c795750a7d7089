"""Traces as trees of tokens: a prompt with its trace, and forked questions.

The tokens of a question are those of its whole prompt, as if encoded as one
text (data/forked_text.py). It forks off the trace where the two begin to
differ, so *forked = naive* holds for tokenizers that merge across the end of a
step.
"""

from collections.abc import Sequence
import functools
import itertools
from typing import NamedTuple

from exprl_jax.data.forked_text import Branch, common
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.judge import prompts
from exprl_jax.judge.readouts.base import Question, TracePrefix
from exprl_jax.rollout.requests import Fork
from exprl_jax.types import Problem

GAP = '\n[... the middle of the work is left out ...]\n'


class Trace(NamedTuple):
  """A trace to lay out.

  Attributes:
    problem: that it is about.
    texts: of the trace up to the end of each of its steps.
    nonce: around it.
    questions: (text of a rubric item or '', weight), those after each step.
  """

  problem: Problem
  texts: Sequence[str]
  nonce: str
  questions: Sequence[Sequence[tuple[str, float]]]


def prefixes(tokenizer: Tokenizer, steps: Sequence[str],
             max_tokens: int) -> list[str]:
  """Returns the trace up to the end of each step.

  A trace of more than `max_tokens` tokens loses its middle; steps that end in
  there end at the gap.
  """
  separator = tokenizer.separator
  texts = list(itertools.accumulate(steps, lambda a, b: a + separator + b))
  if not texts or fits(tokenizer, texts[-1], max_tokens):
    return texts
  whole = texts[-1]
  ids = tokenizer.encode(whole)
  half = max_tokens // 2
  # 1. The characters of the first and of the last half of the tokens.
  first = _characters(tokenizer, ids[:half], whole)
  last = _characters(tokenizer, ids[len(ids) - (max_tokens - half):], whole)
  start = len(whole) - last
  # 2. Texts that end before the gap, in it, and behind it.
  before = whole[:first] + separator + GAP.strip('\n' * bool(separator))
  return [
      text if len(text) <= first else before + separator +
      whole[start:max(start, len(text))] for text in texts
  ]


@functools.lru_cache(1024)  # asked thrice about a trace
def fits(tokenizer: Tokenizer, text: str, max_tokens: int) -> bool:
  """Whether a trace has at most `max_tokens` tokens."""
  # No tokenizer needs more tokens than bytes.
  return (len(text.encode()) <= max_tokens
          or len(tokenizer.encode(text)) <= max_tokens)


def _characters(tokenizer: Tokenizer, ids: Sequence[int], whole: str) -> int:
  """Counts characters of tokens, without one that is cut in the middle."""
  return min(len(tokenizer.decode(ids).strip('\ufffd')), len(whole))


def lay_out(template: prompts.Template,
            traces: Sequence[Trace]) -> list[TracePrefix]:
  """Encodes traces and their questions, all of them together."""
  # 1. For each trace, the prompt up to its end; of that, where it opens; and
  # its questions.
  openings = template.tokenizer.encode_pieces([
      text for t in traces for text in (
          template.head(t.problem),
          template.up_to_trace(t.problem, t.nonce, ''),
      )
  ])
  trees = template.tokenizer.encode_forked([
      (template.up_to_trace(t.problem, t.nonce, t.texts[-1]), [
          template.question(t.problem, t.nonce, text, item)
          for text, asked in zip(t.texts, t.questions)
          for item, _ in asked
      ])
      for t in traces
  ])
  # 2. Where each question leaves its trace.
  out = []
  for t, tree, head, opening in zip(traces, trees, openings[::2],
                                    openings[1::2]):
    branches = iter(tree.branches)
    questions = [
        Question(step, _fork(template, tree.ids, next(branches)), weight)
        for step, asked in enumerate(t.questions)
        for _, weight in asked
    ]
    out.append(
        TracePrefix(tree.ids, common(tree.ids, head), common(tree.ids, opening),
                    questions))
  return out


def _fork(template: prompts.Template, trunk: list[int], branch: Branch) -> Fork:
  """The fork of a question, without the score that its text has at the end."""
  ids = template.without_score(trunk[:branch.at] + branch.ids)
  at = min(branch.at, len(ids) - 1)  # at least one token of its own
  return Fork(at, ids[at:])
