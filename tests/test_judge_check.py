"""What a judge is asked before a run, and its report card."""

import json
import runpy

import numpy as np
import pytest

from exprl_jax import main
from exprl_jax.data import tiny_world as world
from exprl_jax.data.steps import Segmenter
from exprl_jax.evals import (
    judge_calibration,
    judge_check,
    judge_fitness,
    judge_pairs,
    judge_traces,
)
from exprl_jax.judge import factory
from exprl_jax.runs import recipes
from exprl_jax.tiny import assets
from exprl_jax.types import InputError, Problem, RunFailure
from tests.conftest import make_bpe

TRACES = '--config.judge.traces=asset:tiny_problems/traces.jsonl'


def frozen(*flags):
  return recipes.freeze(
      main.parse(['--config=configs/tiny.py', '--config.compare=', *flags])[1])


@pytest.fixture(scope='module')
def judge(one_device):
  return factory.load(frozen(), one_device)


PROBLEM = Problem(
    'a', 'Four boxes hold 12 pens each. How many pens?',
    'Each box holds 12 pens.\n\nFour boxes hold 4 times 12, that is 48 pens.'
    '\n\n\\boxed{48}', '48')
OTHER = Problem('b', 'What is 5 + 2?', 'It is 5 + 1 + 1.\n\nThat is 7.', '7')


@pytest.fixture
def made(tmp_path):
  segment = Segmenter(make_bpe(tmp_path, ['a b']), 'blank_line', 8)
  return {m.kind: m for m in judge_pairs.make(PROBLEM, OTHER, segment)}


def test_traces_are_made_of_a_solution(made):
  text = {kind: ''.join(m.steps) for kind, m in made.items()}
  assert text['reference'] == text['wrong_reference'] == PROBLEM.solution
  assert text['wrong_box'] == PROBLEM.solution.replace('{48}', '{47}')
  assert text['two_boxes'] == PROBLEM.solution + ' \\boxed{47}'
  assert text['answer_only'] == '\\boxed{48}'
  assert text['truncated'] == 'Each box holds 12 pens.\n\n'
  assert text['other'] == OTHER.solution + '\n\n\\boxed{7}'  # it had no box
  assert made['wrong_reference'].problem.solution == OTHER.solution
  assert text['wrong_step'].endswith('\\boxed{48}')
  differ = [a != b for a, b in zip(made['wrong_step'].steps,
                                   made['reference'].steps)]  # yapf: disable
  assert sum(differ) == 1
  assert made['wrong_step'].first_wrong == differ.index(True)
  assert made['wrong_box'].first_wrong == 2
  assert made['reference'].first_wrong == -1


def test_kinds_that_cannot_be_made_are_left_out(tmp_path):
  segment = Segmenter(make_bpe(tmp_path, ['a b']), 'blank_line', 8)
  proof = Problem('c', 'Show it.', 'It is so.')
  assert [m.kind for m in judge_pairs.make(proof, proof, segment)
         ] == ['reference']
  assert {m.kind for m in judge_pairs.make(proof, OTHER, segment)
         } == {'reference', 'other', 'wrong_reference'}
  assert judge_pairs.make(Problem('d', 'x', ' '), OTHER, segment) == []


@pytest.mark.parametrize('solution, wrong', [
    ('So it is $\\boxed{b}$.', 'So it is $\\boxed{c}$.'),
    ('\\boxed{1} or \\boxed{ 2 } .', '\\boxed{1} or \\boxed{ 1 } .'),
])
def test_the_last_box_is_made_wrong(tmp_path, solution, wrong):
  segment = Segmenter(make_bpe(tmp_path, ['a b']), 'blank_line', 8)
  problem = Problem('e', 'x', solution)
  text = {
      m.kind: ''.join(m.steps)
      for m in judge_pairs.make(problem, OTHER, segment)
  }
  assert text['wrong_box'] == wrong


class Scoring:
  """A judge that gives each trace the score of a function."""

  def __init__(self, judge, score):
    self._judge, self._score = judge, score
    self.asked = []

  weights_name = ''

  def __getattr__(self, name):
    return getattr(self._judge, name)

  def of(self, problem):
    del problem
    return self

  def score(self, items, max_steps):
    self.asked += items
    shape = len(items), max_steps
    status = np.full(shape, -1, np.int8)
    value = np.zeros(shape, np.float32)
    for i, (problem, steps) in enumerate(items):
      status[i, :len(steps)] = 0
      value[i, :len(steps)] = self._score(problem, ' '.join(steps))
    return factory.Judgments(value, np.ones(shape, np.float32), status,
                             np.zeros(len(items), bool),
                             [[''] * len(s) for _, s in items])


def reads(problem, text):
  return float(text.endswith(problem.solution.split('by ')[-1]))


