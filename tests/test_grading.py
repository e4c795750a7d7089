import ast
import gc
import math
import os
import pathlib
import subprocess
import sys
import tarfile
import time

import pytest

from exprl_jax import config as config
from exprl_jax.grading import grader as grading
from exprl_jax.grading.answers import LONGEST, boxed, final_answer
from exprl_jax.grading.equality import grade
from exprl_jax.types import InputError, Problem

CODE = pathlib.Path(__file__).parents[1] / 'docs/examples/code_grader.py'


def problem(answer, name='p', domain='math'):
  return Problem(name, 'q', solution='s', answer=answer, domain=domain)


def in_box(answer):
  return rf'So it is \boxed{{{answer}}}.'


@pytest.fixture(scope='module')
def grader():
  grader = grading.Grader(
      config.Grading(timeout=30.0, domains=('mc=choice', 'words=text')))
  yield grader
  grader.close()


def statuses(grader, rows):
  """Statuses of rows (gold, text) or (gold, text, domain)."""
  return [
      g.status for g in grader([(text,
                                 problem(gold, domain=''.join(d) or 'math'))
                                for gold, text, *d in rows])
  ]


def alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  return True


def gone(pids, seconds=10):
  end = time.monotonic() + seconds
  while any(map(alive, pids)) and time.monotonic() < end:
    time.sleep(0.02)
  return not any(map(alive, pids))


def pids(grader):
  """Of the worker processes that run now."""
  return {w._process.pid for w in grader._pool._free.queue if w._process}


@pytest.mark.parametrize(
    'text, want',
    [
        (r'so \boxed{17}', '17'),
        (r'\boxed{1} no, \boxed{2}', '2'),  # the last one counts
        (r'\boxed{\frac{1}{2}}', r'\frac{1}{2}'),
        (r'\boxed{3} and \boxed{4', '3'),  # the last balanced one
        (r'\boxed{\{1, 2\}}', r'\{1, 2\}'),
        (r'\boxed{[0, 1\}}', r'[0, 1\}'),  # an escaped brace is no brace
        (r'\boxed {x \boxed{5}} }', '5'),
        (r'\boxed{ 8 }', '8'),
        ('17', None),
        (r'\boxed{', None),
        ('', None),
    ])
def test_boxed(text, want):
  assert boxed(text) == want


@pytest.mark.parametrize(
    'text, want',
    [
        (r'\boxed{3}, \boxed{5} and $\boxed{7}$', '3, 5, 7'),
        (r'\boxed{3} \quad \text{or} \quad \boxed{5}', '3, 5'),
        (r'$x = \boxed{3}$ and $y = \boxed{5}$', '3, 5'),
        (r'\boxed{3} for part (a) and \boxed{5}', '3, 5'),
        (r'\boxed{5}. The answer is \boxed{5}', '5'),
        (r'\boxed{5}, \boxed{5}', '5'),
        (r'\boxed{3}, no, wait: \boxed{5}', '5'),  # it has thought better of it
        (r'\boxed{3} and 4. But look: \boxed{5}', '5'),
        (r'<think>\boxed{5}</think> sorry', None),
        (r'<think>\boxed{5}</think> \boxed{6}', '6'),
        (r'\boxed{4}</think> \boxed{6}', '6'),  # <think> was in the prompt
        (r'<think> it may be \boxed{5}', None),  # it never stopped thinking
        (r'\boxed{5}' + 'x' * LONGEST, None),
    ])
def test_final_answer(text, want):
  assert final_answer(text) == want


@pytest.mark.parametrize(
    'text, gold, want',
    [
        (r'\boxed{ 17 }', '17', True),
        (r'\boxed{17.0}', '17', True),
        (r'\boxed{1,000}', '1000', True),
        (r'\boxed{\$16,\!386.20}', '16386.2', True),
        (r'\boxed{14{,}916}', '$14916$', True),
        (r'\boxed{\frac{1}{2}}', '0.5', True),
        (r'\boxed{-.5}', '-1/2', True),
        (r'\boxed{18}', '17', False),
        (r'\boxed{}', '17', False),
        (r'\boxed{1,5}', '15', False),  # a list
        (r'\boxed{32, 349}', '32349', False),
        (r'\boxed{1 2}', '12', False),
        (r'\boxed{100000000000000001}', '100000000000000000', False),
        ('the answer is 17', '17', False),  # without a box nothing counts
        (r'\boxed{x + 1}', 'x+1', True),
        (r'\boxed{500\%}', '5', False),
        (r'\boxed{B}', 'B', True),
        (in_box('1' * 5000), '1', False),
    ])
