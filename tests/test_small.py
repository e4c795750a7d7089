"""configs/small: problems, labels, and commands that are accepted."""

import importlib.util
import json
import pathlib
import random
import shlex
import subprocess
import sys

import pytest

from exprl_jax import main
from exprl_jax.runs import recipes

SCRIPTS = pathlib.Path('benchmarks')


@pytest.fixture(scope='module')
def problems():
  spec = importlib.util.spec_from_file_location('problems',
                                                SCRIPTS / 'word_problems.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def data(problems, tmp_path_factory):
  folder = tmp_path_factory.mktemp('small') / 'data'
  problems.main(folder)
  return folder


def test_files_have_no_problem_in_common(data):
  questions = []
  for path in data.iterdir():
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    questions += [row['question'] for row in rows]
    for row in rows:
      assert row['solution'].endswith(f'\\boxed{{{row["answer"]}}}')
  assert len(set(questions)) == len(questions) == 2668


def test_labels_by_hand(problems):
  story = problems.Story(
      's', 'q',
      [problems.Change(8, '+', 15, 23),
       problems.Change(23, '*', 2, 46)])
  for steps, scores, wrong in [
      (['8 + 15 = 23', '23 * 2 = 46', '\\boxed{46}'], [1 / 4, 2 / 4, 1], -1),
      (['8 + 15 = 23', '23 * 2 = 46', '\\boxed{44}'], [1 / 4, 2 / 4, 2 / 4], 2),
      (['8 - 15 = 23', '23 * 2 = 46', '\\boxed{46}'], [0, 0, 0], 0),
      (['8 + 15 = 23', '\\boxed{46}'], [1 / 4, 1 / 4], 1),
      (['23 * 2 = 46', '8 + 15 = 23'], [0, 1 / 4], 0),
  ]:
    assert problems.score_steps(story, steps) == scores
    assert problems.first_wrong(story, steps) == wrong


def test_flawed_traces_are_of_all_kinds(problems):
  rng, seen = random.Random(0), set()
  for i in range(400):
    story = problems.make_story(rng, str(i), 4)
    steps = problems.flawed(rng, story).split('\n\n')
    seen.add(problems.score_steps(story, steps)[-1])
  assert seen == {0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 1}


def test_every_stage_is_a_valid_command(data):
  out = subprocess.run([
      sys.executable, SCRIPTS / 'small_run.py', '--dry_run',
      '--model=asset:tiny_policy', f'--root={data.parent}'
  ], text=True, capture_output=True, check=True).stdout.splitlines()
  assert len(out) == 8
  for line in out[1:]:
    recipes.freeze(main.parse(shlex.split(line)[3:])[1])
  bad = subprocess.run([
      sys.executable, SCRIPTS / 'small_run.py', '--model=m', '--stages=base,x'
  ], text=True, capture_output=True)
  assert bad.returncode == 1 and 'choose from' in bad.stderr
