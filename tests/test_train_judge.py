"""run='train_judge': how the tiny judge is made, in short."""

import pytest

from tests.test_train import run


@pytest.mark.slow
def test_the_tiny_judge_can_be_trained_again(tmp_path):
  """A round of each kind of data, and an adversary."""
  rows = run('tiny:judge', tmp_path, '--config.steps=4',
             '--config.data.limit=16', '--config.judge_training.start=',
             '--config.judge_training.warmup_steps=1',
             '--config.judge_training.round_steps=2',
             '--config.judge_training.adversary_steps=2',
             '--config.judge_training.policy_steps=2',
             '--config.judge_training.problems=2')
  assert {'adversary/judge', 'adversary/truth'} <= set(rows[0])
  saved = [(tmp_path / name / 'model.safetensors').read_bytes()
           for name in ('judges/00000002', 'judges/00000004', 'model')]
  assert saved[0] != saved[1] == saved[2]
