"""A run that is asked to stop saves, exits with 42, and goes on as if nothing
had happened."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from exprl_jax import main
from exprl_jax.runtime import (
    checkpoints,
    files,
    lock,
    metrics,
    stopping,
    watchdog,
)
from exprl_jax.types import InputError
from tests.test_train import GROUPS, SHORT, without_times

FLAGS = ['--config=configs/tiny.py', *SHORT, *GROUPS, '--config.compare=']


@pytest.fixture(autouse=True)
def _signals():
  """The handlers and the state of the process, as they were."""
  before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)
  stopping._process.reset()
  watchdog.limit(0)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(rows, weights) of a run that nobody stopped."""
  folder = tmp_path_factory.mktemp('whole')
  assert main.command([*FLAGS, f'--workdir={folder}']) == 0
  return result(folder)


def result(folder):
  return (without_times(metrics.read(folder / 'metrics.jsonl')),
          (folder / 'model/model.safetensors').read_bytes())


def stop_in(phase, count=1, number=signal.SIGTERM):
  """Sends a signal when a phase begins for the `count`-th time."""
  seen, real = [], watchdog.beat

  def beat(name):
    real(name)
    if name == phase:
      seen.append(name)
      if len(seen) == count:
        os.kill(os.getpid(), number)
        time.sleep(0.01)  # the handler runs between two instructions

  return beat


PHASES = [
    pytest.param('judging', 2, 1, marks=pytest.mark.slow), ('update', 3, 2),
    pytest.param('rollout', 2, 1, marks=pytest.mark.slow),
    pytest.param('log-probabilities', 2, 1, marks=pytest.mark.slow)
]


@pytest.mark.parametrize('phase, count, step', PHASES)
def test_a_step_is_abandoned_and_repeated(tmp_path, monkeypatch, whole, capfd,
                                          phase, count, step):
  flags = [*FLAGS, f'--workdir={tmp_path}', '--config.checkpoint.grace_s=3']
  with monkeypatch.context() as patch:
    patch.setattr(watchdog, 'beat', stop_in(phase, count))
    # No time for another step: the grace period counts as nearly over.
    patch.setattr(stopping.Steps, 'remaining', lambda _: 1e9)
    patch.setattr(stopping, '_exit', lambda line: None)
    assert main.command(flags) == 42
  said = capfd.readouterr()
  assert f'stopped by SIGTERM in {phase}' in said.err
  assert f'saved step {step}' in said.out
  assert checkpoints.steps(tmp_path) == [step]
  stopping._process.reset()
  assert main.command(flags) == 0
  assert result(tmp_path) == whole


# A program being compiled before weights are read, and before the first step; a
# checkpoint being saved: by the first files of each.
MOMENTS = ['cache/*', 'run/config.json', 'run/checkpoints/*tmp*']


@pytest.mark.slow
@pytest.mark.parametrize('sign', MOMENTS)
def test_a_process_that_compiles_or_saves_loses_nothing(tmp_path, whole, sign):
  command = [
      sys.executable, '-m', 'exprl_jax.main', *FLAGS,
      f'--workdir={tmp_path}/run', f'--config.compile_cache={tmp_path}/cache',
      '--config.checkpoint.every=1'
  ]
  devices = os.environ | {'JAX_NUM_CPU_DEVICES': '8'}  # as this process
  child = subprocess.Popen(command, env=devices, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)
  while not any(tmp_path.glob(sign)):
    assert child.poll() is None, child.communicate()[0]
    time.sleep(0.001)
  child.send_signal(signal.SIGTERM)
  said = child.communicate()[0]
  assert child.returncode == 42, said
  assert 'stopped by SIGTERM' in said.splitlines()[-1]
  rows = len(metrics.read(tmp_path / 'run/metrics.jsonl'))
  saved = checkpoints.steps(tmp_path / 'run')
  assert saved[-1:] == ([rows - 1] if 'tmp' in sign else [])
  done = subprocess.run(command, env=devices, stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT, text=True, check=False)
  assert done.returncode == 0, done.stdout
  assert result(tmp_path / 'run') == whole


def test_where_there_is_time_the_step_is_finished(tmp_path, monkeypatch, whole):
  flags = [*FLAGS, f'--workdir={tmp_path}', '--config.checkpoint.grace_s=600']
  with monkeypatch.context() as patch:
    patch.setattr(watchdog, 'beat', stop_in('judging', 2, signal.SIGINT))
    assert main.command(flags) == 42
  assert checkpoints.steps(tmp_path) == [2]
  stopping._process.reset()
  assert main.command([*flags, '--resume=always']) == 0
  assert result(tmp_path) == whole


def test_before_training_a_signal_ends_the_run_at_once(tmp_path, monkeypatch):
  monkeypatch.setattr(watchdog, 'limit',
                      lambda _: os.kill(os.getpid(), signal.SIGTERM))
  assert main.command([*FLAGS, f'--workdir={tmp_path}/w']) == 42
  assert not (tmp_path / 'w').exists()


