"""Models on gs://, through an emulator of the service on this machine."""

import gzip
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from etils import epath
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exprl_jax import config as config_lib
from exprl_jax.data import problems as data
from exprl_jax.data import stored
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.models import hf
from exprl_jax.runs import export
from exprl_jax.types import InputError
from tests.conftest import POLICY

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning',
                                        'ignore::FutureWarning')


@pytest.fixture(scope='module')
def bucket():
  """A new bucket: gs://..."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  url = f'http://127.0.0.1:{port}'
  child = subprocess.Popen([
      sys.executable, '-c', 'from gcp_storage_emulator.server import '
      f'create_server as c; c("127.0.0.1", {port}, in_memory=True, '
      'default_bucket="models").run()'
  ], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  saved = dict(os.environ)
  os.environ |= {  # read when gcsfs is first imported
      'STORAGE_EMULATOR_HOST': url, 'GOOGLE_CLOUD_PROJECT': 'test',
      'NO_GCE_CHECK': 'true', 'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false'
  }
  for _ in range(100):
    try:
      urllib.request.urlopen(url, timeout=1).close()
      break
    except urllib.error.HTTPError as e:
      e.close()
      break
    except OSError:
      time.sleep(0.1)
  yield epath.Path('gs://models')
  child.kill()
  child.wait()
  os.environ.clear()
  os.environ.update(saved)


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
