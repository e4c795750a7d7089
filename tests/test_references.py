"""What a dry run finds wrong with a model's files, before any weight is read.
"""

import json
import shutil
import time

import numpy as np
import pytest
import safetensors.numpy

from exprl_jax.models import config as model_config
from exprl_jax.models import references, stored, transformer
from exprl_jax.types import InputError
from tests.conftest import POLICY, SMALL_JSON

POINTER = ('version https://git-lfs.github.com/spec/v1\noid sha256:0\n'
           'size 300000\n')
WEIGHTS = 'model.safetensors'


@pytest.fixture
def folder(tmp_path):
  return shutil.copytree(POLICY, tmp_path / 'model')


def check(folder):
  references.check(references.find(str(folder)))


def refuses(folder, *parts, one_device=None):
  """Refuses it in a line with all the parts, as loading does."""
  with pytest.raises(InputError) as e:
    check(folder)
  line = str(e.value)
  assert '\n' not in line
  for part in parts:
    assert part in line, line
  with pytest.raises(InputError) as e:
    references.load(str(folder), one_device)
  assert str(e.value) == line


@pytest.fixture
def refused(folder, one_device):
  """Says what the folder is refused with."""
  return lambda *parts: refuses(folder, *parts, one_device=one_device)


def edit(folder, file='config.json', **values):
  path = folder / file
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(folder, change):
  """Changes the stored tensors."""
  tensors = dict(safetensors.numpy.load_file(folder / WEIGHTS))
  change(tensors)
  safetensors.numpy.save_file(tensors, folder / WEIGHTS)


def test_a_good_folder_passes(folder):
  check(folder)


@pytest.mark.parametrize('keep', [4, 500, -1000])
def test_half_a_file_is_refused(folder, refused, keep):
  (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:keep])
  refused(WEIGHTS, 'cut short', 'copy it again')


@pytest.mark.parametrize('file', [WEIGHTS, 'tokenizer.json'])
def test_a_pointer_of_git_lfs_is_refused(folder, refused, file):
  (folder / file).write_text(POINTER)
  refused(f'{folder}/{file}', '`git lfs pull`')


@pytest.mark.parametrize(
    'file', ['pytorch_model.bin', 'pytorch_model-00001-of-00002.bin'])
def test_a_folder_of_torch_weights_says_how_to_convert(folder, refused, file):
  (folder / WEIGHTS).rename(folder / file)
  refused('no *.safetensors', file, 'safe_serialization=True')


def test_gguf_says_how_to_convert(folder, refused, tmp_path, one_device):
  (folder / WEIGHTS).rename(folder / 'q8.gguf')
  refused("gguf_file='q8.gguf'")
  (folder / 'config.json').unlink()
  refused("gguf_file='q8.gguf'")
  refuses(folder / 'q8.gguf', f"from_pretrained('{folder}', gguf_file='q8.gguf",
          one_device=one_device)


@pytest.mark.parametrize('method', ['gptq', 'awq', 'fp8', 'bitsandbytes'])
def test_quantized_weights_are_refused(folder, refused, method):
  edit(folder, quantization_config={'quant_method': method, 'bits': 4})
  refused(f'quantized ({method})', 'name the model that they were made from')


def test_a_stored_type_that_is_not_implemented_is_refused(folder, refused):
  key = 'model.layers.1.mlp.up_proj.weight'

  def quantize(tensors):
    tensors[key] = tensors[key].astype(np.int8)

  rewrite(folder, quantize)
  refused(key, 'stored as I8')


def test_missing_tensors_and_layers_are_refused(folder, refused):
  rewrite(folder, lambda t: t.pop('model.layers.1.mlp.up_proj.weight'))
  refused('tensor model.layers.1.mlp.up_proj.weight is missing')


def test_another_shape_is_refused(folder, refused):
  edit(folder, intermediate_size=96)
  refused('shape', 'config.json says')


def split(folder, indexed):
  """Stores a model in two files."""
  tensors = safetensors.numpy.load_file(folder / WEIGHTS)
  (folder / WEIGHTS).unlink()
  names = [f'model-0000{i}-of-00002.safetensors' for i in (1, 2)]
  half = [dict(list(tensors.items())[i::2]) for i in (0, 1)]
  for name, part in zip(names, half):
    safetensors.numpy.save_file(part, folder / name)
  if indexed:
    (folder / f'{WEIGHTS}.index.json').write_text(
        json.dumps({
            'weight_map': {
                k: name for name, part in zip(names, half) for k in part
            }
        }))
  return names


