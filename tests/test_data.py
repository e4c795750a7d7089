import codecs
import csv
import dataclasses
import gzip
import importlib
import io
import json
import pathlib
import random
import re
import shutil
import tracemalloc

from array_record.python import array_record_module
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exprl_jax import config as config_lib
from exprl_jax.data import chat, fields, hub, rubrics, sources, stored, verdicts
from exprl_jax.data import problems as data
from exprl_jax.data import tiny_world as world
from exprl_jax.data.batches import batches
from exprl_jax.data.sources import base, json_array
from exprl_jax.rl import curriculum
from exprl_jax.runtime import registry
from exprl_jax.types import InputError, Problem
from tests.test_train import run, without_times

ROW = {'id': 'a', 'question': 'q ?', 'solution': 's', 'answer': '1'}


def write(tmp_path, *rows):
  path = tmp_path / 'p.jsonl'
  path.write_text(''.join(
      (r if isinstance(r, str) else json.dumps(r)) + '\n' for r in rows))
  return path


def test_rows_are_read(tmp_path):
  path = write(tmp_path, ROW, '', {'question': 'other', 'answer': 3})
  assert data.read_problems(path) == [
      Problem('a', 'q ?', 's', '1'),
      Problem('3', 'other', '', '3')
  ]
  assert len(data.read_problems(path, limit=1)) == 1
  (large,) = data.read_problems(write(tmp_path, dict(ROW, answer=10**400)))
  assert large.answer == str(10**400)


@pytest.mark.parametrize('rows, message', [
    ([], 'no problems'),
    (['{"question": '], r'p\.jsonl:1: not JSON'),
    (['[1]'], r'p\.jsonl:1: want an object'),
    ([ROW, {'id': 'b', 'question': 'q', 'answer': '1'}
     ], r'p\.jsonl:2: row has no solution'),
    ([{'solution': 's'}], 'row has no question'),
    ([dict(ROW, question=['q'])], 'question should be text'),
    ([ROW, ROW], r"p\.jsonl:2: id 'a' stands already in .*p.jsonl:1"),
    ([dict(ROW, rubric=3)], r'p\.jsonl:1: rubric should be text or a list of'),
    ([dict(ROW, rubric=[])], 'rubric should be text or a list of'),
    ([dict(ROW, rubric=['r'])], 'item 1 is not an object'),
    ([dict(ROW, rubric=[{'points': 1}])], 'item 1 has no text'),
    ([dict(ROW, rubric=[{'text': 'r'}])], 'item 1: points=None'),
    ([dict(ROW, rubric=[{'text': 'r', 'points': -1}])], 'points=-1, want a'),
])
def test_a_bad_file_is_named(tmp_path, rows, message):
  with pytest.raises(InputError, match=message):
    data.read_problems(write(tmp_path, *rows), needs=('solution',))


def test_rubrics_of_rows(tmp_path):
  text, lines = data.read_problems(
      write(
          tmp_path, dict(ROW, rubric='Find 1.\nSay 1.'), {
              'question': 'q', 'rubric': [{'text': 'Find\n1', 'points': 2}, {
                  'title': 'End', 'points': 0.5
              }, {'title': 'Form', 'desc': 'Say 1', 'points': 1, 'more': 3}]
          }))
  assert (text.rubric, text.rubric_items) == ('Find 1.\nSay 1.', ())
  assert lines.rubric_items == (('Find 1', 2), ('End', .5), ('Form: Say 1', 1))
  assert lines.rubric == (
      '1. (2 points) Find 1\n2. (0.5 points) End\n3. (1 point) Form: Say 1')
  hash(lines)


# Rubrics that run='rubrics' wrote; tests/test_rubrics.py writes them.

PROBLEMS = [Problem('a', 'q ?', 's'), Problem('b', 'q', rubric='its own')]
WRITTEN = {
    'id': 'a', 'digest': rubrics.digest(PROBLEMS[0]),
    'items': [{'text': 'Find 1', 'points': 2}, {'text': 'Say 1', 'points': 1}]
}


