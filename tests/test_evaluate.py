"""Estimators against enumeration, and whole comparisons of tiny policies."""

import collections
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from exprl_jax import config as config_lib
from exprl_jax import main
from exprl_jax.data.steps import Segmenter
from exprl_jax.evals import (
    candidates,
    comparison,
    estimators,
    held_out,
    policy_statistics,
)
from exprl_jax.models import head, hf, lora, references
from exprl_jax.rollout.requests import Sample
from exprl_jax.runtime import checkpoints as checkpoint
from exprl_jax.runtime import metrics as metrics_lib
from exprl_jax.types import InputError, Problem, TrainState
from tests.conftest import POLICY

TEST = 'asset:tiny_problems/test.jsonl'


@pytest.mark.parametrize('n, c, k', [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 4),
                                     (7, 5, 3), (4, 1, 4)])
def test_pass_at_k_is_the_enumeration(n, c, k):
  right = [i < c for i in range(n)]
  draws = list(itertools.combinations(right, k))
  assert estimators.pass_at_k(n, c, k) == pytest.approx(
      sum(map(any, draws)) / len(draws))


def test_too_few_samples():
  with pytest.raises(ValueError, match='at least 5'):
    estimators.pass_at_k(4, 1, 5)
  with pytest.raises(ValueError, match='at least 5'):
    estimators.maj_at_k('aabb', [1, 1, 0, 0], 5)


def vote(answers, gold):
  """One election, in plain words."""
  votes = collections.Counter(a for a in answers if a).most_common()
  winners = [a for a, count in votes if count == votes[0][1]]
  return winners.count(gold) / len(winners) if winners else 0.0


@pytest.mark.parametrize('answers, gold, want', [('aab', 'a', 1.0),
                                                 ('abb', 'a', 0.0),
                                                 ('abc', 'c', 1 / 3),
                                                 (['a', '', 'b'], 'a', 0.5),
                                                 (['', '', ''], 'a', 0.0),
                                                 (['a', '', ''], 'a', 1.0),
                                                 ('aabb', 'b', 0.5)])
def test_a_majority_by_hand(answers, gold, want):
  correct = [a == gold for a in answers]
  assert vote(answers, gold) == pytest.approx(want)
  assert estimators.maj_at_k(answers, correct,
                             len(answers)) == pytest.approx(want)


@pytest.mark.parametrize('k', [1, 2, 3, 4, 5, 6])
def test_maj_at_k_is_the_enumeration(k, rng):
  for _ in range(20):
    answers = list(rng.choice(['', 'a', 'b', 'c'], 6))
    want = np.mean(
        [vote(draw, 'a') for draw in itertools.combinations(answers, k)])
    got = estimators.maj_at_k(answers, [a == 'a' for a in answers], k)
    assert got == pytest.approx(want)


def test_maj_at_k_of_many_samples_is_close_and_always_the_same(rng):
  answers = list(rng.choice(['', 'a', 'b', 'c'], 14, p=[.1, .4, .3, .2]))
  correct = [a == 'a' for a in answers]
  want = np.mean(
      [vote(draw, 'a') for draw in itertools.combinations(answers, 6)])
  got = estimators.maj_at_k(answers, correct, 6)
  assert got == pytest.approx(want, abs=0.5 / np.sqrt(200) * 2)
  assert got == estimators.maj_at_k(answers, correct, 6)


def samples_of(*problems, tokens=5):
  """Of problems as 'r' right, 'w' wrong, '-' no answer, 't' timeout."""
  status = {'r': 'correct', 'w': 'wrong', '-': 'no_answer', 't': 'timeout'}
  return estimators.graded_samples(
      [(status[c], c.strip('-t'), tokens, 'length' if c == '-' else 'eos')
       for row in problems
       for c in row], len(problems[0]))


