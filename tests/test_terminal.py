"""What a run shows in terminals of several widths, and in a pipe."""

import re
import subprocess
import sys

import pytest

from exprl_jax import report
from tests import terminal

TABLE = [['held-out', 'pass@1 before', 'after'], ['tiny', '0.01', '0.85 [1]'],
         ['compared', '', '0.02']]


def test_a_table_by_hand():
  assert report.as_text(TABLE, 60).split('\n') == [
      'held-out  pass@1 before  after', 'tiny      0.01           0.85 [1]',
      'compared                 0.02'
  ]
  assert report.as_text(TABLE, 30).split('\n') == [
      'held-out', 'tiny', '  pass@1 before  0.01', '  after          0.85 [1]',
      'compared', '  after          0.02'
  ]


def command(workdir):
  return [
      sys.executable, '-m', 'exprl_jax.main', '--config=configs/tiny.py',
      f'--workdir={workdir}', '--config.steps=2', '--config.eval.limit=8',
      '--config.eval.samples=2', '--config.eval.ks=(1,2)', '--config.compare=',
      '--config.eval.every=0', '--config.checkpoint.every=0'
  ]


@pytest.mark.slow
@pytest.mark.parametrize('columns', [60, 100, 200])
def test_a_run_in_a_terminal(tmp_path, columns):
  """Phases follow one another in the last line; what is printed stays."""
  screens, code = terminal.capture(columns, command(tmp_path))
  assert code == 0
  live = [lines[-1] for lines in screens[:-1] if '/2 [' in lines[-1]]
  shown = [re.match(r'\w+', line).group() for line in live if line[0] > ' ']
  order = [name for i, name in enumerate(shown) if name not in shown[:i]]
  wanted = ['evaluation', 'rollout', 'judging', 'log', 'update']
  wanted = [name[:9] if columns < 110 else name for name in wanted]
  # A phase of milliseconds may fall between two screens.
  assert [name for name in wanted if name in order
         ] == [name for name in order if name in wanted] and len(order) >= 3
  curves = re.compile(r'reward [▁-█]+ \d\.\d+, accuracy [▁-█]+ \d\.\d+')
  assert any(curves.search(line) for line in live), live
  final = '\n'.join(screens[-1])
  assert not re.search(r'\d%\|', final), final
  for text in ('judge check: ', 'step     0  eval', 'step     1  reward',
               'step     2  eval', 'held-out problems', 'report '):
    assert re.search(f'^{text}', final, re.MULTILINE), final


@pytest.mark.slow
def test_a_run_in_a_pipe(tmp_path):
  """Lines, and nothing that moves the cursor."""
  run = subprocess.run(command(tmp_path), capture_output=True, check=True)
  for said in (run.stdout, run.stderr):
    assert not re.search(rb'[\r\x1b]|\d%\|', said), said
  lines = run.stdout.decode().split('\n')
  assert sum(line.startswith('step ') for line in lines) == 3
