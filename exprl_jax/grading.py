r"""Grading of final answers: the last balanced \boxed{} against the gold."""

import re


def boxed(text: str) -> str | None:
  r"""The content of the last \boxed{...} with balanced braces, or None."""
  for match in reversed(list(re.finditer(r'\\boxed\s*\{', text))):
    depth = 1
    for i in range(match.end(), len(text)):
      depth += {'{': 1, '}': -1}.get(text[i], 0)
      if depth == 0:
        return text[match.end():i].strip()
  return None


def grade(text: str, gold: str) -> bool:
  """Whether the boxed answer equals the gold answer.

  Numbers compare by value ('1,000' = '1000.0'), everything else as text with
  spaces and dollar signs left out.
  """
  answer = boxed(text)
  return answer is not None and _normal(answer) == _normal(gold)


def _normal(answer: str) -> str | float:
  text = re.sub(r'[\s$]', '', answer).rstrip('.')
  number = text.replace(',', '')
  if re.fullmatch(r'[-+]?\d+(\.\d+)?', number):
    return float(number)
  return text