def test_deadlines(tmp_path):
  assert [stopping.seconds(t) for t in ('600', '90s', '1.5m', '3h', '1d')
         ] == [600, 90, 90, 10800, 86400]
  for text in ('', 'soon', '-3h', '0', '3w', 'nan', 'inf'):
    with pytest.raises(InputError, match='--deadline'):
      stopping.seconds(text)
  flags = [*FLAGS, f'--workdir={tmp_path}', '--deadline=1s']
  assert main.command(flags) == 42
  assert checkpoints.steps(tmp_path) == [1]


def test_resume_says_what_to_expect(tmp_path, capsys):
  flags = [*FLAGS, f'--workdir={tmp_path}']
  assert main.command([*flags, '--resume=always']) == 2
  assert 'has no checkpoint' in capsys.readouterr().err
  (tmp_path / 'config.json').write_text('{}')
  assert main.command([*flags, '--resume=never']) == 2
  assert 'holds a run' in capsys.readouterr().err


HANG = """
import sys, threading, time
from exprl_jax.runtime import watchdog
watchdog.limit(0.3 / 60)
watchdog.start()
for _ in range(10):
  watchdog.beat('rollout')
  time.sleep(0.1)
watchdog.beat('judging')
time.sleep(60)
"""


def test_a_run_that_hangs_is_ended_with_its_stacks():
  done = subprocess.run([sys.executable, '-c', HANG], capture_output=True,
                        text=True, timeout=60, check=False)
  assert done.returncode == 42
  assert 'without progress in judging' in done.stderr
  assert '<module>' in done.stderr  # a stack


SIGNALS = """
import os, signal, time
from exprl_jax.runtime import stopping
stopping.install()
with stopping.training({grace}):
  print('ready', flush=True)
  while True:
    time.sleep(0.05)
"""


def test_sigterm_to_pid_1(tmp_path):
  """The kernel drops signals to PID 1 that it has no handler for."""
  unshare = ['unshare', '--fork', '--pid', '--map-root-user']
  try:
    if subprocess.run([*unshare, 'true'], check=False).returncode:
      pytest.skip('this kernel allows no PID namespaces')
  except FileNotFoundError:
    pytest.skip('there is no unshare(1)')
  script = tmp_path / 'pid1.py'
  script.write_text(
      SIGNALS.format(grace=3) + '    stopping.poll(f"as PID {os.getpid()}")\n')
  child = subprocess.Popen([*unshare, sys.executable, script],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True)
  with child.stdout, child.stderr:
    assert child.stdout.readline() == 'ready\n'
    (pid,) = (int(p.parent.name)
              for p in pathlib.Path('/proc').glob('[0-9]*/cmdline')
              if p.read_bytes().endswith(f'{script}\0'.encode())
              and b'unshare' not in p.read_bytes())
    os.kill(pid, signal.SIGTERM)
    assert 'Abandoned: stopped by SIGTERM in as PID 1' in child.stderr.read()
  child.wait()


@pytest.mark.parametrize('grace, signals, words', [(600, 2, 'SIGTERM again'),
                                                   (3, 1, 'grace period')])
def test_a_second_signal_and_the_grace_period_exit_at_once(
    grace, signals, words):
  child = subprocess.Popen(
      [sys.executable, '-c', SIGNALS.format(grace=grace)],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  killer = threading.Timer(60, child.kill)
  killer.start()
  assert child.stdout.readline() == 'ready\n'
  for _ in range(signals):
    child.send_signal(signal.SIGTERM)
    time.sleep(0.3)
  _, said = child.communicate()
  killer.cancel()
  assert child.returncode == 42 and words in said


def test_a_second_run_in_a_workdir_is_refused(tmp_path, capsys):
  flags = [*FLAGS, f'--workdir={tmp_path}/w']
  with lock.Lock(tmp_path / 'w'):
    assert main.command(flags) == 2
  said = capsys.readouterr().err
  assert 'another run is at work in it' in said and str(os.getpid()) in said


def test_a_lock_ends_with_its_process(tmp_path):
  code = ('import sys, time; from exprl_jax.runtime import lock\n'
          'held = lock.Lock(sys.argv[1]); held.take()\n'
          'print("has it", flush=True); time.sleep(60)')
  child = subprocess.Popen(
      [sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE,
      text=True)
  with child.stdout:
    assert child.stdout.readline() == 'has it\n'
    with pytest.raises(InputError, match=f'"pid": {child.pid}'):
      lock.Lock(tmp_path).take()
    child.kill()
    child.wait()
  with lock.Lock(tmp_path):
    pass


def test_a_lock_in_a_bucket_is_of_who_renews_it(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, '_BEAT', 0.05)
  monkeypatch.setattr(lock, '_DEAD', 0.5)
  monkeypatch.setattr(files, 'is_remote', lambda _: True)
  first, second = lock.Lock(tmp_path), lock.Lock(tmp_path)
  first.take()
  with pytest.raises(InputError, match='another run'):
    second.take()
  first.release()
  assert not (tmp_path / '.lock').exists()
  # A process that died leaves the object, and nobody renews it.
  (tmp_path / '.lock').write_text('{"host": "gone"}')
  with second:
    assert 'gone' not in (tmp_path / '.lock').read_text()