def test_summary_by_hand():
  values = estimators.summary(samples_of('rw-t', 'wwww', 'rrrw'), (1, 2, 4))
  assert values['eval/pass@1'] == pytest.approx(4 / 12)
  assert values['eval/pass@2'] == pytest.approx((1 / 2 + 0 + 1) / 3)
  assert values['eval/maj@4'] == pytest.approx((1 / 2 + 0 + 1) / 3)
  assert 'eval/maj@2' not in values and 'eval/error_frac' not in values
  assert values['eval/truncated_frac'] == values['eval/no_answer_frac'] == (
      values['eval/timeout_frac']) == pytest.approx(1 / 12)
  assert values['eval/length_mean'] == 5
  assert 0.01 < values['eval/pass@1_low'] < 0.2 < 0.7 < values[
      'eval/pass@1_high'] < 1


# Intervals.


@pytest.mark.parametrize('right, n', [(0, 8), (0, 30), (30, 30), (1, 30),
                                      (7, 12), (0, 1)])
def test_of_zeros_and_ones_it_is_the_interval_of_clopper_and_pearson(right, n):
  found = estimators.interval(np.arange(n) < right, draws=100_000)
  low = scipy.stats.beta.ppf(0.025, right, n - right + 1) if right else 0
  high = scipy.stats.beta.ppf(0.975, right + 1, n - right) if right < n else 1
  assert found.mean == right / n
  assert found == pytest.approx((right / n, low, high), abs=0.004)
  assert 0 <= found.low <= found.mean <= found.high <= 1


def test_of_many_problems_it_is_that_of_the_normal_distribution(rng):
  few, many = (rng.random(n) for n in (20, 4000))
  low, high = estimators.interval(many)[1:]
  assert high - low == pytest.approx(2 * 1.96 / np.sqrt(12 * 4000), rel=0.1)
  assert np.ptp(estimators.interval(few)[1:]) > 8 * (high - low)


def test_an_interval_mirrors_and_scales(rng):
  values = rng.random(12)
  mean, low, high = estimators.interval(values)
  assert estimators.interval(1 - values) == pytest.approx(
      (1 - mean, 1 - high, 1 - low), abs=0.02)
  assert estimators.interval(2 * values - 1, (-1, 1)) == pytest.approx(
      (2 * mean - 1, 2 * low - 1, 2 * high - 1))


def accuracies(kind, mean, shape, rng):
  """Accuracy of problems drawn from a population with this mean."""
  if kind == 'solved or not':
    return (rng.random(shape) < mean).astype(float)
  if kind == 'mostly zero':  # others are anywhere in (0, 1)
    return np.where(rng.random(shape) < 2 * mean, rng.random(shape), 0)
  return rng.beta(kind * mean, kind * (1 - mean), shape)  # the number a + b


def passes(kind, mean, shape, n, k, rng):
  """pass@k of each problem of many sets, and the mean of the population."""
  of_count = np.array([estimators.pass_at_k(n, c, k) for c in range(n + 1)])
  p = accuracies(kind, mean, shape, rng)
  population = accuracies(kind, mean, 400_000, rng)
  return (of_count[rng.binomial(n, p)], mean if k == 1 else
          (1 - (1 - population)**k).mean())


def coverage(found, truth):
  return np.mean([f.low <= truth <= f.high for f in found])


def check_coverage(kind, mean, problems, n, k, sets, rng):
  values, truth = passes(kind, mean, (sets, problems), n, k, rng)
  found = [estimators.interval(v) for v in values]
  assert coverage(found, truth) >= 0.93
  assert all(0 <= f.low <= f.mean <= f.high <= 1 for f in found)


@pytest.mark.parametrize('kind, mean, problems, n, k',
                         [('solved or not', 0.1, 30, 8, 1),
                          ('mostly zero', 0.01, 8, 32, 1),
                          ('mostly zero', 0.03, 30, 128, 8),
                          (0.3, 0.01, 30, 16, 1), (1, 0.1, 8, 8, 8),
                          (5, 0.5, 15, 8, 1)])
