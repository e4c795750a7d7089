"""The main job with everything in a bucket that fails (tests/faulty_proxy.py).

Smaller faults are in tests/test_gcs.py.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from exprl_jax.runtime import metrics
from tests import gcs_server
from tests.conftest import JUDGE, POLICY
from tests.faulty_proxy import Proxy, Rule
from tests.test_train import GROUPS, SHORT, without_times

FLAGS = [
    '--config=configs/tiny.py', *SHORT, *GROUPS, '--config.compare=',
    '--config.checkpoint.every=1'
]
PROBLEMS = POLICY.parent / 'tiny_problems'
INPUTS = [
    '--config.policy.init=gs://faulty/policy',
    '--config.judge.init=gs://faulty/judge',
    '--config.data.train=gs://faulty/problems/train.jsonl',
    '--config.eval.problems=gs://faulty/problems/test.jsonl'
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def bucket():
  """gs://faulty with models and problems."""
  with gcs_server.serve('faulty') as bucket:
    bucket.put_folder(POLICY, 'policy')
    bucket.put_folder(JUDGE, 'judge')
    bucket.put_folder(PROBLEMS, 'problems')
    yield bucket


@pytest.fixture
def proxy(bucket):
  proxy = Proxy(bucket.port)
  yield proxy
  proxy.shutdown()
  proxy.server_close()


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


def start(workdir, cache, proxy=None, *flags):
  """Runs the job in a process; (exit code, what it said)."""
  environment = gcs_server.environment(proxy.url) if proxy else {}
  done = subprocess.run([
      sys.executable, '-m', 'exprl_jax.main', *FLAGS, *flags,
      f'--workdir={workdir}', f'--config.compile_cache={cache}'
  ], env=os.environ | environment, stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT, text=True, timeout=600,
                        check=False)
  return done.returncode, done.stdout


@pytest.fixture(scope='module')
def whole(tmp_path_factory, cache):
  """(rows, weights) of a run on the disk."""
  workdir = tmp_path_factory.mktemp('whole')
  code, said = start(workdir, cache)
  assert code == 0, said
  return (without_times(metrics.read(workdir / 'metrics.jsonl')),
          (workdir / 'model/model.safetensors').read_bytes())


def result(bucket, name):
  rows = bucket.get(f'{name}/metrics.jsonl').splitlines()
  return (without_times(map(json.loads, rows)),
          bucket.get(f'{name}/model/model.safetensors'))


def test_faults_that_pass_change_nothing(bucket, proxy, whole, cache):
  """One request in twenty fails, of all kinds, and one object is slow."""
  proxy.rules = [
      Rule('slow', 'GET .*policy/model.safetensors.*alt=media', times=5),
      Rule(503, chance=0.03),
      Rule(429, chance=0.01),
      Rule('cut', 'GET .*alt=media', chance=0.05)
  ]
  code, said = start('gs://faulty/run', cache, proxy, *INPUTS)
  assert code == 0, said
  assert result(bucket, 'run') == whole
  assert all(rule.hits for rule in proxy.rules), proxy.rules
  assert not pathlib.Path('gs:').exists()


@pytest.mark.parametrize('status, wanted', [(403, 2), (503, 42)])
def test_a_fault_that_stays_loses_nothing(bucket, proxy, whole, cache, status,
                                          wanted):
  """Metrics cannot be written any more: the step without its row is no step."""
  workdir = f'gs://faulty/{status}'
  proxy.rules = [Rule(status, f'POST .*{status}/metrics.jsonl-0000000[2-9]')]
  code, said = start(workdir, cache, proxy)
  assert code == wanted, said
  last = [line for line in said.splitlines() if line][-1]
  if code == 2:
    assert last.startswith('error: ') and 'metrics.jsonl' in last
    assert 'roles/storage.objectUser' in last
  else:
    assert last.startswith('stopped: ') and '; this may pass' in last
  saved = [
      name.split('/')[2]
      for name in bucket.names(f'{status}/checkpoints')
      if name.endswith('/commit_success.txt') and name.count('/') == 3
  ]
  assert saved == ['00000001']
  proxy.rules = []
  code, said = start(workdir, cache, proxy)
  assert code == 0, said
  assert result(bucket, str(status)) == whole
