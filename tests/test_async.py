"""rollout.source='async': sampling one step ahead, on devices of its own."""

import json
import signal

import jax
import numpy as np
import pytest

from exprl_jax import main
from exprl_jax.models import transformer
from exprl_jax.planning import compiled, memory
from exprl_jax.planning import plan as plan_lib
from exprl_jax.rollout import decode
from exprl_jax.runs import recipes, traces
from exprl_jax.runtime import checkpoints, metrics, stopping, watchdog
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError
from tests.test_stopping import _signals as _signals
from tests.test_stopping import stop_in
from tests.test_train import GROUPS, SHORT, without_times

ASYNC = ['--config.rollout.source=async', '--config.mesh.sampling_devices=4']
FLAGS = ['--config=configs/tiny.py:grpo', *SHORT, *GROUPS, '--config.compare=']
FROZEN = ['--config.optim.lr=0.0', '--config.eval.problems=']
FAST = ['--config.optim.lr=0.01', '--config.eval.problems=']


def run(workdir, *flags):
  """Metrics of a run that ended well."""
  assert main.command([*FLAGS, f'--workdir={workdir}', *flags]) == 0
  return metrics.read(workdir / 'metrics.jsonl')


def completions(workdir, step):
  return [
      traces.trajectory(row, []).completion.tolist()
      for row in traces.trained(workdir, step)
  ]


def config_of(*flags):
  _, values, _ = main.parse(['--config=configs/tiny.py', *flags])
  return recipes.freeze(values)


def test_each_step_samples_with_the_parameters_before_the_last_update(tmp_path):
  """Of a policy that does not change, all samples are those of synchronous
  rollouts; of one that does, those of the first two steps are."""
  same = [
      run(tmp_path / 'sync', *FROZEN),
      run(tmp_path / 'async', *FROZEN, *ASYNC)
  ]
  moves = run(tmp_path / 'moves', *FAST, *ASYNC)
  still = [tmp_path / 'sync', tmp_path / 'async']
  for step in (1, 2, 3):
    wanted, got = (completions(folder, step) for folder in still)
    assert wanted == got
    assert (completions(tmp_path / 'moves', step) == wanted) == (step < 3)
  # Sampler and learner differ by an update, from the second step on.
  assert [r['rollout/staleness'] for r in moves if 'policy/loss' in r
         ] == [0, 1, 1]
  gap = [r['mismatch/kl'] for r in moves if 'policy/loss' in r]
  assert max(abs(gap[0]), 1e-5) * 10 < min(gap[1:])
  scores = [
      [r['reward/mean'] for r in rows if 'reward/mean' in r] for rows in same
  ]
  np.testing.assert_allclose(*scores, atol=1e-4)


@pytest.mark.slow
def test_resumed_is_uninterrupted(tmp_path):
  """Also with evaluations, which wait for the rollout ahead."""
  flags = [*ASYNC, '--config.checkpoint.every=1', '--config.eval.every=1']
  want = run(tmp_path / 'whole', *flags)
  text = (tmp_path / 'whole/checkpoints/00000002/host/metadata').read_text()
  ahead = json.loads(json.loads(text)['text'])['host']['source'][1]
  assert len(ahead) == 8 and all(len(samples) == 4 for *_, samples in ahead)
  run(tmp_path / 'parts', *flags, '--config.steps=2')
  got = run(tmp_path / 'parts', *flags)
  # The last step of the first part had nothing ahead: it went on on policy.
  assert len(without_times(got)) == len(without_times(want))
  path = tmp_path / 'stopped'
  assert main.command([*FLAGS, f'--workdir={path}', *flags,
                       '--deadline=1s']) == 42
  assert checkpoints.steps(path) == [1]
  stopping._process.reset()
  assert without_times(run(path, *flags)) == without_times(want)


def test_a_stopped_run_gives_up_what_is_ahead(tmp_path, monkeypatch):
  """The next step samples again, with the parameters that were saved."""
  flags = [*ASYNC, '--config.checkpoint.grace_s=60', '--config.eval.problems=']
  with monkeypatch.context() as patch:
    patch.setattr(watchdog, 'beat', stop_in('judging', 2, signal.SIGTERM))
    patch.setattr(stopping.Steps, 'remaining', lambda _: 0.0)
    patch.setattr(stopping, '_exit', lambda line: None)
    assert main.command([*FLAGS, f'--workdir={tmp_path}', *flags]) == 42
  assert checkpoints.steps(tmp_path) == [2]
  stopping._process.reset()
  rows = run(tmp_path, *flags)
  assert [r['rollout/staleness'] for r in rows] == [0, 1, 0]


@pytest.mark.parametrize('lora', [False, True])
def test_parameters_are_sent_to_the_devices_that_sample(small, lora):
  model, params = small
  config = config_of(*ASYNC, '--config.mesh.data=1', '--config.mesh.fsdp=4',
                     '--config.mesh.rollout_tensor=2')
  meshes = mesh_lib.meshes(config)
  assert meshes.split and len(meshes.devices) == 8
  assert meshes.judge.devices.size == 4 and meshes.sample.shape['tensor'] == 2
  held = jax.device_put(
      params,
      mesh_lib.shardings(transformer.logical_axes(model), params, meshes.train))
  if lora:
    held = held | {'layers': dict(held['layers'])}
  sent = decode.prepare(model, held, meshes.sample)
  devices = set(meshes.sample.devices.flat)
  for x, y in zip(jax.tree.leaves(held), jax.tree.leaves(sent)):
    assert y.sharding.device_set == devices
    np.testing.assert_array_equal(np.asarray(x).astype(y.dtype), y)


def test_the_account_tells_the_devices_apart():
  config = config_of(*ASYNC)
  meshes = mesh_lib.meshes(config)
  kept = memory.owners(config, meshes)
  assert 'rollout' not in kept['policy'][1] + kept['moments'][1]
  assert kept['sampling copy'][1] == ('copy', 'rollout')
  assert kept['sampling copy'][0], 'other devices: always a copy'


@pytest.mark.slow
def test_a_plan_takes_the_longer_of_rollout_and_the_rest():
  made = plan_lib.make(config_of(*ASYNC), jax.devices(), compiled.Compiler())
  assert {'policy/decode', 'judge/decode',
          'learner/gradient'} <= set(made.weights)
  phases = made.seconds()
  assert made.step_seconds() == max(phases['rollout'],
                                    sum(phases.values()) - phases['rollout'])


@pytest.mark.parametrize('flags, message', [
    (['--config.rollout.partial_rollouts=2'
     ], 'needs rollout.partial_rollouts=0'),
    (['--config.loss.tis_cap=0.0'], 'one step off policy'),
    (['--config.judge.overlap=True'], 'needs judge.overlap=False'),
    (['--config.select.drop_zero_variance=True'], 'drop_zero_variance=False'),
    (['--config.rollout.source=sync'], "needs rollout.source='async'"),
])
def test_what_does_not_go_together_is_said(flags, message):
  with pytest.raises(InputError, match=message):
    config_of(*ASYNC, *flags)


def test_other_run_modes_have_all_devices():
  config = config_of('--config.rollout.source=async', '--config.run=sft')
  assert not mesh_lib.meshes(config).split


def test_one_device_cannot_be_split():
  config = config_of('--config.rollout.source=async')
  with pytest.raises(InputError, match='of 1 devices 0 cannot sample'):
    mesh_lib.meshes(config, jax.devices()[:1])