@pytest.mark.parametrize('budget', [1000, 4000, 32768])
def test_questions_keep_within_their_budget(judge, budget):
  for more in ((), ('--config.judge.traces=',)):
    config = frozen(f'--config.judge.check_tokens={budget}', *more)
    problems = world.problems('train')
    asked = judge_check.questions(config, judge, problems)
    assert 0 < asked.tokens <= budget
    assert asked.probes and bool(asked.traces) == (not more)
    assert bool(asked.made) == bool(more)
    families = {p.name.partition('/')[0] for p in asked.probes}
    assert len(families) > (4 if budget > 1000 else 1)
    # Drawn the same way every time.
    again = judge_check.questions(config, judge, problems)
    assert again.items == asked.items
  off = frozen('--config.judge.check_tokens=0')
  assert judge_check.before_training(off, judge, problems) == {}


def test_domains_with_one_template_share_their_questions(judge):
  problems = world.problems('train')[:40]
  subjects = [
      Problem(p.id, p.question, p.solution, p.answer, f'subject {i}')
      for i, p in enumerate(problems)
  ]
  config = frozen('--config.judge.check_tokens=1000000')
  counts = [
      len(judge_check.questions(config, judge, some).probes)
      for some in (problems, subjects)
  ]
  assert counts[0] == counts[1] < 300


def test_answers_are_remembered_by_the_user(judge, tmp_path, monkeypatch,
                                            capsys):
  monkeypatch.setenv('EXPRL_CACHE', str(tmp_path))
  config = frozen('--config.judge.check_tokens=2000')
  problems = world.problems('train')
  first = judge_check.before_training(config, judge, problems)
  assert 'judge check: ' in capsys.readouterr().out
  (folder,) = (tmp_path / 'judge_checks').iterdir()
  parts = {p.name: p.stat().st_size for p in folder.iterdir()}
  monkeypatch.setattr(type(judge), '_judge',
                      lambda self, items: [pytest.fail('asked')
                                           for _ in items])  # yapf: disable
  assert judge_check.before_training(config, judge, problems) == first
  assert {p.name: p.stat().st_size for p in folder.iterdir()} == parts


def test_a_judge_that_cannot_tell_is_refused(judge):
  problems = world.problems('train')
  chance = Scoring(judge, lambda problem, text: 0.3)
  for flags, of in (((), 'right and wrong traces'),
                    (('--config.judge.traces=',), 'references and flawed')):
    with pytest.raises(RunFailure, match=f'{of}.* it ranks 0.50 rightly'):
      judge_check.before_training(frozen(*flags), chance, problems)
    allowed = judge_check.before_training(
        frozen('--config.judge.min_separation=0.5', *flags), chance, problems)
    assert allowed['judge/separation'] == 0.5
  sound = Scoring(judge, reads)
  values = judge_check.before_training(
      frozen('--config.judge.max_probe_score=1.0', '--config.judge.traces='),
      sound, problems)
  assert values['judge/separation'] == 1.0


def test_marked_traces_are_read(judge, tmp_path):
  path = tmp_path / 'in.jsonl'
  row = {'question': 'q', 'solution': 's'}

  def read(**more):
    path.write_text(json.dumps(row | more) + '\n')
    config = frozen(f'--config.judge.traces={path}')
    (trace,) = judge_traces.read_traces(config, judge.tokenizer)
    return trace

  text = 'jan 1 + 1 = 2 ### feb 2 + 1 = 4 ### \\boxed{ 4 }'
  assert [
      read(trace=text, wrong_at=at).first_wrong
      for at in (-1, 0, 12, 13, 18, 30, 37)
  ] == [-1, 0, 0, 1, 1, 1, 2]
  assert read(trace=text).first_wrong is None
  given = read(steps=['jan 1 + 1 = 2', 'feb 2 + 1 = 4'], label=1, correct=False)
  assert given.steps == ['jan 1 + 1 = 2', 'feb 2 + 1 = 4']
  assert given.first_wrong == 1 and given.correct is False
  for more, message in ((dict(trace='x', wrong_at=1), 'wrong_at=1'), (dict(
      trace='x', wrong_at=True), 'wrong_at=True'), (dict(steps=['x'],
                                                         label=1), 'label=1'),
                        (dict(steps='x', label=0), 'steps should be'),
                        (dict(steps=[]), 'steps should be')):
    with pytest.raises(InputError, match=message):
      read(**more)


def test_a_run_reads_its_labeled_traces_first(tmp_path):
  with pytest.raises(InputError, match='judge.traces=.*: no such file'):
    main.main([
        '--config=configs/tiny.py', '--dry_run', '--config.compare=',
        f'--config.judge.traces={tmp_path}/none.jsonl'
    ])