def test_grade(text, gold, want):
  assert grade(text, gold) is want


@pytest.mark.parametrize('text', [
    r'\boxed{' * 7000, r'\boxed{1} ' * 5000, r'\boxed' + ' ' * 49_000, '\n' *
    50_000, r'\boxed{1}' + '$ ' * 20_000 + r'\boxed{2}', 'answer ' * 7000,
    in_box('{' * 20_000 + '}' * 20_000)
])
def test_hostile_texts_take_no_time(text, grader):
  start = time.process_time()
  statuses(grader, [('A', text, 'mc'), ('5', text, 'words')])
  assert time.process_time() - start < 2


# (gold, answer): the same by mathematics or by convention.
EQUAL = [
    (r'\frac{1}{2}', '0.5'),
    (r'\frac{1}{3}', '0.333333'),
    ('5!', '120'),
    (r'\sqrt{5+2\sqrt6}', r'\sqrt2+\sqrt3'),
    (r'3\sqrt{2}', r'\sqrt{18}'),
    (r'1-\frac{1}{\mathrm{e}}', r'\frac{e-1}{e}'),
    ('2^{99}', r'2\cdot 2^{98}'),
    (r'\frac{2006!}{2005!}', '2006'),
    (r'\frac{\pi}{4}', r'\arctan 1'),
    ('x-2y+z-1=0', '2x-4y+2z-2=0'),
    ('xy=1', 'y=1/x'),
    ('x>2', '2<x'),
    ('$ab$', '$ba$'),
    ('(x+1)^2', 'x^2+2x+1'),
    (r'\sin 2x', r'2\sin x\cos x'),
    ('ab', 'ba'),
    ('50\\%', '0.5'),
    ('50\\%', '50'),
    ('50%', '50\\%'),
    (r'\{1,2\}', '2, 1'),
    ('x=5', '5'),
    ('5', 'x=5'),
    ('8', 'x=3+5=8'),
    ('x_1=8', 'x_1=3+5=8'),
    ('204_5', '204_{5}'),
    ('2:3', r'\frac23'),
    (r'\text{even}', 'Even'),
    (r'\text{Yes}', 'yes'),
    ('90^\\circ', '90'),
    ('i+1', '1+i'),
    ('125 miles', '125'),
    (r'(-\infty,2]', r'(-\infty, 2]'),
    (r'\begin{pmatrix}1\\2\end{pmatrix}',
     r'\begin{pmatrix}\frac{2}{2}\\2\end{pmatrix}'),
    ('The answer is $7x$.', 'x \\cdot 7'),
    (r'\boxed{7x}', 'x \\cdot 7'),
]


def test_equal_answers_are_correct_and_have_one_normal_form(grader):
  grades = grader([(in_box(a), problem(gold)) for gold, a in EQUAL])
  itself = grader([(in_box(gold), problem(gold)) for gold, _ in EQUAL])
  for row, a, b in zip(EQUAL, grades, itself):
    assert a.correct, row
    if '$' not in row[0] and 'boxed' not in row[0]:
      assert a == b, row


# (gold, answer): what Math-Verify 0.9.0 takes for equal, if asked in some way.
FALSE_POSITIVES = [
    (r'\frac{1}{2004!}', r'\frac{1}{2006!}'),
    (r'\frac{1}{2^{99}}', r'\frac{1}{2^{98}}'),
    (r'\frac{x}{2^{99}}', r'\frac{x}{2^{98}}'),
    (r'1-\frac{1}{\mathrm{e}}', r'1+\frac{1}{\mathrm{e}}'),
    ('3*x-1*y+13=0', '3x+4y+14=0'),
    ('3x+4y+14=0', '3*x-1*y+13=0'),
    ('x^2+1=0', 'x^2+2=0'),
    ('1728', '1331 and 1728'),
    ('1728', r'1331 \text{ and } 1728'),
    ('AB', 'BA'),
    (r'\text{no}', 'on'),
    ('even', 'neve'),
    ('5', r'500\%'),
    ('5', r'5\%'),
    ('10', r'10\%'),
    ('10', '10 percent'),
    ('7', '1 2 3 4 5 6 7'),
    ('5', 'no idea 5'),
    ('x^2', 'y^2'),
    ('f(x)', 'f(y)'),
    ('5', '3,5'),
    ('5', '6=5'),
    ('5', 'x=6=5'),
    ('x=5', 'x=6=5'),
    ('204_5', '204_{6}'),
    ('5', r'3 \text{ or } 5'),
    ('10^{-7}', '0.0000002'),
    ('0', '10^{-20}'),
    ('x', 'x+10^{-30}'),
    (r'\frac{1}{3}', '0.333'),
    ('(1,2)', '(2,1)'),
    ('[1,2]', '(1,2)'),
]


