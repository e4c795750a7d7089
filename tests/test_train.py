"""Whole runs, short: the loop, resuming, recipes, and mistakes in the input."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax import main, rewards
from exprl_jax.grading.grader import Grader
from exprl_jax.judge.readouts import EMPTY, OK, UNREADABLE
from exprl_jax.judge.tree import Judge, Judgments
from exprl_jax.rewards import base, shaping
from exprl_jax.runs import recipes, setup, traces
from exprl_jax.runtime import jsonl, metrics
from exprl_jax.types import (
    Group,
    InputError,
    Problem,
    RunFailure,
    Scores,
    Trajectory,
)
from tests.conftest import POLICY

SHORT = [
    '--config.steps=3', '--config.eval.limit=4', '--config.eval.samples=2',
    '--config.eval.ks=(1,2)', '--config.eval.every=0', '--config.data.batch=8',
    '--config.checkpoint.every=0'
]
GROUPS = ['--config.rollout.group_size=4']


def run(config, workdir, *flags):
  """Runs configs/NAME.py or, as 'NAME:ARG', a recipe of it."""
  name, colon, arg = config.partition(':')
  main.main([
      f'--config=configs/{name}.py{colon}{arg}', f'--workdir={workdir}', *SHORT,
      *flags
  ])
  return metrics.read(workdir / 'metrics.jsonl')


def undocumented(rows):
  """Names of metrics that docs/metrics.md does not have."""
  text = pathlib.Path('docs/metrics.md').read_text()
  known = re.findall(r'`([a-z_]+/[A-Za-z_@]+)`', text)
  pattern = '|'.join(re.sub('[A-Z]+', '[a-z0-9_]+', name) for name in known)
  return {
      name for row in rows for name in row
      if name != 'step' and not re.fullmatch(pattern, name)
  }


def without_times(rows):
  return [{
      k: v for k, v in r.items() if not k.startswith(('time/', 'perf/', 'hbm/'))
  } for r in rows]


@pytest.mark.slow  # CI runs the command itself
def test_the_main_job_in_short(tmp_path, capsys):
  rows = run('tiny', tmp_path, *GROUPS)
  out = capsys.readouterr().out
  assert f'workdir {tmp_path}' in out
  assert 'tiny, seed 0' in out and 'tiny:grpo, seed 0' in out
  assert 'pass@1 before' in out
  steps = [r for r in rows if 'policy/loss' in r]
  assert [r['step'] for r in steps] == [1, 2, 3]
  for row in steps:
    assert all(np.isfinite(v) for v in row.values())
    assert {
        'reward/mean', 'reward/accuracy', 'judge/score_token_probability',
        'policy/ref_kl', 'policy/entropy', 'length/response_mean',
        'time/rollout', 'time/judge', 'time/update'
    } <= set(row)
    assert row['judge/score_token_probability'] > 0.9 and row[
        'judge/invalid_frac'] == 0
    # The sampler's and the learner's log-probabilities agree.
    assert row['mismatch/logprob_abs_diff'] < 1e-5
  assert not undocumented(rows)
  names = sorted({k for r in rows for k in r if k != 'step'})
  assert all(n.count('/') == 1 for n in names), 'area/name'
  samples = sorted((tmp_path / 'samples').iterdir())
  trace = json.loads(samples[-1].read_text().splitlines()[0])
  assert {'question', 'steps', 'correct'} <= set(trace)
  assert {'text', 'score', 'advantage'} <= set(trace['steps'][0])
  assert 'by ' not in samples[-1].read_text(), 'no reference in the samples'
  kept = sorted((tmp_path / 'traces').glob('*.gz'))
  assert [p.name[:8] for p in kept] == ['00000001', '00000002', '00000003']
  for path in kept:
    found = traces.read(path)
    assert len(found) == 32 and all(r['trains'] for r in found)
    assert all(len(r['step_ends']) >= len(r['steps']) > 0 for r in found)
    assert 'by ' not in json.dumps(found), 'no reference in the traces'
  references = jsonl.read(tmp_path / 'traces/references.jsonl').rows
  assert {r['problem'] for r in found} <= {r['problem'] for r in references}
  assert all('by ' in r['solution'] for r in references)
  report = (tmp_path / 'report.html').read_text()
  assert 'Held-out pass@1' in report and '"traces": [{' in report
  assert (tmp_path / 'compare/metrics.jsonl').exists()
  assert (tmp_path / 'model/model.safetensors').exists()


@pytest.mark.parametrize('config, flags, names', [
    pytest.param('tiny:outcome', GROUPS,
                 ['judge/score_token_probability', 'policy/clip_frac_low'],
                 marks=pytest.mark.slow),
    ('tiny:grpo', [
        *GROUPS, '--config.loss.kl_in=reward', '--config.loss.kl_estimator=k1',
        '--config.credit.rule=rloo', '--config.rollout.overlong=mask'
    ], ['mismatch/is_ess']),
    ('tiny:sft', [], ['sft/loss', 'perf/packing_fill']),
    ('tiny:self_distill', GROUPS, ['teacher/gap']),
    pytest.param('tiny:self_distill', [
        *GROUPS, '--config.loss.kind=exact_kl', '--config.rollout.overlong=mask'
    ], ['policy/entropy'], marks=pytest.mark.slow),
    ('tiny:stage2', [
        *GROUPS, '--config.select.drop_zero_variance=True',
        '--config.select.max_refills=1', '--config.select.curriculum=1'
    ], [
        'data/groups', 'data/attempts', 'reward/unfiltered_mean',
        'data/never_solved_frac', 'group/zero_variance_frac'
    ]),
    ('tiny', [
        *GROUPS, '--config.policy.lora_rank=4', '--config.loss.kind=gspo',
        '--config.loss.aggregation=seq_mean_token_mean',
        '--config.credit.sparse_weight=0.5', '--config.optim.offload=True'
    ], ['policy/ref_kl']),
], ids=lambda x: x if isinstance(x, str) else '')
def test_every_recipe_runs(tmp_path, config, flags, names):
  rows = run(config, tmp_path, '--config.compare=', *flags)
  assert sum('eval/pass@1' in r for r in rows) == 2
  steps = [r for r in rows if 'optim/lr' in r]
  assert steps, 'nothing was trained'
  for name in names:
    assert all(name in r for r in steps), name
  assert not undocumented(rows)
  assert all(np.isfinite(list(r.values())).all() for r in rows)
  weights = (tmp_path / 'model/model.safetensors').read_bytes()
  assert weights != (POLICY / 'model.safetensors').read_bytes()


@pytest.mark.slow
def test_distilling_the_exact_kl_brings_the_policy_to_its_teacher(tmp_path):
  """Its loss is the KL itself: it falls."""
  rows = run('tiny:self_distill', tmp_path, *GROUPS, '--config.steps=25',
             '--config.loss.kind=exact_kl', '--config.optim.lr=1e-3',
             '--config.data.limit=8', '--config.eval.problems=')
  losses = [r['policy/loss'] for r in rows]
  assert all(x > 0 for x in losses)
  assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])


@pytest.mark.slow
def test_stages_are_handed_over_by_workdir_or_checkpoint(tmp_path):
  """A checkpoint is the model that its run has written, with adapters, too."""
  run('tiny', tmp_path / 'one', *GROUPS, '--config.compare=',
      '--config.policy.lora_rank=2', '--config.steps=1')
  rows = [
      run('tiny:stage2', tmp_path / f'two{i}', *GROUPS,
          f'--config.policy.init={init}', '--config.steps=1')
      for i, init in enumerate((tmp_path / 'one', f'{tmp_path / "one"}@1'))
  ]
  assert without_times(rows[0]) == without_times(rows[1])
  before = metrics.read(tmp_path / 'one/metrics.jsonl')[-1]
  assert rows[0][0]['eval/pass@1'] == before['eval/pass@1']


def test_domains_have_templates_prompts_and_credit_of_their_own(tmp_path):
  """Half of the problems are judged by steps, the others as a whole."""
  lines = (config_lib.resolve(
      'asset:tiny_problems/train.jsonl').read_text().splitlines()[:8])
  rows = [
      json.loads(x) | {'domain': 'code' if i % 2 else 'math'}
      for i, x in enumerate(lines)
  ]
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  found = run('tiny', tmp_path / 'w', *GROUPS, '--config.compare=',
              f'--config.data.train={path}',
              "--config.credit.outcome_domains=('code',)",
              "--config.judge.templates=('code=tiny',)",
              "--config.rollout.system_prompts=('code=count',)",
              '--config.rollout.max_prompt_tokens=56', '--config.steps=1')
  assert any('policy/loss' in r for r in found)
  samples = (tmp_path / 'w/samples/00000001.jsonl').read_text().splitlines()
  by_domain = {row['question']: row['domain'] for row in rows}
  for sample in map(json.loads, samples):
    scores = [s['score'] for s in sample['steps']]
    if by_domain[sample['question']] == 'code':
      assert len(scores) == 1


def test_nothing_to_train_on_stops_the_run(tmp_path):
  """Two samples at a low temperature are the same: no group has credit."""
  with pytest.raises(RunFailure, match='2 steps in a row without a row'):
    run('tiny:stage2', tmp_path, '--config.rollout.group_size=2',
        '--config.rollout.temperature=1e-4', '--config.select.max_refills=0',
        '--config.select.drop_zero_variance=True',
        '--config.select.max_empty_steps=2', '--config.eval.problems=')


@pytest.mark.parametrize(
    'more', [['--config.select.curriculum=True'],
             pytest.param([
                 '--config.rollout.partial_rollouts=5',
                 '--config.rollout.oversampling=2',
                 '--config.rollout.oversampling_rule=first_to_end',
                 '--config.rollout.slots=40', '--config.rollout.chunk=3',
                 '--config.rollout.temperature=2.0'
             ], marks=pytest.mark.slow)], ids=str)
def test_resumed_is_uninterrupted(tmp_path, more):
  flags = ['--config.compare=', '--config.checkpoint.every=1', *GROUPS, *more]
  want = run('tiny', tmp_path / 'whole', *flags)
  hosts = [
      json.loads(
          json.loads((tmp_path / f'whole/checkpoints/{i:08d}/host/metadata'
                     ).read_text())['text'])['host'] for i in (2, 3)
  ]
  assert hosts[0]['curriculum'] != hosts[1]['curriculum']
  if '--config.rollout.partial_rollouts=5' in more:
    assert len(hosts[-1]['source']) == 5
    begun = [
        tokens for host in hosts for _, group in host['source']
        for tokens, _, ended in group if ended == 'unfinished'
    ]
    assert any(begun) and not all(begun)
  run('tiny', tmp_path / 'parts', *flags, '--config.steps=2')
  # As if killed while writing: a row after the checkpoint, cut short.
  with (tmp_path / 'parts/metrics.jsonl').open('a') as file:
    file.write('{"step": 3, "policy/loss": 7}\n{"step": 3, "pol')
  got = run('tiny', tmp_path / 'parts', *flags)
  # The parts evaluated once more, at the step where the first one ended.
  evaluated = lambda r: 'eval/pass@1' in r and r['step'] == 2
  assert without_times([r for r in got if not evaluated(r)
                       ]) == without_times(want)
  weights = [(tmp_path / d / 'model/model.safetensors').read_bytes()
             for d in ('whole', 'parts')]
  assert weights[0] == weights[1]


def test_a_run_is_a_function_of_its_seed(tmp_path):
  flags = ['--config.compare=', *GROUPS, '--config.steps=1']
  a, b, c = (without_times(run('tiny', tmp_path / name, *flags, seed))
             for name, seed in (('a', '--config.seed=1'),
                                ('b', '--config.seed=1'), ('c',
                                                           '--config.seed=2')))
  assert a == b != c


def test_the_sft_loss_falls_on_its_own_rows(tmp_path):
  rows = run('tiny:sft', tmp_path, '--config.steps=40', '--config.data.limit=8',
             '--config.eval.problems=', '--config.optim.warmup_steps=1')
  losses = [r['sft/loss'] for r in rows if 'sft/loss' in r]
  assert losses[-1] < 0.5 * losses[0]


def test_evaluate_a_workdir(tmp_path):
  run('tiny:grpo', tmp_path / 'run', *GROUPS, '--config.steps=1')
  run('tiny:grpo', tmp_path / 'out', '--config.run=evaluate',
      f'--config.policy.init={tmp_path / "run"}')
  (row,) = metrics.read(tmp_path / 'out/metrics.jsonl')
  last = metrics.read(tmp_path / 'run/metrics.jsonl')[-1]
  assert row['eval/pass@1'] == last['eval/pass@1']
  assert len((tmp_path / 'out/samples/run.jsonl').read_text().splitlines()) == 8


def test_dry_run_shows_the_prompts_and_writes_nothing(tmp_path, capsys):
  main.main(
      ['--config=configs/tiny.py', '--dry_run', f'--workdir={tmp_path / "w"}'])
  out = capsys.readouterr().out
  assert '--- policy prompt' in out and '--- judge prompt' in out
  assert '  optim.lr = 0.0005\n' in out and '  seed = ' not in out
  assert 'tokens, rollout.max_prompt_tokens=48' in out
  assert 'not checked: values of weights' in out
  policy_part = out.split('--- policy prompt')[1].split('--- judge prompt')[0]
  assert 'by ' not in policy_part and 'boxed' not in policy_part
  assert not (tmp_path / 'w').exists()


def bad(message, tmp_path, *flags):
  with pytest.raises(InputError, match=message) as e:
    run('tiny', tmp_path / 'w', '--config.compare=', *flags)
  assert '\n' not in str(e.value)


def test_mistakes_are_reported_before_anything_is_written(tmp_path):
  rows = [{'question': 'q', 'answer': '1', 'solution': 's'},
          {'question': 'q', 'answer': '1'}]
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
  bad('rows.jsonl:2: row has no solution', tmp_path,
      f'--config.data.train={path}')
  bad('none.jsonl: no such problem file', tmp_path,
      '--config.data.train=none.jsonl')
  bad('nowhere: no config.json|nowhere: neither', tmp_path,
      '--config.policy.init=nowhere')
  bad('nowhere: ', tmp_path, '--config.judge.init=nowhere')
  bad('no such template', tmp_path, '--config.judge.template=tinny')
  bad('its prompt has 37 tokens|its prompt has', tmp_path,
      '--config.rollout.max_prompt_tokens=20')
  bad('wants 3 devices', tmp_path, '--config.mesh.data=3')
  folder = shutil.copytree(POLICY, tmp_path / 'model')
  weights = folder / 'model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-1000])
  bad('model.safetensors: corrupt or cut', tmp_path,
      f'--config.policy.init={folder}')
  assert not (tmp_path / 'w').exists()


def test_a_workdir_of_another_run_is_left_alone(tmp_path):
  run('tiny:grpo', tmp_path / 'w', *GROUPS, '--config.steps=1')
  before = sorted(p.name for p in (tmp_path / 'w').iterdir())
  bad('holds another run: credit.first, credit.rule', tmp_path, *GROUPS)
  assert sorted(p.name for p in (tmp_path / 'w').iterdir()) == before
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other/thesis.txt').write_text('')
  with pytest.raises(InputError, match='is not empty and holds no run'):
    run('tiny', tmp_path / 'other', '--config.compare=')


def test_the_command_prints_one_line_and_exits_with_two():
  out = subprocess.run([
      sys.executable, '-m', 'exprl_jax.main', '--config=configs/tiny.py',
      '--config.stpes=3'
  ], text=True, capture_output=True)
  assert out.returncode == 2
  assert out.stderr.count('\n') == 1 and 'did you mean steps?' in out.stderr


class FixedJudge(Judge):
  """A judge without a model: the test gives its judgments."""

  def __init__(self, score, status):
    self._score, self._status = np.array(score), np.array(status)

  def score(self, items, max_steps):
    n = len(items)
    return Judgments(score=self._score,
                     score_token_probability=np.ones_like(self._score),
                     status=self._status, truncated=np.zeros(n, bool),
                     texts=[[''] * max_steps] * n)


def sampled(completion, finish_reason='eos'):
  ids = np.array(completion, np.int32)
  return Trajectory(np.zeros(2, np.int32), ids, np.zeros(len(ids), np.float32),
                    finish_reason)


def test_empty_unreadable_and_truncated_rows(policy):
  """Row 0: two steps. Row 1: one is unreadable. Row 2: EOS alone, scores 0
  without a judge. Row 3: truncated, scores 0 under overlong='zero'."""
  tokenizer = policy[2]
  _, values, _ = main.parse([
      '--config=configs/tiny.py', '--config.rollout.overlong=zero',
      '--config.judge.max_steps=2'
  ])
  config = recipes.freeze(values)
  trace, eos = tokenizer.encode('dec 4 ### jan 8'), tokenizer.eos_ids[0]
  group = Group(Problem('', 'q', 's', '8'), [
      sampled([*trace, eos]),
      sampled([*trace, eos]),
      sampled([eos]),
      sampled(trace, 'length')
  ])
  judge = FixedJudge(np.float32([[.25, .5], [.25, .5], [0, 0], [.25, .5]]),
                     [[OK, OK], [OK, UNREADABLE], [EMPTY, -1], [OK, OK]])
  process = rewards.lookup('process')
  score = base.scoring(config, tokenizer, Grader(config.grading),
                       process.make(config, judge), process.granularity)
  out = score([group])
  np.testing.assert_allclose(out.scores.value,
                             [[.25, .5], [0, 0], [0, 0], [0, 0]])
  np.testing.assert_array_equal(out.scores.valid,
                                [[1, 1], [0, 0], [1, 0], [1, 1]])
  # Steps end before '###' and at the EOS.
  assert [t.step_ends for t in out.trajectories] == [(2, 6), (2, 6), (1,),
                                                     (2, 5)]
  assert out.metrics['judge/invalid_frac'] == 0.25
  assert out.metrics['judge/empty_frac'] == 0.25
  assert out.metrics['judge/unreadable_frac'] == 0.25
  assert out.metrics['reward/mean'] == pytest.approx((.5 + 0 + 0) / 3)


def test_a_judge_that_cannot_be_read_stops_the_run(tmp_path):
  """The policy is no judge: after 'score' it does not say 1 to 5."""
  with pytest.raises(RunFailure, match='most are unreadable'):
    run('tiny', tmp_path, *GROUPS, '--config.compare=',
        '--config.judge.init=asset:tiny_policy',
        '--config.judge.min_score_probability=0.99')


@pytest.mark.slow
def test_early_judging_changes_nothing(tmp_path, monkeypatch):
  asked, early = [], setup._early

  def spied(*args):
    ask = early(*args)
    return ask and (lambda groups: (asked.append(len(groups)), ask(groups)))

  monkeypatch.setattr(setup, '_early', spied)
  flags = (*GROUPS, '--config.compare=', '--config.steps=1',
           '--config.rollout.slots=6', '--config.rollout.chunk=5',
           '--config.rollout.temperature=1.5')
  late, soon = (without_times(
      run('tiny', tmp_path / name, *flags, f'--config.judge.overlap={overlap}'))
                for name, overlap in (('late', False), ('soon', True)))
  assert late == soon
  assert 0 < sum(asked) < 8  # of 8 groups; the last one ends the sampling


def test_what_becomes_of_rows_without_an_end():
  """Two rows of two scores; the second one used 5 of 6 tokens and goes on."""
  rows = [sampled([0, 0]), sampled([0] * 5, 'length')]
  scores = Scores(np.array([[.5, .25], [.5, 1.]], np.float32),
                  np.array([[1, 0], [1, 1]], bool))

  def value(kind, **more):
    out = shaping.truncated(
        scores, rows, config_lib.Rollout(overlong=kind, max_new_tokens=6,
                                         **more))
    return np.where(out.valid, out.value, np.nan)

  nan = np.nan
  for kind, want in (('keep', [[.5, nan], [.5, 1]]),
                     ('zero', [[.5, nan], [0, 0]]), ('mask', [[.5, nan],
                                                              [nan, nan]])):
    np.testing.assert_array_equal(value(kind), want)
  # Of the last 4 tokens the first row used none, the second one 3.
  np.testing.assert_allclose(value('soft', overlong_buffer=4),
                             [[.5, nan], [.5, .25]])


def test_a_reward_of_the_users_own_is_an_import_path(tmp_path):
  """docs/examples/length_reward.py is one; it trains as any other."""
  rows = run('tiny:grpo', tmp_path, *GROUPS, '--config.eval.problems=',
             '--config.reward=docs/examples/length_reward.py:short_steps',
             '--config.credit.rule=delta')
  assert len(rows) == 3 and all('policy/loss' in r for r in rows)
  with pytest.raises(InputError, match='config.reward=.*:nothing: Attribute'):
    run('tiny:grpo', tmp_path / 'w',
        '--config.reward=docs/examples/length_reward.py:nothing')


def test_a_solution_that_does_not_fit_is_named_before_anything_is_written(
    tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text(json.dumps({'question': 'q', 'solution': 'by dec 4 ' * 17}))
  with pytest.raises(InputError,
                     match='rows.jsonl:1: .*solution has 52 tokens'):
    run('tiny:sft', tmp_path / 'w', f'--config.data.train={path}')
  assert not (tmp_path / 'w').exists()


@pytest.mark.slow
def test_reference_and_teacher_apart_from_the_start(tmp_path):
  """The KL is to reference.init and the gap to teacher.init, wherever the
  policy starts; the default is where it starts."""
  start = tmp_path / 'start'
  run('tiny:grpo', start, *GROUPS, '--config.optim.lr=3e-3',
      '--config.loss.kl_coef=0', '--config.reward=sparse')

  def first(name, recipe, *flags):
    rows = run(recipe, tmp_path / name, *GROUPS, '--config.steps=1',
               '--config.eval.problems=', '--config.optim.updates=1', *flags)
    return next(r for r in without_times(rows) if 'policy/loss' in r)

  base = 'asset:tiny_policy'
  same = first('a', 'tiny:grpo')
  assert same == first('b', 'tiny:grpo', f'--config.reference.init={base}')
  assert same['policy/ref_kl'] == pytest.approx(0, abs=1e-6)
  moved = first('c', 'tiny:grpo', f'--config.policy.init={start}',
                f'--config.reference.init={base}')
  assert moved['policy/ref_kl'] > 1e-3
  back = first('d', 'tiny:grpo', f'--config.reference.init={start}')
  assert back['policy/ref_kl'] > 1e-3
  gap = first('e', 'tiny:self_distill')['teacher/gap']
  other = first('f', 'tiny:self_distill', f'--config.teacher.init={start}')
  assert abs(other['teacher/gap'] - gap) > 1e-3


def test_another_model_is_no_reference(tmp_path):
  for flag in ('reference', 'teacher'):
    recipe = 'tiny:self_distill' if flag == 'teacher' else 'tiny:grpo'
    with pytest.raises(InputError, match=f'{flag}.init=.*: another model than'):
      run(recipe, tmp_path, *GROUPS, f'--config.{flag}.init=asset:tiny_judge')
  with pytest.raises(InputError, match='nothing reads it with loss.kl_coef=0'):
    run('tiny:stage2', tmp_path, '--config.reference.init=asset:tiny_policy')
