"""The tiny world: what ships is what the generator makes; labels by hand."""

import json
import random

import pytest

from exprl_jax import config as config_lib
from exprl_jax import grading
from exprl_jax.tiny import assets, traces, world
from exprl_jax.types import Problem

STORY = world.Story('max', 'pens', 12, (('dec', 'loses', 8),
                                        ('jan', 'doubles', 2)))
SOLUTION = 'by dec 4 by jan 8 \\boxed{ 8 }'


def test_a_story_by_hand():
  assert STORY.question() == (
      'max has 12 pens . dec loses 8 . jan doubles . how many ?')
  assert STORY.reference() == SOLUTION
  assert STORY.worked() == (
      'dec 12 - 8 = 4 ### jan 4 * 2 = 8 ### \\boxed{ 8 }')


@pytest.mark.parametrize('trace, labels', [
    (['dec 12 - 8 = 4', 'jan 4 * 2 = 8', '\\boxed{ 8 }'], [.25, .5, 1]),
    (['dec 12 + 8 = 20', 'jan 20 * 2 = 40', '\\boxed{ 40 }'], [0, 0, 0]),
    (['dec 12 - 8 = 5', 'jan 4 * 2 = 8'], [0, .25]),
    (['dec 12 - 8 = 5', 'dec 12 - 8 = 4'], [0, 0]),  # the first one counts
    (['dec 12 - 8 = 4', 'dec 12 - 8 = 4'], [.25, .25]),  # once
    (['dec 4', 'jan = 8', '\\boxed{ 8 }'], [0, 0, .5]),  # no working
    (['\\boxed{ 8 }', 'dec 12 - 8 = 4'], [.5, .25]),  # the box must be last
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
    assert grading.grade(problem.solution, problem.answer)
    assert world.progress(problem.solution,
                          world.segments_of(story.worked()))[-1] == 1.0
    assert all(0 < v <= world.LARGEST for v in story.values())


def test_pretraining_text_misreads_hard_verbs_only():
  """Shares of verbs read right, over 4,000 draws; seed 0."""
  rng = random.Random(0)
  for verb, want in world.READ_RIGHT.items():
    story = world.Story('max', 'pens', 20, (
        ('dec', verb, world.FIXED_OPERAND.get(verb, 3)),))
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
