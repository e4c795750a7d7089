"""Splits a trace into steps, on its token ids."""

import bisect
from collections.abc import Callable, Sequence
import functools
import itertools
import re
from typing import NamedTuple

from exprl_jax.config import Judge
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.types import InputError


class _Marked(NamedTuple):
  """What a rule finds in the tokens of a trace."""

  opening: Sequence[int]  # tokens that open a step, in order
  has_content: Sequence[bool]  # of each token: more than a delimiter?


# From the texts of a trace's tokens.
_Rule = Callable[[list[str]], _Marked]

_BLANK_LINE = re.compile(r'\n\s*\n')
# '1.', '2)', 'Step 3:', '**Step 3**', '## 4.', but not '3.14'. The group leaves
# out indentation, which may share a token with the line before. No two
# repetitions can match the same character, so no text takes exponential time.
_NUMBERED = re.compile(
    r'^[ \t]*((?:[#*][#* \t]*)?(?:step[ \t]*\d+\b|\d+[.)](?!\d))[.:)*]*)',
    re.IGNORECASE | re.MULTILINE)


class Segmenter:
  """Splits traces into steps, on their token ids.

  The delimiter says what opens a step:
    '': nothing; the trace is one step.
    'blank_line': the text behind a blank line, which ends the step before.
    'numbered': a line that begins with '1.', '2)', 'Step 3' or the like.
    'every:M': every M-th token.
    Others, such as '###': that token, with white space around it or not.

  A step is merged into the next, at the end of the trace into the last, if it
  has fewer than `min_tokens` tokens or no content. Delimiters are no content,
  nor is white space, except where the delimiter is a token such as '###'.
  Steps beyond `max_steps` are merged into the last one.
  """

  def __init__(self, tokenizer: Tokenizer, delimiter: str, max_steps: int,
               min_tokens: int = 1) -> None:
    """Chooses the rule of a delimiter.

    Args:
      tokenizer: of the traces.
      delimiter: see above.
      max_steps: at least 1.
      min_tokens: of a step, its delimiter included.

    Raises:
      InputError: it is none of the above.
    """
    self._tokenizer = tokenizer
    self._text = functools.cache(lambda i: tokenizer.decode([i]))
    self._max_steps, self._min_tokens = max_steps, min_tokens
    rules: dict[str, _Rule] = {
        '': lambda texts: _Marked((), _visible(texts)),
        'blank_line': _blank_line, 'numbered': _numbered
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
    """Finds where the steps of a trace end (exclusive).

    Args:
      ids: the trace, without EOS.

    Returns:
      1 to `max_steps` ends, the last of which is len(ids); none for an empty
      trace.
    """
    opening, has_content = self._rule([self._text(i) for i in ids])
    ends, start, filled = [], 0, False
    for a, b in itertools.pairwise([0, *opening, len(ids)]):
      filled = filled or any(has_content[a:b])
      if filled and b - start >= self._min_tokens:
        ends.append(b)
        start, filled = b, False
    # A remainder at the end goes to the last step.
    return [*ends[:self._max_steps][:-1], len(ids)] if len(ids) else []

  def texts(self, ids: Sequence[int]) -> list[str]:
    """Decodes the steps of a trace."""
    return [
        self._tokenizer.decode(ids[a:b])
        for a, b in itertools.pairwise([0, *self(ids)])
    ]

  def split(self, text: str) -> list[str]:
    """Splits a text into the texts of its steps.

    A text of one step is returned as it is: decoding leaves out what the
    tokenizer does not know.
    """
    steps = self.texts(self._tokenizer.encode(text))
    return steps if len(steps) > 1 else [text]


def _every(size: int, texts: list[str]) -> _Marked:
  return _Marked(range(size, len(texts), size), _visible(texts))


def _marker(delimiter: str, texts: list[str]) -> _Marked:
  # White space is content here, and only here: traces keep the steps they had.
  marks = [t.strip() == delimiter for t in texts]
  return _Marked([i for i, mark in enumerate(marks) if mark],
                 [not mark for mark in marks])


def _blank_line(texts: list[str]) -> _Marked:
  text, starts = _join(texts)
  opening = []
  for match in _BLANK_LINE.finditer(text):
    i = bisect.bisect_left(starts, match.end())
    while i < len(texts) and not texts[i].strip():  # indentation
      i += 1
    opening.append(i)
  return _Marked(opening, _visible(texts))


def _numbered(texts: list[str]) -> _Marked:
  text, starts = _join(texts)
  opening = [
      bisect.bisect_right(starts, match.start(1)) - 1
      for match in _NUMBERED.finditer(text)
  ]
  # A number alone is no content.
  blanked = _NUMBERED.sub(lambda match: ' ' * len(match[0]), text)
  return _Marked(
      opening, _visible([blanked[a:b] for a, b in itertools.pairwise(starts)]))


def _visible(texts: list[str]) -> list[bool]:
  """Whether each text has more than white space."""
  return [bool(text.strip()) for text in texts]


def _join(texts: list[str]) -> tuple[str, list[int]]:
  """The joined text, and where in it each token starts and the last ends."""
  return ''.join(texts), [0, *itertools.accumulate(map(len, texts))]


def segmenter(cfg: Judge, tokenizer: Tokenizer, stepwise: bool) -> Segmenter:
  """The steps of a config's `judge`; one, the whole trace, unless stepwise.

  Raises:
    InputError: the delimiter is not one that Segmenter knows.
  """
  return Segmenter(tokenizer, cfg.delimiter if stepwise else '',
                   cfg.max_steps if stepwise else 1, cfg.min_step_tokens)
