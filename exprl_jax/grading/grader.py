r"""Grading of final answers: the last balanced \boxed{} against the gold.

Numbers and equal texts are decided here. Algebra (Math-Verify) and plug-ins
run in processes of their own, `grading.worker`, which can be killed: see
docs/grading.md.
"""

from collections.abc import Sequence
import concurrent.futures
import dataclasses
from fractions import Fraction
import json
import logging
import os
import pathlib
import queue
import re
import select
import signal
import subprocess
import sys
import time
from typing import NamedTuple
import weakref

import jax

from exprl_jax import config as config
from exprl_jax.runtime import mesh
from exprl_jax.types import InputError, Problem

STATUSES = ('correct', 'wrong', 'no_answer', 'unparsable', 'gold_unparsable',
            'timeout', 'error')
LONGEST = 50_000  # characters of a text that are looked at, from its end
_LONG_ANSWER = 1000  # algebra is not tried on answers that are so much longer
_PERCENT = re.compile(r'%|\bper ?cent|\bpct\b', re.I)
_START_UP = 120.0  # seconds a worker may take to import what it needs


class Grade(NamedTuple):
  """What became of an answer."""

  status: str  # one of STATUSES
  answer: str  # normal form: equal strings are equal answers; '' if none

  @property
  def correct(self) -> bool:
    """Only `correct` is correct; an answer that was not graded is not."""
    return self.status == 'correct'


def boxed(text: str) -> str | None:
  r"""The content of the last \boxed{...} with balanced braces, or None."""
  boxes = _boxes(text)
  return boxes[-1][1] if boxes else None


def final_answer(text: str) -> str | None:
  r"""The answer that a text ends on, or None.

  It is the last balanced box after the last `</think>`. Boxes that are listed
  (`\boxed{1}, \boxed{2} and \boxed{3}`) are one answer, '1, 2, 3'.
  """
  text = _spoken(text)
  boxes = _boxes(text)
  if not boxes:
    return None
  answers = [boxes[-1][1]]
  for (_, before, end), (start, *_) in zip(boxes[-2::-1], boxes[:0:-1]):
    if not (end <= start <= end + 100 and _LISTED.fullmatch(text[end:start])):
      break
    if before not in answers:
      answers.insert(0, before)
  return ', '.join(answers)


def grade(text: str, gold: str) -> bool:
  """Whether the boxed answer equals the gold answer, by the cheap rule.

  Numbers compare by value ('1,000' = '1000.0'), everything else as text with
  spaces and dollar signs left out.
  """
  answer = final_answer(text)
  return bool(answer) and _same(answer, gold)