def test_a_missing_shard_is_refused(folder, refused):
  _, second = split(folder, indexed=True)
  check(folder)
  (folder / second).unlink()
  refused(second, 'no such file; the index names it')


def test_a_missing_shard_is_refused_without_an_index(folder, refused):
  first, _ = split(folder, indexed=False)
  check(folder)
  (folder / first).unlink()
  refused('1 of 2 *.safetensors files')


def test_other_files_beside_the_model_are_not_its(folder):
  shutil.copy(folder / WEIGHTS, folder / 'consolidated.safetensors')
  (folder / 'adapter.safetensors').write_text('not a model')
  check(folder)


@pytest.fixture
def two(request, small, tmp_path):
  """Folders of transformers: a tied model and an untied one."""
  import torch
  import transformers
  torch.manual_seed(0)
  for tied in (True, False):
    values = SMALL_JSON | {'tie_word_embeddings': tied}
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**values))
    model.save_pretrained(tmp_path / str(tied))
  return tmp_path / 'True', tmp_path / 'False'


def test_a_tied_model_needs_no_head_and_an_untied_one_does(two, one_device):
  tied, untied = two
  assert 'lm_head.weight' not in safetensors.numpy.load_file(tied / WEIGHTS)
  check(tied)
  assert 'head' not in references.load(str(tied), one_device)[2]
  check(untied)
  rewrite(untied, lambda t: t.pop('lm_head.weight'))
  refuses(untied, 'lm_head.weight is missing', '"tie_word_embeddings": true',
          one_device=one_device)


def test_a_tied_model_may_store_its_head(two, one_device):
  tied, _ = two

  def add(tensors):
    tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']

  rewrite(tied, add)
  check(tied)
  references.load(str(tied), one_device)
  rewrite(tied, lambda t: t.update({'lm_head.weight': np.zeros((7, 24), 'f')}))
  refuses(tied, 'lm_head.weight', 'shape (7, 24)', one_device=one_device)


def sparse_qwen3_4b(folder):
  """The files of a Qwen3 of 4B parameters, with holes for weights."""
  folder.mkdir()
  (folder / 'config.json').write_text(
      json.dumps({
          'model_type': 'qwen3', 'vocab_size': 151936, 'hidden_size': 2560,
          'intermediate_size': 9728, 'num_hidden_layers': 36,
          'num_attention_heads': 32, 'num_key_value_heads': 8, 'head_dim': 128,
          'rope_theta': 5e6, 'rms_norm_eps': 1e-6, 'tie_word_embeddings': True
      }))
  cfg = model_config.read_config(folder)
  parts = list(stored.stored_parts(cfg, transformer.abstract_params(cfg)))
  index = {}
  for i in range(3):
    name, header, end = f'model-0000{i + 1}-of-00003.safetensors', {}, 0
    for part in parts[i::3]:
      start, end = end, end + 2 * int(np.prod(part.stored_shape))
      header[part.names[0]] = {
          'dtype': 'BF16', 'shape': part.stored_shape,
          'data_offsets': [start, end]
      }
      index[part.names[0]] = name
    text = json.dumps(header).encode()
    with (folder / name).open('wb') as file:
      file.write(len(text).to_bytes(8, 'little') + text)
      file.truncate(8 + len(text) + end)
  (folder / f'{WEIGHTS}.index.json').write_text(
      json.dumps({'weight_map': index}))
  return len(index)


def test_the_headers_of_a_large_model_take_less_than_two_seconds(tmp_path):
  assert sparse_qwen3_4b(tmp_path / '4b') == 36 * 11 + 2
  total = sum(f.stat().st_size for f in (tmp_path / '4b').glob('*.safetensors'))
  assert total > 8e9  # bytes that the files say they have
  start = time.perf_counter()
  check(tmp_path / '4b')
  seconds = time.perf_counter() - start
  print(f'{seconds:.2f} s')
  assert seconds < 2
