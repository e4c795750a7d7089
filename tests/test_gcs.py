"""Models on gs://, through an emulator of the service on this machine."""

import gzip
import os
import pathlib

from etils import epath
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exprl_jax import config as config_lib
from exprl_jax import main
from exprl_jax.data import problems as data
from exprl_jax.data import stored
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.judge import cache
from exprl_jax.judge.readouts import Judgment
from exprl_jax.models import hf
from exprl_jax.runs import export, traces
from exprl_jax.runtime import checkpoints, failures, jsonl, metrics
from exprl_jax.types import InputError, StartAgain
from tests import gcs_server
from tests.conftest import POLICY
from tests.faulty_proxy import Proxy, Rule
from tests.test_checkpoints import CFG, equal, make_state

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning',
                                        'ignore::FutureWarning')


@pytest.fixture(scope='module')
def proxy():
  """Stands before a new bucket, gs://models."""
  saved = dict(os.environ)
  with gcs_server.serve('models') as served:
    proxy = Proxy(served.port)
    os.environ |= gcs_server.environment(proxy.url)
    yield proxy
    proxy.shutdown()
    proxy.server_close()
  os.environ.clear()
  os.environ.update(saved)


@pytest.fixture
def bucket(proxy):
  """The bucket; tests may set faults."""
  yield epath.Path('gs://models')
  proxy.rules = []


def test_models_come_and_go(bucket, small, small_folder, one_device):
  folder = bucket / 'small'
  hf.save(folder, *small, small_folder, max_bytes=6000)
  assert len(list(folder.glob('*.safetensors'))) > 3
  cfg, params = hf.load(str(folder), one_device)
  assert cfg == small[0]
  jax.tree.map(np.testing.assert_array_equal, params, small[1])
  assert Tokenizer(folder).encode('Tom has') == Tokenizer(small_folder).encode(
      'Tom has')
  with pytest.raises(InputError, match='gs://models/nothing: no config.json'):
    hf.load('gs://models/nothing', one_device)


def test_export_to_a_bucket(bucket, policy, one_device):
  out = bucket / 'exported'
  config = config_lib.Config(
      run='export', policy=config_lib.Model(init='asset:tiny_policy'),
      export=config_lib.Export(out=str(out), dtype='float32'))
  export.export(config)
  assert config_lib.resolve(str(out)) == out
  jax.tree.map(np.testing.assert_array_equal,
               hf.load(out, one_device)[1], policy[1])
  assert (out /
          'tokenizer.json').read_bytes() == (POLICY /
                                             'tokenizer.json').read_bytes()
  with pytest.raises(InputError, match='is not empty'):
    export.export(config)


def test_problems_from_a_bucket(bucket, tmp_path, monkeypatch):
  path = bucket / 'train.jsonl'
  path.write_text('{"question": "1 + 1", "answer": "2"}\n')
  (problem,) = data.read_problems(str(path), ('answer',))
  assert problem.question == '1 + 1'
  row = '{"question": "q", "answer": "1"}\n'
  (bucket / 'parts/a.jsonl.gz').write_bytes(gzip.compress(row.encode()))
  (bucket / 'parts/deep/b.csv').write_text('question,answer\nq,2\n')
  pq.write_table(pa.table({'question': ['q'], 'answer': [3]}),
                 tmp_path / 'c.parquet')
  (bucket / 'parts/deep/c.parquet').write_bytes(
      (tmp_path / 'c.parquet').read_bytes())
  answers = lambda name: [
      p.answer for p in data.read_problems(f'{bucket}/{name}', ('answer',))
  ]
  assert answers('parts') == ['1', '2', '3']
  assert answers('parts/*/*.[cp]*') == ['2', '3']
  assert answers(f'parts/a.jsonl.gz,{bucket}/train.jsonl') == ['1', '2']
  monkeypatch.setenv('EXPRL_CACHE', str(tmp_path))
  monkeypatch.setattr(stored, 'IN_MEMORY', 2)
  for _ in range(2):
    assert answers('parts') == ['1', '2', '3']
  assert len(list(tmp_path.glob('problems/*.jsonl'))) == 1
  with pytest.raises(InputError, match=r'\*\* is for local paths'):
    answers('**/*.jsonl')


