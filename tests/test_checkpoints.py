"""What is restored is what was saved, or an older checkpoint that is."""

import json
import pathlib
import random
import shutil

import aiohttp
import google.auth.exceptions
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
import requests

from exprl_jax import config as config_lib
from exprl_jax.rl import optimizer
from exprl_jax.runtime import checkpoints as lib
from exprl_jax.runtime import failures
from exprl_jax.runtime.fingerprints import fingerprints
from exprl_jax.types import InputError, StartAgain

CFG = config_lib.Checkpoint(every=1, keep=3)


class Counter:
  """An object on the host."""

  def __init__(self):
    self.seen = {'problems': [1, 2], 'text': 'a\ud800'}

  def state(self):
    return self.seen

  def restore(self, state):
    self.seen = state


def make_state(devices=1, seed=0, offload=False, width=24):
  """A training state, split over some devices."""
  mesh = jax.make_mesh((devices,), ('fsdp',), devices=jax.devices()[:devices])
  values = np.random.default_rng(seed)

  def leaf(shape, dtype):
    split = NamedSharding(mesh, PartitionSpec(*('fsdp',) * bool(shape)))
    return jax.device_put(jnp.asarray(values.normal(size=shape), dtype), split)

  params = {
      'layers': {'kernel': leaf((16, width), jnp.float32)},
      'head': {'bias': leaf((8,), jnp.bfloat16)}
  }
  return optimizer.init_state(params, config_lib.Optim(offload=offload), 10)


def as_numpy(state):
  return jax.tree.map(np.asarray, state)


def equal(a, b):
  return all(x.tobytes() == y.tobytes()
             for x, y in zip(*map(jax.tree.leaves, (as_numpy(a),
                                                    as_numpy(b))), strict=True))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A workdir with three checkpoints, and {step: state}."""
  workdir = tmp_path_factory.mktemp('saved')
  counter, states = Counter(), {}
  checkpoints = lib.Checkpoints(workdir, CFG, {'counter': counter})
  for step in (1, 2, 3):
    states[step] = make_state(seed=step)
    counter.seen['problems'].append(step)
    checkpoints.save(step, states[step])
  checkpoints.close()
  return workdir, states


@pytest.fixture
def workdir(saved, tmp_path):
  return pathlib.Path(shutil.copytree(saved[0], tmp_path / 'w'))


def restored(workdir, **options):
  counter = Counter()
  step, state = lib.Checkpoints(workdir, CFG, {'counter': counter}).restore(
      make_state(**options))
  return step, state, counter.seen


def test_restored_is_saved_on_any_devices(saved, workdir):
  for devices in (1, 4, 8):
    for offload in (False, True):
      step, state, seen = restored(workdir, devices=devices, offload=offload)
      assert step == 3 and equal(state, saved[1][3])
      assert seen == {'problems': [1, 2, 1, 2, 3], 'text': 'a\ud800'}
      assert len(state.params['layers']['kernel'].devices()) == devices


def test_eight_devices_then_four_then_eight(tmp_path):
  first = make_state(devices=8)
  want = as_numpy(first)
  for step, devices in enumerate((8, 4, 8), 1):
    checkpoints = lib.Checkpoints(tmp_path, CFG)
    done, state = checkpoints.restore(make_state(devices=devices))
    assert done == step - 1
    checkpoints.save(step, state)
    checkpoints.close()
    assert equal(state, want)


def test_fingerprints_are_of_values_and_not_of_their_sharding():
  one, eight = make_state(1), make_state(8)
  away = make_state(4, offload=True)
  assert fingerprints(one) == fingerprints(eight) == fingerprints(away)
  assert fingerprints(one).keys() > {'params.layers.kernel', 'step'}


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8', 'bool'])
def test_every_change_of_one_element_changes_the_fingerprint(rng, dtype):
  x = np.asarray(jnp.asarray(rng.normal(size=(5, 7)), dtype))
  seen = set()
  whole = fingerprints([jnp.asarray(x)])['0']
  words = x.view(np.uint8).reshape(35, -1)
  for place in range(35):
    for bit in ([0] if dtype == 'bool' else range(8)):
      changed = words.copy()
      changed[place, -1] ^= 1 << bit
      seen.add(
          fingerprints([jnp.asarray(changed.view(x.dtype).reshape(5, 7))])['0'])
  assert whole not in seen
  # Two elements that change places are a change, too.
  swapped = x[[1, 0, 2, 3, 4]]
  assert (fingerprints([jnp.asarray(swapped)
                       ])['0'] == whole) == np.array_equal(swapped, x)


def flip(path, random_):
  data = bytearray(path.read_bytes())
  data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
  path.write_bytes(data)


def flip_in_arrays(workdir, step=3):
  """Flips a bit in the middle of a checkpoint's largest file."""
  path = max((workdir / f'checkpoints/{step:08d}/state').rglob('d/*'),
             key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def zero(path, random_):
  data = bytearray(path.read_bytes())
  start = random_.randrange(len(data))
  stop = min(start + 64, len(data))
  data[start:stop] = bytes(stop - start)
  path.write_bytes(data)


def truncate(path, random_):
  path.write_bytes(path.read_bytes()[:random_.randrange(path.stat().st_size)])


def remove(path, random_):
  del random_
  path.unlink()


def empty(path, random_):
  del random_
  shutil.rmtree(path.parent)
  path.parent.mkdir()


DAMAGES = [flip, flip, zero, truncate, remove, empty]


def damaged_runs(saved, tmp_path, seeds):
  """Damages the newest checkpoint once per seed, and restores."""
  whole, states = saved
  outcomes = set()
  for seed in seeds:
    random_ = random.Random(seed)
    workdir = tmp_path / str(seed)
    shutil.copytree(whole, workdir)
    newest = workdir / 'checkpoints/00000003'
    files = sorted(p for p in newest.rglob('*') if p.is_file())
    damage, path = random_.choice(DAMAGES), random_.choice(files)
    damage(path, random_)
    step, state, seen = restored(workdir)
    # The newest one where the damage was in nothing that matters.
    assert step in (2, 3) and equal(state, states[step]), (damage, path)
    assert seen['problems'][-1] == step, (damage, path)
    assert newest.exists() == (step == 3), (damage, path)
    outcomes.add(step)
    shutil.rmtree(workdir)
  return outcomes


def test_a_damaged_checkpoint_is_never_taken(saved, tmp_path):
  assert damaged_runs(saved, tmp_path, range(25)) >= {2}


@pytest.mark.slow
def test_no_damage_of_300_is_taken(saved, tmp_path):
  assert damaged_runs(saved, tmp_path, range(1000, 1300)) == {2, 3}


def test_what_is_damaged_is_named_and_kept(saved, workdir, capsys):
  flip_in_arrays(workdir)
  step, state, _ = restored(workdir)
  assert step == 2 and equal(state, saved[1][2])
  said = capsys.readouterr().out
  assert 'checkpoints/00000003 is damaged' in said
  assert 'checkpoints_bad/00000003.0' in said
  assert (workdir / 'checkpoints_bad/00000003.0/state').exists()


@pytest.mark.parametrize('where', ['.', 'state', 'host'])
def test_a_save_without_its_marker_does_not_count(workdir, where):
  (workdir / 'checkpoints/00000003' / where / 'commit_success.txt').unlink()
  assert lib.steps(workdir) == [1, 2]
  assert restored(workdir)[0] == 2


def test_a_changed_curriculum_is_found(workdir):
  path = workdir / 'checkpoints/00000003/host/metadata'
  path.write_text(path.read_text().replace('problems', 'problens'))
  assert restored(workdir)[0] == 2


def test_when_all_are_damaged_the_run_stops(workdir):
  for path in (workdir / 'checkpoints').iterdir():
    (path / 'host/metadata').write_text('{}')
  with pytest.raises(InputError, match='none of its 3 checkpoints can be read'):
    restored(workdir)


def test_damage_in_what_another_run_reads(saved, workdir):
  abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      make_state().params)
  assert lib.restore_params(workdir, 0, abstract)[0] == 3
  flip_in_arrays(workdir)
  step, params = lib.restore_params(workdir, 0, abstract)
  assert step == 2 and equal(params, saved[1][2].params)
  with pytest.raises(InputError, match='00000003: damaged .*another step of'):
    lib.restore_params(workdir, 3, abstract)
  assert lib.steps(workdir) == [1, 2, 3]  # another run's folder stays as it is


