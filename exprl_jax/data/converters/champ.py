r"""CHAMP: 270 competition problems with solutions by humans, step by step.

Shape of a row, from the package `champ-dataset` (dataset_files/v0.json,
`problems`): identifier, _raw_text, _text, category, solution {steps:
[{_raw_text, _text, ch_idxs}]}, _raw_answer, _answer, ch_list, and annotations
of models. Formulas are ASCII: C(n, 2), 2^(n-1), sqrt(3).

Answers are sentences. `short_answer` takes out of them what a model would box:

    C(10, 5), or equivalently 252             252
    5/14, or approximately 35.7%              5/14
    100 (i.e., all values)                    100
    At most 0 roots                           0
    The limit exists and is equal to sqrt(a)  \sqrt{a}
    x=0, y=2 and x=9, y=11                    (0, 2), (9, 11)
    x=±1, ±2                                  1, -1, 2, -2
    No integer solutions                      (no short answer)
"""

import re

from exprl_jax.data.converters import base
from exprl_jax.data.converters.base import Row

_REMARK = re.compile(r'\s*\((?:i\.e\.|no\b|none\b).*$')
# Of exact alternatives, the last one is the closed form.
_EXACT = re.compile(r', or (?:equivalently|an equivalent form such as) ')
_ROUNDED = re.compile(r', or approximately .*$')
_SENTENCES = [
    re.compile(pattern) for pattern in (
        r'(.+) is the only possible value',
        r'The limit exists and is equal to (.+)',
        r'The only possible value for the limit is (.+)',
        r'The function is periodic, with a period of (.+)',
        r'(?:At (?:most|least) )?(\d+|n)(?: (?!and\b|or\b)[a-z-]+)+',
    )
]
_ONE = re.compile(r'Exactly one.*')
_WORDS = re.compile(r'[A-Za-z]{3,}')
_ASSIGNMENTS = re.compile(r'\(?[a-z]=[^=,()]+(?:, [a-z]=[^=,()]+)*\)?')
_LATEX = (
    ('−', '-'),
    (r'\bfloor\(([^()]*)\)', r'{\\lfloor \1 \\rfloor}'),
    (r'\bC\(([^(),]*), ([^(),]*)\)', r'\\binom{\1}{\2}'),
    (r'\bsqrt\(([^()]*)\)', r'\\sqrt{\1}'),
    (r'([\^_])\(([^()]*)\)', r'\1{\2}'),
    (r'\^(\d{2,})', r'^{\1}'),
    (r'\bsum_', r'\\sum_'),
    (r'\*', r'\\cdot '),
)


def champ(row: Row) -> dict[str, str] | None:
  """Reads CHAMP. The answer is '' where there is no short one (26 problems).

  A step of the human solution is a line.
  """
  steps = base.field(row, 'solution')['steps']
  return {
      'id': base.text(row, 'identifier'), 'question': base.text(row, '_text'),
      'solution': '\n'.join(step['_text'].strip() for step in steps),
      'answer': short_answer(base.text(row, '_answer'))
  }


def champ_answered(row: Row) -> dict[str, str] | None:
  """Reads the problems of CHAMP that have a short answer, for a grader."""
  out = champ(row)
  return out if out and out['answer'] else None


def short_answer(sentence: str) -> str:
  """Returns the number, formula or yes or no of an answer; '' if it has none.

  Args:
    sentence: an answer of CHAMP, without @@.
  """
  text = _ROUNDED.sub('', _REMARK.sub('', sentence))
  text = _EXACT.split(text)[-1]
  if _ONE.fullmatch(text):
    return '1'
  for pattern in _SENTENCES:
    if match := pattern.fullmatch(text):
      text = match[1]
      break
  if text in ('Yes', 'No'):
    return text
  text = latex(_both_signs(_tuples(text)))
  words = _WORDS.search(re.sub(r'\\[a-z]+', '', text))
  return '' if words or '...' in text else text


def _tuples(text: str) -> str:
  """Writes 'x=0, y=2 and x=9, y=11' as '(0, 2), (9, 11)', and `and` as ','.

  The grader takes assignments for a set: 'x=6, y=5' would equal (5, 6).
  """
  text = re.sub(r'^([a-z])=([a-z])=(.+)$', r'\1=\3, \2=\3', text)
  groups = re.split(r' and |(?<=\)), (?=\()', text)
  if '±' in text or not all(map(_ASSIGNMENTS.fullmatch, groups)):
    return ', '.join(groups)
  values = [re.findall(r'=([^,()]+)', group) for group in groups]
  if all(len(v) == 1 for v in values):
    return ', '.join(v[0] for v in values)
  return ', '.join(f'({", ".join(v)})' for v in values)


def _both_signs(text: str) -> str:
  """Writes 'x=±1, ±2' as '1, -1, 2, -2'; the grader cannot read ± in lists."""
  if '±' not in text:
    return text
  items = re.sub(r'^[a-z]=', '', text).split(', ')
  return ', '.join(
      item.replace('±', sign).removeprefix('+')
      for item in items
      for sign in ('+', '-'))


def latex(formula: str) -> str:
  """Writes an ASCII formula of CHAMP in LaTeX."""
  for pattern, replacement in _LATEX:
    formula = re.sub(pattern, replacement, formula)
  return formula


CONVERTERS = {'champ': champ, 'champ_answered': champ_answered}
