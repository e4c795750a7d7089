"""Model folders that are not as they should be."""

import functools
import json
import os
import random
import shutil

from etils import epath
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.models import (
    config,
    hf,
    lora,
    peft,
    references,
    safetensors,
    safetensors_header,
)
from exprl_jax.models.safetensors import Tensor
from exprl_jax.types import InputError
from tests import fuzzing
from tests.conftest import SMALL_JSON, make_bpe

ONE = 'model.safetensors'
INDEX = f'{ONE}.index.json'
JSON_FILES = ('config.json', 'tokenizer.json', 'tokenizer_config.json', INDEX,
              'adapter_config.json')


@pytest.fixture(scope='module')
def folders(small, tmp_path_factory, one_device):
  """The same model in one file and in many, and adapters of it."""
  del one_device
  root = tmp_path_factory.mktemp('models')
  (root / 'base').mkdir()
  make_bpe(root / 'base', ['a b'])
  (root / 'base/generation_config.json').write_text('{"eos_token_id": 257}')
  (root / 'base/config.json').write_text(json.dumps(SMALL_JSON))
  hf.save(root / 'one', *small, root / 'base')
  hf.save(root / 'many', *small, root / 'base', max_bytes=20000)
  cfg, params = small
  adapters = lora.init(cfg, params, 2, jax.random.key(0))
  peft.save(root / 'adapters', cfg, adapters, 2.0, str(root / 'one'))
  return [root / 'one', root / 'many', root / 'adapters']


def read(folder):
  """What a run reads of a folder: shapes first, all weights at the end."""
  source = references.find(str(folder))
  references.check(source)
  tokenizer = Tokenizer(source.folder)
  tokenizer.decode(tokenizer.encode('a b 1'))
  cfg = config.read_config(source.folder)
  if source.adapters:
    peft.load(source.adapters, cfg)
  tensors = safetensors.open_folder(epath.Path(folder))
  return cfg, {
      name: tensor.rows(0, tensor.shape[0]) for name, tensor in tensors.items()
  }


def require_same(folder, cfg, arrays):
  """The values are those that the library and the json module read."""
  if (folder / 'config.json').exists():
    raw = json.loads((folder / 'config.json').read_text())
    assert (cfg.vocab_size, cfg.num_layers) == (raw['vocab_size'],
                                                raw['num_hidden_layers'])
  theirs = {}
  for path in folder.glob('*.safetensors'):
    theirs |= load_file(path)
  assert theirs.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, theirs[name])


# Damage. Each takes (rng, folder) and returns what the error has to name.


def weights_file(rng, folder):
  return rng.choice(sorted(folder.glob('*.safetensors')))


def split(path):
  data = path.read_bytes()
  length = int.from_bytes(data[:8], 'little')
  return json.loads(data[8:8 + length]), data[8 + length:]


def join(path, header, rest):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + rest)


def offsets(rng, folder):
  """Moves, shrinks, swaps or turns round what a tensor's bytes are."""
  path = weights_file(rng, folder)
  header, rest = split(path)
  names = [n for n in header if n != '__metadata__']
  name, other = rng.choice(names), rng.choice(names)
  start, stop = header[name]['data_offsets']
  by = rng.choice([-4, 4, 8, -64, 10**6, 2**63, 2**64, 10**400])
  header[name]['data_offsets'] = rng.choice([[start + by, stop + by],
                                             [start, stop + by],
                                             [start + by, stop], [stop, start],
                                             [-stop, -start], [start - stop, 0],
                                             header[other]['data_offsets'],
                                             [start], [], [start, stop, stop],
                                             [float(start), stop], ['0',
                                                                    stop], None,
                                             [True, stop]])
  join(path, header, rest)


def entry(rng, folder):
  """Changes anything in a header."""
  path = weights_file(rng, folder)
  header, rest = split(path)
  join(path, fuzzing.with_value(rng, header), rest)