def test_an_interval_covers(kind, mean, problems, n, k, rng):
  check_coverage(kind, mean, problems, n, k, 300, rng)


@pytest.mark.slow
@pytest.mark.parametrize('problems', [8, 15, 30])
@pytest.mark.parametrize('mean', [0.01, 0.03, 0.1, 0.3])
@pytest.mark.parametrize('kind',
                         ['solved or not', 'mostly zero', 0.1, 0.3, 1, 5])
def test_intervals_cover_on_hard_and_on_easy_sets(kind, mean, problems, rng):
  for n in (8, 128):
    for k in (1, 8):
      check_coverage(kind, mean, problems, n, k, 500, rng)


@pytest.mark.parametrize('problems, most', [(30, 1.2), (100, 1.1)])
def test_an_easy_set_has_an_interval_hardly_wider_than_the_bootstrap(
    problems, most, rng):
  values, _ = passes(1, 0.5, (50, problems), 32, 1, rng)
  width = np.mean([np.ptp(estimators.interval(v)[1:]) for v in values])
  draws = rng.integers(0, problems, (50, 2000, problems))
  bootstrap = [
      np.quantile(v[i].mean(1), (.025, .975)) for v, i in zip(values, draws)
  ]
  assert 1 < width / np.ptp(bootstrap, axis=1).mean() < most


@pytest.mark.parametrize('better', [0, 0.05])
def test_a_paired_interval_covers(better, rng):
  """A model that solves a share of the problems that the other never does."""
  p = accuracies('mostly zero', 0.1, (300, 20), rng)
  q = np.where(rng.random(p.shape) < better, 1, p)
  difference = (rng.binomial(16, q) - rng.binomial(16, p)) / 16
  found = [estimators.interval(d, (-1, 1)) for d in difference]
  assert coverage(found, 0.9 * better) >= 0.93
  # Less than the difference of two intervals by themselves.
  alone = [estimators.interval(rng.binomial(16, row) / 16) for row in p]
  assert np.mean([np.ptp(f[1:]) for f in found
                 ]) < 1.6 * np.mean([np.ptp(f[1:]) for f in alone])


def test_the_mean_over_sets_covers_and_narrows(rng):
  kinds = [('mostly zero', 0.01, 30), (0.3, 0.05, 15),
           ('solved or not', 0.1, 8), (5, 0.4, 20)]
  sets = [passes(kind, mean, (300, n), 16, 1, rng) for kind, mean, n in kinds]
  intervals = [[estimators.interval(v) for v in values] for values, _ in sets]
  found = [estimators.mean_over_sets(s) for s in zip(*intervals)]
  assert coverage(found, np.mean([truth for _, truth in sets])) >= 0.93
  widths = [np.mean([np.ptp(f[1:]) for f in fs]) for fs in intervals]
  assert np.mean([np.ptp(f[1:]) for f in found
                 ]) == pytest.approx(np.linalg.norm(widths) / 4, rel=0.1)
  one = estimators.Estimate(0.5, 0.25, 0.75)
  assert estimators.mean_over_sets([one]) == one


def test_paired_intervals():
  items = [held_out.Item('', Problem(str(i), 'q')) for i in range(4)]
  a, b = samples_of('rrww', 'wwww', 'rwww',
                    'rrrr'), samples_of('rrrw', 'rwww', 'rrww', 'rrrr')
  same = comparison.differences(a, a, items, (1, 3))
  assert set(same) == {'pass@1', 'pass@3', 'maj@3'}
  for found in same.values():  # nothing is known of problems not in the set
    assert found['mean'] == 0
    assert -found['low'] == pytest.approx(found['high'], rel=0.05)
  paired = comparison.differences(b, a, items, (1,))['pass@1']
  assert paired['mean'] == pytest.approx(3 / 16)
  assert -1 < paired['low'] < 3 / 16 < paired['high'] < 1


# Sets of problems.


def write_set(path, ids, **more):
  path.write_text(''.join(
      json.dumps({
          'id': i, 'question': f'ann has {i} pens . how many ?', 'answer': str(
              i), **more
      }) + '\n' for i in ids))
  return path