def test_known_false_positives_are_wrong(grader):
  rows = [(gold, in_box(a)) for gold, a in FALSE_POSITIVES]
  rows += [
      ('5', r'\boxed{3} and \boxed{5}'),  # several boxes: a bet
      ('5', r'\boxed{5} or \boxed{3}'),
      ('5', r'<think>\boxed{5}</think> sorry')
  ]
  accepted = [
      row for row, s in zip(rows, statuses(grader, rows))
      if s not in ('wrong', 'no_answer')
  ]
  assert not accepted


def test_statuses_of_math(grader):
  rows = [
      ('5', in_box('5'), 'correct'),
      ('5', in_box('6'), 'wrong'),
      ('5', 'it is 5', 'no_answer'),
      ('5', in_box(''), 'no_answer'),
      ('5', in_box(r'\frac{5'), 'no_answer'),
      ('5', in_box(r'5 \& \foo'), 'unparsable'),
      ('5', in_box('x+' * 1000 + 'x'), 'unparsable'),  # not even tried
      ('', in_box('5'), 'gold_unparsable'),
      (r'5 \& \foo', in_box('5'), 'gold_unparsable'),
      (r'5 \& \foo', in_box(r'5 \& \foo'), 'correct')
  ]
  assert statuses(grader, [r[:2] for r in rows]) == [r[2] for r in rows]


@pytest.mark.parametrize('gold, text, want', [
    ('C', in_box('C'), 'correct'),
    ('C', in_box(r'\text{C}'), 'correct'),
    ('C', in_box(r'\text{(C)}'), 'correct'),
    ('(C)', in_box('C.'), 'correct'),
    (r'\text{C}', in_box('c'), 'correct'),
    ('C', in_box('C) 42'), 'correct'),
    ('C', in_box('B'), 'wrong'),
    ('C', in_box('42'), 'unparsable'),
    ('C', in_box('B, C'), 'unparsable'),
    ('42', in_box('C'), 'gold_unparsable'),
    ('C', 'Answer: B\nso\nFinal Answer: C', 'correct'),
    ('C', '**Answer:** (C)', 'correct'),
    ('C', 'The answer is C.', 'correct'),
    ('C', 'Answer: C\n' + in_box('B'), 'wrong'),
    ('C', 'I like C', 'no_answer'),
    ('', 'Answer: C', 'gold_unparsable'),
])
def test_choice(grader, gold, text, want):
  assert statuses(grader, [(gold, text, 'mc')]) == [want]


def test_text_needs_no_worker():
  grader = grading.Grader(config.Grading(grader='text'))
  assert statuses(grader, [('Paris', in_box('Paris')),
                           ('Paris', in_box('London')), ('5', in_box('5.0')),
                           ('AB', in_box(r'A\cdot B')), ('x', 'x')]) == [
                               'correct', 'wrong', 'correct', 'wrong',
                               'no_answer'
                           ]
  assert not pids(grader)


def test_gold_answers_are_checked(grader):
  good = [problem('5'), problem(''), problem('$x+1$'), problem('C', 'c', 'mc')]
  grader.check(good)
  with pytest.raises(InputError, match="problem 'row 3'.*for 1 of 5"):
    grader.check([*good, problem(r'5 \& \foo', 'row 3')])
  with pytest.raises(InputError, match="problem 'd': grader 'choice'"):
    grader.check([*good, problem('42', 'd', 'mc')])


PLUG_IN = r'''
import os, sys, time
def judge(text, problem):
  assert sorted(problem) == [
      'answer', 'domain', 'id', 'question', 'solution'], problem
  print('{"this": "is no protocol"}', flush=True)
  os.write(1, b'nor is this\n')
  if text == 'sleep': time.sleep(60)
  if text == 'stubborn':
    while True:
      try: time.sleep(60)
      except BaseException: pass
  if text == 'eat': return len(bytearray(4 << 30)) > 0
  if text == 'crash': os._exit(3)
  if text == 'exit': sys.exit(3)
  if text == 'raise': raise ValueError('what is that?')
  if text == 'read': return sys.stdin.read() == ''
  if text == 'nonsense': return 'great'
  if text == 'tuple': return 'wrong', 'forty'
  if text == 'child':
    import subprocess
    subprocess.Popen([sys.executable, '-c', 'input()', problem['answer']])
    while True:
      try: time.sleep(60)
      except BaseException: pass
  return text == problem['answer']
'''