@pytest.mark.slow
def test_a_workdir_in_a_bucket(bucket, one_device):
  """The tiny run leaves nothing on the disk, and goes on where it stopped."""
  workdir = bucket / 'run'

  def run(*flags):
    main.main([
        '--config=configs/tiny.py', f'--workdir={workdir}', '--config.compare=',
        '--config.eval.problems=', '--config.data.batch=2',
        '--config.rollout.group_size=4', '--config.checkpoint.every=1', *flags
    ])

  run('--config.steps=2')
  assert checkpoints.steps(workdir) == [1, 2]
  first = metrics.read(workdir / 'metrics.jsonl')
  assert [r['step'] for r in first] == [1, 2]
  run('--config.steps=3')
  rows = metrics.read(workdir / 'metrics.jsonl')
  assert rows[:2] == first and rows[2]['step'] == 3
  names = {p.name for p in workdir.iterdir()}
  assert names == {
      'config.json', 'metrics.jsonl', 'samples', 'traces', 'judgments',
      'checkpoints', 'model', 'report.html'
  }
  assert len(list((workdir / 'judgments').iterdir())) >= 3  # one a step
  assert len(traces.read(workdir / 'traces/00000003.jsonl.gz')) == 8
  assert traces.shown(workdir)[-1]["traces"]
  model = hf.load(workdir / 'model', one_device)[1]
  (workdir / 'report.html').unlink()
  (workdir / 'model/config.json').unlink()  # as where saving was cut short
  run('--config.steps=3', '--config.run=report')
  assert '<img' in (workdir / 'report.html').read_text()
  jax.tree.map(np.testing.assert_array_equal, model,
               hf.load(workdir / 'model', one_device)[1])
  assert not pathlib.Path('gs:').exists()


def test_lines_in_a_bucket_are_parts_that_are_joined(bucket):
  path = bucket / 'lines/rows.jsonl'
  names = lambda: sorted(p.name for p in path.parent.iterdir())
  lines = jsonl.Lines(path)
  for i in range(4):
    lines.append({'i': i})
    if i % 2:
      lines.flush()
  assert names() == ['rows.jsonl-00000000', 'rows.jsonl-00000002']
  assert lines.rows() == [{'i': i} for i in range(4)]
  # As if killed between the joined object and the end of its parts.
  path.write_bytes(jsonl.read(path).data)
  assert lines.rows() == [{'i': i} for i in range(4)]
  again = jsonl.Lines(path)
  assert again.keep(lambda row: row['i'] < 3) == [{'i': i} for i in range(3)]
  assert names() == ['rows.jsonl']
  again.append({'i': 7})
  again.flush()
  assert names() == ['rows.jsonl', 'rows.jsonl-00000003']
  again.close()
  assert names() == ['rows.jsonl']
  assert [r['i'] for r in again.rows()] == [0, 1, 2, 7]


def test_judgments_in_a_bucket_are_joined_when_they_are_many(
    bucket, monkeypatch):
  monkeypatch.setattr(cache, '_JOIN', 3)
  folder, key = bucket / 'judgments', lambda i: cache.key(i)
  for i in range(4):
    cache.Cache(folder).put([(key(i), [Judgment(i / 4, 1.0, 0, '\ud800')])])
  assert len(list(folder.iterdir())) < 4
  found = cache.Cache(folder).get([key(i) for i in range(5)])
  assert [x and x[0].score for x in found] == [0, 0.25, 0.5, 0.75, None]
  assert found[0][0].text == '\ud800'


# Faults.


