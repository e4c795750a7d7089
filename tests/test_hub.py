"""Models and data sets of the Hub, served by a small one."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

from huggingface_hub import constants
import jax
import numpy as np
import pytest

from exprl_jax.models import references
from exprl_jax.runtime import hub
from exprl_jax.types import InputError
from tests import hub_server
from tests.conftest import JUDGE, POLICY

TOKEN = 'hf_of_a_test'
WEIGHTS = 'model.safetensors'


def use(monkeypatch, url):
  """Sets HF_ENDPOINT, which the library has read already."""
  template = constants.HUGGINGFACE_CO_URL_TEMPLATE
  monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE',
                      template.replace(constants.ENDPOINT, url))
  monkeypatch.setattr(constants, 'ENDPOINT', url)


@pytest.fixture
def server(monkeypatch, tmp_path):
  """A Hub with the shipped policy, and an empty cache."""
  with hub_server.serve() as server:
    server.add('models/org/policy', POLICY, branches=('main', 'v1'))
    use(monkeypatch, server.url)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(hub, '_WAITS', (0.01,) * 3)
    monkeypatch.delenv('HF_TOKEN', raising=False)
    hub._snapshot.cache_clear()
    yield server
    hub._snapshot.cache_clear()


def again():
  """What another process would find: the cache on disk alone."""
  hub._snapshot.cache_clear()


def names(folder):
  """The files in a folder."""
  folder = pathlib.Path(folder)
  return {str(f.relative_to(folder)) for f in folder.rglob('*') if f.is_file()}


def fails(source, *parts):
  """The one line that a source is refused with; has all the parts."""
  with pytest.raises(InputError) as e:
    references.find(source)
  line = str(e.value)
  assert '\n' not in line
  for part in parts:
    assert part in line, line


def test_a_model_of_the_hub_is_its_folder(server, one_device):
  folder, model, params = references.load('org/policy', one_device)
  _, same_model, same = references.load(str(POLICY), one_device)
  assert model == same_model
  np.testing.assert_array_equal(params['embedding'], same['embedding'])
  assert folder.name == server.repositories['models/org/policy'].commit


def test_only_files_of_the_model_are_downloaded(server):
  files = server.repositories['models/org/policy'].files
  unused = {
      'pytorch_model.bin': b'x', 'original/consolidated.safetensors': b'x',
      'consolidated.safetensors': b'x', 'README.md': b'x', 'model.gguf': b'x'
  }
  needed = set(files) - {'teacher.txt'}
  files |= unused
  folder = references.find('org/policy').folder
  have = names(folder)
  assert have == needed


def test_a_plan_downloads_no_weights(server):
  with references.without_weights():
    folder = references.find('org/policy').folder
  assert WEIGHTS not in names(folder)
  assert {'config.json', 'tokenizer.json'} <= names(folder)
  again()
  assert WEIGHTS in names(references.find('org/policy').folder)


def test_a_revision_is_a_branch_or_a_commit(server):
  repository = server.repositories['models/org/policy']
  for revision in ('v1', repository.commit):
    reference = references.find(f'org/policy@{revision}')
    assert reference.folder.name == repository.commit
  fails('org/policy@v2', 'org/policy@v2', 'has no such revision')
  fails('org/policy@7', 'no such folder', 'has no such revision')


def test_a_branch_stays_the_same_during_a_run(server):
  first = references.find('org/policy').folder
  server.repositories['models/org/policy'].files['chat_template.jinja'] = b'new'
  assert references.find('org/policy').folder == first
  again()
  assert references.find('org/policy').folder != first


def test_a_folder_comes_before_the_hub(server, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shutil.copytree(POLICY, tmp_path / 'org/policy')
  assert str(references.find('org/policy').folder) == 'org/policy'
  assert not server.requests


def test_a_name_that_is_neither_says_both(server):
  fails('org/nothing', 'org/nothing: there is no such folder, and',
        'model org/nothing of the Hub does not exist', 'hf auth login')


def test_the_second_download_reads_the_cache(server):
  references.find('org/policy')
  assert server.downloads(WEIGHTS) == 1
  again()
  references.find('org/policy')
  assert server.downloads(WEIGHTS) == 1


def test_a_server_that_fails_is_asked_again(server):
  server.faults |= {'api': [503], WEIGHTS: [503], 'config.json': [500, 502]}
  folder = references.find('org/policy').folder
  assert (folder / WEIGHTS).read_bytes() == (POLICY / WEIGHTS).read_bytes()
  assert server.faults == {'api': [], WEIGHTS: [], 'config.json': []}


def test_a_server_that_goes_on_failing_is_an_error(server):
  server.faults['config.json'] = [503] * 20
  fails('org/policy', 'cannot be downloaded', '503')


def test_a_stream_that_is_cut_is_resumed(server, monkeypatch):
  monkeypatch.setattr(constants, 'DOWNLOAD_CHUNK_SIZE', 1000)  # of 10 MB
  server.faults[WEIGHTS] = ['cut']
  folder = references.find('org/policy').folder
  data = (POLICY / WEIGHTS).read_bytes()
  assert (folder / WEIGHTS).read_bytes() == data
  (resumed,) = (r for r in server.requests if 'bytes=' in r)
  start = int(resumed.rpartition('bytes=')[2].rstrip('-'))
  assert len(data) // 2 - 1000 < start <= len(data) // 2


def test_a_private_model_takes_the_token(server, monkeypatch):
  server.add('models/org/private', POLICY, token=TOKEN)
  fails('org/private', 'does not exist, or is private', 'HF_TOKEN')
  monkeypatch.setenv('HF_TOKEN', TOKEN)
  again()
  assert (references.find('org/private').folder / WEIGHTS).exists()


def test_a_gated_model_says_where_its_license_is(server, monkeypatch):
  server.add('models/org/gated', POLICY, token=TOKEN, gated=True)
  fails('org/gated', f'accept it at {server.url}/org/gated', 'hf auth login')
  monkeypatch.setenv('HF_TOKEN', TOKEN)
  again()
  assert (references.find('org/gated').folder / WEIGHTS).exists()


def test_without_a_network_the_cache_is_taken(server, monkeypatch):
  first = references.find('org/policy').folder
  again()
  server.server_close()
  use(monkeypatch, 'http://127.0.0.1:9')
  assert references.find('org/policy').folder == first
  fails('org/other', 'is not in the cache', 'http://127.0.0.1:9 cannot be')
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  again()
  assert references.find('org/policy').folder == first
  fails('org/other', 'is not in the cache', 'HF_HUB_OFFLINE is set')


def test_a_model_that_is_not_implemented_is_not_downloaded(server):
  files = server.repositories['models/org/policy'].files
  config = json.loads(files['config.json'])
  files['config.json'] = json.dumps(config | {'model_type': 'gpt2'}).encode()
  fails('org/policy', "model_type 'gpt2' is not implemented")
  assert not server.downloads(WEIGHTS)
  del files['config.json']
  again()
  fails('org/policy', 'has no config.json')


def test_a_model_of_torch_files_says_how_to_convert(server):
  files = server.repositories['models/org/policy'].files
  files['pytorch_model.bin'] = files.pop(WEIGHTS)
  fails('org/policy', 'has no *.safetensors', "from_pretrained('org/policy')",
        'safe_serialization=True')
  assert not server.downloads('pytorch_model.bin')


def test_adapters_and_their_base_come_from_the_hub(server, tmp_path):
  (tmp_path / 'lora').mkdir()
  (tmp_path / 'lora/adapter_config.json').write_text(
      json.dumps({
          'peft_type': 'LORA', 'base_model_name_or_path': 'org/policy',
          'revision': 'v1', 'r': 1, 'lora_alpha': 1
      }))
  (tmp_path / 'lora/adapter_model.safetensors').write_bytes(b'not read yet')
  server.add('models/me/lora', tmp_path / 'lora')
  reference = references.find('me/lora')
  commit = server.repositories['models/org/policy'].commit
  assert reference.folder.name == commit
  assert reference.adapters.name == server.repositories['models/me/lora'].commit
  assert any(r.endswith('/revision/v1 ') for r in server.requests)


def test_files_of_a_data_set(server, tmp_path):
  data = {'a.jsonl': '{}\n', 'data/b.parquet': 'x', 'c.zip': 'x'}
  for name, text in data.items():
    (tmp_path / 'set' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'set' / name).write_text(text)
  server.add('datasets/org/set', tmp_path / 'set')
  folder = hub.snapshot('org/set', None, ['*.jsonl', '*.parquet'], 'dataset')
  have = names(folder)
  assert have == {'a.jsonl', 'data/b.parquet'}
  with pytest.raises(InputError, match='data set org/no of the Hub does not'):
    hub.snapshot('org/no', None, ['*'], 'dataset')


@pytest.mark.parametrize('name, id_', [
    ('org/name', hub.Id('org/name', None)),
    ('org/name@v1', hub.Id('org/name', 'v1')),
    ('org/name@refs/pr/1', hub.Id('org/name', 'refs/pr/1')),
    ('a/b/c', None),
    ('/a/b', None),
    ('./a', None),
    ('../a', None),
    ('a/', None),
    ('asset:tiny', None),
    ('gs://bucket/name', None),
    ('name', None),
])
def test_what_is_an_id(name, id_):
  assert hub.parse(name) == id_


def test_the_command_downloads_once_and_runs_offline(server, tmp_path):
  """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE, as a user sets them."""
  server.add('models/org/judge', JUDGE)
  command = [
      sys.executable, '-m', 'exprl_jax.main', '--config=configs/tiny.py',
      '--config.policy.init=org/policy@v1', '--config.judge.init=org/judge',
      '--dry_run'
  ]
  env = os.environ | {'HF_ENDPOINT': server.url, 'HF_HOME': str(tmp_path)}

  def run(**more):
    return subprocess.run(command, env=env | more, capture_output=True,
                          text=True, check=False)

  online = run()
  assert online.returncode == 0, online.stderr
  assert server.downloads(WEIGHTS) == 2  # of the policy and the judge
  count = len(server.requests)
  offline = run(HF_HUB_OFFLINE='1')
  assert offline.returncode == 0, offline.stderr
  assert offline.stdout == online.stdout
  assert len(server.requests) == count


@pytest.mark.parametrize(
    'shared', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_processes_get_the_same_commit(server, tmp_path, shared):
  """One download, if they share a cache; and the same error in both."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  children = [
      subprocess.Popen(
          [sys.executable, '-m', 'tests.test_hub',
           str(port), str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
          text=True, env=os.environ | {
              'HF_ENDPOINT': server.url, 'HF_HOME': str(
                  tmp_path / ('all' if shared else str(i)))
          }) for i in range(2)
  ]
  said = [child.communicate(timeout=100) for child in children]
  assert [child.returncode for child in children] == [0, 0], said
  commit = server.repositories['models/org/policy'].commit
  for out, _ in said:
    assert f'{commit}\n' in out
    assert 'model org/no of the Hub does not exist' in out
  assert server.downloads(WEIGHTS) == (1 if shared else 2)
  assert 'Fetching' in said[0][1] and 'Fetching' not in said[1][1]


if __name__ == '__main__':
  jax.distributed.initialize(f'127.0.0.1:{sys.argv[1]}', 2, int(sys.argv[2]))
  print(references.find('org/policy').folder.name)
  try:
    references.find('org/no')
  except InputError as e:
    print(e)
