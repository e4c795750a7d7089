"""Model directories in and out, and what is wrong with them."""

import functools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from exprl_jax import config as config_lib
from exprl_jax.models import config, hf, transformer
from exprl_jax.models.rope import Rope
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError
from tests import fuzzing
from tests.conftest import POLICY, SMALL_JSON


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_saved_and_loaded_parameters_are_bit_equal(small, small_folder,
                                                   one_device):
  loaded_cfg, loaded = hf.load(small_folder, one_device)
  assert loaded_cfg == small[0]
  assert_same(loaded, small[1])
  assert (small_folder / 'tokenizer.json').exists()


def test_the_library_reads_what_we_write(small_folder):
  theirs = safetensors.numpy.load_file(small_folder / 'model.safetensors')
  ours = hf.safetensors.open_folder(hf.epath.Path(small_folder))
  assert set(theirs) == set(ours)
  for name, tensor in ours.items():
    np.testing.assert_array_equal(tensor.rows(0, tensor.shape[0]), theirs[name])


def test_many_files(small, small_folder, one_device, tmp_path):
  hf.save(tmp_path / 'many', *small, small_folder, max_bytes=6000)
  files = sorted(tmp_path.glob('many/*.safetensors'))
  assert len(files) > 3 and files[0].name.startswith('model-00001-of-000')
  index = json.loads(
      (tmp_path / 'many/model.safetensors.index.json').read_text())
  assert index['metadata']['total_size'] == sum(
      x.nbytes for x in jax.tree.leaves(small[1]))
  # Only what the index names belongs to the model.
  shutil.copy(files[0], tmp_path / 'many/consolidated.safetensors')
  assert_same(hf.load(tmp_path / 'many', one_device)[1], small[1])


@pytest.mark.parametrize(
    'sizes',
    [dict(fsdp=8),
     dict(fsdp=2, tensor=4),
     dict(data=2, fsdp=2, expert=2)])
def test_loading_onto_eight_devices(small, small_folder, sizes, tmp_path):
  mesh = mesh_lib.make_mesh(config_lib.Mesh(**({'data': 1} | sizes)))
  cfg, params = hf.load(small_folder, mesh)
  want = mesh_lib.shardings(transformer.logical_axes(cfg), params, mesh)
  jax.tree.map(
      lambda x, s: pytest.fail('resharded')
      if x.sharding != s else None, params, want)
  assert_same(params, small[1])
  hf.save(tmp_path / 'again', cfg, params, small_folder)
  for file in ('model.safetensors', 'config.json'):
    assert (tmp_path / 'again' / file).read_bytes() == (small_folder /
                                                        file).read_bytes()


def test_each_row_is_read_once(small_folder, monkeypatch):
  """Eight devices read an eighth of a tensor each, also where they share it."""
  read = []
  rows = hf.safetensors.Tensor.rows

  def spy(self, start, stop):
    read.append((self.name, start, stop))
    return rows(self, start, stop)

  monkeypatch.setattr(hf.safetensors.Tensor, 'rows', spy)
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=8, fsdp=1))  # all replicated
  hf.load(small_folder, mesh)
  for name, tensor in hf.safetensors.open_folder(
      hf.epath.Path(small_folder)).items():
    spans = sorted((a, b) for n, a, b in read if n == name)
    assert [s for a, b in spans for s in range(a, b)
           ] == list(range(tensor.shape[0])), name
  assert len([n for n, _, _ in read if n == 'model.embed_tokens.weight']) == 8


def test_bfloat16_files_and_frozen_models(small, small_folder, one_device,
                                          tmp_path):
  hf.save(tmp_path / '16', *small, small_folder, dtype='bfloat16')
  _, loaded = hf.load(tmp_path / '16', one_device)
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32),
                         small[1])
  assert_same(loaded, rounded)
  cfg, frozen = hf.load(small_folder, one_device, 'bfloat16', frozen=True)
  assert_same(frozen,
              jax.jit(functools.partial(transformer.cast, cfg))(small[1]))


