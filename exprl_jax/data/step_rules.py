"""What opens a step in a trace: the rules of judge.delimiter, on token texts.

A rule takes the texts of a trace's tokens and returns the tokens that open a
step. Lines inside of fenced code are not looked at.
"""

import bisect
from collections.abc import Callable, Sequence
import functools
import itertools
import re
from typing import NamedTuple


class Marked(NamedTuple):
  """What a rule finds in the tokens of a trace."""

  opening: Sequence[int]  # tokens that open a step, in order
  has_content: Sequence[bool]  # of each token: more than a delimiter?


Rule = Callable[[Sequence[str]], Marked]

_SPAN = 256  # tokens of a balanced span, about
_SHORTEST = 16  # tokens; a trace of fewer than two of these is one span
_WINDOW = 10  # tokens that the authors' code decodes to look for '###'

# A fenced block, to its end or, as in Markdown, to the end of the text. What
# may be long is possessive, or a line of '~' would take quadratic time.
_FENCE = re.compile(
    r'^ {0,3}(?P<mark>`{3,}+|~{3,}+)[^`\n]*+(?:\n|\Z)'
    r'(?s:.*?)(?:^ {0,3}(?P=mark)[`~]*[ \t]*$|\Z)', re.MULTILINE)
_HEADING = re.compile(r'^ {0,3}(#{2,4})(?=\s)', re.MULTILINE)
_BLANK_LINE = re.compile(r'\n\s*\n')
# '1.', '2)', 'Step 3:', '**Step 3**', '## 4.', but not '3.14'. The group leaves
# out indentation, which may share a token with the line before. No two
# repetitions can match the same character, so no text takes exponential time.
_NUMBERED = re.compile(
    r'^[ \t]*((?:[#*][#* \t]*)?(?:step[ \t]*\d+\b|\d+[.)](?!\d))[.:)*]*)',
    re.IGNORECASE | re.MULTILINE)
# Behind the end of a sentence or of a line.
_SENTENCE = re.compile(r'(?<=[.!?])[)"\'\]*$]*\s+(?=\S)|\n[ \t]*(?=\S)')


def none(texts: Sequence[str]) -> Marked:
  """The trace is one step."""
  return Marked((), _visible(texts))


def every(size: int, texts: Sequence[str]) -> Marked:
  """Every `size`-th token."""
  return Marked(range(size, len(texts), size), _visible(texts))


def token(delimiter: str, texts: Sequence[str]) -> Marked:
  """A token, with white space around it or not."""
  # White space is content here, and only here: traces keep the steps they had.
  marks = [t.strip() == delimiter for t in texts]
  return Marked([i for i, mark in enumerate(marks) if mark],
                [not mark for mark in marks])


def authors(texts: Sequence[str]) -> Marked:
  """The rule of the paper's released code: '###' anywhere closes a step.

  A step ends with each token at which the last ten tokens, decoded, end with
  '###': so '####' cuts, '###' and '#' cut twice, and a trace that begins with
  '###' has a first step of nothing else.
  """
  opening, window = [], ''
  for i, text in enumerate(texts):
    window += text
    if i >= _WINDOW:
      window = window[len(texts[i - _WINDOW]):]
    if window.endswith('###') and i + 1 < len(texts):
      opening.append(i + 1)
  return Marked(opening, [True] * len(texts))


def headings(texts: Sequence[str]) -> Marked:
  """Markdown headings of two to four '#', at the start of a line."""
  return _lines(_HEADING, texts)


def numbered(texts: Sequence[str]) -> Marked:
  """Lines that begin with '1.', '2)', 'Step 3' or the like."""
  return _lines(_NUMBERED, texts)


def blank_line(texts: Sequence[str]) -> Marked:
  """The text behind a blank line, which ends the step before."""
  text, starts = _join(texts)
  opening = []
  for match in _BLANK_LINE.finditer(text):
    i = bisect.bisect_left(starts, match.end())
    while i < len(texts) and not texts[i].strip():  # indentation
      i += 1
    opening.append(i)
  return Marked(opening, _visible(texts))


def spans(texts: Sequence[str]) -> Marked:
  """Spans of about equal length, cut behind sentences or lines if there are
  any near; for text without any structure."""
  n = len(texts)
  if n < 2 * _SHORTEST:
    return none(texts)
  text, starts = _join(texts)
  natural = sorted({
      bisect.bisect_left(starts, match.end())
      for match in _SENTENCE.finditer(text)
  })
  count = max(2, round(n / _SPAN))
  opening = []
  for wanted in (n * i / count for i in range(1, count)):
    best = min(near(natural, wanted), key=lambda i: abs(i - wanted), default=-1)
    if not abs(best - wanted) < n / count / 2:
      best = round(wanted)
    opening.append(best)
  return Marked(opening, _visible(texts))


def near(numbers: Sequence[int], wanted: float) -> Sequence[int]:
  """The neighbors of a number among sorted ones, at most two."""
  i = bisect.bisect_left(numbers, wanted)
  return numbers[max(0, i - 1):i + 1]


def count_headings(texts: Sequence[str]) -> int:
  """The number of headings of a trace (the paper's Figure 6)."""
  return sum(1 for _ in _HEADING.finditer(_join(texts)[0]))


# 'auto' takes the first of these that finds at least two steps.
AUTO: dict[str, Rule] = {
    'headings': headings, 'numbered': numbered, 'blank_line': blank_line,
    'spans': spans
}
NAMED: dict[str, Rule] = {'': none, 'authors': authors} | AUTO


def find(delimiter: str, texts_of_tokens: Callable[[], Sequence[str]]) -> Rule:
  """The rule of a delimiter other than 'auto'.

  Args:
    delimiter: see steps.Segmenter.
    texts_of_tokens: gives the texts of the vocabulary.

  Raises:
    KeyError: there is none.
  """
  if delimiter in NAMED:
    return NAMED[delimiter]
  if match := re.fullmatch('every:([1-9][0-9]*)', delimiter):
    return functools.partial(every, int(match[1]))
  if any(text.strip() == delimiter for text in texts_of_tokens()):
    return functools.partial(token, delimiter)
  raise KeyError(delimiter)


def _lines(pattern: re.Pattern, texts: Sequence[str]) -> Marked:
  """Lines that begin with a pattern, which alone is no content."""
  text, starts = _join(texts)
  opening = [
      bisect.bisect_right(starts, match.start(1)) - 1
      for match in pattern.finditer(text)
  ]
  blanked = pattern.sub(lambda match: ' ' * len(match[0]), text)
  return Marked(opening,
                _visible([blanked[a:b] for a, b in itertools.pairwise(starts)]))


def _visible(texts: Sequence[str]) -> list[bool]:
  """Whether each text has more than white space."""
  return [bool(text.strip()) for text in texts]


def _join(texts: Sequence[str]) -> tuple[str, list[int]]:
  """The joined text with fenced code blotted out, and where in it each token
  starts and the last one ends."""
  text = _FENCE.sub(lambda match: 'x' * len(match[0]), ''.join(texts))
  return text, [0, *itertools.accumulate(map(len, texts))]
