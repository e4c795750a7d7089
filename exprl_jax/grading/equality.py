"""Compares answers without algebra: numbers by value, the rest as text."""

from fractions import Fraction
import re

from exprl_jax.grading.answers import final_answer
from exprl_jax.grading.notation import plain

LONG_ANSWER = 1000  # characters; longer answers are not read as numbers

_FONT = re.compile(
    r'\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mbox)'
    r'\s*\{([^{}]*)\}')
_ZERO_DIVISOR = re.compile(
    r'/\s*\{?0+(?:\.0*)?\}?(?![\d.!^])|\\frac\s*(?:\{[^{}]*\}|\w)\s*'
    r'(?:\{\s*0+(?:\.0*)?\s*\}|0(?!\d))')
_MARK = re.compile(r'\\(?:emptyset|infty|\{)')
_DECIMAL = r'[-+]?(?:\d{1,3}(?:,\d{3})+|\d+(?=\D|$)|(?=\.\d))(?:\.\d*)?'


def grade(text: str, gold: str) -> bool:
  """Tells whether the boxed answer of a text equals the gold answer.

  Compares numbers by value ('1,000' = '1000.0') and everything else as text
  without spaces and dollar signs.
  """
  answer = final_answer(text)
  return bool(answer and normal_form(answer) == normal_form(gold))


def normal_form(answer: str) -> str | Fraction:
  r"""Returns the value of a number, else a text; equal answers have one form.

  Reads all notations that `notation.plain` knows. Drops spaces, dollar signs,
  fonts and a last dot.
  """
  value = number(answer)
  if value is not None:
    return value
  formula = plain(answer)
  value = number(formula)
  if value is not None:
    return value
  return re.sub(r'\s', '', _FONT.sub(r'\1', formula)).rstrip('.')


def meaningless(gold: str) -> bool:
  """True for gold answers that no answer can equal: nan, null, ?, 1/0."""
  text = _FONT.sub(r'\1', plain(gold))
  return bool(
      re.fullmatch(
          r'\W*|nan|null|nil|n/a|#n/a|tbd|todo|unknown|\+?-?inf/inf|\\ldots',
          text.strip(), re.I) and not _MARK.search(text)
      or _ZERO_DIVISOR.search(text))


def is_decimal(answer: str) -> bool:
  """Tells whether the answer is a whole number or a decimal, in digits."""
  return bool(re.fullmatch(_DECIMAL, _digits(answer)))


def number(answer: str) -> Fraction | None:
  """Returns the exact value of a decimal or of a fraction of whole numbers.

  Returns None for everything else.
  """
  text = _digits(answer)
  if len(text) > LONG_ANSWER:  # int() refuses more than 4,300 digits
    return None
  if re.fullmatch(_DECIMAL, text):
    return Fraction(text.replace(',', '').rstrip('.'))
  fraction = (re.fullmatch(r'([-+]?)\\[dt]?frac\{(\d+)\}\{(\d+)\}', text)
              or re.fullmatch(r'([-+]?)(\d+)/(\d+)', text))
  if fraction and int(fraction[3]):
    return Fraction(int(fraction[1] + fraction[2]), int(fraction[3]))
  return None


def _digits(answer: str) -> str:
  """Drops the dollar signs and LaTeX spaces around and within a number."""
  # A comma before a space separates a list, unless LaTeX undoes the space.
  text = re.sub(r',\s*\\!\s*|\{,\}', ',', answer.replace('\u2212', '-'))
  text = re.sub(r'\\?\$|\\[,;! ]', '', text).strip()
  text = re.sub(r'(?<!\.)\.$', '', text)  # 0.333... is another number
  return re.sub(r'^([-+])\s+', r'\1', text)
