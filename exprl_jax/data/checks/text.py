"""Texts as the checks compare them: by words and 64-bit hashes."""

import functools
import hashlib
import re
import unicodedata

import numpy as np

N = 13  # words of an n-gram

# Zero-width characters, soft hyphens and marks of direction.
_HIDDEN = re.compile('[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e'
                     '\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164'
                     '\ufe00-\ufe0f\ufeff\uffa0]')
# Tab, line feed and carriage return are text; \ufffd stands for lost bytes.
_CONTROL = re.compile(
    '[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffd]')
_LAYOUT = re.compile(r'\\(?:left|right)(?![a-z])|\\[,;:! ]|\\q?quad(?![a-z])')
# 3.5 and 35 are different questions, as are 1:2 and 12.
_TOKEN = re.compile(r'\d+(?:[.,:]\d+)*|[^\W\d_]+|[^\w\s]|_')
_PUNCTUATION = frozenset('.,;:?\'"`$~\u2018\u2019\u201c\u201d\u2026\\')


def tokens(text: str) -> list[str]:
  """Splits a text into words, numbers and signs of formulas.

  Equal for texts that differ in case, white space, punctuation or LaTeX layout.
  """
  text = _HIDDEN.sub('', unicodedata.normalize('NFKC', text)).casefold()
  found = _TOKEN.findall(_LAYOUT.sub(' ', text))
  return [t for t in found if t not in _PUNCTUATION]


def digest(text: str) -> int:
  """Hashes a text to 64 bits, alike in every process."""
  data = text.encode('utf-8', 'surrogatepass')
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def key(words: list[str], text: str) -> int:
  """Hashes a text by its tokens, or as it is if it has none."""
  return digest(' '.join(words) or text.strip())


def n_grams(words: list[str]) -> set[int]:
  """Hashes the N-grams of the words among `words` to 64 bits."""
  hashes = [_word(w) for w in words if w.isalnum() or w[0].isdigit()]
  if len(hashes) < N:
    return set()
  windows = np.lib.stride_tricks.sliding_window_view(
      np.array(hashes, np.uint64), N)
  return set((windows * _powers()).sum(axis=1, dtype=np.uint64).tolist())


@functools.lru_cache(1 << 16)
def _word(word: str) -> int:
  return digest(word)


@functools.cache
def _powers() -> np.ndarray:
  """u64[N]: odd factors, so that the sum depends on the order of words."""
  return np.array([digest(f'factor {i}') | 1 for i in range(N)], np.uint64)


def is_invisible(text: str) -> bool:
  """Tells whether a text that is not empty shows nothing."""
  return bool(text) and not _CONTROL.sub('', _HIDDEN.sub('', text)).strip()


def control_character(text: str) -> str:
  """Returns the first control character, as Python writes it, or ''."""
  found = _CONTROL.search(text)
  return ascii(found[0])[1:-1] if found else ''
