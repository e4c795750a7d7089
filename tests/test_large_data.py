"""Many rows, and mixtures of sets."""

import json
import shutil
import tracemalloc

import pytest

from exprl_jax import config as config_lib
from exprl_jax.data import chat, rubrics, sources, stored, verdicts
from exprl_jax.data import problems as data
from exprl_jax.data.batches import batches
from exprl_jax.rl import curriculum
from exprl_jax.runtime import registry
from exprl_jax.types import InputError, Problem
from tests.problem_files import ROW, WRITE, fields_of, jsonl, write
from tests.test_train import run, without_times

PROBLEM = Problem('a', 'q ?', 's')
WRITTEN = {
    'id': 'a', 'digest': rubrics.digest(PROBLEM),
    'items': [{'text': 'Find 1', 'points': 2}, {'text': 'Say 1', 'points': 1}]
}


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