@pytest.fixture
def folder(tmp_path):
  return shutil.copytree(POLICY, tmp_path / 'model')


def edit_config(folder, **values):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize('values, message', [
    (dict(model_type='gpt2'), "model_type 'gpt2' is not implemented; these"),
    (dict(attention_bias=True), 'attention_bias=True: only False'),
    (dict(hidden_act='relu'), "hidden_act='relu': only 'silu'"),
    (dict(rope_scaling={'rope_type': 'longrope'}), 'short_factor of rope_type'),
    (dict(rope_scaling={'rope_type': 'mrope'}), "rope_type 'mrope'"),
    (dict(rope_scaling={'rope_type': 'linear', 'factor': 2.0, 'x': 1}),
     r"rope keys \['x'\]"),
    (dict(rms_norm_eps=None), "key 'rms_norm_eps' is missing"),
    (dict(layer_types=['chunked_attention'] * 3), 'layer_types'),
    (dict(new_switch=1, other=2, known_to_nobody=None),
     r"keys \['new_switch', 'other'\] are unknown .* if they are metadata"),
    (dict(quantization_config={'bits': 4}),
     r'quantized \(quantization_config\), .* the model that they were made'),
    (dict(num_hidden_layers=10**12),
     'num_hidden_layers=1000000000000 should be'),
    (dict(hidden_size=2**20, intermediate_size=2**20), r'9.9e\+12 parameters'),
    (dict(vocab_size=-1), 'vocab_size=-1 should be a number from 1 to'),
    (dict(rms_norm_eps=float('nan')), 'norm_eps=nan should be a number'),
    (dict(tie_word_embeddings='no'), "tied_embedding='no' should be bool"),
    (dict(rope_theta=0), 'a rope with theta=0.0'),
    (dict(num_hidden_layers=4), 'model.layers.3.*is missing'),
    (dict(num_hidden_layers=2), 'the model of config.json does not have it'),
    (dict(intermediate_size=128), r'down_proj.weight: shape \(80, 256\)'),
])
def test_a_config_that_does_not_fit_is_named(folder, one_device, values,
                                             message):
  edit_config(folder, **values)
  with pytest.raises(InputError, match=message):
    hf.load(folder, one_device)


def test_both_spellings_of_rope():
  old = SMALL_JSON | {'rope_scaling': {'type': 'linear', 'factor': 4.0}}
  new = {k: v for k, v in SMALL_JSON.items() if k != 'rope_theta'} | {
      'rope_parameters': {
          'rope_theta': 1e4, 'rope_type': 'linear', 'factor': 4.0
      }
  }
  read = [config.parse_config(dict(raw), '') for raw in (old, new)]
  assert read[0] == read[1]
  assert read[0].rope == Rope(1e4, 'linear', factor=4.0)


def test_missing_and_corrupt_files_are_named(folder, one_device):

  def fails(message):
    with pytest.raises(InputError, match=message):
      hf.load(folder, one_device)

  with pytest.raises(InputError, match='nowhere: no config.json'):
    hf.load(folder / 'nowhere', one_device)
  weights = folder / 'model.safetensors'
  whole = weights.read_bytes()
  for cut in (whole[:-1000], whole[:500], whole[:4], b'', b'x' * 1000):
    weights.write_bytes(cut)
    fails('model.safetensors: corrupt or cut short')
  weights.unlink()
  fails('no \\*.safetensors')
  index = folder / 'model.safetensors.index.json'
  index.write_text('{"weight_map": {"a": "part.safetensors"}}')
  fails('part.safetensors: no such file; the index names it')
  weights.write_bytes(whole)
  index.write_text('{"weight_map": {"a": "model.safetensors"}}')
  fails('model.safetensors: tensor a is missing')
  index.write_text('{}')
  fails('not an index of tensors')


