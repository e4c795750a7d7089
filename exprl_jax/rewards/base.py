"""Rewards: from problems and a rollout to scores."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from exprl_jax.config import Config, judged
from exprl_jax.data import steps as steps_lib
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.grading import grader as grading
from exprl_jax.judge import calibration
from exprl_jax.judge import readouts as readout
from exprl_jax.judge.tree import Judge, check_readable
from exprl_jax.runtime import metrics
from exprl_jax.types import Problem, Rollout, Scores


class Trace(NamedTuple):
  """A completion as its grader sees it: without EOS, cut into steps."""

  problem: Problem
  text: str  # the whole
  steps: list[str]  # texts; one, the whole, for rewards without steps
  ends: list[int]  # column of the last token of each step
  finished: bool
  grade: grading.Grade  # of the final answer

  @property
  def correct(self) -> bool:
    """Is the final answer right?"""
    return self.grade.correct


class Rewarded(NamedTuple):
  """What a reward makes of a rollout."""

  scores: Scores  # of numpy arrays
  traces: list[Trace]
  graded: Scores  # 0 or 1 of the final answer, S = 1; not valid: not gradable
  whole: np.ndarray  # bool[B] rows of a reward by steps that are judged whole
  metrics: dict[str, float]

  @property
  def correct(self) -> np.ndarray:
    """bool[B] final answers; for sparse rewards and logs."""
    return np.array([t.correct for t in self.traces])


# Scores traces: (value f32[B, S], valid bool[B, S], metrics).
Scorer = Callable[[list[Trace]], tuple[np.ndarray, np.ndarray, dict]]
Reward = Callable[[Sequence[Problem], Rollout], Rewarded]


def make(config: Config, tokenizer: Tokenizer, judge: Judge | None,
         grader: grading.Grader) -> Reward:
  """The reward of a config; the judge is for 'process' and 'outcome'."""
  scorer = sparse
  if judged(config):
    scorer = lambda traces: dense(traces, judge, config)
  return from_scorer(config, tokenizer, scorer, grader)


def early(
    config: Config, tokenizer: Tokenizer, judge: Judge,
    grader: grading.Grader) -> Callable[[Sequence[Problem], Rollout], None]:
  """Like a reward, but its verdicts just wait in the judge's cache."""
  segment = steps_lib.of_config(config, tokenizer)

  def ask(problems: Sequence[Problem], rollout: Rollout) -> None:
    traces = cut(problems, rollout, config, tokenizer, segment, grader)
    judge.score([(t.problem, t.steps) for t in traces], config.judge.max_steps)

  return ask


def from_scorer(config: Config, tokenizer: Tokenizer, scorer: Scorer,
                grader: grading.Grader) -> Reward:
  """A function of (problems, one a group; rollout) around a scorer.

  Traces are cut into steps for reward='process' and whole otherwise.
  """
  segment = steps_lib.of_config(config, tokenizer)

  def reward(problems: Sequence[Problem], rollout: Rollout) -> Rewarded:
    traces = cut(problems, rollout, config, tokenizer, segment, grader)
    value, valid, extra = scorer(traces)
    ends = np.zeros(value.shape, np.int32)
    for row, trace in zip(ends, traces):
      row[:len(trace.ends)] = trace.ends
    scores = overlong(Scores(value, ends, valid), rollout, config.rollout)
    status = [t.grade.status for t in traces]
    graded = Scores(
        np.array([[t.correct] for t in traces], np.float32),
        np.array([[t.ends[-1]] for t in traces], np.int32),
        np.array([[s not in ('error', 'gold_unparsable')] for s in status]))
    if config.rollout.overlong in ('zero', 'mask'):
      graded = overlong(graded, rollout, config.rollout)
    whole = np.array(
        [t.problem.domain in config.credit.outcome_domains for t in traces])
    out = Rewarded(scores, traces, graded, whole, {})
    shares = {
        f'grade/{s}_frac': status.count(s) / len(status)
        for s in grading.STATUSES
        if s not in ('correct', 'wrong')
    }
    return out._replace(metrics=summary(out) | shares | extra)

  return reward