def test_other_shapes_are_named(workdir):
  with pytest.raises(
      InputError, match=r'params\.layers\.kernel is float32\[16,24\], wanted '
      r'float32\[16,32\]'):
    restored(workdir, width=32)
  assert lib.steps(workdir) == [1, 2, 3]


def test_the_newest_and_every_so_many_are_kept(tmp_path):
  cfg = config_lib.Checkpoint(every=1, keep=2, keep_every=3)
  checkpoints = lib.Checkpoints(tmp_path, cfg)
  for step in range(1, 9):
    checkpoints.save(step, make_state(seed=step))
  checkpoints.close()
  assert lib.steps(tmp_path) == [3, 6, 7, 8]


def test_a_save_that_fails_is_tried_again(tmp_path, monkeypatch, capsys):
  checkpoints, state = lib.Checkpoints(tmp_path, CFG), make_state()
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints, '_open', lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a bug is none of storage's
      checkpoints.save(1, state)

    def away():
      raise ConnectionError('503')

    patch.setattr(checkpoints, '_open', away)
    checkpoints.save(1, state)
    assert 'the next step tries again' in capsys.readouterr().out
    with pytest.raises(StartAgain):
      checkpoints.save(2, state)
  checkpoints.save(3, state)
  checkpoints.close()
  assert lib.steps(tmp_path) == [3]


def test_what_a_checkpoint_says_of_itself(workdir):
  stored = json.loads(
      (workdir / 'checkpoints/00000003/host/metadata').read_text())
  assert json.loads(stored['text'])['versions'].keys() >= {'jax', 'exprl_jax'}


@pytest.mark.parametrize(
    'error, code',
    [(StartAgain('x'), 42), (InputError('x'), 2), (ConnectionError('x'), 42),
     (OSError(28, 'No space left on device'), 2), (OSError(30, 'ro'), 2),
     (OSError(5, 'io'), 42), (PermissionError(13, 'x'), 2), (KeyError('x'), 1),
     (jax.errors.JaxRuntimeError('UNAVAILABLE: device lost'), 42),
     (ValueError('NOT_FOUND: Error opening: UNAVAILABLE: bucket'), 42),
     (ValueError('PERMISSION_DENIED: Error opening'), 2),
     (OSError('Forbidden: b/bucket/o'), 2),
     (aiohttp.ClientPayloadError('cut'), 42),
     (aiohttp.ServerDisconnectedError(), 42), (aiohttp.InvalidURL('x'), 1),
     (requests.exceptions.ProxyError('502'), 42),
     (requests.exceptions.ReadTimeout(), 42),
     (google.auth.exceptions.TransportError('metadata'), 42),
     (ValueError('shapes differ'), 1), (ZeroDivisionError(), 1)], ids=str)
def test_exit_codes(error, code):
  assert failures.exit_code(error) == code
