"""What a converter is, and what converters have in common."""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import math
import random
import re
from typing import Any

from exprl_jax.grading import answers
from exprl_jax.types import InputError

# Of a data set, as it is published.
Row = Mapping[str, Any]

# Returns some of the fields id, question, solution, answer, domain, rubric, all
# of them text; None drops the row. A function of the row alone, which it does
# not change. A row has a question that is not empty, and an id: the published
# one where it is unique, else a digest, so that a row keeps it in any subset
# and order. The caller names file and row in errors.
Converter = Callable[[Row], dict[str, str] | None]

# Domains of the problems, for templates, system prompts and graders.
MATH = 'math'
SCIENCE = 'science'
CHOICE = 'mc'  # the answer is the letter of a choice
CODE = 'code'  # the answer is a JSON list of tests, [[stdin, stdout], ...]


def field(row: Row, *names: str) -> Any:
  """Returns the first of these fields that the row has.

  Raises:
    InputError: it has none of them, so it is no row of the set.
  """
  for name in names:
    if name in row:
      return row[name]
  raise InputError(f'the row has none of the fields {list(names)}, only '
                   f'{sorted(row)[:20]}; choose the converter of this data set')


def text(row: Row, *names: str) -> str:
  """Returns the first of these fields as text; '' for None and NaN.

  Raises:
    InputError: the row has none of them, or it is a list or an object.
  """
  value = field(row, *names)
  if value is None or isinstance(value, float) and math.isnan(value):
    return ''
  if not isinstance(value, (str, int, float)):
    raise InputError(f'one of the fields {list(names)} should be text, it is '
                     f'{type(value).__name__}')
  return str(value).strip()


def optional(row: Row, *names: str) -> str:
  """As `text`, but '' if the row has none of these fields."""
  return text(row, *names) if any(name in row for name in names) else ''


def digest_id(name: str, *parts: str) -> str:
  """Makes an id of a row that is published without one.

  Args:
    name: of the data set.
    *parts: what tells rows apart.
  """
  joined = '\0'.join(parts).encode()
  return f'{name}-{hashlib.sha256(joined).hexdigest()[:16]}'


def boxed(solution: str) -> str:
  """Returns the final answer of a solution: its last box, or ''."""
  return answers.final_answer(solution) or ''


def worked(solution: str) -> str:
  """Returns the solution, or '' if it is nothing but a boxed answer."""
  box = rf'[\s$]*\\boxed\s*\{{\s*{re.escape(boxed(solution))}\s*\}}[\s$.]*'
  return '' if re.fullmatch(box, solution) else solution


def with_choices(question: str, choices: Sequence[str]) -> str:
  """Writes choices below a question, lettered from A."""
  lines = [f'{letter(i)}) {choice}' for i, choice in enumerate(choices)]
  return '\n\n'.join(
      [question, '\n'.join(lines), 'Answer with the letter of one choice.'])


def letter(index: int) -> str:
  """Returns the letter of a choice: A for 0."""
  return chr(ord('A') + index)


def shuffled(items: Sequence[str], key: str) -> list[str]:
  """Shuffles items; the order is a function of `key`."""
  out = list(items)
  random.Random(key).shuffle(out)  # text is hashed with SHA-512
  return out
