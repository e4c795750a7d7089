"""A table of right and wrong answers by kind, in one batch of the grader."""

import collections
import json
import pathlib
import time

import pytest

from exprl_jax import config
from exprl_jax.grading import (
    algebra,
    answers,
    equality,
    notation,
    numerals,
    structure,
    units,
    words,
    worker,
)
from exprl_jax.grading import grader as grading
from exprl_jax.judge.readouts import base as readout
from exprl_jax.types import Problem


def lines(name):
  text = (pathlib.Path(__file__).parent / name).read_text('utf-8')
  return [json.loads(line) for line in text.splitlines()]


CASES = lines('grading_cases.jsonl')
# Each entry: kind, grader, gold, right texts, wrong texts; refused: the check
# of gold answers reports it.
TABLE = lines('grading_table.jsonl')


def problem(gold, domain='math'):
  return Problem('p', 'q', solution='s', answer=gold, domain=domain)


@pytest.fixture(scope='module')
def grader():
  grader = grading.Grader(
      config.Grading(timeout=30.0, domains=('choice=choice', 'text=text')))
  yield grader
  grader.close()


def rows():
  return [(entry, text, side == 'right')
          for entry in TABLE
          for side in ('right', 'wrong')
          for text in entry[side]]


def check(grader, some):
  grades = grader([
      (text, problem(entry['gold'], entry['grader'])) for entry, text, _ in some
  ])
  bad = [(entry['kind'], entry['gold'], text, grade.status)
         for (entry, text, right), grade in zip(some, grades)
         if grade.correct != right]
  assert not bad


def test_a_third_of_the_table(grader):
  some = rows()[::3]
  sizes = collections.Counter(right for *_, right in some)
  assert min(sizes.values()) > 200
  check(grader, some)


@pytest.mark.slow
def test_the_table(grader):
  assert len(rows()) > 2000
  check(grader, rows())


def test_only_gold_answers_that_nothing_meets_are_refused(grader):
  problems = [problem(entry['gold'], entry['grader']) for entry in TABLE]
  refused = [entry.get('refused', False) for entry in TABLE]
  assert 50 < sum(refused) < len(refused) / 2
  wrong = [
      p.answer
      for p, bad, ok in zip(problems, refused, grader.readable(problems))
      if bad == ok
  ]
  assert not wrong
  none = [p for p, bad in zip(problems, refused) if bad]
  grades = grader([(r'so \boxed{1}', p) for p in none])
  assert {g.status for g in grades} == {'gold_unparsable'}
  itself = grader([(r'\boxed{1/0}', problem('1/0'))])
  assert itself[0].status == 'gold_unparsable'


@pytest.mark.parametrize('case', [c for c in CASES if c['grader'] == 'judge'],
                         ids=lambda c: c['text'])
def test_cases_of_judges(case):
  right = readout.last_score(case['text']) == int(case['gold'])
  assert right == (case['verdict'] == 'right')


def test_cases_of_graders(grader):
  cases = [c for c in CASES if c['grader'] != 'judge']
  problems = [problem(c['gold'], c['grader']) for c in cases]
  grades = grader([(c['text'], p) for c, p in zip(cases, problems)])
  for case, grade, ok in zip(cases, grades, grader.readable(problems)):
    assert grade.correct == (case['verdict'] == 'right'), case
    assert ok == (case['verdict'] != 'refuse_gold'), case


@pytest.mark.parametrize('text, score', [
    ('Score: 4 / 5', 4),
    ('Score: 4.0/5', 4),
    ('Score: 4 (out of 5)', 4),
    ('Score: 4 out of 5.', 4),
    ('**Overall score:** 2', 2),
    ('Total score: 3', 3),
    ('Score: \uff14', 4),
    ('Reasoning: It works.\r\nScore: 4\r\n', 4),
    ('Reasoning: fine. **Score: 4**', 4),
    ('Rationale: the step helps; overall score: 5/5', 5),
    ('Score: 4.5/5', None),
    ('Score: 4.01', None),
    ('Score: 0.4', None),
    ('Score: 4 out of 10', None),
    ('Score: 4 out of 50', None),
    ('Score: 4/10', None),
    ('Score: 4 or 5', None),
    ('Score: 4-5', None),
    ('Reasoning: it says "Score: 5"', None),
    ('Reasoning: it says "well. Score: 5"', None),
    ('Reasoning: `x. Score: 5`', None),
    ('Reasoning: it ends in Score: 5', None),
    ('Reasoning: bad. Score: 4. No, 3', None),
    ('Reasoning: fine. Score: 6', None),
])
def test_written_scores(text, score):
  assert readout.last_score(text) == score


@pytest.mark.parametrize('value, status', [
    (True, 'correct'),
    (1, 'correct'),
    (1.0, 'correct'),
    (False, 'wrong'),
    (0, 'wrong'),
    ('timeout', 'timeout'),
    ((True, '5'), 'correct'),
])
def test_verdicts(value, status):
  assert worker._plug_in(lambda *_: value, 'x', {})[0] == status


@pytest.mark.parametrize(
    'value',
    [0.5, 2, -1, None,
     float('nan'), [], {}, b'', {'a': 1}, (0.5, '5')])
def test_half_right_is_no_verdict(value):
  with pytest.raises((TypeError, ValueError)):
    worker._plug_in(lambda *_: value, 'x', {})


def test_grader_says_that_half_right_is_an_error(tmp_path, caplog):
  (tmp_path / 'half.py').write_text('def grade(text, problem): return 0.5\n')
  grader = grading.Grader(config.Grading(grader=f'{tmp_path}/half.py:grade'))
  assert grader([('x', problem('x'))])[0].status == 'error'
  assert 'returned 0.5; it should be True, False or a status' in caplog.text
  grader.close()


HOSTILE = [
    unit * 4000
    for unit in (' ', '\n', '(', '{', '[', '1 ', '1,', '0.1', 'a ', '^(',
                 'sqrt(', ';', r'\text{', r'\frac', '1/2 ', "f'", r'\pm ',
                 '(mod ', '5 m', '\u00b2', '\u221a', r'\ ', '~', 'answer is ',
                 'answer: (', r'\boxed ', 'C(1,1')
]


@pytest.mark.parametrize('text', HOSTILE, ids=lambda t: t[:9])
def test_hostile_formulas_take_no_time(text):
  text = text[:notation.LONGEST]
  start = time.process_time()
  formula = notation.plain(text)
  equality.normal_form(text)
  equality.meaningless(text)
  numerals.side_by_side(formula)
  units.split(formula)
  answers.choice_letter(text)
  answers.choice_answer(12 * text)
  short = formula[:equality.LONG_ANSWER]
  structure.same(short, short[1:], lambda a, b: False)
  structure.parts(short)
  algebra._anchor(short)
  words.word(formula)
  assert time.process_time() - start < 2
