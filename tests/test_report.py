"""report.html: what is in it, and what a browser makes of it."""

import html
import json
import re
import shutil
import subprocess

import pytest

from exprl_jax import config as config_lib
from exprl_jax import main, report
from exprl_jax.report import Result, page, panels, traces
from exprl_jax.runtime import lock, starts
from exprl_jax.runtime import workdir as workdir_lib
from exprl_jax.types import InputError

HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202e'
CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')


def rows(seed):
  """Metrics of ten steps, with evaluations."""
  return [{
      'step': step, 'reward/mean': step / 10, 'reward/accuracy': step / 20,
      'optim/grad_norm': 1.0 + seed, 'time/rollout': 2.0, 'time/update': 1.0,
      'judge/hacking_alarm': 0.0
  } | ({
      'eval/pass@1': step / 10, 'eval/pass@1_low': step / 20,
      'eval/pass@1_high': step / 5, 'eval/truncated_frac': 0.0
  } if step % 5 == 0 else {}) for step in range(11)]  # yapf: disable


def sample(i, correct):
  return {
      'id': f'p{i}', 'question': f'{HOSTILE} question {i}', 'steps': [
          {'text': f'{HOSTILE} one', 'score': 0.25, 'valid': True,
           'advantage': -0.5},
          {'text': 'two', 'score': 0.1 * i, 'valid': True, 'advantage': 0.7},
      ], 'correct': correct, 'finished': i % 2 == 0
  }  # yapf: disable


@pytest.fixture
def workdir(tmp_path):
  """A run with samples of two steps, and a start."""
  (tmp_path / 'samples').mkdir()
  for step in (1, 10):
    text = '\n'.join(json.dumps(sample(i, bool(i % 2))) for i in range(6))
    (tmp_path / f'samples/{step:08d}.jsonl').write_text(text)
  starts.note(tmp_path)
  return tmp_path


def results(workdir, *titles):
  config = config_lib.Config(eval=config_lib.Eval(ks=(1,)))
  return [
      Result(title,
             config if i == 0 else config_lib.Config(seed=i, eval=config.eval),
             workdir, rows(i)) for i, title in enumerate(titles)
  ]


def written(workdir, *titles):
  path = workdir / 'report.html'
  page.write(path, results(workdir, *titles))
  return path.read_text()


def embedded(text, name):
  """The JSON of a script element."""
  found = re.search(rf'id="{name}">(.*?)</script>', text, re.S)
  return json.loads(found[1])


def test_curves_are_those_of_the_metrics(workdir):
  figures = {
      f['title']: f for f in panels.figures(results(workdir, 'tiny, seed 0'))
  }
  assert set(figures) == {
      'Held-out pass@1', 'Reward and accuracy on training samples',
      'Gradient norm', 'Seconds of a step'
  }, 'no panel without data, nor of an alarm that never was'
  band, line = figures['Held-out pass@1']['data']
  assert line['x'] == [0, 5, 10] and line['y'] == [0, 0.5, 1.0]
  assert band['y'] == [0, 0.25, 0.5, 2.0, 1.0, 0]


def test_seeds_of_a_recipe_have_a_mean_and_a_range(workdir):
  (figure,) = [
      f for f in panels.figures(
          results(workdir, 'tiny, seed 0', 'tiny, seed 1', 'tiny:grpo, seed 0'))
      if f['title'] == 'Gradient norm'
  ]
  named = {line.get('name'): line for line in figure['data']}
  assert set(named) == {
      'tiny, seed 0', 'tiny, seed 1', 'tiny, mean of 2 seeds', None,
      'tiny:grpo, seed 0'
  }
  assert named['tiny, mean of 2 seeds']['y'] == [1.5] * 11
  assert set(named[None]['y']) == {1.0, 2.0}
  colors = {name: line['line']['color'] for name, line in named.items() if name}
  assert colors['tiny, seed 0'] == colors['tiny, seed 1']
  assert colors['tiny, seed 0'] != colors['tiny:grpo, seed 0']


def test_traces_are_of_some_steps_and_printable(workdir):
  first, last = traces.shown(workdir)
  assert (first['step'], last['step']) == (1, 10)
  trace = last['traces'][3]
  assert trace['score'] == pytest.approx(0.3) and trace['correct'] is True
  assert trace['end'] == 'length' and '\\u202e' in trace['question']
  (workdir / 'samples/00000010.jsonl').write_bytes(b'\x00torn')
  assert [s['step'] for s in traces.shown(workdir)] == [1]


