"""Formats of problem files, and what is wrong in them."""

import importlib
import json
import pathlib
import random
import re

import datasets
import pytest

from exprl_jax.data import problems as data
from exprl_jax.data import sources
from exprl_jax.data.sources import base, json_array
from exprl_jax.types import InputError, Problem
from tests.problem_files import ROW, WRITE, csv_text, jsonl, write

ROWS = [
    dict(ROW, id=f'r{i}', question=f'wie viel ist\n{i} ± 1 ?') for i in range(5)
]
WANT = [Problem(r['id'], r['question'], 's', '1') for r in ROWS]


@pytest.mark.parametrize('name', WRITE)
def test_all_formats_hold_the_same_rows(tmp_path, name):
  path = tmp_path / name
  WRITE[name](path, ROWS)
  assert data.read_problems(path, ('answer',)) == WANT
  assert data.read_problems(path, limit=2) == WANT[:2]


@pytest.mark.parametrize('name', WRITE)
def test_a_damaged_file_is_named(tmp_path, name):
  """Cut in the middle: no format takes the first half for all of it."""
  path, rng = tmp_path / name, random.Random(0)
  rows = [
      dict(r, solution=f'{r["id"]} is random: {rng.random()}' * 50)
      for r in ROWS * 20
  ]
  for i, row in enumerate(rows):
    row['id'] = str(i)
  WRITE[name](path, rows)
  file = next(path.glob('*.arrow')) if path.is_dir() else path
  content = file.read_bytes()
  file.write_bytes(content[:len(content) // 2 + 7])
  with pytest.raises(InputError, match=re.escape(str(file))) as e:
    data.read_problems(path)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', [
    'p.json', 'p.parquet', 'p.arrow', 'p.csv.gz', 'p.jsonl.zst',
    'p.array_record'
])
def test_another_content_than_the_name_says_is_named(tmp_path, name):
  path = tmp_path / name
  path.write_bytes(b'no such format')
  with pytest.raises(InputError, match=name):
    data.read_problems(path)


def test_globs_folders_and_lists(tmp_path):
  for i, name in enumerate(['b.jsonl', 'a.csv', 'in/a.jsonl',
                            'in/deep/c.json']):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(
        csv_text([ROWS[i]]) if name.endswith('csv') else jsonl([ROWS[i]]))
  for name in ('README.md', 'dataset_info.json', '_SUCCESS', '.p.jsonl'):
    (tmp_path / name).write_text('{}')
  read = lambda name: [p.id for p in data.read_problems(f'{tmp_path}/{name}')]
  assert read('') == ['r1', 'r0', 'r2', 'r3']  # by path
  assert read('*.jsonl') == ['r0']
  assert read('**/*.jsonl') == ['r0', 'r2']
  assert read('in/[ab].js*') == ['r2']
  assert read(f'in/a.jsonl, {tmp_path}/b.jsonl') == ['r2', 'r0']
  assert read(f'in/a.jsonl,{tmp_path}/in') == ['r2', 'r3']  # a file counts once
  for name in ('*.parquet', 'nothing', 'in/a.jsonl,x.jsonl', '[x'):
    with pytest.raises(InputError, match='no such problem file'):
      read(name)
  (tmp_path / 'a,b.jsonl').write_bytes(jsonl([ROWS[4]]))
  assert read('a,b.jsonl') == ['r4']


def test_splits_of_a_saved_data_set_are_named(tmp_path):
  part = datasets.Dataset.from_list(ROWS)
  datasets.DatasetDict(train=part, test=part).save_to_disk(tmp_path / 'd')
  with pytest.raises(InputError, match='choose a split of it: .*/d/train, '):
    data.read_problems(tmp_path / 'd')
  assert data.read_problems(tmp_path / 'd/test') == WANT
  next((tmp_path / 'd/test').glob('*.arrow')).unlink()
  with pytest.raises(InputError, match='arrow: no such problem file'):
    data.read_problems(tmp_path / 'd/test')
  (tmp_path / 'd/test/state.json').write_text('{}')
  with pytest.raises(InputError, match='state.json: not as save_to_disk'):
    data.read_problems(tmp_path / 'd/test')


def test_ids_by_default_are_numbers_of_rows(tmp_path):
  row = {'question': 'q'}
  for name in ('x/a.jsonl', 'y/a.jsonl'):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(b'\n' + jsonl([row, row]))
  assert [p.id for p in data.read_problems(tmp_path / 'x')] == ['2', '3']
  assert [p.id for p in data.read_problems(tmp_path)
         ] == ['x/a.jsonl:2', 'x/a.jsonl:3', 'y/a.jsonl:2', 'y/a.jsonl:3']


def test_sources_are_the_files_of_their_package():
  folder = pathlib.Path(sources.__file__).parent
  union = {}
  for path in folder.glob('*.py'):
    if path.stem not in ('__init__', 'base'):
      module = importlib.import_module(f'{sources.__name__}.{path.stem}')
      own = vars(module).get('FORMATS', {}) | vars(module).get('SOURCES', {})
      assert own and not union.keys() & own.keys()
      union |= own
  assert sources.SOURCES | sources.FORMATS == union
  assert all(key[-1] == ':' for key in sources.SOURCES)
  assert all(key[0] == '.' for key in sources.FORMATS)
  assert sources.DEFAULT in sources.FORMATS


@pytest.mark.parametrize('path, key', [
    ('p.jsonl', '.jsonl'),
    ('gs://bucket/p.csv.gz', '.csv'),
    ('P.PARQUET', '.parquet'),
    ('p.txt', '.jsonl'),
    ('p', '.jsonl'),
    ('folder.csv/p', '.jsonl'),
])
def test_the_suffix_chooses_the_format(path, key):
  assert sources.choose(path) is None
  assert sources.format_of(path) == sources.FORMATS[key]


