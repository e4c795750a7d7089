import base64
import copy
import functools
import importlib.util
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
import zlib

import pytest

from exprl_jax import config
from exprl_jax.data import converters, validation
from exprl_jax.data.converters import champ
from exprl_jax.grading.grader import Grader
from exprl_jax.types import InputError
from tests.published_rows import (
    COMPETITION,
    GSM8K,
    LIVECODEBENCH,
    NUMINA,
    OLYMPIADBENCH,
    ROWS,
    SCIKNOWEVAL,
    VERL,
    gpqa,
    pack,
)

ROOT = pathlib.Path(__file__).parents[1]
CODE = ROOT / 'docs/examples/code_grader.py'
CASES = [(name, row) for name, rows in ROWS.items() for row in rows]
each_row = pytest.mark.parametrize(
    'name, row', CASES, ids=[f'{name}{i}' for i, (name, _) in enumerate(CASES)])


@functools.cache
def grader():
  return Grader(
      config.Grading(domains=('mc=choice', f'code={CODE}:grade'), timeout=30.0))


@pytest.fixture(scope='module', autouse=True)
def _close():
  yield
  if grader.cache_info().currsize:
    grader().close()


def convert(name, row):
  return converters.lookup(name)(row)


def problem(name, row):
  return validation.check_row(convert(name, row), name, 1, ())


def statuses(pairs):
  return [grade.status for grade in grader()(pairs)]


# Laws of all converters.


def test_every_converter_has_rows_here():
  assert set(ROWS) == set(converters.CONVERTERS)


@each_row
def test_a_row_becomes_a_problem_with_an_id_of_its_own(name, row):
  out = convert(name, row)
  assert out['question'].strip() and out['id'].strip()
  assert set(out) <= {
      'id', 'question', 'solution', 'answer', 'domain', 'rubric'
  }
  assert all(isinstance(value, str) for value in out.values())
  assert problem(name, row).id == out['id']


@each_row
def test_a_converter_depends_on_the_row_only_and_does_not_change_it(name, row):
  before = copy.deepcopy(row)
  first = convert(name, row)
  assert row == before
  assert convert(name, dict(reversed(row.items()))) == first
  assert convert(name, before | {'a_new_column': 1}) == first


@pytest.mark.parametrize('name', ROWS)
def test_rows_have_different_ids(name):
  ids = [convert(name, row)['id'] for row in ROWS[name]]
  assert len(set(ids)) == len(ids)


@each_row
def test_rows_of_another_set_are_refused_with_the_missing_field(name, row):
  with pytest.raises(InputError, match='none of the fields'):
    convert(name, {'text': 'What is 1+1?'})


QUESTIONS = {'question', 'problem', 'Problem', 'Question', 'question_content'}


@pytest.mark.parametrize('name, row',
                         [case for case in CASES if QUESTIONS & case[1].keys()])
def test_a_row_without_a_question_is_dropped(name, row):
  key, = QUESTIONS & row.keys()
  for empty in ('', '  ', None, float('nan')):
    assert convert(name, row | {key: empty}) is None


@each_row
def test_the_grader_reads_the_answer_and_finds_it_in_the_solution(name, row):
  p = problem(name, row)
  grader().check([p])
  final = '\\boxed' in p.solution or 'Answer:' in p.solution
  if p.domain in ('math', 'mc') and final:
    assert statuses([(p.solution, p)]) == ['correct']
  if p.domain in ('math', 'mc'):
    assert statuses([(rf'\boxed{{{p.answer}}}', p)]) == ['correct']
    assert statuses([(r'\boxed{31337}', p)]) != ['correct']


def test_a_field_that_is_no_text_is_refused():
  messages = [{'role': 'assistant', 'content': 'It is 2.'}]
  row = ROWS['pope'][0] | {'gemini_solution': messages}
  with pytest.raises(InputError, match='gemini_solution.*list'):
    convert('pope', row)


# Single sets.


def test_gsm8k_keeps_no_annotations_and_ends_on_the_answer():
  first, second = (convert('gsm8k', row) for row in GSM8K)
  assert first['solution'] == ('The packs have 3*4=12 pens.\n'
                               'In all, 12+12=24 pens.\n\\boxed{24}')
  assert second['answer'] == '2400' and '<<' not in second['solution']
  assert convert('gsm8k', GSM8K[0] | {'answer': 'It is 24.'}) is None


def test_the_answer_of_math_is_the_last_box():
  row = {'problem': 'p', 'solution': r'\boxed{1}. No: \boxed{\frac{1}{2}}'}
  assert convert('math', row)['answer'] == r'\frac{1}{2}'
  assert convert('math', row | {'solution': 'one half'}) is None


