"""Grades final answers against gold answers, by config.grading.

Decides numbers and equal texts itself. Algebra (Math-Verify) and plug-ins run
in worker processes that can be killed. See docs/grading.md.
"""

from collections.abc import Sequence
import json
import logging
import pathlib
import re
from typing import Any, NamedTuple

import jax

from exprl_jax.config import Grading, loading
from exprl_jax.grading import answers, sandbox
from exprl_jax.grading.equality import (
    LONG_ANSWER,
    is_decimal,
    meaningless,
    normal_form,
    number,
)
from exprl_jax.grading.notation import plain
from exprl_jax.grading.pool import Pool, Reply
from exprl_jax.runtime import mesh
from exprl_jax.types import InputError, Problem, printable

STATUSES = ('correct', 'wrong', 'no_answer', 'unparsable', 'gold_unparsable',
            'timeout', 'error')

_BUILT_IN = ('math', 'choice', 'text')
_PLUG_IN_FIELDS = ('id', 'question', 'answer', 'domain', 'solution')
_PERCENT = re.compile(r'%|\bper ?cent|\bpct\b', re.I)
_MAX_WARNINGS = 20


class Grade(NamedTuple):
  """Status of an answer, and the answer in normal form."""

  status: str  # one of STATUSES
  answer: str  # equal strings are equal answers; '' if there is none

  @property
  def correct(self) -> bool:
    """True for status `correct` only; ungraded answers are not correct."""
    return self.status == 'correct'


class Grader:
  """Grades each answer with the grader of its problem's domain."""

  def __init__(self, cfg: Grading) -> None:
    """Starts no process yet, or one to look up the plug-ins.

    Raises:
      InputError: there is no such grader, a plug-in cannot be imported, a
        limit is out of bounds, or `require_sandbox` is not met.
    """
    for name, hint in loading.hints(Grading, 'grading.'):
      loading.check(name, getattr(cfg, name.removeprefix('grading.')), hint)
    self._default = _known(cfg.grader, 'grader')
    self._domains: dict[str, str] = {}
    for entry in cfg.domains:
      domain, equals, grader = entry.partition('=')
      if not (domain and equals):
        raise InputError(f'config.grading.domains: {entry!r} should be '
                         "'DOMAIN=GRADER'")
      self._domains[domain] = _known(grader, f'domains, {domain}')
    in_workers = {self._default, *self._domains.values()} - {'choice', 'text'}
    self._pool = Pool(cfg, sorted(in_workers))
    self._warned: set[str] = set()
    self._readable: dict[str, bool] = {}  # by the question to the workers
    if in_workers - {'math'}:
      _check_containment(cfg)
      self._pool.start_one()

  def __call__(self, items: Sequence[tuple[str, Problem]]) -> list[Grade]:
    """Grades (text, problem) pairs, in order.

    Process 0 grades for all: timeouts depend on the machine, and every process
    needs the same grades.
    """
    grades = self._grade(items) if jax.process_index() == 0 else []
    return [Grade(*grade) for grade in mesh.broadcast(grades)]

  def _grade(self, items: Sequence[tuple[str, Problem]]) -> list[Grade]:
    decided = [self._decide(text, problem) for text, problem in items]
    replies = self._pool.ask({d for d in decided if isinstance(d, str)})
    return [
        d if isinstance(d, Grade) else self._read(replies[d], text, problem)
        for d, (text, problem) in zip(decided, items)
    ]

  def readable(self, problems: Sequence[Problem]) -> list[bool]:
    """Tells of every gold answer whether its grader can read it.

    False for an empty one. Plug-ins read what they like: True. Process 0
    decides for all, as for grades.
    """
    known: list[bool] = []
    if jax.process_index() == 0:
      parsed = [self._parsed(p) for p in problems]
      new = {q for q in parsed if isinstance(q, str)} - self._readable.keys()
      for question, reply in self._pool.ask(new).items():
        self._readable[question] = reply.status == 'correct'
      known = [self._readable[q] if isinstance(q, str) else q for q in parsed]
    return mesh.broadcast(known)

  def check(self, problems: Sequence[Problem]) -> None:
    """Checks that every gold answer can be read. Skips empty ones.

    Raises:
      InputError: a grader cannot read one of its gold answers.
    """
    bad = [
        p for p, ok in zip(problems, self.readable(problems))
        if p.answer and not ok
    ]
    if bad:
      raise InputError(
          f'problem {bad[0].id!r}: grader {self._grader(bad[0])!r} cannot read '
          f'the answer {bad[0].answer[:200]!r} (true for {len(bad)} of '
          f'{len(problems)} problems checked with it); correct it, leave '
          'the problem out, or give its domain another grader in '
          'config.grading.domains')

  def close(self) -> None:
    """Kills the worker processes. Grading with them raises afterwards."""
    self._pool.close()

  def _grader(self, problem: Problem) -> str:
    return self._domains.get(problem.domain, self._default)

  def _parsed(self, problem: Problem) -> bool | str:
    """Returns whether the gold answer can be read, or a question for workers.
    """
    grader, gold = self._grader(problem), answers.gold_answer(problem.answer)
    if grader not in _BUILT_IN:
      return True
    if grader == 'choice':
      return bool(answers.choice_letter(gold))
    if not gold or grader == 'text' or number(gold) is not None:
      return bool(gold)
    if meaningless(gold):
      return False
    return _math_question(problem)

  def _decide(self, text: str, problem: Problem) -> Grade | str:
    """Returns the grade, or a question for the workers."""
    grader = self._grader(problem)
    # 1. Plug-ins see the text and the problem as they are.
    if grader not in _BUILT_IN:
      fields = {name: getattr(problem, name) for name in _PLUG_IN_FIELDS}
      return _question(grader, text=answers.without_thinking(text),
                       problem=fields)
    # 2. There must be two answers to compare.
    gold = answers.gold_answer(problem.answer)
    if not gold or (grader == 'math' and number(gold) is None
                    and meaningless(gold)):
      return Grade('gold_unparsable', '')
    if grader == 'choice':
      return _choice(text, gold)
    answer = answers.final_answer(text)
    if not answer:
      return Grade('no_answer', '')
    # 3. Equal numbers and texts are correct; unequal ones only leave algebra.
    form, gold_form = normal_form(answer), normal_form(gold)
    if form == gold_form:
      return Grade('correct', str(gold_form))
    if grader == 'text' or _are_decimals(answer, gold):
      return Grade('wrong', str(form))
    if len(answer) > LONG_ANSWER + 2 * len(gold):
      return Grade('unparsable', answer[:LONG_ANSWER])
    return _math_question(problem, answer)

  def _read(self, reply: Reply, text: str, problem: Problem) -> Grade:
    """Turns a reply into a grade. Logs each of the first notes once."""
    status, answer, note = reply
    grader = self._grader(problem)
    if status not in STATUSES:
      status, note = 'error', f'{status!r} is none of {", ".join(STATUSES)}'
    if note and note not in self._warned and len(self._warned) < _MAX_WARNINGS:
      self._warned.add(note)
      logging.warning('grader %s, problem %s: %s', grader,
                      printable(problem.id), printable(note))
    if grader != 'math':
      return Grade(status, answer)
    if status == 'correct':  # all spellings share the gold answer's form
      return Grade(status,
                   str(normal_form(answers.gold_answer(problem.answer))))
    form = normal_form(answers.final_answer(text) or '')
    return Grade(status,
                 answer if answer and isinstance(form, str) else str(form))


