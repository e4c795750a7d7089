"""Dense rewards: the judge's score of the trace, or of each of its steps."""

import functools

from jaxtyping import Float
import numpy as np

from exprl_jax.config import Config
from exprl_jax.judge import calibration, readouts
from exprl_jax.judge.factory import AnyJudge, check_readable
from exprl_jax.rewards.base import Reward, Scored, Trace
from exprl_jax.runtime import metrics


def dense(traces: list[Trace], judge: AnyJudge, config: Config,
          max_steps: int) -> Scored:
  """Scores traces by the judge: ExpRL-Outcome (S = 1) or ExpRL-Process.

  An empty trace scores 0 without a question. A row with a step that has no
  score is invalid as a whole: it leaves the loss and the statistics.

  Args:
    traces: cut into 1 to `max_steps` steps.
    judge: to be asked.
    config: its `judge`.
    max_steps: S.

  Raises:
    RuntimeError: more than judge.max_invalid_frac of the rows are invalid.
  """
  j = judge.score([(t.problem, t.steps) for t in traces], max_steps)
  check_readable(config.judge, j)
  invalid = (j.exists & ~j.readable).any(axis=1)
  valid = j.exists & ~invalid[:, None]
  shares = {
      f'judge/{name}_frac': float((j.status == i).any(axis=1).mean())
      for i, name in enumerate(readouts.STATUSES)
      if i != readouts.OK
  }
  last = np.array([len(t.steps) - 1 for t in traces])
  final = j.score[np.arange(len(last)), last]
  right = np.array([t.correct for t in traces])
  graded = ~invalid & np.array([t.gradable for t in traces])
  return np.where(valid, rounded(
      j.score, config.judge.resolution), 0.0), valid, {
          # Agreement with the grader of answers, which is only logged.
          'judge/auroc': calibration.auroc(final[graded], right[graded]),
          'judge/score_right': metrics.mean(final[graded & right].tolist()),
          'judge/score_wrong': metrics.mean(final[graded & ~right].tolist()),
          'judge/invalid_frac': float(invalid.mean()),
          'judge/truncated_frac': float(j.truncated.mean()),
          'judge/score_token_probability': metrics.mean(
              j.score_token_probability[j.status == readouts.OK]),
      } | shares | judge.usage()


def rounded(score: Float[np.ndarray, 'N S'],
            resolution: float) -> Float[np.ndarray, 'N S']:
  """Rounds scores to multiples of judge.resolution; 0 leaves them.

  What a readout gives as an expectation becomes comparable with what it writes
  as a digit: with 0.25, levels 1 to 5 are 0, 0.25, ..., 1 in both.
  """
  if not resolution:
    return score
  return (np.floor(score / resolution + 0.5) * resolution).astype(score.dtype)


def _process(config: Config, judge: AnyJudge) -> functools.partial:
  return functools.partial(dense, judge=judge, config=config,
                           max_steps=config.judge.max_steps)


def _outcome(config: Config, judge: AnyJudge) -> functools.partial:
  return functools.partial(dense, judge=judge, config=config, max_steps=1)


REWARDS = {
    'process': Reward('step', _process, needs=('solution',), uses_judge=True),
    'outcome': Reward('row', _outcome, needs=('solution',), uses_judge=True),
}
