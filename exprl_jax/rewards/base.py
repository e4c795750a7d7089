"""What a reward is, and what it makes of rollouts.

A reward is an entry of REWARDS (rewards/__init__.py): it declares how fine its
scores are and what it needs, and makes a scorer, a function of traces.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, Literal

from jaxtyping import Bool, Float
import numpy as np

from exprl_jax.config import Config
from exprl_jax.data import steps as steps_lib
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.grading import grader as grading
from exprl_jax.rewards import shaping
from exprl_jax.rl.scored import ScoredRollouts, Trace, summary
from exprl_jax.types import Group, Scores

Granularity = Literal['row', 'step', 'token']

# What a scorer returns: value f32[B, S], valid bool[B, S], metrics.
Scored = tuple[Float[np.ndarray, 'B S'], Bool[np.ndarray, 'B S'], dict[str,
                                                                       float]]
Scorer = Callable[[list[Trace]], Scored]


@dataclasses.dataclass(frozen=True)
class Reward:
  """An entry of REWARDS.

  Attributes:
    granularity: one score per row, step or token. Token scores are made of
      log-probabilities (rewards/teacher.py); their scorer scores rows, to log.
    make: (Config, judge or None) -> Scorer.
    needs: fields that every training problem must have.
    uses_judge: the judge of the config is loaded and given to `make`.
    uses_reference: the frozen starting policy is kept.
  """

  granularity: Granularity
  make: Callable[[Config, Any], Scorer]
  needs: tuple[str, ...] = ('solution', 'answer')
  uses_judge: bool = False
  uses_reference: bool = False


def scoring(
    config: Config, tokenizer: Tokenizer, grader: grading.Grader,
    scorer: Scorer,
    granularity: Granularity) -> Callable[[Sequence[Group]], ScoredRollouts]:
  """The function of groups around a scorer.

  Args:
    config: how traces are cut and truncated ones treated.
    tokenizer: of the policy.
    grader: of final answers.
    scorer: of traces.
    granularity: traces are cut into steps for 'step', else they are one step.
  """
  cut = cutter(config, tokenizer, grader, granularity)

  def reward(groups: Sequence[Group]) -> ScoredRollouts:
    traces = cut(groups)
    trajectories = [t.trajectory for t in traces]
    value, valid, extra = scorer(traces)
    scores = shaping.truncated(Scores(value, valid), trajectories,
                               config.rollout)
    status = [t.grade.status for t in traces]
    graded = Scores(np.array([[t.correct] for t in traces], np.float32),
                    np.array([[t.gradable] for t in traces]))
    if config.rollout.overlong in ('zero', 'mask'):
      graded = shaping.truncated(graded, trajectories, config.rollout)
    outcome_rows = np.array(
        [t.problem.domain in config.credit.outcome_domains for t in traces])
    out = ScoredRollouts(traces, scores, graded, outcome_rows, {})
    shares = {
        f'grade/{s}_frac': status.count(s) / len(status)
        for s in grading.STATUSES
        if s not in ('correct', 'wrong')
    }
    cuts = steps_lib.metrics([t.cut for t in traces])
    return out._replace(metrics=summary(out) | cuts | shares | extra)

  return reward


def cutter(
    config: Config, tokenizer: Tokenizer, grader: grading.Grader,
    granularity: Granularity) -> Callable[[Sequence[Group]], list[Trace]]:
  """The function of groups that cuts trajectories into steps and grades them.
  """
  whole = steps_lib.segmenter(config.judge, tokenizer, False)
  segment = whole
  if granularity == 'step':
    segment = steps_lib.segmenter(config.judge, tokenizer, True)

  def cut(groups: Sequence[Group]) -> list[Trace]:
    traces = []
    for problem, trajectories in groups:
      outcome = problem.domain in config.credit.outcome_domains
      for t in trajectories:
        ids = t.completion.tolist()
        body = ids[:-1] if ids[-1] in tokenizer.eos_ids else ids
        text = tokenizer.decode(body)
        how = whole if outcome else segment
        found = how.cut(body)
        # The EOS belongs to the last step; an empty trace is one empty step.
        ends = (*found.ends[:-1], len(ids))
        traces.append(
            Trace(problem, t._replace(step_ends=ends), text,
                  how.texts(body, found.ends) or [''], _UNGRADED,
                  cut=steps_lib.Cut([]) if how is whole else found))
    grades = grader([(t.text, t.problem) for t in traces])
    readable = grader.readable([t.problem for t in traces])
    return [
        t._replace(grade=grade, gold_readable=ok)
        for t, grade, ok in zip(traces, grades, readable)
    ]

  return cut


_UNGRADED = grading.Grade('error', '')
