"""Data sets of the Hub, served by a small one."""

import json

from huggingface_hub import constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exprl_jax import config as config_lib
from exprl_jax.data import fields
from exprl_jax.data import problems as data
from exprl_jax.types import InputError

hub = pytest.importorskip('exprl_jax.runtime.hub')
hub_server = pytest.importorskip('tests.hub_server')

README = '''---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: other
  data_files: other.jsonl
---
# Sums
'''


def write(path, *questions):
  path.parent.mkdir(parents=True, exist_ok=True)
  rows = [{'question': q, 'answer': 'So\n#### 4'} for q in questions]
  if path.suffix == '.parquet':
    pq.write_table(pa.Table.from_pylist(rows), path)
  else:
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.fixture
def server(monkeypatch, tmp_path):
  """A Hub with a data set that has a README.md, and one that has none."""
  described, plain = tmp_path / 'described', tmp_path / 'plain'
  for folder in (described, plain):
    write(folder / 'main/train-00000-of-00002.parquet', 'a', 'b')
    write(folder / 'main/train-00001-of-00002.parquet', 'c')
    write(folder / 'main/test-00000-of-00001.parquet', 'd')
    write(folder / 'other.jsonl', 'e')
  write(plain / 'train.jsonl', 'f')
  (described / 'README.md').write_text(README)
  with hub_server.serve() as server:
    server.add('datasets/org/described', described, branches=('main', 'v1'))
    server.add('datasets/org/plain', plain)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE',
                        template.replace(constants.ENDPOINT, server.url))
    monkeypatch.setattr(constants, 'ENDPOINT', server.url)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    hub._snapshot.cache_clear()
    yield server
    hub._snapshot.cache_clear()


@pytest.mark.parametrize('name, questions', [
    ('described:main', 'abc'),
    ('described:main:test', 'd'),
    ('described@v1:other', 'e'),
    ('plain', 'abcf'),
    ('plain:main', 'abc'),
    ('plain::test', 'd'),
])
def test_a_split_of_the_hub_is_read(server, name, questions):
  convert = fields.of(
      config_lib.Data(fields=('solution=answer',), answer_from='hash'))
  problems = data.read_problems(f'hf:org/{name}', ('solution', 'answer'),
                                fields=convert)
  assert ''.join(p.question for p in problems) == questions
  assert {(p.solution, p.answer) for p in problems} == {('So\n\\boxed{4}', '4')}
  # Other splits are not downloaded.
  files = {f for r in server.repositories.values() for f in r.files}
  loaded = sum(server.downloads(f) for f in files - {'README.md'})
  assert loaded == {'abc': 2, 'abcf': 3}.get(questions, 1)


@pytest.mark.parametrize('name, message', [
    ('described', 'choose a config, .* it has main, other'),
    ('described:main:dev', 'choose a split, .* it has train, test'),
    ('plain::dev', 'no such problem file'),
    ('nothing', 'org/nothing'),
])
def test_what_the_hub_does_not_have_is_named(server, name, message):
  with pytest.raises(InputError, match=message) as e:
    data.read_problems(f'hf:org/{name}')
  assert '\n' not in str(e.value)
