"""run='judge', the probes and the monitor, on the shipped judge."""

import json
import shutil

import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax import main
from exprl_jax.data import tiny_world as world
from exprl_jax.evals import judge_check
from exprl_jax.evals.judge_traces import TraceSampler
from exprl_jax.judge import factory, hacking
from exprl_jax.runs import recipes
from exprl_jax.tiny import traces
from exprl_jax.types import InputError, RunFailure


def frozen(*flags):
  return recipes.freeze(main.parse(['--config=configs/judge.py', *flags])[1])


def run(tmp_path, *flags):
  main.main(['--config=configs/judge.py', f'--workdir={tmp_path}', *flags])
  return [
      json.loads(line)
      for line in (tmp_path / 'judgments.jsonl').read_text().splitlines()
  ]


@pytest.fixture
def file(tmp_path):
  """A right and a wrong trace of each of five problems; one is empty."""
  rows = []
  for i, story in enumerate(world.stories('judge_accept')[:5]):
    problem = story.problem(str(i))
    wrong = problem.solution.replace('by ', '').replace(' \\', ' ### \\')
    for kind, text in (('right', story.worked()), ('wrong', wrong)):
      rows.append({
          'id': f'{i}-{kind}', 'question': problem.question,
          'solution': problem.solution, 'trace': text,
          'correct': kind == 'right'
      })
  rows[3]['trace'] = ' '
  path = tmp_path / 'in.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def test_traces_of_a_file(tmp_path, file, capsys):
  out = {
      r['id']: r for r in run(tmp_path / 'w', f'--config.judge.traces={file}',
                              '--config.policy.init=', '--config.data.train=')
  }
  assert len(out) == 10
  for i, story in enumerate(world.stories('judge_accept')[:5]):
    row = out[f'{i}-right']
    assert ' '.join(row['steps']) == story.worked()
    want = traces.label(story.problem(''), row['steps']).labels
    np.testing.assert_allclose(row['scores'], want, atol=0.15)
    assert row['valid'] and row['correct'] and len(
        row['score_token_probability']) == 7
    assert max(out[f'{i}-wrong']['scores']) < 0.5
  empty = out['1-wrong']
  assert empty['status'] == ['empty'] and empty['scores'] == [0.0]
  report = json.loads((tmp_path / 'w/calibration.json').read_text())
  own, wrong = (report['conditions'][k] for k in ('own', 'wrong'))
  assert own['n'] == 9 and own['misplacement']['value'] == 0
  assert wrong['fnr']['value'] == 1
  assert len(report['probes']) >= 60 and 'progress' not in report
  assert (tmp_path / 'w/calibration.png').stat().st_size > 10_000
  printed = capsys.readouterr().out
  assert '10 traces, ' in printed and 'misplacement' in printed


def test_traces_of_the_policy(tmp_path):
  flags = ('--config.data.limit=5', '--config.rollout.group_size=4',
           '--config.calibration.prefixes=6',
           '--config.calibration.continuations=3')
  rows = run(tmp_path / 'w', *flags)
  assert sorted(r['id'] for r in rows) == sorted(
      f'test-{p:04d}/{i}' for p in range(5) for i in range(4))
  report = json.loads((tmp_path / 'w/calibration.json').read_text())
  assert report['progress']['n'] == 6
  pair, = report['agreement'].values()
  assert pair['n'] == 20
  before = (tmp_path / 'w/judgments.jsonl').read_text()
  assert run(tmp_path / 'w', *flags) == rows  # from the cache
  assert (tmp_path / 'w/judgments.jsonl').read_text() == before


def test_blank_traces_alone_leave_statistics_undefined(tmp_path, file):
  rows_ = [json.loads(line) for line in file.read_text().splitlines()]
  file.write_text(''.join(
      json.dumps(row | {'trace': ' '}) + '\n' for row in rows_))
  out = run(tmp_path / 'w', f'--config.judge.traces={file}')
  assert {s for row in out for s in row['status']} == {'empty'}
  report = json.loads((tmp_path / 'w/calibration.json').read_text())
  assert list(report['conditions']) == ['own']
  assert report['conditions']['own']['n'] == 0
  assert report['conditions']['own']['auroc']['value'] is None


@pytest.mark.slow
def test_continuations_go_on_from_their_prefix(one_device):
  """Greedily, the policy goes on from its own prefix as it did before."""
  sampler = TraceSampler(
      frozen('--config.data.limit=6', '--config.rollout.group_size=1',
             '--config.rollout.temperature=0.0'), one_device)
  traces_ = sampler.traces()
  prefixes = [(t, s) for t in traces_ for s in range(len(t.ends) - 1)]
  success = sampler.success_rates(prefixes, 2)
  assert [float(t.correct) for t, _ in prefixes] == success.tolist()


@pytest.mark.parametrize(
    'row, message',
    [('{', 'in.jsonl:1: not JSON'), ('{"question": "q"}', 'no solution'),
     ('{"question": "q", "solution": "s"}', 'in.jsonl:1: row has no trace'),
     ('{"question": "q", "solution": "s", "trace": "t", "correct": "yes"}',
      'true or false'), ('', 'no traces in it')])