def test_no_text_of_a_model_is_code(workdir):
  text = written(workdir, f'{HOSTILE}, seed 0')
  assert text.count('<script') == 4, 'two of data, two of code'
  assert '<img' not in text and HOSTILE not in text
  assert embedded(
      text, 'traces-data')[0]['traces'][0]['question'].startswith('</script>')
  policy = html.unescape(
      re.search(r'Security-Policy" content="(.*?)"', text)[1])
  assert "default-src 'none'" in policy and 'unsafe-eval' not in policy
  assert policy.count("'sha256-") == 2


def test_it_says_how_the_runs_were_made_and_differ(workdir):
  text = written(workdir, 'a, seed 0', 'b, seed 1')
  assert page.differences(results(workdir, 'a', 'b')) == [['seed', '0', '1']]
  start = starts.read(workdir)[0]
  assert start['jax'] and 'cpu' in start['devices']
  for value in (start['command'], start['started'], str(workdir)):
    assert html.escape(value) in text


def test_the_table_takes_runs_with_other_ks(workdir):
  one, two = results(workdir, 'a', 'b')
  two = two._replace(rows=[{'step': 0, 'eval/truncated_frac': 0.0}])
  assert report.summary([one, two])[2] == ['b', '', '']


def browse(path, *flags):
  """(standard output, messages of the console) of headless Chromium."""
  done = subprocess.run([
      CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu',
      '--disable-background-networking', '--disable-component-update',
      '--disable-sync', '--no-first-run', '--enable-logging=stderr',
      f'--user-data-dir={path.parent}/browser', '--virtual-time-budget=20000',
      *flags
  ], capture_output=True, text=True, timeout=120)
  return done.stdout, re.findall(r'CONSOLE.*', done.stderr)


@pytest.mark.skipif(not CHROMIUM, reason='needs Chromium')
@pytest.mark.parametrize('fragment, shown', [('', 6),
                                             ('#step=1&answer=true', 3),
                                             ('#text=question 4', 1),
                                             ('#low=0.15&high=0.35', 2),
                                             ('#answer=null', 0)])
def test_a_browser_draws_and_filters(workdir, fragment, shown):
  written(workdir, 'tiny, seed 0', 'tiny:grpo, seed 0')
  path = workdir / 'report.html'
  dom, console = browse(path, '--dump-dom', f'file://{path}{fragment}')
  assert not console
  body = dom[dom.index('<div id="plots"'):dom.index('id="figures-data"')]
  assert body.count('class="drawing') == 4
  assert body.count('class="js-line"') >= 8, 'curves are drawn'
  assert body.count('class="trace"') == shown


def training(folder, seed, steps):
  """A workdir as a run has left it after some steps."""
  config = config_lib.load('tiny')
  config.seed, config.steps, config.eval.ks = seed, 10, (1,)
  workdir_lib.claim(folder, config_lib.freeze(config))
  lines = [json.dumps(row) for row in rows(seed)[:steps + 1]]
  (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  return folder


def test_runs_side_by_side(tmp_path, monkeypatch, capsys):
  """Two seeds of a recipe and a run at work, which keep their folders."""
  runs = [
      training(tmp_path / name, seed, steps)
      for name, seed, steps in (('arm-0', 0, 10), ('arm-1', 1, 10), ('other', 2,
                                                                     3))
  ]
  before = sorted(tmp_path.rglob('*'))
  (tmp_path / 'out').mkdir()
  monkeypatch.chdir(tmp_path / 'out')
  main.main(['--workdir=' + ','.join(map(str, runs)), 'run=report'])
  text = (tmp_path / 'out/report.html').read_text()
  for title in ('arm, seed 0', 'arm, seed 1', 'other, seed 2'):
    assert title in text and title in capsys.readouterr().out + text
  assert 'mean of 2 seeds' in text
  assert [p for p in sorted(tmp_path.rglob('*')) if 'out' not in p.parts
         ] == before
  with pytest.raises(InputError, match='no such file.*holds no run'):
    main.main([f'--workdir={runs[0]},{tmp_path}/none', 'run=report'])


def test_a_run_at_work_has_a_report(tmp_path):
  """Beside its lock, and without a model."""
  folder = training(tmp_path / 'live', 0, 3)
  with lock.Lock(folder):
    main.main([f'--workdir={folder}', 'run=report'])
    assert 'live, seed 0' in (folder / 'report.html').read_text()
  assert not (folder / 'model').exists()