def test_sets_and_domains_have_names_of_their_own(tmp_path):
  a = write_set(tmp_path / 'a.jsonl', [1, 2])
  b = write_set(tmp_path / 'b.jsonl', [1, 2, 3], domain='odd/one')
  items = held_out.read_items(config_lib.Eval(problems=f'A-1={a},b_2={b}'))
  assert [(i.set, i.problem.id) for i in items] == [('A-1', '1'), ('A-1', '2'),
                                                    ('b_2', '1'), ('b_2', '2'),
                                                    ('b_2', '3')]
  values = held_out.all_metrics(samples_of('rw', 'ww', 'rr', 'rr', 'ww'), items,
                                (1,))
  assert values['eval/pass@1'] == pytest.approx(0.5)  # of problems, not sets
  assert values['eval/A-1/pass@1'] == pytest.approx(0.25)
  assert values['eval/b_2/pass@1'] == pytest.approx(2 / 3)
  assert values['eval/domain_odd_one/pass@1'] == pytest.approx(2 / 3)
  assert values['eval/domain_math/pass@1'] == pytest.approx(0.25)
  mean = 'eval/mean_over_sets/pass@1'
  assert values[mean] == pytest.approx((0.25 + 2 / 3) / 2)
  assert 0 < values[f'{mean}_low'] < values[mean] < values[f'{mean}_high'] < 1
  no_prefixes(values)
  (one,) = held_out.parts(items[:2])
  assert one == ''


def no_prefixes(names):
  for a, b in itertools.permutations(names, 2):
    assert not b.startswith(f'{a}/'), f'{a} is a prefix of {b}'


@pytest.mark.parametrize('problems, message', [
    ('a=F,a=F', 'two sets are named a'),
    ('a b=F', "'a b=.*' should be NAME=FILE"),
    ('a=F,F', "should be NAME=FILE, the name"),
    ('a=', "'a=' should be NAME=FILE"),
    ('length_mean=F', 'not that of a metric'),
    ('domain_x=F', 'not that of a metric'),
    ('mean_over_sets=F', 'not that of a metric'),
    ('x.jsonl,y.jsonl', 'several files want names'),
    ('none.jsonl', 'none.jsonl: no such problem file'),
    ('a=none.jsonl', 'none.jsonl: no such problem file'),
])
def test_bad_sets_are_named(tmp_path, problems, message):
  file = write_set(tmp_path / 'a.jsonl', [1])
  with pytest.raises(InputError, match=message) as e:
    held_out.read_items(
        config_lib.Eval(problems=problems.replace('F', str(file))))
  assert '\n' not in str(e.value)


# Newly solved problems.


def test_newly_solved_by_hand():
  first = np.array([[0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]], bool)
  other = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]], bool)
  count = lambda *args: estimators.newly_solved(first, other, *args).tolist()
  assert estimators.base_unsolved(first,
                                  2).tolist() == [True, True, False, True]
  assert count(2, 1) == [True, True, False, False]
  assert count(3, 1) == [False, True, False, False]
  assert count(3, 2) == [False, True, False, False]
  assert count(3, 3) == [False] * 4


def test_a_model_that_is_not_better_newly_solves_as_many_as_the_null(rng):
  rates = rng.beta(0.3, 2, (4000, 1))
  first, again, other = (rng.random((4000, 8)) < rates for _ in range(3))
  null, mine = (
      estimators.newly_solved(first, x, 8, 1).sum() for x in (again, other))
  unsolved = estimators.base_unsolved(first, 8).sum()
  # Many that are unsolved by bad luck are solved by good luck.
  assert null > 0.1 * unsolved
  assert abs(null - mine) < 4 * np.sqrt(2 * null)


# Whole runs.

TINY = [
    '--config.eval.limit=4', '--config.eval.samples=3',
    '--config.eval.ks=(1,3)', '--config.eval.newly_solved_k=3',
    '--config.eval.wave=3', '--config.rollout.temperature=1.0'
]


