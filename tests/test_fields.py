"""Rows with other field names."""

import pytest

from exprl_jax.data import problems as data
from exprl_jax.types import InputError, Problem
from tests.problem_files import ROW, fields_of, write


def test_fields_are_found_by_their_paths(tmp_path):
  path = write(
      tmp_path, {
          'id': 'a', 'question': 'not this', 'problem': 'q', 'a.b': 'dots',
          'solutions': [{'text': 's'}], 'meta': {'answer': 4}
      }, {'problem': 'q', 'solutions': [], 'meta': None})
  got = data.read_problems(
      path,
      fields=fields_of(fields=('question=problem', 'solution=solutions.0.text',
                               'id=', 'answer=meta.answer', 'rubric=a.b')))
  assert got == [Problem('1', 'q', 's', '4', rubric='dots'), Problem('2', 'q')]
  with pytest.raises(InputError, match=r'jsonl:2: row has no solution'):
    data.read_problems(
        path, ('solution',),
        fields=fields_of(fields=('question=problem', 'id=',
                                 'solution=solutions.0.text')))


def test_an_answer_is_taken_from_its_solution(tmp_path):
  path = write(tmp_path, dict(ROW, id='a', solution=r'So \boxed{\frac{1}{2}}.'),
               dict(ROW, id='b', solution='2 + 2 = 4\n####  1,004 \n'),
               dict(ROW, id='c', solution='none'))
  boxed, _, none = data.read_problems(path,
                                      fields=fields_of(answer_from='boxed'))
  assert (boxed.answer, boxed.solution) == (r'\frac{1}{2}',
                                            r'So \boxed{\frac{1}{2}}.')
  assert none.answer == ''
  _, line, _ = data.read_problems(path, fields=fields_of(answer_from='hash'))
  assert (line.answer, line.solution) == ('1,004',
                                          '2 + 2 = 4\n\\boxed{1,004}\n')
  with pytest.raises(InputError, match='jsonl:2: row has no answer'):
    data.read_problems(path, ('answer',), 0, fields_of(answer_from='boxed'))


CONVERTER = '''
def halve(row):
  """Keeps even rows."""
  if row['n'] % 2:
    return None
  return {'question': f"what is {row['n']} ?", 'answer': row['n']}
'''


def test_rows_go_through_a_converter(tmp_path):
  code = tmp_path / 'code.py'
  code.write_text(CONVERTER)
  convert = fields_of(convert=f'{code}:halve')
  path = write(tmp_path, *({'n': n} for n in range(1, 7)))
  got = data.read_problems(path, fields=convert)
  assert got == [
      Problem(str(n), f'what is {n} ?', answer=str(n)) for n in (2, 4, 6)
  ]
  assert data.read_problems(path, limit=2, fields=convert) == got[:2]
  write(tmp_path, {'n': 1})
  with pytest.raises(InputError, match='no problems in it'):
    data.read_problems(path, fields=convert)
  write(tmp_path, {'m': 1})
  with pytest.raises(InputError, match='jsonl:1: data.convert=.*: KeyError'):
    data.read_problems(path, fields=convert)
  with pytest.raises(InputError, match='tiny:test: data.convert, fields and'):
    data.read_problems('tiny:test', fields=convert)


@pytest.mark.parametrize('keys, message', [
    (dict(fields=('question',)), "'question' should be 'FIELD=PATH'"),
    (dict(fields=('quest=problem',)), 'the field one of id, question'),
    (dict(fields=('math:question=q',)), 'no set is named math'),
    (dict(converts=('math',)), "'math' should be 'SET=CONVERTER'"),
    (dict(converts=('math=x.py:f',)), 'no set is named math'),
    (dict(convert='x.py:f'), 'config.data.convert=x.py:f: FileNotFound'),
])
def test_bad_keys_of_fields_are_named(keys, message):
  with pytest.raises(InputError, match=message):
    fields_of(**keys)