@pytest.mark.parametrize('name, change, message', [
    ('model.norm.weight', lambda a, b: [a - 64, b - 64],
     r'tensor model\.\S+ overlaps the tensor before it'),
    ('model.norm.weight', lambda a, b: [a + 64, b + 64],
     r'tensor model\.\S+ (leaves a gap|overlaps)'),
    ('model.norm.weight', lambda a, b: [-b, -a],
     'norm.weight lacks a dtype, a'),
    ('model.norm.weight', lambda a, b: [b, a], 'model.norm.weight has -'),
    ('model.norm.weight', lambda a, b: [a, b - 4], r'\d bytes for F32\['),
])
def test_offsets_that_the_library_refuses_are_named(folder, one_device, name,
                                                    change, message):
  path = folder / 'model.safetensors'
  data = path.read_bytes()
  length = int.from_bytes(data[:8], 'little')
  header = json.loads(data[8:8 + length])
  header[name]['data_offsets'] = change(*header[name]['data_offsets'])
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + data[8 + length:])
  with pytest.raises(safetensors.SafetensorError):
    safetensors.numpy.load_file(path)
  with pytest.raises(InputError, match=f'model.safetensors: .*{message}'):
    hf.load(folder, one_device)


def test_names_that_stand_there_twice_are_named(small, small_folder, one_device,
                                                tmp_path):
  path = small_folder / 'model.safetensors'
  data = path.read_bytes()
  length = int.from_bytes(data[:8], 'little')
  header = json.loads(data[8:8 + length])
  again = json.dumps({'lm_head.weight': header['lm_head.weight']})[1:-1]
  text = (json.dumps(header)[:-1] + f', {again}}}').encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + data[8 + length:])
  with pytest.raises(InputError, match="'lm_head.weight' stands there twice"):
    hf.load(small_folder, one_device)
  path.write_bytes(data)
  hf.save(tmp_path / 'm', *small, small_folder, max_bytes=6000)
  (tmp_path / 'm/model.safetensors.index.json').unlink()
  files = sorted((tmp_path / 'm').glob('*.safetensors'))
  shutil.copy(files[0], files[-1])
  with pytest.raises(InputError, match=r'tensor \S+ is in \S+, too; remove'):
    hf.load(tmp_path / 'm', one_device)


@pytest.mark.parametrize('name', [
    '../model.safetensors', '/etc/passwd', 'a/../x', 'gs://bucket/x', '', '..',
    3
])
def test_an_index_that_leaves_the_folder_is_named(folder, one_device, name):
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': {'a': name}}))
  with pytest.raises(InputError,
                     match='index.json: tensor a is in .* no file of'):
    hf.load(folder, one_device)


@pytest.mark.parametrize(
    'name',
    ['model.safetensors', 'config.json', 'model.safetensors.index.json'])
@pytest.mark.parametrize(
    'kind, message',
    [(os.mkfifo, 'a pipe, not a file'), (os.mkdir, 'a folder, not a file'),
     (lambda path: path.symlink_to('/dev/zero'), 'a device, not a file')])
def test_what_is_no_file_is_named(folder, one_device, name, kind, message):
  (folder / name).unlink(missing_ok=True)
  kind(folder / name)
  with fuzzing.alarm(), pytest.raises(InputError, match=f'{name}: {message}'):
    hf.load(folder, one_device)


def test_a_stored_type_that_is_not_implemented_is_named(folder, one_device):
  weights = safetensors.numpy.load_file(folder / 'model.safetensors')
  weights['model.norm.weight'] = weights['model.norm.weight'].astype(np.int8)
  safetensors.numpy.save_file(weights, folder / 'model.safetensors')
  with pytest.raises(InputError, match='model.norm.weight is stored as I8'):
    hf.load(folder, one_device)


def test_save_refuses_another_base(small, one_device, tmp_path):
  with pytest.raises(ValueError, match='is not of the model'):
    hf.save(tmp_path, *small, POLICY)
