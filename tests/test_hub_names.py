"""Which files of the Hub a name stands for."""

import pytest

from exprl_jax.data import hub
from exprl_jax.types import InputError


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
