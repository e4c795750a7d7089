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
  """One run on a disk that grows: each time it gets a little further.

  It ends in the first evaluation, in a step, and in the first, second and third
  checkpoint.
  """
  sizes = ['24k', '128k', '2m', '4m', '7m', '64m']
  disk, cache = tmp_path / 'disk', tmp_path / 'cache'
  disk.mkdir()
  run = lambda workdir, name: (f'{command(workdir, cache)} > {tmp_path}/{name} '
                               '2>&1 && code=0 || code=$?\n')
  lines = [run(tmp_path / 'whole', 'whole.txt'), f'mount -t tmpfs none {disk}']
  for size in sizes:
    lines += [
        f'mount -o remount,size={size} {disk}',
        run(disk / 'run', size), 'echo $code '
        f"$(ls {disk}/run/checkpoints | grep -c '^[0-9]*$')"
    ]
  lines.append(f'cp -r {disk}/run {tmp_path}/run')
  code, said = in_namespace('\n'.join(lines))
  assert code == 0, said
  ends = [
      tuple(map(int, line.split()))
      for line in said.splitlines()
      if line[0].isdigit()
  ]
  assert [code for code, _ in ends] == [2] * 5 + [0], said
  assert [saved for _, saved in ends] == [0, 0, 0, 1, 2, 2]
  for size in sizes[:-1]:
    (line,) = (line for line in (tmp_path / size).read_text().splitlines()
               if line.startswith('error: '))
    assert f'{disk}/run/' in line and 'make space' in line
  assert checkpoints.steps(tmp_path / 'run') == [2, 3]
  assert result(tmp_path / 'run') == result(tmp_path / 'whole')