def _known(grader: str, key: str) -> str:
  """Returns `grader`; InputError if config.grading.KEY cannot name it."""
  file, colon, function = grader.rpartition(':')
  if grader in _BUILT_IN:
    return grader
  if not (colon and file and function.isidentifier()):
    raise InputError(f'config.grading.{key}: {grader!r} is none of math, '
                     'choice, text, FILE.py:FUNCTION, MODULE:FUNCTION')
  if file.endswith('.py') and not pathlib.Path(file).is_file():
    raise InputError(f'config.grading.{key}: no such file: {file}')
  return grader


def _check_containment(cfg: Grading) -> None:
  """Warns of what programs can reach; InputError if that is not allowed."""
  found = sandbox.containment()
  reached = '; '.join(found.reachable)
  if cfg.require_sandbox and not found.enough:
    raise InputError(
        'config.grading.require_sandbox: programs that a grader runs are not '
        f'contained here: {reached}. Allow user namespaces or Landlock, or '
        'set it to False (docs/grading.md)')
  if reached and jax.process_index() == 0:
    logging.warning(
        'grading: programs that a grader runs can still reach: %s '
        '(docs/grading.md)', reached)


def _are_decimals(a: str, b: str) -> bool:
  return is_decimal(a) and is_decimal(b) or is_decimal(plain(a)) and is_decimal(
      plain(b))


def _question(grader: str, **args: Any) -> str:
  return json.dumps({'grader': grader, 'args': args}, sort_keys=True)


def _math_question(problem: Problem, answer: str | None = None) -> str:
  """Asks whether `answer` is right; None: whether the gold answer parses."""
  return _question('math', gold=answers.gold_answer(problem.answer),
                   answer=answer, percent=bool(_PERCENT.search(problem.answer)))


def _choice(text: str, gold: str) -> Grade:
  expected = answers.choice_letter(gold)
  answer = answers.choice_answer(text)
  given = answers.choice_letter(answer)
  if not expected:
    return Grade('gold_unparsable', given)
  if not given:
    return Grade('unparsable' if answer else 'no_answer', '')
  return Grade('correct' if given == expected else 'wrong', given)
