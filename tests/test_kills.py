"""A run that is killed at any moment ends as one that never was.

  EXPRL_KILLS=100 python -m pytest -n 0 -m slow tests/test_kills.py

kills it 100 times; the number is the seed of the moments, too.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from exprl_jax.runtime import metrics
from tests.test_train import GROUPS, SHORT, without_times

STEPS = 6


def start(workdir, cache):
  return subprocess.Popen([
      sys.executable, '-m', 'exprl_jax.main', '--config=configs/tiny.py',
      *SHORT, *GROUPS, '--config.compare=', f'--config.steps={STEPS}',
      '--config.checkpoint.every=1', f'--config.compile_cache={cache}',
      f'--workdir={workdir}'
  ], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def end(child, *codes):
  """Waits for a process."""
  said = child.communicate()[1]
  assert child.returncode in codes, said


def result(workdir):
  """Rows, weights, and the samples of the last step."""
  return (without_times(metrics.read(workdir / 'metrics.jsonl')),
          (workdir / 'model/model.safetensors').read_bytes(), [
              p.read_bytes()
              for p in sorted((workdir / 'samples').iterdir())
              if p.is_file()
          ])


def kill_and_compare(tmp_path, kills):
  """Kills a run so many times, each time later than its first new row."""
  cache, moments = tmp_path / 'cache', random.Random(kills)
  end(start(tmp_path / 'whole', cache), 0)
  workdir, killed = tmp_path / 'killed', 0
  while killed < kills:
    child = start(workdir, cache)
    # From the first import to the report: most of a run is its start.
    late = moments.uniform(0, 1) < 0.8
    rows = len(metrics.read(workdir / 'metrics.jsonl'))
    while (late and child.poll() is None
           and len(metrics.read(workdir / 'metrics.jsonl')) <= rows):
      time.sleep(0.005)
    time.sleep(moments.uniform(0, 0.4 if late else 5))
    if child.poll() is None:
      child.send_signal(signal.SIGKILL)
      killed += 1
    elif child.returncode == 0:  # done: from the start again
      subprocess.run(['rm', '-r', workdir], check=True)
    end(child, 0, -signal.SIGKILL)
  end(start(workdir, cache), 0)
  assert result(workdir) == result(tmp_path / 'whole')


@pytest.mark.slow
def test_two_kills(tmp_path):
  kill_and_compare(tmp_path, 2)


@pytest.mark.slow
def test_many_kills(tmp_path):
  kill_and_compare(tmp_path, int(os.environ.get('EXPRL_KILLS', '25')))