def cut(problems: Sequence[Problem], rollout: Rollout, config: Config,
        tokenizer: Tokenizer, segment: steps_lib.Segmenter,
        grader: grading.Grader) -> list[Trace]:
  """The rollout's rows as texts, cut into steps and graded."""
  group, traces = len(rollout.tokens) // len(problems), []
  for i, (row, mask) in enumerate(zip(rollout.tokens, rollout.completion)):
    columns, problem = np.flatnonzero(mask), problems[i // group]
    ids = row[columns].tolist()
    body = ids[:-1] if ids[-1] in tokenizer.eos_ids else ids
    text = tokenizer.decode(body)
    # The EOS belongs to the last step; an empty trace is one empty step.
    last, steps = [*segment(body)[:-1], len(ids)], segment.texts(body) or ['']
    if problem.domain in config.credit.outcome_domains:
      last, steps = [len(ids)], [text]
    traces.append(
        Trace(problem, text, steps, [int(columns[0]) + end - 1 for end in last],
              bool(rollout.finished[i]), _UNGRADED))
  grades = grader([(t.text, t.problem) for t in traces])
  return [t._replace(grade=grade) for t, grade in zip(traces, grades)]


_UNGRADED = grading.Grade('error', '')


def overlong(scores: Scores, rollout: Rollout, cfg) -> Scores:
  """What becomes of rows that did not end by themselves (rollout.overlong).

  'zero': all their scores are 0. 'mask': they have none. 'soft' is about
  length alone: a row's score loses up to 1, in proportion to how much of the
  last overlong_buffer tokens of the budget is used (DAPO, arXiv 2503.14476);
  it is for rewards of rows.
  """
  value, finished = scores.value, rollout.finished[:, None]
  if cfg.overlong == 'zero':
    return scores._replace(value=value * finished)
  if cfg.overlong == 'mask':
    return scores._replace(valid=scores.valid & finished)
  if cfg.overlong == 'soft':
    used = rollout.completion.sum(axis=1) - (cfg.max_new_tokens -
                                             cfg.overlong_buffer)
    penalty = np.clip(used / cfg.overlong_buffer, 0.0, 1.0)
    return to_last(scores, -penalty)
  return scores


def to_last(scores: Scores, change: np.ndarray) -> Scores:
  """Adds f32[B] to the last valid score of each row."""
  last = scores.valid & (np.cumsum(scores.valid[:, ::-1], axis=1)[:, ::-1] == 1)
  return scores._replace(
      value=np.where(last, scores.value +
                     change[:, None], scores.value).astype(np.float32))


def sparse(traces: list[Trace]):
  """1 for a right final answer, else 0 (GRPO)."""
  value = np.array([[t.correct] for t in traces], np.float32)
  valid = np.array(
      [[t.grade.status not in ('error', 'gold_unparsable')] for t in traces])
  return value, valid, {}


def dense(traces: list[Trace], judge: Judge, config: Config):
  """The judge's score of the whole trace (S = 1) or of each of its steps.

  An empty trace scores 0 without being asked about. A row with a step that has
  no score is invalid as a whole: it leaves the loss and the statistics.

  Raises:
    RuntimeError: more than judge.max_invalid_frac of the rows are invalid.
  """
  max_steps = config.judge.max_steps if config.reward == 'process' else 1
  v = judge.score([(t.problem, t.steps) for t in traces], max_steps)
  check_readable(config.judge, v)
  bad = (v.exists & ~v.readable).any(axis=1)
  valid = v.exists & ~bad[:, None]
  share = {
      name: float((v.outcome == i).any(axis=1).mean())
      for i, name in enumerate(readout.OUTCOMES)
      if i != readout.OK
  }
  last = np.array([len(t.steps) - 1 for t in traces])
  whole, right = v.score[np.arange(len(last)),
                         last], np.array([t.correct for t in traces])
  return np.where(valid, v.score, 0.0), valid, {
      # Agreement with the grader of answers, whose word is only logged.
      'judge/auroc': calibration.auroc(whole[~bad], right[~bad]),
      'judge/score_right': metrics.mean(whole[~bad & right].tolist()),
      'judge/score_wrong': metrics.mean(whole[~bad & ~right].tolist()),
      'judge/invalid_frac': float(bad.mean()),
      'judge/cut_frac': float(v.cut.mean()),
      'judge/score_mass': metrics.mean(v.mass[v.outcome == readout.OK]),
  } | {f'judge/{name}_frac': x for name, x in share.items()}


def summary(rewarded: Rewarded) -> dict[str, float]:
  """Metrics of any reward; a row's reward is its last valid score."""
  value, _, valid = rewarded.scores
  traces, rows = rewarded.traces, valid.any(axis=1)
  last = valid.shape[1] - 1 - np.argmax(valid[:, ::-1], axis=1)
  reward = value[np.arange(len(value)), last][rows]
  return {
      'reward/mean': metrics.mean(reward.tolist()),
      'reward/std': float(reward.std()) if len(reward) else float('nan'),
      'reward/accuracy': float(rewarded.correct.mean()),
      'length/steps_mean': metrics.mean(len(t.ends) for t in traces),
      'length/truncated_frac': metrics.mean(not t.finished for t in traces)
  }


def join(parts: Sequence[Rewarded]) -> Rewarded:
  """Several as one; metrics are averaged."""
  stack = lambda scores: Scores(*map(np.concatenate, zip(*scores)))
  names = set.intersection(*(set(p.metrics) for p in parts))
  return Rewarded(
      stack([p.scores for p in parts]), sum(
          (p.traces for p in parts), []), stack([p.graded for p in parts]),
      np.concatenate([p.whole for p in parts]),
      {k: metrics.mean(p.metrics[k] for p in parts) for k in sorted(names)})


def take(rewarded: Rewarded, rows: np.ndarray) -> Rewarded:
  """Some of the rows. Its reward/mean and reward/std are theirs; the other
  metrics, and reward/unfiltered_mean, are still those of all of them.
  """
  pick = lambda scores: Scores(*(x[rows] for x in scores))
  out = Rewarded(pick(rewarded.scores), [rewarded.traces[i] for i in rows],
                 pick(rewarded.graded), rewarded.whole[rows], {})
  own = {
      k: v
      for k, v in summary(out).items()
      if k in ('reward/mean', 'reward/std')
  } if len(rows) else {}
  unfiltered = {'reward/unfiltered_mean': rewarded.metrics['reward/mean']}
  return out._replace(metrics=rewarded.metrics | unfiltered | own)