def run(workdir, *flags):
  main.main([
      '--config=configs/tiny.py:evaluate', f'--workdir={workdir}', *TINY, *flags
  ])
  return metrics_lib.read(workdir / 'metrics.jsonl')


def without_times(rows):
  return [
      {k: v for k, v in r.items() if not k.startswith('time/')} for r in rows
  ]


@pytest.fixture(scope='module')
def trained(tmp_path_factory, policy):
  """A workdir with a checkpoint of step 3: the shipped policy, disturbed."""
  folder = tmp_path_factory.mktemp('run')
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda x: x * jnp.asarray(rng.normal(1, 0.2, x.shape), x.dtype),
      policy[1])
  return write_run(folder, params)


def write_run(folder, params, **policy):
  """A workdir with parameters at step 3, and as much of a config as it needs.
  """
  zero = jnp.int32(0)
  checkpoints = checkpoint.Checkpoints(folder, config_lib.Checkpoint())
  checkpoints.save(3, TrainState(zero, zero, params, {}), last=True)
  checkpoints.close()
  (folder / 'config.json').write_text(
      json.dumps({'policy': {'init': 'asset:tiny_policy'} | policy}))
  return folder


QUESTIONS = {  # from easy to hard
    'max has 12 pens . dec loses 8 . jan buys 3 . how many ?': 7,
    'max has 12 pens . dec loses 8 . jan doubles . how many ?': 8,
    'zoe has 9 nuts . feb lends 3 . mar buys 5 . how many ?': 11,
    'sam has 8 toys . feb halves . mar repays 5 . how many ?': 9
}


@pytest.fixture(scope='module')
def whole(tmp_path_factory, trained):
  """(workdir, rows, flags) of an uninterrupted run of three models."""
  folder, data = (tmp_path_factory.mktemp(n) for n in ('whole', 'data'))
  (data / 'test.jsonl').write_text(''.join(
      json.dumps({'id': f'test-{i}', 'question': q, 'answer': a}) + '\n'
      for i, (q, a) in enumerate(QUESTIONS.items())))
  flags = [
      f"--config.eval.models=('asset:tiny_policy', '{trained}@3')",
      f'--config.eval.problems={data}/test.jsonl'
  ]
  return folder, run(folder, *flags), flags


def test_a_model_does_not_differ_from_itself(whole, trained):
  folder, rows, _ = whole
  assert [r['step'] for r in rows] == [0, 1, 2]
  first, same, other = rows
  for name, value in first.items():
    if not name.startswith(('time/', 'step')):
      assert same[name] == value, name
  assert same['compare/same_text_frac'] == 1
  assert other['compare/same_text_frac'] < 1
  for name in ('pass@1', 'pass@3', 'maj@3'):
    assert same[f'compare/{name}_diff'] == 0
    assert same[f'compare/{name}_diff_low'] < 0 < same[
        f'compare/{name}_diff_high']
  assert 0 < first['eval/pass@1'] < 1 and other['compare/pass@1_diff'] != 0
  new, stats = 'newly_solved', 'policy_statistics'
  assert same[f'{new}/base_unsolved'] == 4 - round(4 * first['eval/pass@3']) > 0
  assert same[f'{new}/count'] == same[f'{new}/null']  # the same draws
  assert same[f'{new}/null'] == other[f'{new}/null']
  assert same[f'{new}/excess'] == 0
  assert same[f'{new}/excess_low'] < 0 < same[f'{new}/excess_high']
  assert first[f'{stats}/kl_k3'] == same[f'{stats}/kl_k1'] == 0
  assert other[f'{stats}/kl_k3'] > 1e-3 and other[f'{stats}/entropy'] > 0
  names = {n for r in rows for n in r if n != 'step'}
  no_prefixes(names)
  assert all(n.count('/') == 1 for n in names)
  found = json.loads((folder / 'comparison.json').read_text())
  assert [m['name'] for m in found['models']
         ] == ['tiny_policy', 'tiny_policy-2', f'{trained.name}@3']
  assert found['models'][2]['step'] == 3
  assert found['models'][2]['difference']['pass@1']['mean'] == pytest.approx(
      other['eval/pass@1'] - first['eval/pass@1'])
  assert sum(
      found['models'][0]['policy_statistics']['steps_histogram'].values()) == (
          pytest.approx(1))