@pytest.fixture
def plug_in(tmp_path):
  file = tmp_path / 'plug.py'
  file.write_text(PLUG_IN)
  made = []

  def make(**keys):
    made.append(
        grading.Grader(
            config.Grading(
                **{'grader': f'{file}:judge', 'timeout': 10.0, **keys})))
    return made[-1]

  yield make
  for grader in made:
    grader.close()


def test_plug_ins_may_misbehave(plug_in, caplog):
  rows = [('5', '5', 'correct'), ('5', 'eat', 'error'), ('5', '5', 'correct'),
          ('5', 'crash', 'error'), ('5', 'exit', 'error'), ('5', '6', 'wrong'),
          ('5', 'raise', 'error'), ('5', 'read', 'correct'),
          ('5', 'nonsense', 'error'), ('5', 'tuple', 'wrong'),
          ('', '', 'correct')]  # a plug-in may do without an answer
  for workers in (1, 3):
    grades = plug_in(workers=workers)([
        (text, problem(gold)) for gold, text, _ in rows
    ])
    assert [g.status for g in grades] == [r[2] for r in rows]
    assert grades[9].answer == 'forty'
  assert 'ValueError: what is that?' in caplog.text
  assert "'great' is none of" in caplog.text


def test_late_answers_cost_their_worker_at_most(plug_in):
  grader = plug_in(workers=2, timeout=0.5)
  before = pids(grader)
  rows = [('5', 'sleep'), ('5', '5'), ('5', 'stubborn'), ('5', '5')]
  assert statuses(grader, rows) == ['timeout', 'correct'] * 2
  assert statuses(grader, [('6', '6')]) == ['correct']
  assert before  # one was started to see whether there is such a function


def test_no_process_stays_behind(plug_in):
  grader = plug_in(workers=2, timeout=0.5)
  mark = f'mark-{os.getpid()}'
  assert statuses(grader, [(mark, 'child')]) == ['timeout']
  command = subprocess.run(['pgrep', '-f', mark], capture_output=True)
  assert not command.stdout  # what a worker starts dies with it
  grader([(str(i), problem('5')) for i in range(9)])
  left = pids(grader)
  assert left and all(map(alive, left))
  grader.close()
  assert gone(left)
  with pytest.raises(RuntimeError, match='closed'):
    statuses(grader, [('5', '7')])


def test_workers_end_with_the_grader_and_with_the_parent():
  grader = grading.Grader(config.Grading(grader=f'{CODE}:grade'))
  left = pids(grader)
  del grader
  gc.collect()
  assert gone(left)
  script = ('from exprl_jax import config\n'
            'from exprl_jax.grading import grader as grading\n'
            f'g = grading.Grader(config.Grading(grader={str(CODE)!r} '
            '+ ":grade"))\n'
            'print(g._pool._free.queue[-1]._process.pid, flush=True)\n')
  for end in ('', 'import os; os._exit(0)'):  # as a killed process ends
    done = subprocess.run([sys.executable, '-c', script + end],
                          capture_output=True, text=True, check=True)
    assert gone([int(done.stdout)])


def test_hangs_and_memory_of_algebra_are_stopped():
  grader = grading.Grader(config.Grading(timeout=1.5))
  rows = [('1', in_box(a)) for a in ('9^{9^{9^9}}', '2^{2^{40}}',
                                     '(' * 300 + '1' + ')' * 300, 'x \\cdot 1')]
  got = statuses(grader, rows)
  assert set(got[:3]) <= {'timeout', 'error'} and got[3] == 'wrong'
  grader.close()


def test_workers_are_started_when_needed_and_kept():
  grader = grading.Grader(config.Grading(timeout=30.0))
  statuses(grader, [('5', in_box('5')), ('5', in_box('6')), ('5', '')])
  assert not pids(grader)
  items = [(in_box(f'{i} x'), problem(f'x \\cdot {i % 5}')) for i in range(10)]
  want = ['correct'] * 5 + ['wrong'] * 5
  assert [g.status for g in grader(items)] == want  # in order
  first = pids(grader)
  assert len(first) == 2
  assert [g.status for g in grader(items[::-1])] == want[::-1]
  assert pids(grader) == first
  grader.close()


def test_equal_questions_are_asked_once(plug_in):
  grader = plug_in(workers=1, timeout=0.6)
  start = time.monotonic()
  assert statuses(grader, [('5', 'sleep')] * 40) == ['timeout'] * 40
  assert time.monotonic() - start < 10