def shape(rng, folder):
  path = weights_file(rng, folder)
  header, rest = split(path)
  entry = header[rng.choice([n for n in header if n != '__metadata__'])]
  kind = rng.randrange(3)
  if kind == 0:
    entry['dtype'] = rng.choice(['F16', 'BF16', 'F64', 'I8', 'f32', '', 3])
  elif kind == 1:
    entry['shape'] = rng.choice([
        entry['shape'][::-1], [], [0], [2**62, 4], [-1], entry['shape'] + [1],
        [10**400, 0], [1] * 1000, [1.0], 'x', [entry['shape']]
    ])
  else:
    del entry[rng.choice(list(entry))]
  join(path, header, rest)


def twice(rng, folder):
  """Puts a name in a header twice, or a tensor in two files."""
  path = weights_file(rng, folder)
  header, rest = split(path)
  name = rng.choice([n for n in header if n != '__metadata__'])
  if rng.random() < .5:
    text = json.dumps(header).encode()
    again = json.dumps({name: header[name]}).encode()[1:-1]
    join(path, text[:-1] + b', ' + again + b'}', rest)
  else:
    shutil.copy(path, folder / 'extra.safetensors')
    if not (folder / INDEX).exists():
      os.rename(path, folder / 'other.safetensors')
    else:
      index = json.loads((folder / INDEX).read_text())
      index['weight_map'][name] = 'extra.safetensors'
      (folder / INDEX).write_text(json.dumps(index))


def header_length(rng, folder):
  path = weights_file(rng, folder)
  data = path.read_bytes()
  length = int.from_bytes(data[:8], 'little')
  length = rng.choice([
      0, 1, 2, length - 1, length + 1, length + 8,
      len(data),
      len(data) - 8, 10**8 + 1, 2**63, 2**64 - 1
  ])
  path.write_bytes(length.to_bytes(8, 'little') + data[8:])


def bytes_of_weights(rng, folder):
  """Changes bytes, mostly of the header: numbers are most of the file."""
  path = weights_file(rng, folder)
  data = path.read_bytes()
  end = len(data) if rng.random() < .3 else 8 + int.from_bytes(
      data[:8], 'little')
  path.write_bytes(fuzzing.damage(rng, data[:end]) + data[end:])


def length_of_file(rng, folder):
  path = weights_file(rng, folder)
  data = path.read_bytes()
  path.write_bytes(data[:rng.randrange(len(data))] if rng.random() <
                   .6 else data + b'\0' * rng.choice([1, 4, 4096]))


def not_finite(rng, folder):
  path = weights_file(rng, folder)
  header, rest = split(path)
  values = np.frombuffer(rest, np.float32).copy()
  values[rng.randrange(values.size)] = rng.choice([np.nan, np.inf, -np.inf])
  join(path, header, values.tobytes())


def harmless(rng, folder):
  """The same model, written otherwise."""
  path = weights_file(rng, folder)
  header, rest = split(path)
  items = list(header.items())
  rng.shuffle(items)
  header = dict(items)
  header['__metadata__'] = {'format': 'pt', 'x': 'ü'}
  text = json.dumps(header, indent=rng.choice([None, 1])).encode()
  join(path, text + b' ' * rng.randrange(9), rest)


def index(rng, folder):
  path = folder / INDEX
  if not path.exists():
    return json_file(rng, folder)
  value = json.loads(path.read_text())
  name = rng.choice(list(value['weight_map']))
  text = rng.choice([
      '../one/model.safetensors',
      str(folder / ONE), '..', '.', '',
      '/dev/zero', 'gs://bucket/x', 'x\0y', 'x' * 300, 'a/../../b', 3, None,
      ['x'], 'gone', 'config.json', 'model-00001-of-00001.safetensors',
      *value['weight_map'].values()
  ])
  value['weight_map'][name] = text
  path.write_text(json.dumps(value))


