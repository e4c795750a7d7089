"""Texts that begin alike, encoded without reading their beginning again.

The judge is asked at the end of each step of a trace: its questions are whole
prompts that differ behind that place. Encoding S prompts of a trace of n tokens
takes S n tokens; here it takes n and a little around each fork.

Tokenizers first split a text into words and then encode each of them. The split
looks at most a few characters ahead and never behind, so from the start of a
word on it does not depend on what stands before. A branch is encoded from some
words before its fork; where those words get other tokens than in the trunk, or
the tokenizer has no words, the whole branch is encoded.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tokenizers

_WORDS = 8  # that are encoded again and must be as in the trunk; as many follow


class Branch(NamedTuple):
  """The tokens of a text by those of its trunk."""

  at: int  # so many of the trunk's come first
  ids: list[int]  # then these


class Tree(NamedTuple):
  """A text, and others that begin like it."""

  ids: list[int]
  branches: list[Branch]


Encode = Callable[[list[str]], Sequence[tokenizers.Encoding]]


def encode(texts: Sequence[tuple[str, Sequence[str]]],
           encode_batch: Encode) -> list[Tree]:
  """Encodes trees: (text of the trunk, texts of its branches) each.

  Args:
    texts: whole texts, those of branches too.
    encode_batch: of whole texts.

  Returns:
    Trees with the tokens that the whole texts have.
  """
  # 1. Trunks, and the ends of branches.
  trunks = encode_batch([trunk for trunk, _ in texts])
  windows = [[_window(encoding, trunk, branch)
              for branch in branches]
             for encoding, (trunk, branches) in zip(trunks, texts)]
  ends = iter(
      encode_batch([
          branch[w.start:]
          for (_, branches), own in zip(texts, windows)
          for branch, w in zip(branches, own)
      ]))
  # 2. Branches; None: its end is not as in the trunk.
  ids = [encoding.ids for encoding in trunks]
  found = [[_branch(trunk, w, next(ends))
            for w in own]
           for trunk, own in zip(ids, windows)]
  # 3. Those are encoded as a whole.
  whole = iter(
      encode_batch([
          branch for (_, branches), own in zip(texts, found)
          for branch, known in zip(branches, own) if known is None
      ]))
  return [
      Tree(trunk,
           [_fork(trunk, 0,
                  next(whole).ids) if x is None else x
            for x in own])
      for trunk, own in zip(ids, found)
  ]


def tree(trunk: list[int], branches: Sequence[list[int]]) -> Tree:
  """The tree of whole texts that are encoded already."""
  return Tree(trunk, [_fork(trunk, 0, ids) for ids in branches])


class _Window(NamedTuple):
  """What is encoded of a branch.

  Attributes:
    start: its first character; it begins a word.
    tokens: of the trunk, that the window must have behind its first word.
  """

  start: int
  tokens: tuple[int, int] = (0, 0)


def _window(trunk: tokenizers.Encoding, text: str, branch: str) -> _Window:
  """The window of a branch; all of it where it forks near the start."""
  shared = common(text, branch)
  token = trunk.char_to_token(shared - 1) if shared else None
  word = None if token is None else trunk.token_to_word(token)
  if word is None or word < 2 * _WORDS:
    return _Window(0)
  start = trunk.word_to_chars(word - 2 * _WORDS)
  first = trunk.word_to_tokens(word - 2 * _WORDS + 1)
  behind = trunk.word_to_tokens(word - _WORDS)
  if start is None or first is None or behind is None:
    return _Window(0)
  return _Window(start[0], (first[0], behind[0]))


def _branch(trunk: list[int], window: _Window,
            encoding: tokenizers.Encoding) -> Branch | None:
  """The branch of a window; None: it is not as in the trunk."""
  ids, (first, behind) = encoding.ids, window.tokens
  if not window.start:
    return _fork(trunk, 0, ids)
  second = encoding.word_to_tokens(1)
  if second is None:
    return None
  end = second[0] + behind - first
  same = ids[second[0]:end] == trunk[first:behind]
  # A word of the window must end there, too.
  if not same or (encoding.token_to_word(end - 1)
                  == encoding.token_to_word(end)):
    return None
  return _fork(trunk, behind, ids[end:])


def _fork(trunk: list[int], start: int, ids: list[int]) -> Branch:
  """A branch with the tokens trunk[:start] + ids."""
  more = common(trunk[start:start + len(ids)], ids)
  return Branch(start + more, ids[more:])


def common(a: Sequence[Any], b: Sequence[Any]) -> int:
  """Counts the first items that are equal, by comparing slices."""
  low, high = 0, min(len(a), len(b))
  while low < high:
    middle = (low + high + 1) // 2
    if a[low:middle] == b[low:middle]:
      low = middle
    else:
      high = middle - 1
  return low