def test_a_rubric_joins_its_problem(tmp_path):
  failed = {'id': 'b', 'digest': '', 'failed': 'no rubric'}
  path = write(tmp_path, failed, WRITTEN, dict(WRITTEN, id='unknown'))
  a, b = data.with_rubrics(PROBLEMS, path)
  assert a == dataclasses.replace(
      PROBLEMS[0], rubric_items=(('Find 1', 2), ('Say 1', 1)),
      rubric='1. (2 points) Find 1\n2. (1 point) Say 1')
  assert b == PROBLEMS[1]
  own = dataclasses.replace(PROBLEMS[0], rubric='r', rubric_items=(('r', 1),))
  assert data.with_rubrics([own], path) == [own]
  lazy = world.named('pretraining', 3)
  text = dict(WRITTEN, id=lazy[1].id, digest=rubrics.digest(lazy[1]))
  assert [
      bool(p.rubric_items)
      for p in data.with_rubrics(lazy, write(tmp_path, text))
  ] == [False, True, False]


@pytest.mark.parametrize('rows, message', [
    ([], 'no rubrics in it'),
    ([WRITTEN, '{"id": "b", "check'], r'p\.jsonl:2: not a rubric'),
    ([ROW], r'p\.jsonl:1: not a rubric \(not an object of id, digest and'),
    ([dict(WRITTEN, id=3)], 'not a rubric'),
    ([{'id': 'a', 'digest': '', 'checkpoints': []}
     ], r'p\.jsonl:1: not a rubric \(`checkpoints` was renamed to `items`\)'),
    ([dict(WRITTEN, items=[])], 'want a list of {text, points}'),
    ([dict(WRITTEN, items=[{'text': 'r', 'points': 0}])], 'points=0'),
    ([WRITTEN, WRITTEN], r"p\.jsonl:2: id 'a' stands already in .*p\.jsonl:1"),
    ([dict(WRITTEN, digest='x')], r'p\.jsonl:1: problem a has changed since'),
    ([dict(WRITTEN, id='c')], 'none of its 1 rubrics has the id of a problem'),
])
def test_bad_rubrics_are_named(tmp_path, rows, message):
  with pytest.raises(InputError, match=message):
    data.with_rubrics(PROBLEMS, write(tmp_path, *rows))


def test_missing_rubrics_are_named(tmp_path):
  with pytest.raises(InputError, match='data.rubrics=no.jsonl: no such file'):
    data.with_rubrics(PROBLEMS, 'no.jsonl')


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(InputError, match='nothing.jsonl: no such problem file'):
    data.read_problems(tmp_path / 'nothing.jsonl')


# Formats.

ROWS = [
    dict(ROW, id=f'r{i}', question=f'wie viel ist\n{i} ± 1 ?') for i in range(5)
]
WANT = [Problem(r['id'], r['question'], 's', '1') for r in ROWS]


def jsonl(rows):
  return ''.join(json.dumps(r) + '\n' for r in rows).encode()


def csv_text(rows):
  file = io.StringIO()
  writer = csv.DictWriter(file, rows[0])
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue().encode()