def test_numina_math_drops_what_cannot_be_graded():
  row = NUMINA[0]
  for change in ({'question_type': 'proof'}, {'answer': 'proof'},
                 {'answer': 'notfound'}, {'problem_is_valid': 'Incomplete'},
                 {'solution_is_valid': 'Problem not solved'}):
    assert convert('numina_math', row | change) is None
  assert convert('numina_math', NUMINA[1])['domain'] == 'mc'
  assert convert('numina_math', NUMINA[0])['domain'] == 'math'


def test_a_solution_that_is_only_a_box_is_an_answer_and_no_solution():
  problems = [convert('aime', row) for row in COMPETITION]
  assert [p['answer'] for p in problems] == ['17', '100', '121', '144', '169']
  assert [bool(p['solution']) for p in problems
         ] == [False, False, True, False, True]


def test_deepscaler_solved_is_deepscaler_where_there_are_solutions():
  for row in ROWS['deepscaler']:
    out = convert('deepscaler', row)
    assert convert('deepscaler_solved',
                   row) == (out if out['solution'] else None)


def test_gpqa_letters_its_choices_in_an_order_by_the_record():
  letters = set()
  for i in range(40):
    out = convert('gpqa', gpqa(f'rec{i}'))
    lines = dict(re.findall(r'^([A-D])\) (.+)$', out['question'], re.M))
    assert sorted(lines.values()) == ['Argon', 'Helium', 'Neon', 'Oxygen']
    assert lines[out['answer']] == 'Oxygen'
    letters.add(out['answer'])
  assert letters == set('ABCD')


def test_gpqa_has_the_same_order_in_every_process():
  code = ('import sys, json; from exprl_jax.data import converters\n'
          'print(converters.lookup("gpqa")(json.load(sys.stdin))["question"])')
  out = subprocess.run([sys.executable, '-c', code], text=True, check=True,
                       capture_output=True, input=json.dumps(gpqa('recX')),
                       env=os.environ | {'PYTHONHASHSEED': '5'}).stdout
  assert out.strip() == convert('gpqa', gpqa('recX'))['question']


def test_sciknoweval_drops_other_types_and_broken_choices():
  row = SCIKNOWEVAL[0]
  choices = {'text': ['16', '18'], 'label': ['A', 'B', 'C', 'D']}
  for change in ({'type': 'true_or_false'}, {'choices': choices},
                 {'answerKey': 'E'}, {'answerKey': ''}):
    assert convert('sciknoweval', row | change) is None
  assert convert('sciknoweval', row)['question'].splitlines()[3] == 'B) 18'


def test_olympiadbench_asks_for_the_unit_and_drops_images_and_proofs():
  row = OLYMPIADBENCH[1]
  assert convert('olympiadbench', row)['question'] == (
      'A body falls for 2 s.\n\nFind the speed.\n\nGive the answer in m/s.')
  assert convert('olympiadbench', row | {'image_1': b'PNG'}) is None
  assert convert('olympiadbench', row | {'final_answer': None}) is None


def program(text):
  return f'```python\n{text}\n```'


def test_livecodebench_is_graded_by_all_its_tests():
  p = problem('livecodebench', LIVECODEBENCH[0])
  right = program('a, b = map(int, input().split())\nprint(a + b)')
  public_only = program('a, b = map(int, input().split())\nprint(abs(a) + b)')
  assert statuses([(right, p), (public_only, p)]) == ['correct', 'wrong']


def test_livecodebench_reads_tests_that_are_not_packed():
  row = LIVECODEBENCH[0]
  plain = '[{"input": "-5 2\\n", "output": "-3\\n", "testtype": "stdin"}]'
  assert convert('livecodebench',
                 row | {'private_test_cases': plain}) == convert(
                     'livecodebench', row)


def test_livecodebench_drops_problems_that_ask_for_a_function():
  tests = '[{"input": "[1]", "output": "1", "testtype": "functional"}]'
  row = LIVECODEBENCH[0] | {'public_test_cases': tests}
  assert convert('livecodebench', row) is None


def test_livecodebench_runs_no_code_from_its_tests(tmp_path):

  class Attack:

    def __reduce__(self):
      return os.mkdir, (str(tmp_path / 'attacked'),)

  packed = base64.b64encode(zlib.compress(pickle.dumps(Attack()))).decode()
  with pytest.raises(InputError, match='private_test_cases'):
    convert('livecodebench', LIVECODEBENCH[0] | {'private_test_cases': packed})
  assert not (tmp_path / 'attacked').exists()


@pytest.mark.parametrize('packed', ['?', 'QUJD', '[1', pack(['a list'])])
def test_livecodebench_names_tests_that_it_cannot_unpack(packed):
  with pytest.raises(InputError, match='private_test_cases'):
    convert('livecodebench', LIVECODEBENCH[0] | {'private_test_cases': packed})