def test_rows_have_grade_and_text_of_each_sample(whole):
  rows = [
      json.loads(line)
      for line in (whole[0] /
                   'samples/tiny_policy.jsonl').read_text().splitlines()
  ]
  assert [(r['id'], r['sample']) for r in rows
         ] == [(f'test-{i}', s) for i in range(4) for s in range(3)]
  assert {
      'id', 'set', 'sample', 'text', 'tokens', 'status', 'answer', 'correct',
      'finish_reason'
  } <= set(rows[0])
  assert np.mean([r['correct'] for r in rows
                 ]) == pytest.approx(whole[1][0]['eval/pass@1'])
  independent = [
      json.loads(line)
      for line in (whole[0] /
                   'newly_solved/tiny_policy.jsonl').read_text().splitlines()
  ]
  texts = {(r['id'], r['sample']): r['text'] for r in rows}
  assert any(r['text'] != texts[r['id'], r['sample']] for r in independent)
  right = {r['id'] for r in rows if r['correct']}
  assert not right & {r['id'] for r in independent}


def test_resumed_is_uninterrupted(whole, tmp_path, capsys):
  """Killed in the middle of a line; waves fall otherwise the second time."""
  folder, rows, flags = whole
  (tmp_path / 'samples').mkdir()
  (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
  lines = (folder / 'samples/tiny_policy.jsonl').read_text().splitlines(True)
  old = json.loads(lines[5]) | {'digest': 'another prompt'}
  (tmp_path / 'samples/tiny_policy.jsonl').write_text(''.join(lines[:4]) +
                                                      json.dumps(old) + '\n' +
                                                      lines[6][:40])
  got = run(tmp_path, *flags, '--config.eval.wave=1')
  assert '4 of 12 already done' in capsys.readouterr().out
  assert without_times(got) == without_times(rows)
  files = [p.relative_to(folder) for p in folder.glob('*/*.jsonl')]
  assert len(files) == 6
  for file in files:
    assert sorted((tmp_path / file).read_text().splitlines()) == sorted(
        (folder / file).read_text().splitlines())
  assert (tmp_path /
          'comparison.json').read_text() == (folder /
                                             'comparison.json').read_text()


def test_a_model_may_be_added_and_several_sets_asked(whole, tmp_path, capsys):
  a = write_set(tmp_path / 'a.jsonl', [3, 4])
  b = write_set(tmp_path / 'b.jsonl', [3])
  flags = [
      f'--config.eval.problems=a={a},b={b}',
      '--config.eval.policy_statistics=0', '--config.eval.behaviors=words'
  ]
  workdir = tmp_path / 'w'
  (row,) = run(workdir, '--config.eval.models=()', *flags)
  assert row['eval/pass@1'] == pytest.approx(
      (2 * row['eval/a/pass@1'] + row['eval/b/pass@1']) / 3)
  assert row['behaviors/verification_mean'] == 0
  assert not any(n.startswith(('compare', 'newly_solved')) for n in row)
  capsys.readouterr()
  again, other = run(workdir, *flags)
  out = capsys.readouterr().out
  assert '9 of 9 already done' in out
  assert without_times([again]) == without_times([row])
  assert other['compare/a/pass@1_diff'] == 0
  for area in ('eval', 'compare'):
    end = '_diff' if area == 'compare' else ''
    of = lambda part, a=area, e=end: other[f'{a}/{part}/pass@1{e}']
    assert of('mean_over_sets') == pytest.approx((of('a') + of('b')) / 2)
  assert out.count('mean_over_sets') == 3  # two models and a difference
  no_prefixes(other)


@pytest.mark.parametrize('flag, message', [
    ('eval.models=("nowhere",)', 'nowhere'),
    ('eval.models=("WORKDIR@4",)', 'no checkpoint of step 4; it has 3'),
    ('eval.models=("asset:tiny_policy@4",)', 'has no checkpoints; wanted step'),
    ('eval.newly_solved_k=4', 'newly_solved_k=4: at most eval.samples=3'),
    ('eval.newly_solved_min=4',
     'newly_solved_min=4: at most eval.newly_solved_k=3'),
    ('eval.behaviors=letters', "behaviors='letters': one of"),
    ('eval.behaviors=judge', 'judge.init is empty'),
    ('eval.wave=0', 'eval.wave=0: at least 1'),
    ('judge.delimiter=%%', "judge.delimiter='%%': not a token"),
    ('eval.problems=none.jsonl', 'no such problem file'),
])
def test_mistakes_are_named_before_anything_is_written(tmp_path, trained, flag,
                                                       message):
  with pytest.raises(InputError, match=message) as e:
    run(tmp_path / 'w', '--config.' + flag.replace('WORKDIR', str(trained)))
  assert '\n' not in str(e.value)
  assert not (tmp_path / 'w').exists()


def test_another_file_is_left_alone(whole, tmp_path):
  (tmp_path / 'samples').mkdir()
  (tmp_path / 'config.json').write_text((whole[0] / 'config.json').read_text())
  file = tmp_path / 'samples/tiny_policy.jsonl'
  file.write_text('{"id": "3"}\n')
  with pytest.raises(InputError, match='tiny_policy.jsonl has other content'):
    run(tmp_path)
  assert file.read_text() == '{"id": "3"}\n'


def test_names_of_models():
  taken = set()
  for path, name in [('asset:tiny_policy', 'tiny_policy'),
                     ('/runs/a b/model/', 'a_b'), ('gs://x/run@40', 'run@40'),
                     ('other/run@40', 'run@40-2'), ('more/run@40', 'run@40-3'),
                     ('null', 'null'), ('/', 'model')]:
    assert candidates.unique_name(path, taken) == name
    taken.add(name)


# Where models come from.


def test_sources(trained, policy, one_device, tmp_path):
  assert references.find('asset:tiny_policy') == references.Reference(POLICY)
  for name in (f'{trained}@3', str(trained)):  # a run that has not ended
    assert references.find(name) == references.Reference(POLICY, trained, 3)
  folder = tmp_path / 'model@3'
  folder.symlink_to(POLICY)
  assert references.find(str(folder)).workdir is None
  shutil.copytree(POLICY, tmp_path / 'ended/model')
  assert references.find(str(tmp_path /
                             'ended')).folder == tmp_path / 'ended/model'
  found, model, params = references.load(f'{trained}@3', one_device, 'bfloat16',
                                         frozen=True, attention='einsum')
  assert found == POLICY and model.attention == 'einsum'
  want = hf.load(POLICY, one_device, 'bfloat16', frozen=True)[1]
  assert jax.tree.map(lambda x: (x.shape, x.dtype),
                      params) == jax.tree.map(lambda x: (x.shape, x.dtype),
                                              want)
  moved = references.load(str(trained), one_device)[2]['embedding']
  assert 0.1 < np.abs(moved / policy[1]['embedding'] - 1).mean() < 0.3


def test_a_checkpoint_of_adapters_is_read_as_it_was_trained(
    policy, one_device, tmp_path, rng):
  model, params, _ = policy
  adapters = jax.tree.map(
      lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype),
      lora.init(model, params, 2, jax.random.key(0)))
  write_run(tmp_path, adapters, lora_rank=2, lora_alpha=3.0, dtype='float32')
  assert references.find(f'{tmp_path}@3').under == references.Reference(POLICY)
  shutil.copytree(POLICY, tmp_path / 'model')  # as when it has ended
  assert references.find(str(tmp_path)).is_folder
  assert references.find_to_sample(str(tmp_path)).step == 3
  shutil.rmtree(tmp_path / 'model')
  got = references.load(str(tmp_path), one_device)[2]
  want = lora.merge(params, adapters, 1.5)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert np.abs(got['layers']['q'] - params['layers']['q']).max() > 0.01
  # To sample from, the adapters stay beside their matrices, in float32.
  apart = references.load(str(tmp_path), one_device, 'bfloat16', frozen=True)[2]
  base, found = lora.detach(apart)
  assert base['layers']['q'].dtype == jnp.bfloat16
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
               lora.merge(params, found, 1.0), want)


