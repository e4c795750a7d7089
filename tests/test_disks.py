"""Disks that are full or read-only: real ones, in a mount namespace."""

import shlex
import subprocess
import sys

import pytest

from exprl_jax.runtime import checkpoints, metrics
from tests.test_train import GROUPS, SHORT, without_times

NAMESPACE = ['unshare', '--map-root-user', '--mount', 'sh', '-ec']


def in_namespace(script):
  """Runs a script of sh that may mount; (exit code, what it said)."""
  done = subprocess.run([*NAMESPACE, script], stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT, text=True, timeout=900,
                        check=False)
  return done.returncode, done.stdout


@pytest.fixture(scope='module', autouse=True)
def _namespaces(tmp_path_factory):
  at = tmp_path_factory.mktemp('mount')
  try:
    if in_namespace(f'mount -t tmpfs -o size=64k none {at}')[0]:
      pytest.skip('this kernel allows no mount namespaces')
  except FileNotFoundError:
    pytest.skip('there is no unshare(1)')


def command(workdir, cache):
  return shlex.join([
      sys.executable, '-m', 'exprl_jax.main', '--config=configs/tiny.py',
      *SHORT, *GROUPS, '--config.compare=', '--config.checkpoint.every=1',
      f'--config.compile_cache={cache}', f'--workdir={workdir}'
  ])


def last_line(said):
  return said.splitlines()[-1]


def result(workdir):
  return (without_times(metrics.read(workdir / 'metrics.jsonl')),
          (workdir / 'model/model.safetensors').read_bytes())


@pytest.mark.parametrize('flaw, words', [('ro', 'Read-only file system'),
                                         ('size=4k', 'No space left')])
def test_a_workdir_that_cannot_be_written_is_wrong_input(tmp_path, flaw, words):
  """It is found out before any model is read, and said in one line."""
  workdir = tmp_path / 'disk/run'
  (tmp_path / 'disk').mkdir()
  code, said = in_namespace(f'mount -t tmpfs -o {flaw} none {tmp_path}/disk\n'
                            f'head -c 8k /dev/zero > {tmp_path}/disk/x || :\n'
                            f'exec {command(workdir, "")}')
  assert code == 2, said
  assert last_line(said).startswith(f'error: --workdir={workdir}: ')
  assert words in last_line(said)
  assert 'Traceback' not in said


@pytest.mark.slow
def test_a_run_on_a_full_disk_goes_on_when_there_is_space(tmp_path):
  """It runs on disks of these sizes, one after the other: each time it gets a
  little further."""
  sizes = ['24k', '128k', '2m', '4m', '7m']
  disk, cache = tmp_path / 'disk', tmp_path / 'cache'
  disk.mkdir()
  script = [f'{command(tmp_path / "whole", cache)} > {tmp_path}/whole.txt 2>&1',
            f'mount -t tmpfs none {disk}']
  for i, size in enumerate([*sizes, '64m']):
    script.append(f'mount -o remount,size={size} {disk}\n'
                  f'{command(disk / "run", cache)} > {tmp_path}/{i}.txt 2>&1 '
                  f'&& code=0 || code=$?\n'
                  f'echo {size} $code; du -sk {disk} >> {tmp_path}/{i}.txt')
  script.append(f'cp -r {disk}/run {tmp_path}/run')
  code, said = in_namespace('\n'.join(script))
  print(said)
  assert code == 0, said
  *full, last = [line.split() for line in said.splitlines()]
  assert last == ['64m', '0'], said
  for i, (size, code) in enumerate(full):
    print(size, code, (tmp_path/f'{i}.txt').read_text()[-1500:])
  assert result(tmp_path / 'run') == result(tmp_path / 'whole')
