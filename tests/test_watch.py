"""run='watch', sparklines, and a run that is named by its workdir alone."""

import pytest

from exprl_jax import config as config_lib
from exprl_jax import main
from exprl_jax.runs import watch
from exprl_jax.runtime import metrics, starts
from exprl_jax.runtime import workdir as workdir_lib
from exprl_jax.types import InputError

SECONDS = {'time/update': 1.0, 'time/rollout': 3.0}
ROWS = [{'step': i, 'reward/mean': i / 10, 'reward/accuracy': 0.5, **SECONDS}
        for i in range(1, 11)]


def test_a_sparkline_by_hand():
  assert metrics.sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == '▁▂▃▄▅▆▇█'
  assert metrics.sparkline([1, 1]) == '▁▁' and metrics.sparkline([]) == ''
  assert metrics.sparkline(
      [0, 1, float('nan'), float('nan'), 7, 8], 3) == '▁ █', 'means of two'


@pytest.mark.parametrize('width', [60, 100, 200])
def test_a_frame_fits_the_terminal(width):
  text = watch.frame('runs/a', {'steps': 30},
                     [{'started': 'now', 'devices': '1 x cpu'}], ROWS, width)
  lines = text.split('\n')
  assert max(map(len, lines)) <= width
  assert 'step 10 of 30, 4.00 s a step, 0:01:20 left' in lines
  assert any(x.startswith('reward') and x.endswith('1.000') for x in lines)
  assert 'time      rollout 75%, judge 0%, logprob 0%, update 25%' in lines


def test_a_run_that_has_not_begun_says_so():
  assert 'step 0 of 3: compiling, or loading' in watch.frame(
      'a\x1b[2J', {'steps': 3}, [], [])
  assert '\x1b' not in watch.frame('a\x1b[2J', {'steps': 3}, [], [])


def ended(tmp_path):
  """A workdir as a run leaves it."""
  config = config_lib.freeze(config_lib.load('tiny:sft'))
  workdir_lib.claim(tmp_path, config)
  log = metrics.Log(tmp_path, 10)
  for row in ROWS:
    log.write(row['step'], {k: v for k, v in row.items() if k != 'step'})
  log.close()
  (tmp_path / 'model').mkdir()
  (tmp_path / 'model/config.json').write_text('{}')


def test_the_command_follows_a_workdir(tmp_path, capsys):
  ended(tmp_path)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  main.main([f'--workdir={tmp_path}', 'run=watch'])
  said = capsys.readouterr().out
  assert 'step 10 of ' in said and 'the run has ended' in said
  assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  with pytest.raises(InputError, match='--workdir is missing'):
    main.main(['--config=tiny', 'run=watch'])
  with pytest.raises(InputError, match='no such file; --workdir=.* no run'):
    main.main(['--config=tiny', 'run=watch', f'--workdir={tmp_path}/none'])


def test_a_workdir_names_its_config(tmp_path):
  with pytest.raises(InputError, match='--config=FILE is missing'):
    main.parse([f'--workdir={tmp_path}'])
  ended(tmp_path)
  path, values, _ = main.parse(
      [f'--workdir={tmp_path}', '--config.optim.lr=0.5'])
  config = config_lib.freeze(values)
  want = config_lib.freeze(config_lib.load('tiny:sft'))
  assert path == tmp_path.name and config.optim.lr == 0.5
  assert config.data == want.data and config.eval == want.eval


def test_each_start_is_noted(tmp_path):
  ended(tmp_path)
  workdir_lib.claim(tmp_path, config_lib.freeze(config_lib.load('tiny:sft')))
  assert [s['processes'] for s in starts.read(tmp_path)] == [1, 1]