def test_verl_records_keep_their_domain_and_tests():
  math, code, science = (problem('verl', row) for row in VERL)
  assert [math.domain, code.domain, science.domain] == ['math', 'code', 'mc']
  assert math.question == 'What is 1+1?' and science.answer == 'B'
  right = program('print(sum(map(int, input().split())))')
  assert statuses([(right, code)]) == ['correct']
  asks = json.dumps({'inputs': ['1'], 'outputs': ['1'], 'fn_name': 'f'})
  row = VERL[1] | {'reward_model': {'ground_truth': asks}}
  assert convert('verl', row)['answer'] == ''


# CHAMP, the real one.


@functools.cache
def real_champ():
  spec = importlib.util.find_spec('champ_dataset')
  if spec is None:
    pytest.skip('champ-dataset is not installed')
  path = pathlib.Path(spec.origin).parent / 'dataset_files/v0.json'
  return list(json.loads(path.read_text())['problems'].values())


def test_champ_has_a_solution_for_every_problem_and_answers_for_most():
  problems = [problem('champ', row) for row in real_champ()]
  assert len({p.id for p in problems}) == len(problems) == 270
  assert all(p.question and p.solution for p in problems)
  answered = [p for p in problems if p.answer]
  assert len(answered) == 244
  assert answered == [
      problem('champ_answered', row)
      for row in real_champ()
      if convert('champ_answered', row)
  ]


def test_the_grader_reads_every_answer_of_champ():
  problems = [
      p for p in (problem('champ', row) for row in real_champ()) if p.answer
  ]
  grader().check(problems)
  # The space makes another text, so that algebra decides where it has to.
  pairs = [(rf'\boxed{{{p.answer.replace("(", " (")}}}', p) for p in problems]
  assert set(statuses(pairs)) == {'correct'}


ALTERNATIVES = {
    'P_Combinatorics_2': '252',
    'P_Combinatorics_14': '5/14',  # not 'approximately 35.7%'
    'P_Combinatorics_27': '504',
    'P_Combinatorics_29': 'n(n-1)(n-2)(n-3)/4!',
    'P_Combinatorics_33': '(n(n+1)/2)^2',
    'P_Combinatorics_37': 'n(n+1)(2n+1)/6',
    'P_Inequality_18': r'1/\sqrt{3}',
    'P_Number-Theory_51': '1176470588235294',
}


def test_of_alternatives_champ_keeps_the_last_exact_one():
  rows = [row for row in real_champ() if ', or ' in row['_answer']]
  kept = {row['identifier']: convert('champ', row)['answer'] for row in rows}
  assert kept == ALTERNATIVES


def test_the_alternative_that_is_left_out_is_accepted_too():
  pairs = []
  for row in real_champ():
    first = row['_answer'].partition(', or equivalently ')
    if first[1] and 'sum_' not in first[0]:  # the grader adds no symbolic sums
      text = rf'\boxed{{{champ.latex(first[0])}}}'
      pairs.append((text, problem('champ', row)))
  assert len(pairs) == 4 and set(statuses(pairs)) == {'correct'}


@pytest.mark.parametrize('sentence, answer', [
    ('0 is the only possible value', '0'),
    ('The limit exists and is equal to (1+sqrt(4a+1))/2', r'(1+\sqrt{4a+1})/2'),
    ('At most 0 integer-valued roots (i.e., no integer roots)', '0'),
    ('Exactly one sequence', '1'),
    ('1, 4 and 9', '1, 4, 9'),
    ('x=6, y=5', '(6, 5)'),
    ('x=y=0', '(0, 0)'),
    ('x=16 and x=81', '16, 81'),
    ('(x=8, y=2), (x=2, y=8)', '(8, 2), (2, 8)'),
    ('x=±1, ±2, ±1/2', '1, -1, 2, -2, 1/2, -1/2'),
    ('2^floor(n/2)*C(n, 10)', r'2^{\lfloor n/2 \rfloor}\cdot \binom{n}{10}'),
    ('No', 'No'),
    ('No integer solutions', ''),
    ('x(x-1)(x-2)...(x-2022)', ''),
])
def test_a_short_answer_is_what_a_model_would_box(sentence, answer):
  assert champ.short_answer(sentence) == answer


# Looking up.


def test_a_converter_may_be_a_function_of_the_user(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text('def convert(row):\n  return {"question": row["q"]}\n')
  assert converters.lookup(f'{file}:convert')({'q': '?'}) == {'question': '?'}
  with pytest.raises(InputError, match=r'data\.convert='):
    converters.lookup(f'{file}:other')


def test_an_unknown_name_is_answered_with_a_close_one():
  with pytest.raises(InputError, match="data.convert='gsm8'.*'gsm8k'"):
    converters.lookup('gsm8')