def test_bad_traces_are_named(tmp_path, row, message):
  path = tmp_path / 'in.jsonl'
  path.write_text(row + '\n')
  with pytest.raises(InputError, match=message):
    run(tmp_path / 'w', f'--config.judge.traces={path}')
  assert not (tmp_path / 'w').exists()


def test_a_judge_that_can_be_fooled_is_refused(one_device):
  """The policy is no judge: some probe pleases it."""
  problems = world.problems('judge_accept')[:2]
  config = frozen('--config.judge.init=asset:tiny_policy',
                  '--config.judge.min_score_probability=0.0')
  judge = factory.load(config, one_device)
  scores = hacking.probe(config, judge, problems)
  assert len(scores) >= 60 and max(scores.values()) > 0.2
  limit = max(scores.values())
  flags = ('--config.judge.init=asset:tiny_policy',
           '--config.judge.min_score_probability=0.0',
           '--config.judge.check_tokens=1000000',
           '--config.judge.min_separation=0.0')
  refused = frozen(*flags, f'--config.judge.max_probe_score={limit - 1e-3}')
  with pytest.raises(InputError, match='can be fooled: of .* probes') as e:
    judge_check.before_training(refused, judge, problems)
  assert max(scores, key=scores.get) in str(e.value)
  allowed = frozen(*flags, f'--config.judge.max_probe_score={limit + 1e-3}')
  values = judge_check.before_training(allowed, judge, problems)
  assert values['judge/probe_max_score'] == pytest.approx(limit, abs=1e-5)


def rows(judge, accuracy):
  return [{
      'reward/mean': float(j), 'reward/accuracy': float(a), 'reward/std': 0.2
  } for j, a in zip(judge, accuracy)]


@pytest.mark.parametrize(
    'judge, accuracy, fires',
    [(np.linspace(.2, .6, 80), np.full(80, .1), True),
     (np.linspace(.2, .6, 80), np.linspace(.1, .5, 80), False),
     (np.full(80, .3), np.full(80, .1), False),
     (np.linspace(.2, .25, 80), np.full(80, .1), False)])
def test_the_monitor(judge, accuracy, fires):
  monitor, steps = hacking.Monitor(frozen()), rows(judge, accuracy)
  seen = [monitor.update(step) for step in steps[:70]]
  # A resumed run knows what it has seen, and does not say it again.
  resumed = hacking.Monitor(frozen())
  resumed.restore(json.loads(json.dumps(monitor.state())))
  rest = [monitor.update(step) for step in steps[70:]]
  assert [resumed.update(step) for step in steps[70:]] == rest
  warnings = [warning for _, warning in seen + rest]
  assert any(warnings) == fires and sum(map(bool, warnings)) == fires  # once
  assert rest[-1][0] == {'judge/hacking_alarm': fires}


def test_a_run_without_judgments_says_why(tmp_path, file):
  with pytest.raises(RunFailure, match='most are unreadable'):
    run(tmp_path / 'w', f'--config.judge.traces={file}',
        '--config.judge.min_score_probability=1.0')


def test_references_that_do_not_fit_are_refused(tmp_path, file):
  for more in ([], ['--dry_run']):
    with pytest.raises(
        InputError, match='5 of 5 problems do not fit '
        'judge.max_prompt_tokens=20 .*the longest, .*, needs [0-9]+ tokens'):
      main.main([
          '--config=configs/judge.py', f'--workdir={tmp_path / "w"}',
          f'--config.judge.traces={file}',
          '--config.judge.max_prompt_tokens=20', *more
      ])
  assert not (tmp_path / 'w').exists()


def test_a_base_model_reads_plain_text(tmp_path, file, capsys):
  """A judge without a chat template is asked without roles."""
  folder = tmp_path / 'base'
  shutil.copytree(config_lib.resolve('asset:tiny_judge'), folder)
  (folder / 'chat_template.jinja').unlink()
  flags = (f'--config.judge.traces={file}', f'--config.judge.init={folder}',
           '--config.policy.init=', '--config.data.train=')
  main.main(['--config=configs/judge.py', '--dry_run', *flags])
  shown = capsys.readouterr().out.partition('--- judge prompt')[2]
  assert 'rate from 1 to 5' in shown and 'assistant' not in shown
  rows = run(tmp_path / 'w', *flags, '--config.judge.min_score_probability=0.0',
             '--config.judge.max_probe_score=1.0')
  assert len(rows) == 10 and all(row['valid'] for row in rows)


def test_a_dry_run_shows_what_the_judge_reads(tmp_path, file, capsys):
  main.main([
      '--config=configs/judge.py', '--dry_run', '--config.policy.init=',
      f'--config.judge.traces={file}'
  ])
  out = capsys.readouterr().out
  assert 'run judge, 10 traces' in out
  assert world.stories('judge_accept')[0].reference() in out
  assert not list(tmp_path.glob('w*'))


def test_one_problem_is_not_probed(one_device):
  judge = factory.load(frozen(), one_device)
  assert judge_check.before_training(
      frozen('--config.judge.max_probe_score=0.0'), judge,
      world.problems('judge_accept')[:1]) == {}
