"""run='export' from checkpoints of a run, and from model directories."""

import shutil

import jax
import numpy as np
import pytest

from exprl_jax import main
from exprl_jax.models import hf
from exprl_jax.types import InputError
from tests.conftest import POLICY
from tests.test_train import GROUPS, run


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run of three steps with a checkpoint of each, on eight devices."""
  folder = tmp_path_factory.mktemp('run')
  run('tiny:grpo', folder, '--config.checkpoint.every=1',
      '--config.checkpoint.keep=3', '--config.mesh.data=1',
      '--config.mesh.fsdp=4', '--config.mesh.tensor=2',
      '--config.mesh.rollout_tensor=1', *GROUPS)
  return folder


def export(source, out, *flags):
  main.main([
      '--config=configs/export.py', f'--config.policy.init={source}',
      f'--config.export.out={out}', *flags
  ])
  return out


def test_the_newest_checkpoint_is_the_trained_model(workdir, tmp_path,
                                                    one_device, capsys):
  out = export(workdir, tmp_path / 'out', '--config.export.dtype=float32')
  assert f'step 3 -> {out}, float32' in capsys.readouterr().out
  assert (out / 'model.safetensors').read_bytes() == (
      workdir / 'model/model.safetensors').read_bytes()
  for file in ('tokenizer.json', 'tokenizer_config.json',
               'chat_template.jinja'):
    assert (out / file).read_bytes() == (POLICY / file).read_bytes()


def test_an_earlier_step_differs(workdir, tmp_path, one_device):
  steps = [
      hf.load(
          export(workdir, tmp_path / str(i), '--config.export.step='
                 f'{i}', '--config.export.dtype=float32'),
          one_device)[1]['embedding'] for i in (1, 3)
  ]
  difference = np.abs(steps[0] - steps[1]).max()
  assert 0 < difference < 0.1


def test_bfloat16_is_the_default_and_a_model_may_be_exported(
    tmp_path, one_device, policy):
  out = export('asset:tiny_policy', tmp_path / 'out')
  loaded = hf.load(out, one_device)[1]
  jax.tree.map(
      lambda a, b: np.testing.assert_array_equal(
          a,
          b.astype('bfloat16').astype('float32')), loaded, policy[1])


def test_mistakes_are_named(workdir, tmp_path):
  with pytest.raises(InputError, match='no checkpoint of step 7; it has 1, 2'):
    export(workdir, tmp_path / 'out', '--config.export.step=7')
  with pytest.raises(InputError, match='export.step=2, but .* no checkpoints'):
    export(POLICY, tmp_path / 'out', '--config.export.step=2')
  with pytest.raises(InputError, match='is not empty'):
    export(workdir, workdir)
  with pytest.raises(InputError, match='nowhere: no config.json'):
    export(tmp_path / 'nowhere', tmp_path / 'out')
  broken = shutil.copytree(workdir, tmp_path / 'broken')
  shutil.rmtree(broken / 'checkpoints/00000003/state/d')
  with pytest.raises(InputError, match='00000003'):
    export(broken, tmp_path / 'out')
