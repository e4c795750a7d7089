"""Gold answers: whether the grader can read them, and what meets them."""

from collections.abc import Iterator, Sequence
import re
from typing import NamedTuple

from exprl_jax.data.checks.report import Finding
from exprl_jax.data.checks.text import tokens
from exprl_jax.grading.answers import final_answer, gold_answer
from exprl_jax.grading.equality import LONG_ANSWER, normal_form, number
from exprl_jax.grading.grader import Grader
from exprl_jax.types import Problem

Row = tuple[str, Problem]  # FILE:LINE and the problem

_SHOWN = 80  # characters of an answer in a message

_ALTERNATIVES = re.compile(
    r'[\s,;(]*(?:\\approx|\u2248|(?:\\text\s*\{\s*)?\b(?:or,? +)?'
    r'(?:equivalently|alternatively|approximately|an? equivalent form'
    r'(?: such as)?)\b[\s,:}]*)')
_COMMANDS = re.compile(r'\\(?!text|mathrm|mbox|textbf)[A-Za-z]+')
_WORD = re.compile(r'[A-Za-z]{3,}')
_NO_WORDS = frozenset(
    'and text mathrm mbox textbf sin cos tan cot sec csc log exp sqrt floor '
    'ceil sum prod min max gcd lcm mod arcsin arccos arctan'.split())
_NUMBER = re.compile(r'(?<![\w.^])-?\d+(?:[.,/]\d+)*(?![\w(^*/])')
_STATED = re.compile(r'\banswer\s*(?:is\s*:?|[:=])\s*\**\s*\$?\s*', re.I)
_GOES_ON = re.compile(r'\w|[-+*/^(=]|[.,]\d')  # the answer is part of another


class _Question(NamedTuple):
  """Asks whether the grader accepts one of some answers."""

  kind: str
  row: int
  given: list[str]  # answers, or a text with one


def check(rows: Sequence[Row], grader: Grader) -> Iterator[Finding]:
  """Checks gold answers with the grader of their domain."""
  readable = grader.readable([p for _, p in rows])
  questions: list[_Question] = []
  for i, ((where, p), ok) in enumerate(zip(rows, readable)):
    gold = gold_answer(p.answer)
    if not ok:
      yield _unreadable(where, gold)
    if gold:
      questions += _questions(i, p, gold, ok)
  # All answers of all questions at once: the workers share them.
  grades = iter(
      grader([(text, rows[q.row][1]) for q in questions for text in q.given]))
  for q in questions:
    status = {next(grades).status for _ in q.given}
    if not status & {'correct', 'timeout', 'error'}:
      where, p = rows[q.row]
      yield Finding(q.kind, where, 'answer', _message(q, gold_answer(p.answer)))


def _unreadable(where: str, gold: str) -> Finding:
  if not gold:
    return Finding('gold_missing', where, 'answer', 'it is empty')
  return Finding('gold_unreadable', where, 'answer',
                 f'the grader cannot read {_short(gold)}')


def _questions(i: int, p: Problem, gold: str, ok: bool) -> Iterator[_Question]:
  """Yields what to ask the grader about a gold answer."""
  if number(gold) is None and len(gold) <= LONG_ANSWER:
    parts = _parts(gold)
    if len(parts) > 1:
      yield _Question('gold_alternatives', i, [_box(x) for x in parts])
    elif ok and _is_wordy(gold):
      if numbers := _NUMBER.findall(gold):
        yield _Question('gold_in_words', i, [_box(x) for x in numbers])
  if ok and final_answer(p.solution) is not None:
    yield _Question('gold_not_in_solution', i, [p.solution])


def _parts(gold: str) -> list[str]:
  """Splits `A, or equivalently B` and the like; one part if it is one form."""
  parts = [part.strip(' ,;') for part in _ALTERNATIVES.split(gold)]
  if len(parts) > 1 and parts[-1].count('(') < parts[-1].count(')'):
    parts[-1] = parts[-1].removesuffix(')')  # A (approximately B)
  return [part for part in parts if part] if len(parts) > 1 else parts


def _is_wordy(gold: str) -> bool:
  """Tells whether a gold answer has words around a value; x = 1 is one."""
  if re.search(r'[<>=\u2260\u2264\u2265]|\\(?:leq?|geq?|neq?|in)\b', gold):
    return False
  words = _WORD.findall(_COMMANDS.sub(' ', gold))
  return any(word.lower() not in _NO_WORDS for word in words)


def _box(answer: str) -> str:
  return f'\\boxed{{{answer}}}'


def _message(question: _Question, gold: str) -> str:
  given = [final_answer(text) or '' for text in question.given]
  if question.kind == 'gold_not_in_solution':
    return (f"the solution's answer {_short(given[0])} is not the gold answer "
            f'{_short(gold)}')
  named, answer = ', '.join(map(_short, given)), _short(gold)
  if question.kind == 'gold_alternatives':
    return (f'to the grader none of {named} is the gold answer {answer}; keep '
            'one form')
  return f'to the grader {named} is not the gold answer {answer}; drop words'


def _short(text: str) -> str:
  return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + '...')


def stated(question: str, answer: str) -> bool:
  r"""Tells whether a question states the answer.

  It does in a \boxed{} or after `answer is` or `answer:`. A number that just
  occurs in the question is no answer.
  """
  gold = gold_answer(answer).strip('$ ')
  if not gold:
    return False
  boxed = final_answer(question) if '\\boxed' in question else None
  if boxed is not None and normal_form(boxed) == normal_form(gold):
    return True
  ends = (m.end() for m in _STATED.finditer(question))
  return any(
      question.startswith(gold, end)
      and not _GOES_ON.match(question, end + len(gold)) for end in ends)


def form(answer: str) -> str:
  """Returns a text that is equal for answers that are equal at sight."""
  value = normal_form(gold_answer(answer))
  if isinstance(value, str):
    return ' '.join(tokens(value)) or value
  return str(value)