@pytest.mark.parametrize('what', [503, 429, 'cut'])
def test_a_fault_that_passes_is_not_seen(bucket, proxy, what):
  """Requests are repeated, both to write and to read, and data is whole."""
  path, data = bucket / f'faults/{what}', os.urandom(3000)
  proxy.rules = [Rule(what, 'POST .*upload_id', times=1)]
  path.write_bytes(data)
  assert proxy.rules[0].hits == 1
  proxy.rules = [Rule(what, 'GET .*alt=media', times=1)]
  assert path.read_bytes() == data
  assert proxy.rules[0].hits == 1


@pytest.mark.parametrize('status', [401, 403])
def test_judgments_wait_while_a_bucket_refuses_them(bucket, proxy, capsys,
                                                    status):
  asked = cache.Cache(bucket / f'refused/{status}')
  one, two = cache.key(1), cache.key(2)
  proxy.rules = [Rule(status, f'POST .*refused/{status}')]
  asked.put([(one, [Judgment(0.25, 1.0, 0)])])
  assert 'judgments are not stored' in capsys.readouterr().out
  proxy.rules = []
  asked.put([(two, [Judgment(0.5, 1.0, 0)])])
  found = cache.Cache(bucket / f'refused/{status}').get([one, two])
  assert [x[0].score for x in found] == [0.25, 0.5]


def test_exit_codes_of_the_client(bucket):
  from gcsfs import retry  # not before the bucket is there
  error = lambda code: retry.HttpError({'code': code, 'message': 'injected'})
  codes = [failures.exit_code(error(c)) for c in (503, '429', 401, 400)]
  assert codes == [42, 42, 2, 1]
  assert failures.exit_code(retry.ChecksumError('injected')) == 42


def test_a_bucket_that_does_not_let_us_in_is_wrong_input(
    bucket, proxy, tmp_path, capsys):
  """One line, the path and the remedy; nothing was read or trained."""
  flags = ['--config=configs/tiny.py', '--config.compare=']
  refusals = [(f'--workdir={bucket}/no/run', f'--workdir={bucket}/no/run'),
              (f'--config.data.train={bucket}/no/train.jsonl',
               f'{bucket}/no/train.jsonl'),
              (f'--config.policy.init={bucket}/no/policy',
               f'{bucket}/no/policy')]
  for status in (401, 403):
    for flag, path in refusals:
      proxy.rules = [Rule(status, r'models/o.*\bno/')]
      assert main.command([*flags, f'--workdir={tmp_path}/w', flag]) == 2
      *_, line = capsys.readouterr().err.splitlines()
      assert line.startswith(f'error: {path}: ')
      assert 'roles/storage.objectUser' in line
      assert not (tmp_path / 'w').exists()


def test_what_is_not_in_a_bucket_is_wrong_input(bucket, tmp_path, capsys):
  flags = ['--config=configs/tiny.py', f'--workdir={tmp_path}/w']
  for flag in (f'--config.data.train={bucket}/none.jsonl',
               f'--config.policy.init={bucket}/none',
               '--workdir=gs://no_such_bucket/run'):
    assert main.command([*flags, flag]) == 2
    assert flag.partition('=')[2] in capsys.readouterr().err


@pytest.mark.parametrize(
    'status, part, error',
    [(403, 'host/metadata', InputError), (403, 'state/.*/d/', InputError),
     pytest.param(503, 'host/metadata', StartAgain, marks=pytest.mark.slow)])
def test_a_checkpoint_out_of_reach_is_not_a_damaged_one(bucket, proxy, status,
                                                        part, error):
  workdir = bucket / f'reach/{status}/{part[:4]}'
  saved = checkpoints.Checkpoints(workdir, CFG)
  saved.save(1, make_state(seed=1))
  saved.close()
  proxy.rules = [Rule(status, f'GET .*{workdir.name}/checkpoints/.*{part}')]
  with pytest.raises(error, match='checkpoints/00000001: '):
    checkpoints.Checkpoints(workdir, CFG).restore(make_state())
  assert proxy.rules[0].hits
  proxy.rules = []
  step, state = checkpoints.Checkpoints(workdir, CFG).restore(make_state())
  assert step == 1 and equal(state, make_state(seed=1))