class Grader:
  """Grades answers, each with the grader of its problem's domain.

  Args of the constructor: the configuration's `grading`.

  Raises:
    InputError: there is no such grader, or a plug-in cannot be imported.
  """

  def __init__(self, cfg: config.Grading):
    self._default = _known(cfg.grader, 'grader')
    self._domains = {}
    for entry in cfg.domains:
      domain, equals, grader = entry.partition('=')
      if not (domain and equals):
        raise InputError(f'config.grading.domains: {entry!r} should be '
                         "'DOMAIN=GRADER'")
      self._domains[domain] = _known(grader, f'domains, {domain}')
    used = {self._default, *self._domains.values()} - {'choice', 'text'}
    workers = [_Worker(cfg, sorted(used)) for _ in range(max(1, cfg.workers))]
    self._count = len(workers)
    self._free = queue.LifoQueue()
    for worker in workers:
      self._free.put(worker)
    self._close = weakref.finalize(self, _close, workers)  # at exit, too
    self._reported = set()
    if used - {'math'}:  # plug-ins: is there such a function?
      workers[-1].start()

  def __call__(self, items: Sequence[tuple[str, Problem]]) -> list[Grade]:
    """Grades (text, problem) pairs, in order.

    Of several processes the first one grades: there are timeouts, and all have
    to go on with the same grades.
    """
    found = self._grade(items) if jax.process_index() == 0 else []
    return [Grade(*grade) for grade in mesh.broadcast(found)]

  def _grade(self, items) -> list[Grade]:
    known = [self._decide(text, problem) for text, problem in items]
    asked = self._ask({k for k in known if isinstance(k, str)})
    return [
        k if isinstance(k, Grade) else self._read(asked[k], text, problem)
        for k, (text, problem) in zip(known, items)
    ]

  def check(self, problems: Sequence[Problem]) -> None:
    """Reads the gold answers; those that are empty are skipped.

    Raises:
      InputError: one of them cannot be read by its grader.
    """
    bad, questions = [], {}
    for p in problems:
      grader = self._grader(p)
      if grader == 'choice' and p.answer and not _letter(_gold(p)):
        bad.append(p)
      if grader == 'math' and p.answer and _number(_gold(p)) is None:
        questions[p.id] = _math(p)
    replies = self._ask(set(questions.values()))
    bad += [
        p for p in problems
        if p.id in questions and replies[questions[p.id]][0] != 'correct'
    ]
    if bad:
      raise InputError(
          f'problem {bad[0].id!r}: grader {self._grader(bad[0])!r} cannot read '
          f'the answer {bad[0].answer[:200]!r} (so it is for {len(bad)} of '
          f'{len(problems)} problems); correct it, leave the problem out, or '
          'give its domain another grader in config.grading.domains')

  def close(self) -> None:
    """Ends the worker processes. Nothing can be graded afterwards."""
    self._close()

  def _grader(self, problem) -> str:
    return self._domains.get(problem.domain, self._default)

  def _decide(self, text, problem) -> Grade | str:
    """What needs no worker is graded, for the rest there is a question."""
    grader = self._grader(problem)
    if grader not in ('math', 'text', 'choice'):
      fields = dataclasses.asdict(problem)
      return _question(
          grader, text=_spoken(text), problem={
              k: fields[k]
              for k in ('id', 'question', 'answer', 'domain', 'solution')
          })
    gold = _gold(problem)
    if not gold:
      return Grade('gold_unparsable', '')
    if grader == 'choice':
      return _choice(text, gold)
    answer = final_answer(text)
    if not answer:
      return Grade('no_answer', '')
    if _same(answer, gold):
      return Grade('correct', str(_normal(gold)))
    if grader == 'text' or _plain(answer) and _plain(gold):
      return Grade('wrong', str(_normal(answer)))
    if len(answer) > _LONG_ANSWER + 2 * len(gold):
      return Grade('unparsable', answer[:_LONG_ANSWER])
    return _math(problem, answer)

  def _ask(self, questions: set[str]) -> dict[str, tuple[str, str, str]]:
    """Asks the workers, all at a time: question -> (status, answer, note)."""
    if not questions:
      return {}
    if not self._close.alive:
      raise RuntimeError('this Grader is closed')

    def ask(question):
      worker = self._free.get()
      try:
        return worker.ask(question)
      finally:
        self._free.put(worker)

    ordered = sorted(questions)
    with concurrent.futures.ThreadPoolExecutor(self._count) as pool:
      return dict(zip(ordered, pool.map(ask, ordered)))

  def _read(self, reply, text, problem) -> Grade:
    status, answer, note = reply
    grader = self._grader(problem)
    if status not in STATUSES:
      status, note = 'error', f'{status!r} is none of {", ".join(STATUSES)}'
    if note and note not in self._reported and len(self._reported) < 20:
      self._reported.add(note)
      logging.warning('grader %s, problem %s: %s', grader, problem.id, note)
    if grader != 'math':
      return Grade(status, answer)
    if status == 'correct':  # however it was written
      return Grade(status, str(_normal(_gold(problem))))
    given = final_answer(text)
    known = _number(given)
    return Grade(
        status,
        str(_normal(given) if known is not None else answer or _normal(given)))


