"""Trackers: what the packages themselves read back, offline."""

import pytest

from exprl_jax.config import Log
from exprl_jax.runtime import trackers
from exprl_jax.types import InputError
from tests.test_judge_run import frozen
from tests.test_train import GROUPS, run

TRAINED = [
    '--config.steps=2', '--config.eval.problems=', '--config.checkpoint.every=1'
]


def train(workdir, name, *flags):
  """Rows of a run with a tracker."""
  return run('tiny:grpo', workdir, *GROUPS, *TRAINED,
             f'--config.log.trackers=({name!r},)', *flags)


def test_tensorboard_has_scalars_config_samples_and_report(tmp_path):
  pytest.importorskip('tensorboardX')
  event_file = pytest.importorskip('tensorboard.backend.event_processing.'
                                   'event_accumulator')
  rows = train(tmp_path, 'tensorboard', '--config.steps=1')
  rows = train(tmp_path, 'tensorboard')  # resumed
  events = event_file.EventAccumulator(str(tmp_path / 'tensorboard'))
  events.Reload()
  for key in ('reward/mean', 'time/rollout'):
    found = [(e.step, e.value) for e in events.Scalars(key)]
    wanted = [(r['step'], pytest.approx(r[key])) for r in rows if key in r]
    assert found == wanted and len(found) == 2
  texts = {
      tag.removesuffix('/text_summary') for tag in events.Tags()['tensors']
  }
  assert texts >= {'config', 'samples', 'report'}


def test_mlflow_has_scalars_config_samples_and_report(tmp_path, monkeypatch):
  mlflow = pytest.importorskip('mlflow')
  monkeypatch.setenv('MLFLOW_TRACKING_URI', f'sqlite:///{tmp_path}/mlflow.db')
  monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', '1')
  monkeypatch.chdir(tmp_path)
  try:
    mlflow.MlflowClient().search_experiments()
  except Exception:  # mlflow-skinny has no data base
    monkeypatch.setenv('MLFLOW_TRACKING_URI', f'file:{tmp_path}/mlruns')
  train(tmp_path / 'run', 'mlflow', '--config.steps=1')
  rows = train(tmp_path / 'run', 'mlflow')
  client = mlflow.MlflowClient()
  experiment = client.get_experiment_by_name('exprl_jax')
  (found,) = client.search_runs([experiment.experiment_id])
  history = client.get_metric_history(found.info.run_id, 'reward/mean')
  assert [(m.step, m.value) for m in history
         ] == [(r['step'], pytest.approx(r['reward/mean'])) for r in rows]
  assert found.data.params['rollout.group_size'] == '4'
  assert {f.path for f in client.list_artifacts(found.info.run_id)
         } >= {'report.html', 'samples.json'}
  assert found.info.status == 'FINISHED'


def test_wandb_writes_offline_what_it_would_send(tmp_path, monkeypatch):
  pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  train(tmp_path, 'wandb', '--config.eval.problems=asset:tiny_problems/'
        'test.jsonl')
  (file,) = (tmp_path / 'wandb').glob('offline-run-*/run-*.wandb')
  data = file.read_bytes()
  for text in (b'reward/mean', b'rollout.group_size', b'report.html'):
    assert text in data
  # Before the first step, and behind the samples of the last one.
  assert data.count(b'eval/truncated_frac') >= 2


def test_a_tracker_that_cannot_start_is_an_error_of_the_config(
    tmp_path, monkeypatch):

  def fail(*args):
    raise OSError('no key')

  kind = trackers.TRACKERS['wandb']._replace(make=fail)
  monkeypatch.setitem(trackers.TRACKERS, 'wandb', kind)
  with pytest.raises(InputError, match=r'wandb cannot start \(OSError: no key'):
    trackers.start(['wandb'], tmp_path, {}, 0)


class Failing:

  def __getattr__(self, name):

    def fail(*args):
      raise OSError('no route')

    return fail


def test_a_tracker_that_fails_is_left_out_and_said_once(capsys, tmp_path):
  trackers._open['wandb'] = Failing()
  trackers.scalars(1, {'a/b': 1.0})
  trackers.scalars(2, {'a/b': 1.0})
  said = capsys.readouterr().err
  assert said.count('wandb is not written any more: OSError: no route') == 1


def test_names_are_checked_before_the_run(monkeypatch):
  assert Log().trackers == ()
  with pytest.raises(InputError, match='log.trackers'):
    frozen('--config.log.trackers=("tensorbord",)')
  monkeypatch.setattr(trackers.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match='pip install -e ".\\[mlflow\\]"'):
    frozen('--config.log.trackers=("mlflow",)')
