"""Rewards: from problems and a rollout to scores."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from exprl_jax import grading, metrics
from exprl_jax.config import Config
from exprl_jax.judge import calibration, readout
from exprl_jax.judge import steps as steps_lib
from exprl_jax.judge.judge import Judge, check_readable
from exprl_jax.tokenizer import Tokenizer
from exprl_jax.types import Problem, Rollout, Scores


class Trace(NamedTuple):
  """A completion as its grader sees it: without EOS, cut into steps."""

  problem: Problem
  text: str  # the whole
  steps: list[str]  # texts; one, the whole, for rewards without steps
  ends: list[int]  # column of the last token of each step
  finished: bool

  correct: bool  # the final answer, by its grader


class Rewarded(NamedTuple):
  """What a reward makes of a rollout."""

  scores: Scores  # of numpy arrays
  traces: list[Trace]
  correct: np.ndarray  # bool[B] final answers; for sparse rewards and logs
  metrics: dict[str, float]


# Scores traces: (value f32[B, S], valid bool[B, S], metrics).
Scorer = Callable[[list[Trace]], tuple[np.ndarray, np.ndarray, dict]]
Reward = Callable[[Sequence[Problem], Rollout], Rewarded]


def make(config: Config, tokenizer: Tokenizer, judge: Judge | None) -> Reward:
  """The reward of a config; the judge is for 'process' and 'outcome'."""
  scorer = sparse if config.reward == 'sparse' else (
      lambda traces: dense(traces, judge, config))
  return from_scorer(config, tokenizer, scorer)


def early(config: Config, tokenizer: Tokenizer, judge: Judge
          ) -> Callable[[Sequence[Problem], Rollout], None]:
  """Like a reward, but its verdicts just wait in the judge's cache."""
  segment = steps_lib.of_config(config, tokenizer)

  def ask(problems: Sequence[Problem], rollout: Rollout) -> None:
    traces = cut(problems, rollout, tokenizer, segment)
    judge.score([(t.problem, t.steps) for t in traces], config.judge.max_steps)

  return ask


def from_scorer(config: Config, tokenizer: Tokenizer, scorer: Scorer
                ) -> Reward:
  """A function of (problems, one a group; rollout) around a scorer.

  Traces are cut into steps for reward='process' and whole otherwise.
  """
  segment = steps_lib.of_config(config, tokenizer)

  def reward(problems: Sequence[Problem], rollout: Rollout) -> Rewarded:
    traces = cut(problems, rollout, tokenizer, segment)
    correct = np.array([t.correct for t in traces])
    value, valid, extra = scorer(traces)
    if config.rollout.overlong == 'zero':
      value = value * np.array([[t.finished] for t in traces])
    ends = np.zeros(value.shape, np.int32)
    for row, trace in zip(ends, traces):
      row[:len(trace.ends)] = trace.ends
    return Rewarded(Scores(value, ends, valid), traces, correct,
                    summary(value, valid, correct, traces) | extra)

  return reward


def cut(problems: Sequence[Problem], rollout: Rollout, tokenizer: Tokenizer,
        segment: steps_lib.Segmenter) -> list[Trace]:
  """The rollout's rows as texts, cut into steps."""
  group, traces = len(rollout.tokens) // len(problems), []
  for i, (row, mask) in enumerate(zip(rollout.tokens, rollout.completion)):
    columns = np.flatnonzero(mask)
    ids = row[columns].tolist()
    body = ids[:-1] if ids[-1] in tokenizer.eos_ids else ids
    # The EOS belongs to the last step; an empty trace is one empty step.
    last = [*segment(body)[:-1], len(ids)]
    problem, text = problems[i // group], tokenizer.decode(body)
    traces.append(Trace(
        problem, text, segment.texts(body) or [''],
        [int(columns[0]) + end - 1 for end in last], bool(rollout.finished[i]),
        grading.grade(text, problem.answer)))
  return traces


def sparse(traces: list[Trace]):
  """1 for a right final answer, else 0 (GRPO)."""
  value = np.array([[t.correct] for t in traces], np.float32)
  return value, np.ones_like(value, bool), {}


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
  share = {name: float((v.outcome == i).any(axis=1).mean())
           for i, name in enumerate(readout.OUTCOMES) if i != readout.OK}
  last = np.array([len(t.steps) - 1 for t in traces])
  whole, right = v.score[np.arange(len(last)), last], np.array(
      [t.correct for t in traces])
  return np.where(valid, v.score, 0.0), valid, {
      # Agreement with the grader of answers, whose word is only logged.
      'judge/auroc': calibration.auroc(whole[~bad], right[~bad]),
      'judge/score_right': metrics.mean(whole[~bad & right].tolist()),
      'judge/score_wrong': metrics.mean(whole[~bad & ~right].tolist()),
      'judge/invalid_frac': float(bad.mean()),
      'judge/cut_frac': float(v.cut.mean()),
      'judge/score_mass': metrics.mean(v.mass[v.outcome == readout.OK]),
      } | {f'judge/{name}_frac': x for name, x in share.items()}


def summary(value, valid, correct, traces) -> dict[str, float]:
  """Metrics of any reward; a row's reward is its last valid score."""
  rows = valid.any(axis=1)
  last = valid.shape[1] - 1 - np.argmax(valid[:, ::-1], axis=1)
  reward = value[np.arange(len(value)), last][rows]
  return {
      'reward/mean': metrics.mean(reward.tolist()),
      'reward/std': float(reward.std()) if len(reward) else float('nan'),
      'reward/accuracy': float(correct.mean()),
      'length/steps_mean': metrics.mean(len(t.ends) for t in traces),
      'length/truncated_frac': metrics.mean(not t.finished for t in traces)}