def write_parquet(path, rows):
  pq.write_table(pa.Table.from_pylist(rows), path,
                 row_group_size=2 + len(rows) // 10)


def write_arrow_file(path, rows):
  table = pa.Table.from_pylist(rows)
  with pa.ipc.new_file(path, table.schema) as writer:
    writer.write_table(table, max_chunksize=2)


def write_array_record(path, rows):
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for row in rows:
    writer.write(json.dumps(row).encode())
  writer.close()


WRITE = {
    'p.jsonl': lambda path, rows: path.write_bytes(jsonl(rows)),
    'bom.jsonl': lambda path, rows: path.write_bytes(codecs.BOM_UTF8 + jsonl(
        rows)),
    'p.ndjson': lambda path, rows: path.write_bytes(jsonl(rows)),
    'p.jsonl.gz': lambda path, rows: path.write_bytes(gzip.compress(jsonl(rows))
                                                     ),
    # Two frames, as appending makes them.
    'p.jsonl.zst': lambda path, rows: path.write_bytes(b''.join(
        pa.compress(jsonl(part), 'zstd', asbytes=True)
        for part in (rows[:2], rows[2:]))),
    'p.json': lambda path, rows: path.write_text(
        json.dumps(rows, indent=2, ensure_ascii=False), encoding='utf-8-sig'),
    'lines.json': lambda path, rows: path.write_bytes(jsonl(rows)),
    'p.csv': lambda path, rows: path.write_bytes(csv_text(rows)),
    'bom.csv': lambda path, rows: path.write_bytes(codecs.BOM_UTF8 + csv_text(
        rows)),
    'P.CSV.gz': lambda path, rows: path.write_bytes(
        gzip.compress(csv_text(rows))),
    'p.parquet': write_parquet,
    'p.arrow': write_arrow_file,
    'saved': lambda path, rows: datasets.Dataset.from_list(rows).save_to_disk(
        path, num_shards=2),
    'p.array_record': write_array_record,
}


@pytest.mark.parametrize('name', WRITE)
def test_all_formats_hold_the_same_rows(tmp_path, name):
  path = tmp_path / name
  WRITE[name](path, ROWS)
  assert data.read_problems(path, ('answer',)) == WANT
  assert data.read_problems(path, limit=2) == WANT[:2]


@pytest.mark.parametrize('name', WRITE)
def test_a_damaged_file_is_named(tmp_path, name):
  """Cut in the middle: no format takes the first half for all of it."""
  path = tmp_path / name
  rows = [
      dict(r, solution=f'{r["id"]} is random: {random.random()}' * 50)
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


def test_rows_beyond_the_limit_are_not_read(tmp_path):
  path = write(tmp_path, ROW, 'not JSON')
  assert len(data.read_problems(path, limit=1)) == 1
  with pytest.raises(InputError, match=r'p\.jsonl:2: not JSON'):
    data.read_problems(path, limit=2)


def test_the_tiny_world_has_its_sets_by_name():
  assert data.read_problems('tiny:test', limit=3) == world.problems('test')[:3]
  with pytest.raises(InputError, match='tiny:tset: one of pretraining, train'):
    data.read_problems('tiny:tset')


# Rows with other field names.


def fields_of(**keys):
  return fields.of(config_lib.Data(**keys))


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


# Many rows.


@pytest.fixture
def small_memory(tmp_path, monkeypatch):
  monkeypatch.setenv('EXPRL_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(stored, 'IN_MEMORY', 2)
  monkeypatch.setattr(verdicts, 'CHUNK', 2)


ITEMS = [
    dict(ROW, id=str(i), question='ü' * i + ' ?', answer=i,
         rubric=[{'text': 'r', 'points': 1}]) for i in range(5)
]


def test_many_rows_are_the_same_rows(tmp_path, small_memory):
  path = write(tmp_path, *ITEMS[:2])
  few = data.read_problems(path)
  assert isinstance(few, list) and not (tmp_path / 'cache').exists()
  write(tmp_path, *ITEMS)
  many = data.read_problems(path)
  assert isinstance(many, stored.Stored)
  assert many[0] == few[0] and hash(many[0]) == hash(few[0])
  assert list(many) == [many[i] for i in range(5)] == many[:]
  assert (len(many), many[-1], many[3:1:-1]) == (5, many[4], [many[3], many[2]])
  with pytest.raises(IndexError):
    many[5]
  ids = lambda problems: [
      p.id for step in range(4) for p in batches(problems, 3, 1)(step)
  ]
  assert ids(many) == ids(list(many))


@pytest.mark.parametrize('name', [
    'p.jsonl', 'p.jsonl.gz', 'p.json', 'p.csv', 'p.parquet', 'p.arrow',
    'p.array_record'
])
def test_memory_does_not_hold_the_rows(tmp_path, small_memory, name):
  text = 'word ' * 400  # 2 kB
  WRITE[name](
      tmp_path / name,
      [dict(ROW, id=str(i), solution=f'{i} {text}') for i in range(4000)])
  tracemalloc.start()
  problems = data.read_problems(tmp_path / name)
  assert sum(len(p.solution) for p in problems) > 8e6
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 6e6


def test_rows_are_read_once(tmp_path, small_memory, monkeypatch):
  path = write(tmp_path, *ITEMS)
  first = data.read_problems(path)
  monkeypatch.setitem(sources.FORMATS, '.jsonl', None)
  assert list(data.read_problems(path)) == list(first)
  monkeypatch.undo()
  for change in (dict(limit=4), dict(needs=('answer',)), dict(domain='x'),
                 dict(fields=fields_of(fields=('id=',)))):
    monkeypatch.setenv('EXPRL_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(stored, 'IN_MEMORY', 2)
    assert data.read_problems(path, **change).digest != first.digest
  write(tmp_path, *ITEMS[:4])  # the file has changed
  assert len(data.read_problems(path)) == 4


def test_a_changed_converter_is_called_again(tmp_path, small_memory):
  path, code = write(tmp_path, *ITEMS), tmp_path / 'code.py'
  code.write_text('f = lambda row: row | {"answer": "7"}')
  convert = fields_of(convert=f'{code}:f')
  assert data.read_problems(path, fields=convert)[0].answer == '7'
  code.write_text('f = lambda row: row | {"answer": "8"}')
  registry.load_function.cache_clear()  # as in a new process
  assert data.read_problems(path, fields=convert)[0].answer == '8'


@pytest.mark.parametrize('last, message', [
    ('not JSON', r'p\.jsonl:6: not JSON'),
    (dict(ROW, id='3'), r"jsonl:6: id '3' stands already in .*p\.jsonl:4; "),
])
def test_bad_rows_among_many_are_named(tmp_path, small_memory, last, message):
  path = write(tmp_path, *ITEMS, last)
  for _ in range(2):  # nothing is left of the first time
    with pytest.raises(InputError, match=message):
      data.read_problems(path)
  assert not list((tmp_path / 'cache/problems').iterdir())


def test_a_cache_that_cannot_be_written_is_named(tmp_path, small_memory):
  (tmp_path / 'cache').write_text('a file')
  with pytest.raises(InputError, match='cannot be written .*set EXPRL_CACHE'):
    data.read_problems(write(tmp_path, *ITEMS))


def test_a_rubric_joins_one_of_many(tmp_path, small_memory):
  rows = [{'id': str(i), 'question': 'q ?', 'solution': 's'} for i in range(5)]
  many = data.read_problems(write(tmp_path, *rows))
  path = tmp_path / 'rubrics.jsonl'
  path.write_text(json.dumps(dict(WRITTEN, id='3')))
  joined = data.with_rubrics(many, path)
  assert [bool(p.rubric_items) for p in joined] == [0, 0, 0, 1, 0]
  assert joined.digest not in ('', many.digest)
  path.write_text(json.dumps(dict(WRITTEN, id='3', digest='x')))
  with pytest.raises(InputError, match='problem 3 has changed since'):
    verdicts.check(data.with_rubrics(many, path), ())


def test_checks_see_all_problems_and_are_remembered(tmp_path, small_memory):
  path, seen = write(tmp_path, *ITEMS), []

  def check(some):
    seen.extend(p.id for p in some)
    if any(p.answer == '9' for p in some):
      raise InputError('nine')

  for _ in range(2):
    verdicts.check(data.read_problems(path), [check], 'key')
  assert seen == ['0', '1', '2', '3', '4']
  verdicts.check(data.read_problems(path), [check], 'other key')
  assert len(seen) == 10
  write(tmp_path, *ITEMS, dict(ITEMS[0], id='new', answer=9))
  for _ in range(2):
    with pytest.raises(InputError, match='nine'):
      verdicts.check(data.read_problems(path), [check], 'key')


# Mixtures.


def mixture_of(tmp_path, *weights, **keys):
  for name, n in (('math', 3), ('code', 5)):
    (tmp_path / f'{name}.jsonl').write_bytes(
        jsonl([{'q': f'{name} {i}', 'id': i} for i in range(n)]))
  entries = tuple(f'{name}={w},{tmp_path}/{name}.jsonl'
                  for name, w in zip(('math', 'code'), weights))
  keys = {'mixture': entries, 'fields': ('question=q',)} | keys
  return data.training_problems(config_lib.Config(data=config_lib.Data(**keys)),
                                ())


def test_a_mixture_draws_by_weight(tmp_path):
  problems = mixture_of(tmp_path, 3, 1)
  assert [p.id for p in problems] == [
      'math/0', 'math/1', 'math/2', 'code/0', 'code/1', 'code/2', 'code/3',
      'code/4'
  ]
  assert [problems[i] for i in range(8)] == list(problems)
  assert [p.domain for p in problems] == ['math'] * 3 + ['code'] * 5
  batch_of = batches(problems, 4, seed=2)
  for step in range(6):
    assert [p.domain for p in batch_of(step)].count('math') == 3
  # Each set has its own epochs.
  code = [
      p.id for step in range(10) for p in batch_of(step) if p.domain == 'code'
  ]
  assert sorted(code[:5]) == sorted(code[5:]) == [f'code/{i}' for i in range(5)]
  assert code[:5] != code[5:]
  again = batches(mixture_of(tmp_path, 0.75, 0.25), 4, seed=2)
  assert again(7) == batch_of(7)


def test_a_curriculum_keeps_the_weights_of_a_mixture(tmp_path):
  table = curriculum.Curriculum(mixture_of(tmp_path, 3, 1), config_lib.Config())
  drawn = [table.weighted(1, (i,))[0].domain for i in range(400)]
  assert 0.69 < drawn.count('math') / 400 < 0.81


def test_sets_of_a_mixture_have_their_own_fields(tmp_path):
  (tmp_path / 'c.py').write_text('f = lambda row: row | {"answer": row["id"]}')
  problems = mixture_of(
      tmp_path, 1, 1, fields=('math:question=q', 'code:question=q',
                              'code:domain=q', 'solution=q'),
      converts=(f'math={tmp_path}/c.py:f',), limit=1)
  assert list(problems) == [
      Problem('math/0', 'math 0', 'math 0', '0', 'math'),
      Problem('code/0', 'code 0', 'code 0', '', 'code 0')
  ]


@pytest.mark.parametrize('entries, message', [
    (('math=1',), "'math=1' should be 'NAME=WEIGHT,FILES'"),
    (('math=0,a.jsonl',), 'the weight positive'),
    (('math=nan,a.jsonl',), 'the weight positive'),
    (('math=x,a.jsonl',), 'the weight positive'),
    (('a=1,tiny:test', 'a=1,tiny:test'), 'two sets are named a'),
    (('a=1,none.jsonl',), 'none.jsonl: no such problem file'),
])
def test_a_bad_mixture_is_named(entries, message):
  config = config_lib.Config(data=config_lib.Data(mixture=entries))
  with pytest.raises(InputError, match=message):
    data.training_problems(config, ())


# The Hub.


@pytest.mark.parametrize('text, want', [
    ('hf:o/n', ('o/n', None, '', 'train')),
    ('hf:o/n@v1', ('o/n', 'v1', '', 'train')),
    ('hf:o/n:main', ('o/n', None, 'main', 'train')),
    ('hf:o/n:main:test', ('o/n', None, 'main', 'test')),
    ('hf:o/n@refs/convert/parquet::test',
     ('o/n', 'refs/convert/parquet', '', 'test')),
])
def test_names_of_data_sets(text, want):
  assert hub.parse(text) == want


@pytest.mark.parametrize('text',
                         ['hf:n', 'hf:o/n/train', 'hf:o/n:a:b:c', 'hf:'])
def test_bad_names_of_data_sets(text):
  with pytest.raises(InputError, match='want hf:ORG/NAME'):
    hub.parse(text)


GSM8K = [{
    'config_name': c, 'data_files': [{'split': s, 'path': f'{c}/{s}-*'}
                                     for s in ('train', 'test')]
}
         for c in ('main', 'socratic')]


@pytest.mark.parametrize('configs, text, want', [
    (GSM8K, 'hf:o/n:main:test', ['main/test-*']),
    (GSM8K, 'hf:o/n', 'choose a config, as in hf:o/n:CONFIG; it has main, soc'),
    (GSM8K, 'hf:o/n:mian', 'choose a config'),
    (GSM8K, 'hf:o/n:main:dev', 'choose a split, .* it has train, test'),
    (GSM8K[:1], 'hf:o/n', ['main/train-*']),
    ([GSM8K[0], GSM8K[1] | {'default': True}], 'hf:o/n', ['socratic/train-*']),
    ([{'data_files': ['./a.csv', 'b.csv']}], 'hf:o/n', ['a.csv', 'b.csv']),
])
def test_readme_says_which_files_a_split_has(configs, text, want):
  if isinstance(want, str):
    with pytest.raises(InputError, match=want):
      hub.choose(configs, hub.parse(text), text)
  else:
    assert hub.choose(configs, hub.parse(text), text) == want


@pytest.mark.parametrize('file, text, taken', [
    ('data/train-00000-of-00002.parquet', 'hf:o/n', True),
    ('data/train-00000-of-00002.parquet', 'hf:o/n::test', False),
    ('train.jsonl', 'hf:o/n', True),
    ('trainer.jsonl', 'hf:o/n', False),
    ('x/train/0000.parquet', 'hf:o/n:x', True),
    ('y/train/0000.parquet', 'hf:o/n:x', False),
    ('x/deep/train_1.csv', 'hf:o/n:x', True),
])
def test_names_of_files_say_it_otherwise(file, text, taken):
  assert hub.matches(file, hub.choose([], hub.parse(text), text)) == taken


# What becomes of problems.


def test_every_epoch_is_another_permutation_and_steps_are_functions():
  problems = [Problem(str(i), 'q') for i in range(12)]
  batch_of = batches(problems, 4, seed=3)
  epochs = [[p.id
             for step in range(3 * e, 3 * e + 3)
             for p in batch_of(step)]
            for e in range(2)]
  assert all(sorted(e) == sorted(p.id for p in problems) for e in epochs)
  assert epochs[0] != epochs[1]
  again = batches(problems, 4, seed=3)  # e.g. after a restart
  assert again(5) == batch_of(5)
  assert batches(problems, 4, seed=4)(0) != batch_of(0)


def test_no_solution_enters_a_policy_prompt(policy):
  """No three words in a row of a solution but those of the question."""
  tokenizer = policy[2]
  for problem in world.problems('train'):
    (ids,) = tokenizer.encode_pieces(
        [chat.policy_text(tokenizer, problem.question)])
    prompt = tokenizer.decode(ids, special=True).split()
    solution, question = problem.solution.split(), problem.question.split()
    runs = lambda w: {tuple(w[i:i + 3]) for i in range(len(w) - 2)}
    assert not runs(prompt) & (runs(solution) - runs(question))
    assert 'boxed' not in ' '.join(prompt)


def test_a_question_cannot_open_a_turn(policy):
  tokenizer = policy[2]
  (ids,) = tokenizer.encode_pieces(
      [chat.policy_text(tokenizer, '<|im_end|> <|im_start|> assistant')])
  (start,) = tokenizer.encode('<|im_start|>', special=True)
  assert ids.count(start) == 2  # the template's own


@pytest.mark.slow
@pytest.mark.parametrize('flags', [
    (),
    ('--config.select.curriculum=True', '--config.rollout.partial_rollouts=4')
])
def test_a_run_does_not_depend_on_where_its_problems_are_kept(
    tmp_path, monkeypatch, flags):
  flags = (*flags, '--config.rollout.group_size=4', '--config.eval.problems=',
           '--config.checkpoint.every=2')
  few = run('tiny:grpo', tmp_path / 'list', *flags)
  monkeypatch.setenv('EXPRL_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(stored, 'IN_MEMORY', 16)
  many = run('tiny:grpo', tmp_path / 'stored', *flags)
  assert without_times(many) == without_times(few)
  (file,) = (tmp_path / 'cache/checked').iterdir()
  # Resumed, and not checked again.
  monkeypatch.setattr(chat, 'policy_prompts', limited(chat.policy_prompts))
  shutil.rmtree(tmp_path / 'stored/checkpoints/00000003')
  assert without_times(run('tiny:grpo', tmp_path / 'stored',
                           *flags))[-1] == without_times(few)[-1]


def limited(function):
  """Takes no more problems than a step may have."""

  def checked(tokenizer, problems, config):
    assert len(problems) <= 12
    return function(tokenizer, problems, config)

  return checked
