"""Checks of single rows, and of rows against earlier ones."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from exprl_jax.data.checks import golds, text
from exprl_jax.data.checks.report import Finding
from exprl_jax.types import Problem

_TEXTS = ('question', 'solution', 'answer', 'rubric')


class Budget(NamedTuple):
  """A limit on the tokens of a prompt or target."""

  field: str  # that makes it long
  name: str  # such as 'the policy prompt'
  key: str  # of the config
  limit: int  # its value
  tokens: Callable[[Problem], int]
  tokenizer: str = ''  # its digest


def texts(where: str, p: Problem, needs: Collection[str]) -> Iterator[Finding]:
  """Checks the fields of a row.

  Args:
    where: FILE:LINE.
    p: the problem.
    needs: fields that must not be empty.
  """
  for field in _TEXTS:
    value: str = getattr(p, field)
    if text.is_invisible(value):
      yield Finding('invisible_text', where, field,
                    f'it shows nothing: {ascii(value[:20])}')
    elif found := text.control_character(value):
      yield Finding('control_characters', where, field,
                    f'it holds {found}' + _escape(found))
    elif field in needs and not value:
      yield Finding('missing_field', where, field, 'the run needs it')
  if golds.stated(p.question, p.answer):
    yield Finding('answer_in_question', where, 'question',
                  f'it states the answer {p.answer[:80]!r}')


def _escape(found: str) -> str:
  """Explains the characters that LaTeX becomes in JSON."""
  lost = {'\\x08': r'\b of \boxed or \binom', '\\x0c': r'\f of \frac'}
  if found not in lost:
    return ''
  return f'; JSON wants two backslashes for the {lost[found]}'


def copied(where: str, p: Problem, words: Sequence[str]) -> Iterator[Finding]:
  """Compares the solution with `words`, the tokens of the question."""
  # Copies may differ in white space and punctuation, but not by so much.
  similar = words and len(p.solution) < 2 * len(p.question) + 100
  if similar and text.tokens(p.solution) == words:
    yield Finding('solution_is_question', where, 'solution',
                  'it repeats the question')


def lengths(where: str, p: Problem,
            budgets: Sequence[Budget]) -> Iterator[Finding]:
  """Holds a row against the budgets."""
  for budget in budgets:
    count = budget.tokens(p)
    if count > budget.limit:
      yield Finding(
          'too_long', where, budget.field,
          f'{budget.name} has {count} tokens, {budget.key}='
          f'{budget.limit}')


class _First(NamedTuple):
  """The first row with a question."""

  where: str
  answer: int  # hash; 0: none


class Earlier:
  """Ids and questions of the rows so far, as hashes."""

  def __init__(self) -> None:
    self._ids: dict[int, str] = {}  # where
    self._questions: dict[int, _First] = {}
    self._conflicts: set[int] = set()

  def check(self, where: str, p: Problem, key: int) -> Iterator[Finding]:
    """Compares a row with all before it, and adds it.

    Args:
      where: FILE:LINE.
      p: the problem.
      key: hash of the question's tokens.
    """
    first = self._ids.setdefault(text.digest(p.id), where)
    if first != where:
      yield Finding('duplicate_id', where, 'id',
                    f'{p.id!r} is the id of {first}, too')
    answer = text.digest(golds.form(p.answer)) if p.answer.strip() else 0
    known = self._questions.setdefault(key, _First(where, answer))
    if known.where == where:
      return
    if not answer or not known.answer or answer == known.answer:
      yield Finding('duplicate_question', where, 'question',
                    f'it is the question of {known.where}')
      return
    message = '{} has the same question and another answer'
    yield Finding('conflicting_answers', where, 'answer',
                  message.format(known.where))
    if key not in self._conflicts:  # which of the two is wrong, nobody knows
      self._conflicts.add(key)
      yield Finding('conflicting_answers', known.where, 'answer',
                    message.format(where))