def test_the_shipped_traces_are_the_generators():
  shipped = (assets.ASSETS / 'tiny_problems/traces.jsonl').read_text()
  rows = [json.loads(line) for line in shipped.splitlines()]
  assert rows == list(assets.labeled_traces())
  assert sum(row['correct'] for row in rows) >= 32


def card(judge, score):
  """A report card on the shipped traces."""
  config = frozen(TRACES)
  fake = Scoring(judge, score)
  traces = judge_traces.read_traces(config, judge.tokenizer)
  judgments = judge_traces.score(fake, traces)
  report = judge_calibration.calibrate(config, fake, traces, judgments, None)
  assert json.loads(json.dumps(report, allow_nan=False)) == report
  return report


def truth(problem, text):
  pieces = world.segments_of(text)
  if not pieces or 'boxed' not in problem.solution:
    return 0.0
  return world.progress(problem.solution, pieces)[-1]


def test_the_card_of_a_judge_that_scores_like_the_program(judge):

  class Exact(Scoring):

    def score(self, items, max_steps):
      out = super().score(items, max_steps)
      for i, (problem, steps) in enumerate(items):
        for s in range(len(steps)):
          out.score[i, s] = truth(problem, ' '.join(steps[:s + 1]))
      return out

  config = frozen(TRACES)
  fake = Exact(judge, lambda problem, text: 0)
  traces = judge_traces.read_traces(config, judge.tokenizer)
  report = judge_calibration.calibrate(config, fake, traces,
                                       judge_traces.score(fake, traces), None)
  found = report['first_wrong_step']
  assert found['n'] == 96 and found['exact']['value'] == 1
  assert found['right']['value'] == found['change_auroc']['value'] == 1
  assert report['rising']['value'] == 1
  # Some misread traces end on the right answer.
  assert report['conditions']['own']['auroc']['value'] > 0.95
  assert report['fit']['for'] == 'process'


@pytest.mark.parametrize('score, fit', [
    (lambda problem, text: 0.3, ''),
    (lambda problem, text: 0.5 *
     ('boxed' in text) + truth(problem, text) / 2, 'outcome'),
])
def test_cards_of_judges_that_do_not_see_steps(judge, score, fit):
  report = card(judge, score)
  assert report['fit']['for'] == fit
  assert report['fit']['why'].startswith(
      'fit for outcome rewards, not' if fit else 'not fit')


def test_fitness_asks_for_enough_traces():
  report = judge_fitness.fitness({'readable': 1.0})
  assert report['for'] == '' and 'too few traces' in report['why']
  sure = {'value': 0.9, 'low': 0.8, 'high': 1.0}
  pairs = {'readable': 1.0, 'pairs': {'problems': 20, 'won': sure}}
  assert judge_fitness.fitness(pairs)['for'] == 'outcome'
  steps = {'n_wrong': 20, 'change_auroc': sure}
  assert judge_fitness.fitness(
      pairs | {'made_first_wrong_step': steps})['for'] == 'process'
  assert judge_fitness.fitness(pairs | {'readable': 0.8})['for'] == ''


def test_traces_of_champ_are_marked():
  rows = runpy.run_path('benchmarks/champ_traces.py')['rows']
  problem = {
      'identifier': 'P1', '_text': 'How many?', '_answer': '3',
      'solution': {'steps': [{'_text': 'Count.'}, {'_text': 'There are 3.'}]},
      'fws_annotations': {
          'b': {'text': 'There are 4.', 'start_idx': 10, 'end_idx': 12},
          'a': {'text': 'There are 3.', 'start_idx': None, 'end_idx': None}
      }
  }
  right, wrong = rows([problem])
  assert right == {
      'id': 'P1/a', 'question': 'How many?', 'solution': 'Count.\nThere are 3.',
      'trace': 'There are 3.', 'wrong_at': -1, 'correct': True
  }
  assert (wrong['wrong_at'], wrong['correct']) == (10, False)


def test_steps_that_are_given_apart_are_those_of_the_trace(tmp_path):
  """A judge must not read `8 + 15 = 2323 + 5 = 28`."""
  segment = Segmenter(make_bpe(tmp_path, ['a b']), 'blank_line', 8)
  row = {'id': 'a', 'question': 'q', 'solution': 's', 'correct': True}
  steps = ['8 + 15 = 23', '23 + 5 = 28', '28.']
  apart, whole = (judge_traces.parse(row | more, 'here', 1, segment).steps
                  for more in ({'steps': steps}, {'trace': '\n\n'.join(steps)}))
  assert apart == whole == ['8 + 15 = 23\n\n', '23 + 5 = 28\n\n', '28.']
  # White space of their own is kept.
  own = ['one\n', 'two', '\n three', 'four']
  assert segment.spaced(own) == ['one\n', 'two', '\n three\n\n', 'four']
  assert segment.spaced(['one']) == ['one']
