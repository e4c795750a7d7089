"""What a run says about itself."""

import numpy as np
import pytest

from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.grading.grader import Grade
from exprl_jax.rl.scored import ScoredRollouts, Trace
from exprl_jax.runs.notices import Notices
from exprl_jax.types import Problem, Scores, Trajectory
from tests.conftest import make_bpe


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """The tokenizer of a base model, which ends on '<|endoftext|>'."""
  return make_bpe(tmp_path_factory.mktemp('bpe'), eos='<|endoftext|>',
                  special=('<|im_start|>', '<|im_end|>', '<|vision_end|>'))


def rollouts(*rows):
  """(tokens, finish_reason) of each."""
  traces = [
      Trace(
          Problem('p', 'p'),
          Trajectory(np.zeros(1, np.int32), np.array(tokens, np.int32),
                     np.zeros(len(tokens), np.float32), reason, (len(tokens),)),
          '', [''], Grade('wrong', '')) for tokens, reason in rows
  ]
  scores = Scores(np.zeros((len(rows), 1), np.float32),
                  np.ones((len(rows), 1), bool))
  return ScoredRollouts(traces, scores, scores, np.zeros(len(rows), bool), {})


def test_a_run_past_an_end_that_is_none_is_reported(base):
  (end,) = base.encode('<|im_end|>', special=True)
  (other,) = base.encode('<|vision_end|>', special=True)
  past, fine = ([5, end, 6, 7], 'length'), ([5, 6], 'eos')
  (text,) = Notices(base).of_step(1, rollouts(past, past, fine), {})
  assert '2 of 3 samples used up rollout.max_new_tokens' in text
  assert '100% of these have written <|im_end|> before' in text
  assert f'--config.rollout.stop_ids="({end},)"' in text
  # Not if most samples end, if it is another token, or if it ends a sample.
  assert not Notices(base).of_step(1, rollouts(past, fine, fine), {})
  long = ([5, other, 6, 7], 'length')
  assert not Notices(base).of_step(1, rollouts(long, long), {})
  told = Tokenizer(base.folder, (end,))
  assert not Notices(told).of_step(1, rollouts(past, past), {})


def test_a_notice_is_given_more_and_more_seldom(base):
  values = {'credit/zero_frac': 1.0} | {
      f'credit/zero_{cause}_frac': float(cause == 'equal')
      for cause in ('unreadable', 'unfinished', 'one_step', 'equal')
  }
  notices, batch = Notices(base), rollouts(([5], 'eos'))
  said = [bool(notices.of_step(i, batch, values)) for i in range(1, 99)]
  assert [i for i, x in enumerate(said, 1) if x] == [1, 11, 31, 71]


@pytest.mark.parametrize('metric, healthy, failing, says', [
    ('length/truncated_frac', 0.1, 0.3, 'use up rollout.max_new_tokens'),
    ('policy/entropy', 0.3, 0.001, 'lower optim.lr, raise loss.kl_coef'),
    ('mismatch/kl', 0.001, 0.05, 'sampler and learner disagree'),
    ('steps/one_step_frac', 0.1, 0.9, 'of the traces are one step'),
])
def test_signs_of_a_failing_run_are_said_with_the_remedy(
    base, metric, healthy, failing, says):
  batch = rollouts(([5], 'eos'))

  def said(values):
    notices = Notices(base)
    return [
        notices.of_step(i, batch, {metric: value})
        for i, value in enumerate(values, 1)
    ]

  assert not any(said([healthy] * 8 + [failing] + [healthy] * 8)), 'one batch'
  lines = said([healthy] * 8 + [failing] * 9)
  assert not any(lines[:8])
  ((line,),) = [x for x in lines if x]  # once
  assert says in line


def test_traces_without_steps_are_no_sign_where_none_are_wanted(base):
  notices, batch = Notices(base, stepwise=False), rollouts(([5], 'eos'))
  assert not any(
      notices.of_step(i, batch, {'steps/one_step_frac': 1.0}) for i in range(9))