def json_file(rng, folder):
  """Another value anywhere, or other bytes."""
  path = folder / rng.choice([f for f in JSON_FILES if (folder / f).exists()])
  data = path.read_bytes()
  path.write_bytes(
      fuzzing.with_value(rng, json.loads(data)) if rng.random() <
      .7 else fuzzing.damage(rng, data))


def size_in_config(rng, folder):
  path = next(p for p in (folder / 'config.json',
                          folder / 'adapter_config.json') if p.exists())
  raw = json.loads(path.read_text())
  raw[rng.choice([k for k in raw if k != 'model_type'])] = rng.choice([
      0, -1, 1, 3, 10**6, 10**9, 10**12, 2**63, 10**400, 1e308,
      float('nan'),
      float('inf'), None, 'x', '4', [], {}, True, 2.0
  ])
  path.write_text(json.dumps(raw))


def no_file(rng, folder):
  """Something else where a file should be."""
  names = [
      p for p in folder.iterdir()
      if p.suffix in ('.json', '.safetensors', '.jinja')
  ]
  path = rng.choice(sorted(names))
  path.unlink()
  kind = rng.randrange(7)
  if kind == 0:
    os.mkfifo(path)
  elif kind == 1:
    path.mkdir()
  elif kind == 2:
    path.symlink_to(path)
  elif kind == 3:
    path.symlink_to('/dev/zero')
  elif kind == 4:
    path.symlink_to('/dev/null')
  elif kind == 5:
    path.write_bytes(rng.choice([b'', b'\0' * 100, b'[' * 10**6, b'\xff' * 9]))


DAMAGE = [
    offsets, entry, shape, twice, header_length, bytes_of_weights,
    length_of_file, not_finite, harmless, index, json_file, size_in_config,
    no_file
]


def fuzz(folders, tmp_path, cases, seed):
  """Runs cases; returns how many were refused."""
  rng, refused = random.Random(seed), 0
  for i in range(cases):
    change, folder = DAMAGE[i % len(DAMAGE)], tmp_path / 'model'
    shutil.copytree(rng.choice(folders), folder)
    state = rng.getstate()[1][:2]
    change(rng, folder)
    got, error = fuzzing.outcome(functools.partial(read, folder),
                                 (change.__name__, i, state))
    if error:
      assert change is not harmless, error
      assert str(folder) in error, (change.__name__, error)
      refused += 1
    else:
      assert change not in (not_finite, twice, header_length), change.__name__
      require_same(folder, *got)
    shutil.rmtree(folder)
  return refused


def test_damaged_models_are_read_rightly_or_named(folders, tmp_path):
  assert 20 < fuzz(folders, tmp_path, 52, seed=0) < 52


@pytest.mark.slow
def test_many_damaged_models(folders, tmp_path):
  refused = fuzz(folders, tmp_path, 2600, seed=1)
  print(f'{refused} of 2600 folders refused')
  assert 1300 < refused < 2600


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(small, folders, tmp_path,
                                              one_device, dtype, value):
  cfg, params = small
  params = params | {'final_norm': params['final_norm'].at[7].set(value)}
  hf.save(tmp_path / 'm', cfg, params, folders[0], dtype=dtype)
  with pytest.raises(InputError,
                     match='tensor model.norm.weight: a weight is NaN or inf'):
    hf.load(tmp_path / 'm', one_device)


def test_the_largest_numbers_are_finite(tmp_path):
  """Of every dtype, and across the borders of what is checked at a time."""
  for dtype in safetensors_header.DTYPES.values():
    most = ml_dtypes.finfo(dtype).max
    array = np.full((3, 2**16 - 1), most, dtype)
    array[1] = -most
    safetensors.write_file(epath.Path(tmp_path / 'x'), {'x': array.shape},
                           np.dtype(dtype), iter([('x', array)]))
    (tensor,) = safetensors.open_file(epath.Path(tmp_path / 'x')).values()
    assert isinstance(tensor, Tensor)
    np.testing.assert_array_equal(tensor.rows(0, 3), array)
    np.testing.assert_array_equal(tensor.rows(1, 2), array[1:2])
