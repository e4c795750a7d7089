"""Splits a trace into steps, on its token ids."""

from collections.abc import Sequence
import functools
import itertools
from typing import NamedTuple

from exprl_jax.config import Judge
from exprl_jax.data import step_rules
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.types import InputError

_THINK, _THOUGHT = '<think>', '</think>'


class Cut(NamedTuple):
  """The steps of a trace.

  Attributes:
    ends: where they end in its tokens, exclusive; the last one is its length.
    rule: that found them, of step_rules; 'one_step': none did.
    delimiters: tokens that are the delimiter or, for other rules, headings.
    natural: steps before some were merged for judge.max_steps.
  """

  ends: list[int]
  rule: str = 'one_step'
  delimiters: int = 0
  natural: int = 1


class Segmenter:
  """Splits traces into steps, on their token ids.

  The delimiter says what opens a step:
    'auto': for each trace the first of the next four that finds two steps.
    'headings': a line that begins with '##', '###' or '####' and a space.
    'numbered': a line that begins with '1.', '2)', 'Step 3' or the like.
    'blank_line': the text behind a blank line, which ends the step before.
    'spans': spans of about 256 tokens that end with a sentence or line.
    'every:M': every M-th token.
    'authors': '###' anywhere closes a step, as in the paper's released code.
    '': nothing; the trace is one step.
    Others, such as '###': that token, with white space around it or not.

  Lines of fenced code open nothing. A step is merged into the next, at the end
  of the trace into the last, if it has fewer than `min_tokens` tokens or no
  content. Delimiters are no content, nor is white space, except where the
  delimiter is a token such as '###'. More than `max_steps` steps are merged
  into as many of about equal numbers of tokens.

  What stands between <think> and </think> (from the start, if only the latter
  is there; to the end, if only the former) is, by `thinking`, cut like the rest
  ('cut'), a step of its own ('one_step'), or no part of the steps' texts
  ('hidden'): its tokens then belong to the step that follows.
  """

  def __init__(self, tokenizer: Tokenizer, delimiter: str, max_steps: int,
               min_tokens: int = 1, thinking: str = 'cut') -> None:
    """Chooses the rule of a delimiter.

    Args:
      tokenizer: of the traces.
      delimiter: see above.
      max_steps: at least 1.
      min_tokens: of a step, its delimiter included.
      thinking: see above.

    Raises:
      InputError: it is none of the above.
    """
    self._tokenizer = tokenizer
    self._text = functools.cache(self._token_text)
    self._max_steps, self._min_tokens = max_steps, min_tokens
    self._thinking, self._delimiter = thinking, delimiter
    if delimiter == 'auto':
      self._rules = step_rules.AUTO
      return
    try:
      rule = step_rules.find(
          delimiter, lambda: list(map(self._text, range(tokenizer.vocab_size))))
    except KeyError:
      raise InputError(
          f'config.judge.delimiter={delimiter!r}: not a token of '
          f"{tokenizer.folder}; use one, or 'auto', 'headings', 'numbered', "
          "'blank_line', 'spans', '', 'authors' or 'every:M' with M > 0"
      ) from None
    self._rules = {delimiter: rule}

  def _token_text(self, token: int) -> str:
    text = self._tokenizer.decode([token])
    if not text:  # the marks of thinking are special tokens in some models
      special = self._tokenizer.decode([token], special=True)
      text = special if special in (_THINK, _THOUGHT) else ''
    return text

  def __call__(self, ids: Sequence[int]) -> list[int]:
    """Finds where the steps of a trace end (exclusive).

    Args:
      ids: the trace, without EOS.

    Returns:
      1 to `max_steps` ends, the last of which is len(ids); none for an empty
      trace.
    """
    return self.cut(ids).ends

  def cut(self, ids: Sequence[int]) -> Cut:
    """Splits a trace (see `__call__`), and says how."""
    texts = [self._text(i) for i in ids]
    start, stop = self._thought(texts)
    # Nothing in there opens a step.
    masked = [*texts[:start], *['x'] * (stop - start), *texts[stop:]]
    delimiters = step_rules.count_headings(texts)
    # Thinking that is a step makes one or two that no rule has found.
    given = len(self._ends((), [True] * len(ids), start, stop, len(ids)))
    for name, rule in self._rules.items():
      opening, has_content = rule(masked)
      if name not in step_rules.NAMED and not name.startswith('every:'):
        delimiters = len(opening)
      ends = self._ends(opening, has_content, start, stop, len(ids))
      if len(ends) > given:
        break
    else:
      name = 'one_step'
    return Cut(balanced(ends, self._max_steps), name, delimiters, len(ends))

  def _ends(self, opening: Sequence[int], has_content: Sequence[bool],
            start: int, stop: int, length: int) -> list[int]:
    """The ends of all steps, short and empty ones merged."""
    content, borders = list(has_content), set(opening)
    if stop > start:
      content[start:stop] = [self._thinking == 'one_step'] * (stop - start)
      borders -= set(range(start + 1, stop))
      if self._thinking == 'one_step':
        borders |= {start, stop}
    ends, at, filled = [], 0, False
    for a, b in itertools.pairwise([0, *sorted(borders), length]):
      filled = filled or any(content[a:b])
      if filled and (b - at >= self._min_tokens
                     or self._delimiter == 'authors'):
        ends.append(b)
        at, filled = b, False
    # A remainder at the end goes to the last step.
    return [*ends[:-1], length] if length else []

  def _thought(self, texts: Sequence[str]) -> tuple[int, int]:
    """Where thinking stands among the tokens; (0, 0): nowhere, or it is cut."""
    if self._thinking == 'cut':
      return 0, 0
    text = ''.join(texts)
    opened, closed = text.find(_THINK), text.find(_THOUGHT)
    if opened < 0 and closed < 0:
      return 0, 0
    first = opened if 0 <= opened and (closed < 0 or opened < closed) else 0
    last = closed + len(_THOUGHT) if closed >= 0 else len(text)
    starts = list(itertools.accumulate(map(len, texts), initial=0))
    start = next(i for i in range(len(texts)) if starts[i + 1] > first)
    return start, next(i for i in range(len(starts)) if starts[i] >= last)

  def texts(self, ids: Sequence[int],
            ends: Sequence[int] | None = None) -> list[str]:
    """Decodes the steps of a trace, as a judge reads them.

    Args:
      ids: the trace, without EOS.
      ends: of its steps, where they are known.
    """
    start, stop = 0, 0
    if self._thinking == 'hidden':
      start, stop = self._thought([self._text(i) for i in ids])
    out = []
    ends = self(ids) if ends is None else ends
    for a, b in itertools.pairwise([0, *ends]):
      read = [i for n, i in enumerate(ids[a:b], a) if not start <= n < stop]
      out.append(self._tokenizer.decode(read))
    return out

  def spaced(self, steps: Sequence[str]) -> list[str]:
    """Steps that were given apart, with what stands between them in a trace.

    A blank line, where neither the end of one nor the start of the next is
    white space: the steps of ProcessBench are paragraphs.
    """
    if self._tokenizer.separator:
      return list(steps)
    return [
        f'{a}\n\n' if not a[-1:].isspace() and not b[:1].isspace() else a
        for a, b in itertools.pairwise(steps)
    ] + list(steps[-1:])

  def split(self, text: str) -> list[str]:
    """Splits a text into the texts of its steps.

    A text of one step is returned as it is: decoding leaves out what the
    tokenizer does not know.
    """
    steps = self.texts(self._tokenizer.encode(text))
    hides = self._thinking == 'hidden' and (_THINK in text or _THOUGHT in text)
    return steps if len(steps) > 1 or hides else [text]