def test_a_prefix_chooses_a_source(tmp_path):
  assert sources.choose('tiny:train') == (sources.SOURCES['tiny:'], 'train')
  assert sources.choose('folder/tiny:train') is None


def test_a_new_format_is_read_by_its_suffix(tmp_path, monkeypatch):

  def read(path):
    for number, line in base.lines(path):
      yield number, dict(zip(('question', 'answer'), line.strip().split('\t')))

  monkeypatch.setitem(sources.FORMATS, '.tsv', read)
  path = tmp_path / 'p.tsv'
  path.write_text('q ?\t1\nother ?\t2\n')
  assert data.read_problems(path, ('answer',)) == [
      Problem('1', 'q ?', answer='1'),
      Problem('2', 'other ?', answer='2')
  ]
  path.write_text('q ?\n')
  with pytest.raises(InputError, match=r'p\.tsv:1: row has no answer'):
    data.read_problems(path, ('answer',))


# Rows that are not as they should be.


@pytest.mark.parametrize('line, message', [
    (b'{"question": "caf\xe9"}', r'not UTF-8 \(byte 0xe9 at 17\)'),
    (jsonl([ROW]).decode().encode('utf-16'), 'not UTF-8'),
    (b'[' * 10**5, 'nested too deep'),
    (b'{"question": "q", "answer": 1' + b'0' * 5000 + b'}', 'not JSON'),
    (b'{"question": "q", "answer": NaN}', 'answer is not a finite number'),
    (b'{"question": "q", "answer": 1e999}', r'answer is not a finite .*\(inf'),
    (b'{"question": NaN}', r'question should be text, it is float \(nan\)'),
    (b'{"question": "q", "answer": true}', 'answer should be text, it is bool'),
    (b'{"question": "q", "id": [1]}', 'id should be text, it is list'),
    (rb'{"question": "a\ud800b"}', r'question has the lone surrogate U\+D800'),
    (rb'{"question": "q", "solution": "a\u0000b"}',
     r'solution has the control character U\+0000 at 1'),
    (rb'{"question": "q", "solution": "\frac"}',
     r'solution has the control character U\+000C at 0'),
    (rb'{"question": "\u200b\u2060 \ufeff\n"}', 'row has no question'),
    (b'{"question": null, "prompt": "q"}',
     r'row has no question; .*\(it has prompt\)'),
    (b'{"question": "q", "domain": " "}', 'row has no domain'),
    (b'"question"', 'want an object, got str'),
])
def test_a_bad_row_is_named(tmp_path, line, message):
  path = tmp_path / 'p.jsonl'
  path.write_bytes(jsonl([dict(ROW, id='first')]) + line + b'\n')
  with pytest.raises(InputError, match=rf'p\.jsonl:2: .*{message}') as e:
    data.read_problems(path)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('row', [
    {'solution': None, 'rubric': None, 'answer': None, 'domain': None},
    {'more': [{}, None], 'next': float('nan')},
    {'id': '', 'domain': ''},
    {'id': 1},
])
def test_what_a_run_does_not_need_may_be_missing(tmp_path, row):
  path = write(tmp_path, {'question': 'q'} | row)
  assert data.read_problems(path) == [Problem('1', 'q')]


@pytest.mark.parametrize('text, message', [
    ('question,answer\nq\n', r'p\.csv:2: 1 columns, the header has 2'),
    ('question,answer\n"a\nb",2\nq,2,3\n', r'p\.csv:4: 3 columns'),
    ('question,question\nq,q\n', r'p\.csv:1: two columns have the same name'),
    ('question,answer\n"q"x,1\n', r'p\.csv:2: not CSV'),
    ('question,answer\n"q,1\n', r'p\.csv:2: not CSV'),
    ('prompt\nq\n', r'p\.csv:2: row has no question'),
    ('question\n', 'no problems in it'),
    ('', 'no problems in it'),
])
def test_a_bad_table_is_named(tmp_path, text, message):
  path = tmp_path / 'p.csv'
  path.write_text(text)
  with pytest.raises(InputError, match=message):
    data.read_problems(path)


@pytest.mark.parametrize('text, message', [
    ('[]', 'no problems in it'),
    (' [ ]\n', 'no problems in it'),
    ('[{"question": "q"},]', r'p\.json:2: not JSON'),
    ('[{"question": "q"} {"question": "q"}]', r'p\.json:2: not JSON \(want ,'),
    ('[{"question": "q"}', r'p\.json:1: not JSON, or the file ends'),
    ('[{"question": "q"}]]', r'p\.json:2: not JSON \(more behind the list'),
    ('[] []', r'p\.json:1: not JSON \(more behind the list'),
    ('[12, 3]', r'p\.json:1: want an object, got int'),
    ('[' * 10**5, r'p\.json:1: JSON is nested too deep'),
    ('{"data": []}', 'row has no question'),
    ('{\n"data": []}', r'p\.json:1: not JSON'),
])
def test_a_bad_json_file_is_named(tmp_path, text, message):
  path = tmp_path / 'p.json'
  path.write_text(text)
  with pytest.raises(InputError, match=message):
    data.read_problems(path)


def test_items_longer_than_a_chunk(tmp_path, monkeypatch):
  monkeypatch.setattr(json_array, '_CHUNK', 7)
  path = tmp_path / 'p.json'
  path.write_text(json.dumps(ROWS, indent=1))
  assert data.read_problems(path) == WANT
