"""Cutting a trace into steps, on its token ids."""

import bisect
from collections.abc import Callable, Iterable, Sequence
import functools
import itertools
import re

from exprl_jax.config import Config
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.types import InputError

# From a trace's token texts to the tokens that open a step, in order, and what
# each token has besides delimiters: steps without such content are not cut.
_Rule = Callable[[list[str]], tuple[Iterable[int], list]]

_BLANK_LINE = re.compile(r'\n\s*\n')
# '1.', '2)', 'Step 3:', '**Step 3**', '## 4.', but not '3.14'. The group begins
# with what can be seen: indentation may share a token with the line before.
# No two repetitions compete for a character, so that no text takes forever.
_NUMBERED = re.compile(
    r'^[ \t]*((?:[#*][#* \t]*)?(?:step[ \t]*\d+\b|\d+[.)](?!\d))[.:)*]*)',
    re.IGNORECASE | re.MULTILINE)


class Segmenter:
  """Cuts traces into steps, on their token ids.

  What opens a step, by the delimiter:
    '': nothing; the trace is one step.
    'blank_line': what follows a blank line, which stays with the step before.
    'numbered': a line that begins with '1.', '2)', 'Step 3' or the like.
    'every:M': every M-th token.
    Others, such as '###': a token that is it and at most white space around.

  A step without content (just delimiters and white space; of tokens such as
  '###', just those) or of fewer than `min_tokens` tokens belongs to its
  successor, at the end of the trace to its predecessor; steps beyond
  `max_steps` are merged into the last one.
  """

  def __init__(self, tokenizer: Tokenizer, delimiter: str, max_steps: int,
               min_tokens: int = 1):
    """Prepares to cut.

    Args:
      tokenizer: whose ids the traces are.
      delimiter: see above.
      max_steps: at least 1.
      min_tokens: of a step, its delimiter included.

    Raises:
      InputError: the delimiter is none of the above.
    """
    self._tokenizer = tokenizer
    self._text = functools.cache(lambda i: tokenizer.decode([i]))
    self._max_steps, self._min_tokens = max_steps, min_tokens
    rules: dict[str, _Rule] = {
        '': lambda texts: ((), texts), 'blank_line': _blank_line,
        'numbered': _numbered
    }
    if delimiter in rules:
      self._rule = rules[delimiter]
    elif every := re.fullmatch('every:([1-9][0-9]*)', delimiter):
      self._rule = functools.partial(_every, int(every[1]))
    elif any(
        self._text(i).strip() == delimiter
        for i in range(tokenizer.vocab_size)):
      self._rule = functools.partial(_marker, delimiter)
    else:
      raise InputError(
          f'config.judge.delimiter={delimiter!r}: not a token of '
          f"{tokenizer.folder}; use one, or '', 'blank_line', 'numbered' or "
          "'every:M' with M > 0")

  def __call__(self, ids: Sequence[int]) -> list[int]:
    """Where the steps of a trace end (exclusive); the last end is len(ids).

    Args:
      ids: the trace, without EOS.

    Returns:
      No end for an empty trace, else 1 to `max_steps` of them.
    """
    opening, content = self._rule([self._text(i) for i in ids])
    ends, start, full = [], 0, False
    for a, b in itertools.pairwise([0, *opening, len(ids)]):
      full = full or any(content[a:b])
      if full and b - start >= self._min_tokens:
        ends.append(b)
        start, full = b, False
    # Whatever is left over at the end goes to the last step.
    return [*ends[:self._max_steps][:-1], len(ids)] if len(ids) else []

  def texts(self, ids: Sequence[int]) -> list[str]:
    """The steps of a trace as texts."""
    return [
        self._tokenizer.decode(ids[a:b])
        for a, b in itertools.pairwise([0, *self(ids)])
    ]

  def split(self, text: str) -> list[str]:
    """The steps of a text; one step is the text as it is, since decoding
    leaves out what the tokenizer does not know."""
    steps = self.texts(self._tokenizer.encode(text))
    return steps if len(steps) > 1 else [text]


def _every(size: int, texts: list[str]):
  return range(size, len(texts), size), [t.strip() for t in texts]


def _marker(delimiter: str, texts: list[str]):
  # White space is content here, and only here: traces keep the cuts they had.
  marks = [t.strip() == delimiter for t in texts]
  return [i for i, mark in enumerate(marks) if mark], [not m for m in marks]


def _blank_line(texts: list[str]):
  text, starts = _join(texts)
  opening = []
  for match in _BLANK_LINE.finditer(text):
    i = bisect.bisect_left(starts, match.end())
    while i < len(texts) and not texts[i].strip():  # indentation
      i += 1
    opening.append(i)
  return opening, [t.strip() for t in texts]


def _numbered(texts: list[str]):
  text, starts = _join(texts)
  rest = _NUMBERED.sub(lambda match: ' ' * len(match[0]), text)
  return ([
      bisect.bisect_right(starts, match.start(1)) - 1
      for match in _NUMBERED.finditer(text)
  ], [rest[a:b].strip() for a, b in itertools.pairwise(starts)])


def _join(texts: list[str]) -> tuple[str, list[int]]:
  """The whole text, and where in it each token starts; last, where it ends."""
  return ''.join(texts), [0, *itertools.accumulate(map(len, texts))]


def of_config(config: Config, tokenizer: Tokenizer) -> Segmenter:
  """The steps of a run: one, the whole trace, unless reward='process'."""
  cfg, process = config.judge, config.reward == 'process'
  return Segmenter(tokenizer, cfg.delimiter if process else '',
                   cfg.max_steps if process else 1, cfg.min_step_tokens)