class _Worker:
  """A worker process, started when it is asked and after it was killed."""

  def __init__(self, cfg, graders):
    self._cfg, self._graders = cfg, graders
    self._process = None
    self._unread = b''

  def start(self) -> None:
    """Starts the process and waits until its imports are done."""
    settings = {
        'graders': self._graders, 'memory_mb': self._cfg.memory_mb,
        'seconds': 0.8 * self._cfg.timeout
    }
    # It finds what this process finds; a pool of threads for each numerical
    # library would be taken for memory.
    root = str(pathlib.Path(__file__).parents[2])
    env = {
        **os.environ, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1',
        'PYTHONPATH': os.pathsep.join([root, *filter(None, sys.path)])
    }
    self._process = subprocess.Popen(
        [
            sys.executable, '-m', 'exprl_jax.grading.worker',
            json.dumps(settings)
        ], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True)  # to be killed with its children
    self._unread = b''
    try:
      problem = json.loads(self._line(_START_UP))
    except (TimeoutError, EOFError):
      problem = (f'a worker did not start in {_START_UP:.0f} s with '
                 f'config.grading.memory_mb={self._cfg.memory_mb}')
    if problem:
      self.close()
      raise InputError(f'config.grading: {problem}')

  def ask(self, question: str) -> tuple[str, str, str]:
    """The worker's reply to a line of JSON: (status, answer, note)."""
    if self._process is None or self._process.poll() is not None:
      self.close()
      self.start()
    try:
      self._process.stdin.write(question.encode() + b'\n')
      self._process.stdin.flush()
      return tuple(json.loads(self._line(self._cfg.timeout)))
    except TimeoutError:
      self.close()
      return 'timeout', '', ''
    except (EOFError, BrokenPipeError):
      self.close()
      return 'error', '', 'the worker has crashed'

  def _line(self, seconds) -> bytes:
    end = time.monotonic() + seconds
    stdout = self._process.stdout.fileno()
    poll = select.poll()
    poll.register(stdout, select.POLLIN)
    while b'\n' not in self._unread:
      if not poll.poll(1000 * max(0.0, end - time.monotonic())):
        raise TimeoutError
      if not (more := os.read(stdout, 1 << 16)):
        raise EOFError
      self._unread += more
    line, _, self._unread = self._unread.partition(b'\n')
    return line

  def close(self) -> None:
    """Kills the process and what it has started."""
    if self._process is None:
      return
    try:
      os.killpg(self._process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
      pass  # it has ended already
    self._process.wait()
    self._process.stdout.close()
    try:
      self._process.stdin.close()
    except BrokenPipeError:
      pass  # of a question that it did not live to read
    self._process = None


def _close(workers) -> None:
  for worker in workers:
    worker.close()


def _known(grader, key) -> str:
  file, colon, function = grader.rpartition(':')
  if grader in ('math', 'choice', 'text'):
    return grader
  if not (colon and file and function.isidentifier()):
    raise InputError(f'config.grading.{key}: {grader!r} is none of math, '
                     'choice, text, FILE.py:FUNCTION, MODULE:FUNCTION')
  if file.endswith('.py') and not pathlib.Path(file).is_file():
    raise InputError(f'config.grading.{key}: no such file: {file}')
  return grader


def _question(grader, **args) -> str:
  return json.dumps({'grader': grader, 'args': args}, sort_keys=True)


def _math(problem, answer=None) -> str:
  return _question('math', gold=_gold(problem), answer=answer,
                   percent=bool(_PERCENT.search(problem.answer)))


def _spoken(text: str) -> str:
  """The end of a text, without what was thought."""
  text = text.rpartition('</think>')[2].partition('<think>')[0]
  return text[-LONGEST:]


# Two boxes are a list if there is nothing between them but signs, `and`, or a
# few words of one sentence that end on `and` or on `and y =`.
_GAP = r'(?:[\s$,;&]|\\[()\[\],;! ]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\})*'
_LISTED = re.compile(
    rf'{_GAP}(?:(?:[^.\n]{{0,50}}\W)?(?:and|or)\b\W{{0,5}})?{_GAP}'
    rf'(?:[\w{{}}()]{{1,12}}\s*=)?{_GAP}')
_BRACES = re.compile(r'(\\boxed\s*\{)|(?<!\\)\\[{}]|([{}])')


def _boxes(text) -> list[tuple[int, str, int]]:
  """(start, content, end) of balanced boxes by their starts, in one pass."""
  found, opened = [], []
  for match in _BRACES.finditer(text):
    box, brace = match.groups()
    if box or brace == '{':
      opened.append((match.start() if box else None, match.end()))
    elif brace and opened:
      start, inside = opened.pop()
      if start is not None:
        content = text[inside:match.start()].strip()
        found.append((start, content, match.end()))
  return sorted(found)


def _gold(problem) -> str:
  """The gold answer; data sets keep it with its box or without."""
  answer = final_answer(problem.answer)
  return (problem.answer if answer is None else answer).strip()


def _same(answer, gold) -> bool:
  a, b = _normal(answer), _normal(gold)
  return type(a) is type(b) and a == b


def _normal(answer: str) -> str | Fraction:
  number = _number(answer)
  if number is not None:
    return number
  text = re.sub(r'[\s$]|\\left|\\right|\\[,;! ]', '', answer).rstrip('.')
  return re.sub(r'\\[dt]frac', r'\\frac', text)


_PLAIN = r'[-+]?(?:\d{1,3}(?:,\d{3})+|\d+(?=\D|$)|(?=\.\d))(?:\.\d*)?'


def _plain(answer) -> bool:
  """A whole number or a decimal fraction, as digits."""
  return bool(re.fullmatch(_PLAIN, _digits(answer)))


def _number(answer) -> Fraction | None:
  """The exact value of a number or of a fraction of two whole numbers."""
  text = _digits(answer)
  if len(text) > _LONG_ANSWER:  # Python refuses to read it
    return None
  if re.fullmatch(_PLAIN, text):
    return Fraction(text.replace(',', '').rstrip('.'))
  fraction = (re.fullmatch(r'([-+]?)\\[dt]?frac\{(\d+)\}\{(\d+)\}', text)
              or re.fullmatch(r'([-+]?)(\d+)/(\d+)', text))
  if fraction and int(fraction[3]):
    return Fraction(int(fraction[1] + fraction[2]), int(fraction[3]))
  return None


def _digits(answer) -> str:
  # A comma with a space behind it is a list, unless LaTeX takes it back.
  text = re.sub(r',\s*\\!\s*|\{,\}', ',', answer.replace('\u2212', '-'))
  text = re.sub(r'\\?\$|\\[,;! ]', '', text).strip().rstrip('.')
  return re.sub(r'^([-+])\s+', r'\1', text)


def _choice(text, gold) -> Grade:
  """The letter in the box, or else on the last line `Answer: C`."""
  answer = final_answer(text)
  if answer is None:
    lines = _ANSWER.findall(_spoken(text))
    answer = lines[-1] if lines else ''
  given, expected = _letter(answer), _letter(gold)
  if not expected:
    return Grade('gold_unparsable', given)
  if not given:
    return Grade('unparsable' if answer else 'no_answer', '')
  return Grade('correct' if given == expected else 'wrong', given)


_ANSWER = re.compile(
    r'^[ \t*#>]*(?:the +)?(?:final +)?answer(?: +is)?[ *]*:?[ \t*]*(\S.*)$',
    re.I | re.M)


def _letter(answer) -> str:
  r"""C of C, c, (C), C., \text{(C)}, `C) 42` and `**C**`; '' of others."""
  text = re.sub(r'\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}', r'\1',
                answer)
  found = re.fullmatch(r'\(?([A-Za-z])(?:[).:]+(?:\s.*)?)?',
                       text.strip(' $*\n'), re.S)
  return found[1].upper() if found else ''