def balanced(ends: Sequence[int], count: int) -> list[int]:
  """Merges steps into `count` of about equal length, at borders that are there.

  Args:
    ends: of the steps, exclusive, in order.
    count: at least 1; fewer steps stay as they are.

  Returns:
    The ends of the merged steps, among `ends`.
  """
  if len(ends) <= count:
    return list(ends)
  out: list[int] = []
  first = 0  # of the ends that are left
  for i in range(1, count):
    wanted = ends[-1] * i / count
    last = len(ends) - (count - i)  # leaves one for each that follows
    best = min(range(first, last), key=lambda k: abs(ends[k] - wanted))
    out.append(ends[best])
    first = best + 1
  return [*out, ends[-1]]


def metrics(cuts: Sequence[Cut]) -> dict[str, float]:
  """How the traces of a batch were cut, 'steps/...'; empty traces are left out.
  """
  cuts = [cut for cut in cuts if cut.ends]
  if not cuts:
    return {}
  size = len(cuts)
  largest = [
      max(b - a
          for a, b in itertools.pairwise([0, *cut.ends])) / cut.ends[-1]
      for cut in cuts
  ]
  rules = [cut.rule for cut in cuts]
  return {
      'steps/one_step_frac': sum(len(c.ends) == 1 for c in cuts) / size,
      'steps/largest_token_frac': sum(largest) / size,
      'steps/natural_mean': sum(c.natural for c in cuts) / size,
      'steps/delimiters_mean': sum(c.delimiters for c in cuts) / size
  } | {
      f'steps/rule_{name}_frac': rules.count(name) / size
      for name in set(rules) & {*step_rules.AUTO, 'one_step'}
  }


def segmenter(cfg: Judge, tokenizer: Tokenizer, stepwise: bool) -> Segmenter:
  """The steps of a config's `judge`; one, the whole trace, unless stepwise.

  Raises:
    InputError: the delimiter is not one that Segmenter knows.
  """
  return Segmenter(tokenizer, cfg.delimiter if stepwise else '',
                   cfg.max_steps if stepwise else 1, cfg.min_step_tokens,
                   cfg.thinking)
