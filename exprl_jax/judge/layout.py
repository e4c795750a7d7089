"""Traces as trees of tokens: a prompt with its trace, and forked questions.

The tokens of a question are those of its whole prompt, encoded as one text. It
forks off the trace where the two begin to differ, so *forked = naive* holds for
tokenizers that merge across the end of a step.
"""

from collections.abc import Sequence
import itertools
from typing import NamedTuple

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
  """Encodes traces and their questions, all in one call of the tokenizer."""
  # 1. Texts: for each trace, what precedes it, itself, and its questions.
  texts = []
  for t in traces:
    texts += [
        template.head(t.problem),
        template.up_to_trace(t.problem, t.nonce, ''),
        template.up_to_trace(t.problem, t.nonce, t.texts[-1])
    ]
    texts += [
        template.question(t.problem, t.nonce, text, item)
        for text, asked in zip(t.texts, t.questions)
        for item, _ in asked
    ]
  # 2. Tokens, and where each question leaves its trace.
  ids = iter(template.tokenizer.encode_pieces(texts))
  out = []
  for t in traces:
    head, opening, prefix = next(ids), next(ids), next(ids)
    questions = [
        Question(step, _fork(prefix, template.without_score(next(ids))), weight)
        for step, asked in enumerate(t.questions)
        for _, weight in asked
    ]
    out.append(
        TracePrefix(prefix, common(prefix, head), common(prefix, opening),
                    questions))
  return out


def common(a: Sequence[int], b: Sequence[int]) -> int:
  """Counts the first tokens that are equal."""
  pairs = zip(a, b)
  return sum(1 for _ in itertools.takewhile(lambda p: p[0] == p[1], pairs))


def _fork(prefix: Sequence[int], ids: list[int]) -> Fork:
  at = common(prefix, ids[:-1])  # at least one token of its own
  return Fork(at, ids[at:])