def test_bad_sources_are_named(trained, tmp_path):
  for name, message in ((f'{trained}@2', 'no checkpoint of step 2; it has 3'),
                        ('nowhere@2', 'nowhere has no checkpoints')):
    with pytest.raises(InputError, match=message):
      references.find(name)
  copy = shutil.copytree(trained, tmp_path / 'copy')
  (copy / 'config.json').unlink()
  with pytest.raises(InputError, match='config.json: not the config of a run'):
    references.find(f'{copy}@3')


# Policy statistics.


def test_policy_statistics_are_those_of_full_rows(policy, one_device, rng):
  model, params, tokenizer = policy
  other = jax.tree.map(lambda x: x * 1.02, params)
  config = config_lib.Config(rollout=config_lib.Rollout(temperature=0.8))
  samples = [(rng.integers(5, 40, n).tolist(),
              Sample(rng.integers(5, 40, m).astype(np.int32), None, 'length'))
             for n, m in ((9, 30), (4, 1), (20, 130))]
  found = policy_statistics.of_samples(config, (model, params), (model, other),
                                       one_device,
                                       Segmenter(tokenizer, 'every:10',
                                                 10**9), samples)
  assert [r['step_count'] for r in found] == [3, 1, 13]
  tokens, valid = np.zeros((2, 3, 150), np.int32)
  for i, (prompt, sample) in enumerate(samples):
    whole = [*prompt, *sample.tokens]
    tokens[i, :len(whole)], valid[i, :len(whole)] = whole, 1
  of = jax.jit(
      lambda params: head.token_logprobs(model, params, tokens, valid, 0.8))
  (mine, entropy), (theirs, _) = jax.tree.map(np.asarray,
                                              (of(params), of(other)))
  for i, ((prompt, sample), row) in enumerate(zip(samples, found)):
    written = slice(len(prompt), len(prompt) + len(sample.tokens))
    d = (theirs - mine)[i, written]
    assert row['entropy'] == pytest.approx(entropy[i, written].mean(), abs=1e-4)
    assert row['kl_k1'] == pytest.approx(-d.mean(), abs=1e-4)
    assert row['kl_k3'] == pytest.approx((np.exp(d) - d - 1).mean(), abs=1e-4)
    assert row['kl_k3'] >= 0


def test_policy_statistics_are_means_over_tokens():
  row = lambda tokens, kl, correct, steps: {
      'tokens': tokens, 'entropy': 2 * kl, 'kl_k1': kl, 'kl_k3': kl,
      'correct': correct, 'step_count': steps
  }
  found = policy_statistics.summary([
      row(1, 4, True, 0),
      row(3, 0, False, 5),
      row(5, 0, False, 11),
      row(1, 6, False, 3)
  ])
  assert found['kl_k1'] == 1 and found['entropy'] == 2
  assert found['length_correct'] == 1 and found['length_wrong'] == 3
  assert found['steps_mean'] == 4.75
  assert found['steps_histogram'] == {
      '0': .25, '1': 0, '2': 0, '3-5': .5, '6-10': 0, '>10': .25
  }
  found = policy_statistics.summary([row(1, 4, True, 0)])
  assert np.isnan(found['length_wrong'])
