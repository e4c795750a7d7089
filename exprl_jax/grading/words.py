"""Compares answers that are words, which algebra reads as products."""

import re

# Other ways to say it; all in lower case, without spaces.
_SYNONYMS = {
    'dne': 'doesnotexist', 'nosolutions': 'nosolution',
    'norealsolution': 'nosolution', 'norealsolutions': 'nosolution',
    'therearenosolutions': 'nosolution', 'emptyset': 'nosolution'
}  # yapf: disable
_SHORT = frozenset(('yes', 'no', 'odd'))  # no products


def same(gold: str, answer: str) -> bool | None:
  """Compares words in any case; None if algebra has to."""
  given, expected = word(answer), word(gold)
  if given and expected:
    return given == expected
  if expected and (r'\text' in gold or expected in _SHORT):
    return answer.lower() == expected
  return None


def word(text: str) -> str:
  """Returns a name or words in lower case without spaces; '' for formulas.

  The library reads letters as factors, by which AB = BA and no = on. Leaves two
  or three lower-case letters to it: ab = ba.
  """
  text = text.replace('$', ' ').strip(' .')
  bare = re.sub(
      r'\\(?:text|mathrm|mbox|textbf|textit|textrm|mathbf|operatorname)\s*'
      r'\{\s*\(?([^{}()]*)\)?\s*\}', r'\1', text)
  if text in (r'\emptyset', r'\{\}', r'\{ \}'):
    return 'nosolution'
  if text.lower() in _SHORT:
    return text.lower()
  joined = ''.join(c for c in bare if c.isalpha()).lower()
  if bare != text:
    found = re.fullmatch(r"[^\W\d_]+(?:[\s',.-]+[^\W\d_]+)*", bare.strip())
  else:
    found = re.fullmatch(
        r"[A-Z]{2,}|[A-Z][a-z]{2,}|[A-Za-z]{4,}|[A-Za-z]+(?: +[A-Za-z']+)+",
        bare)
    words = bare.split()
    if found and len(words) > 1 and (max(map(len, words)) < 3
                                     or {'and', 'or'} & set(words)):
      found = None  # a b is a product, x and y a list
  return _SYNONYMS.get(joined, joined) if found else ''