@pytest.mark.parametrize('keys, message', [
    ({'grader': 'maths'}, "grader: 'maths' is none of math, choice"),
    ({'grader': 'nothing.py:grade'}, 'no such file: nothing.py'),
    ({'grader': f'{CODE}:gradee'}, "AttributeError.*'gradee'"),
    ({'grader': 'no.such.module:grade'}, 'ModuleNotFoundError'),
    ({'grader': f'{CODE}:'}, 'is none of'),
    ({'domains': ('code',)}, "'code' should be 'DOMAIN=GRADER'"),
    ({'domains': ('code=codes',)}, "domains, code: 'codes' is none of"),
    ({'grader': f'{CODE}:grade', 'memory_mb': 1
     }, 'ImportError|MemoryError|did not start'),
])
def test_bad_graders_are_refused(keys, message):
  with pytest.raises(InputError, match=message) as e:
    grading.Grader(config.Grading(**keys))
  assert 'config.grading' in str(e.value) and '\n' not in str(e.value)


def test_module_as_plug_in():
  grader = grading.Grader(config.Grading(grader='operator:contains'))
  assert statuses(grader, [('5', 'x')]) == ['error']  # a dict is no string


def test_code_example():
  grader = grading.Grader(
      config.Grading(domains=(f'code={CODE}:grade',), timeout=30.0, workers=1))
  tests = '[["2 3", "5\\n"], ["1 1", "2"]]'

  def program(body):
    return f'First:\n```python\n1\n```\nThen:\n```python\n{body}\n```\nDone.'

  rows = [(tests, program('a, b = map(int, input().split())\nprint(a + b)'),
           'correct'), (tests, program('print(5)'), 'wrong'),
          (tests, program('raise ValueError'), 'wrong'),
          (tests, program('import time\ntime.sleep(60)'), 'timeout'),
          (tests, program('x = bytearray(4 << 30)'), 'wrong'),
          (tests, 'print(5)', 'no_answer'),
          ('five', program('1'), 'gold_unparsable')]
  got = statuses(grader, [(gold, text, 'code') for gold, text, _ in rows])
  assert got == [r[2] for r in rows]
  grader.close()


@pytest.fixture(scope='module')
def library_rows(tmp_path_factory):
  """(gold, prediction, equal) of the tests of Math-Verify's source archive."""
  folder = tmp_path_factory.mktemp('sdist')
  done = subprocess.run([
      sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--no-binary',
      ':all:', '-d', folder, 'math-verify==0.9.0'
  ], capture_output=True, text=True)
  archives = list(folder.glob('*.tar.gz'))
  if not archives:
    pytest.skip(f'no source archive of math-verify: {done.stderr[-200:]}')
  rows = []
  with tarfile.open(archives[0]) as archive:
    for member in archive.getmembers():
      if '/tests/test_' in member.name:
        rows += _rows(ast.parse(archive.extractfile(member).read()))
  assert len(rows) == 275
  return rows


def _rows(tree):
  for node in ast.walk(tree):
    if (isinstance(node, ast.Call)
        and getattr(node.func, 'attr', '') == 'parametrize'):
      names = [n.strip() for n in ast.literal_eval(node.args[0]).split(',')]
      if names[:2] != ['gold', 'pred']:
        continue
      column = names.index('result' if 'result' in names else 'expected')
      for row in node.args[1].elts:
        row = eval(  # one row is an f-string of math.sqrt
            compile(ast.Expression(row), 'row', 'eval'), {'math': math})
        yield row[0], row[1], bool(row[column])


def test_the_library_agrees_on_boxed_predictions(library_rows, grader):
  rows = [r for r in library_rows if r'\boxed' in r[1]]
  assert len(rows) == 95
  grades = grader([(pred, problem(gold)) for gold, pred, _ in rows])
  wrong = [r for r, g in zip(rows, grades) if g.correct != r[2]]
  # The one that remains boxes 255 and then says 10455 without a box.
  assert len(wrong) <= 1, wrong
  assert all(equal for _, _, equal in wrong)  # no false positive


def test_no_unequal_row_of_the_library_is_correct(library_rows, grader):
  rows = [r for r in library_rows if not r[2]]
  boxless = [r for r in rows if r'\boxed' not in r[1]]
  assert (len(rows), len(boxless)) == (43, 37)

  def put_in_box(pred):  # its last formula, or all of it
    formulas = [f for f in pred.split('$')[1::2] if '\n' not in f]
    return in_box(formulas[-1] if formulas else pred)

  items = [(pred, problem(gold)) for gold, pred, _ in rows]
  items += [(put_in_box(pred), problem(gold)) for gold, pred, _ in boxless]
  accepted = [i for i, g in zip(items, grader(items)) if g.correct]
  assert not accepted
