"""Compares answers without algebra: numbers by value, the rest as text."""

from fractions import Fraction
import re

from exprl_jax.grading.answers import final_answer

LONG_ANSWER = 1000  # characters; longer answers are not read as numbers

_DECIMAL = r'[-+]?(?:\d{1,3}(?:,\d{3})+|\d+(?=\D|$)|(?=\.\d))(?:\.\d*)?'


def grade(text: str, gold: str) -> bool:
  """Tells whether the boxed answer of a text equals the gold answer.

  Compares numbers by value ('1,000' = '1000.0') and everything else as text
  without spaces and dollar signs.
  """
  answer = final_answer(text)
  return bool(answer and normal_form(answer) == normal_form(gold))


def normal_form(answer: str) -> str | Fraction:
  """Returns the value of a number, else a text; equal answers have one form.

  Drops spaces, dollar signs, sizes of brackets and fractions, and a last dot.
  """
  value = number(answer)
  if value is not None:
    return value
  text = re.sub(r'[\s$]|\\left|\\right|\\[,;! ]', '', answer).rstrip('.')
  return re.sub(r'\\[dt]frac', r'\\frac', text)


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
  text = re.sub(r'\\?\$|\\[,;! ]', '', text).strip().rstrip('.')
  return re.sub(r'^([-+])\s+', r'\1', text)
