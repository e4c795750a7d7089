"""The tiny world: what ships is what the generator makes; labels by hand."""

import collections
import dataclasses
import json
import random

import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax import main
from exprl_jax.data import tiny_world as world
from exprl_jax.grading.equality import grade
from exprl_jax.judge import factory, hacking
from exprl_jax.tiny import assets, traces
from exprl_jax.types import Problem

STORY = world.Story('max', 'pens', 12,
                    (('dec', 'loses', 8), ('jan', 'doubles', 2)))
SOLUTION = 'by dec 4 by jan 8 \\boxed{ 8 }'


def test_a_story_by_hand():
  assert STORY.question() == (
      'max has 12 pens . dec loses 8 . jan doubles . how many ?')
  assert STORY.reference() == SOLUTION
  assert STORY.worked() == ('dec 12 - 8 = 4 ### jan 4 * 2 = 8 ### \\boxed{ 8 }')


@pytest.mark.parametrize(
    'trace, labels',
    [
        (['dec 12 - 8 = 4', 'jan 4 * 2 = 8', '\\boxed{ 8 }'], [.25, .5, 1]),
        (['dec 12 + 8 = 20', 'jan 20 * 2 = 40', '\\boxed{ 40 }'], [0, 0, 0]),
        (['dec 12 - 8 = 5', 'jan 4 * 2 = 8'], [0, .25]),
        (['dec 12 - 8 = 5', 'dec 12 - 8 = 4'], [0, 0]),  # the first one counts
        (['dec 12 - 8 = 4', 'dec 12 - 8 = 4'], [.25, .25]),  # once
        (['dec 4', 'jan = 8', '\\boxed{ 8 }'], [0, 0, .5]),  # no working
        (['\\boxed{ 8 }', 'dec 12 - 8 = 4'], [.5, .25]),  # the box must be last
        (['\\boxed{ 9 }', '\\boxed{ 8 }'], [0, 0]),  # and the only one
        (['\\boxed{ 8 }', '\\boxed{ 9 }'], [.5, 0]),
        (['dec 12 - 8 = 4 = 4', 'score 5'], [0, 0]),
    ])
def test_labels_by_hand(trace, labels):
  assert world.progress(SOLUTION, trace) == labels


def test_labels_of_merged_steps():
  item = traces.label(Problem('', '', SOLUTION),
                      ['dec 12 - 8 = 4', '### jan 4 * 2 = 8 ### \\boxed{ 8 }'])
  assert item.labels == [0.25, 1.0]
  assert traces.label(Problem('', '', SOLUTION), ['###']).labels == [0.0]


def test_the_shipped_problems_are_the_generators(tmp_path):
  world.write_problems(tmp_path)
  for split in ('train', 'validation', 'test'):
    shipped = config_lib.resolve(f'asset:tiny_problems/{split}.jsonl')
    assert shipped.read_text() == (tmp_path / f'{split}.jsonl').read_text()


def test_the_shipped_tokenizers_are_the_makers():
  for name in ('tiny_policy', 'tiny_judge'):
    shipped = config_lib.resolve(f'asset:{name}') / 'tokenizer.json'
    assert json.loads(shipped.read_text()) == json.loads(
        assets.tokenizer().to_str())


def test_problem_sets_do_not_overlap():
  sets = [{p.question for p in world.problems(s)} for s in world.SPLITS]
  assert sum(map(len, sets)) == len(set.union(*sets)) == sum(
      size for _, size, _ in world.SPLITS.values())
  text = world.PretrainingText(3000)
  assert not {p.question for p in text} & set.union(*sets)
  assert text[7] == world.PretrainingText(10)[7] and text[7] != text[8]


def test_references_are_right_and_answers_are_theirs():
  for story in world.stories('test'):
    problem = story.problem('')
    assert grade(problem.solution, problem.answer)
    assert world.progress(problem.solution,
                          world.segments_of(story.worked()))[-1] == 1.0
    assert all(0 < v <= world.LARGEST for v in story.values())


def test_pretraining_text_misreads_hard_verbs_only():
  """Shares of verbs read right, over 4,000 draws; seed 0."""
  rng = random.Random(0)
  for verb, want in world.READ_RIGHT.items():
    story = world.Story('max', 'pens', 20,
                        (('dec', verb, world.FIXED_OPERAND.get(verb, 3)),))
    right = story.worked()
    share = sum(story.worked(rng) == right for _ in range(4000)) / 4000
    assert share == pytest.approx(want, abs=0.04)


def test_synthetic_traces_have_every_kind_and_every_score():
  rng, scores = random.Random(0), set()
  for _ in range(500):
    story = world.story(rng, 6, 0.85)
    text = traces.synthetic(rng, story)
    scores |= set(traces.label(story.problem(''), [text]).labels)
  assert scores == {i / 8 for i in range(9)}


def test_the_shipped_judge_is_right_and_is_not_fooled(one_device):
  """The bars of docs/results.md, on a part of what is measured there."""
  config = config_lib.freeze(main.parse(['--config=configs/judge.py'])[1])
  judge = factory.load(config, one_device)
  stories = world.stories('judge_accept')[:24]
  problems = [s.problem(str(i)) for i, s in enumerate(stories)]
  rng, items = random.Random(0), []
  for story, problem in zip(stories, problems):
    for text in (story.worked(), story.worked(rng), story.worked(rng, 0.2)):
      steps = text.split(' ### ')
      items.append(
          traces.label(problem,
                       [steps[0], *(f'### {step}' for step in steps[1:])]))
  got = judge.score([(x.problem, x.steps) for x in items], 8)
  truth = np.array([x.labels for x in items])
  scores = got.score[:, :7]
  assert np.corrcoef(scores.ravel(), truth.ravel())[0, 1] > 0.98
  assert scores[::3, -1].mean() > 0.95  # right traces
  other = [
      dataclasses.replace(p, solution=q.solution)
      for p, q in zip(problems, [*problems[1:], problems[0]])
  ]
  wrong = judge.score([(p, x.steps) for p, x in zip(other, items[::3])], 8)
  assert wrong.score[:, 6].mean() < 0.10
  assert max(hacking.probe(config, judge, problems).values()) < 0.3


def test_the_shipped_judge_reads_the_box(one_device):
  """Right steps with a wrong box, or with two, are not a right trace."""
  config = config_lib.freeze(main.parse(['--config=configs/judge.py'])[1])
  judge = factory.load(config, one_device)
  scores = collections.defaultdict(list)
  for story in world.stories('judge_accept')[:32]:
    problem = story.problem('')
    *steps, right = story.worked().split(' ### ')
    steps = [steps[0], *(f'### {step}' for step in steps[1:])]
    wrong = f'\\boxed{{ {int(problem.answer) + 1} }}'
    for name, end in (('right', right), ('wrong', wrong),
                      ('both', f'{right} {wrong}'), ('both again',
                                                     f'{wrong} {right}')):
      got = judge.score([(problem, [*steps, f'### {end}'])], 8)
      scores[name].append(got.score[0, len(steps)])
  means = {name: np.mean(values) for name, values in scores.items()}
  assert means.pop('right') > 0.98
  assert max(means.values()) < 0.8
