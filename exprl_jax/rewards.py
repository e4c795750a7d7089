"""Rewards: from problems and a rollout to scores."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from exprl_jax import grading, metrics
from exprl_jax.config import Config
from exprl_jax.judge import steps as steps_lib
from exprl_jax.judge.judge import Judge
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


def from_scorer(config: Config, tokenizer: Tokenizer, scorer: Scorer
                ) -> Reward:
  """A function of (problems, one a group; rollout) around a scorer.

  Traces are cut into steps for reward='process' and whole otherwise.
  """
  delimiters, max_steps = frozenset(), 1
  if config.reward == 'process':
    delimiters = steps_lib.delimiter_ids(tokenizer, config.judge.delimiter)
    max_steps = config.judge.max_steps

  def reward(problems: Sequence[Problem], rollout: Rollout) -> Rewarded:
    traces = cut(problems, rollout, tokenizer, delimiters, max_steps)
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
        delimiters: frozenset[int], max_steps: int) -> list[Trace]:
  """The rollout's rows as texts, cut at `delimiters`."""
  group, traces = len(rollout.tokens) // len(problems), []
  for i, (row, mask) in enumerate(zip(rollout.tokens, rollout.completion)):
    columns = np.flatnonzero(mask)
    ids = row[columns].tolist()
    body = ids[:-1] if ids[-1] in tokenizer.eos_ids else ids
    ends = steps_lib.step_ends(body, delimiters, max_steps)
    texts = [tokenizer.decode(body[a:b]) for a, b in zip([0, *ends], ends)]
    # The EOS belongs to the last step; an empty trace is one empty step.
    last = [*ends[:-1], len(ids)]
    problem, text = problems[i // group], tokenizer.decode(body)
    traces.append(Trace(
        problem, text, texts or [''],
        [int(columns[0]) + end - 1 for end in last], bool(rollout.finished[i]),
        grading.grade(text, problem.answer)))
  return traces


def sparse(traces: list[Trace]):
  """1 for a right final answer, else 0 (GRPO)."""
  value = np.array([[t.correct] for t in traces], np.float32)
  return value, np.ones_like(value, bool), {}


def dense(traces: list[Trace], judge: Judge, config: Config):
  """The judge's score of the whole trace (S = 1) or of each of its steps.

  An empty trace scores 0 without asking. A row with a score that is not
  readable is invalid as a whole: it leaves the loss and the statistics.

  Raises:
    RuntimeError: more than judge.max_invalid_frac of the rows are unreadable.
  """
  max_steps = config.judge.max_steps if config.reward == 'process' else 1
  asked = [i for i, t in enumerate(traces) if t.text.strip()]
  verdicts = judge.score([(traces[i].problem, traces[i].steps) for i in asked],
                         max_steps)
  value = np.zeros((len(traces), max_steps), np.float32)
  valid = np.zeros(value.shape, bool)
  valid[:, 0] = True
  value[asked], valid[asked] = verdicts.score, verdicts.exists
  unreadable = verdicts.exists & (verdicts.mass < config.judge.min_mass)
  bad = np.zeros(len(traces), bool)
  bad[asked] = unreadable.any(axis=1)
  valid[bad], value[~valid] = False, 0.0
  if bad.mean() > config.judge.max_invalid_frac:
    raise RuntimeError(
        f'{bad.mean():.0%} of the verdicts are unreadable (probability of the '
        f'scores 1..5 below judge.min_mass={config.judge.min_mass}); is '
        f'{config.judge.init} a judge for judge.template='
        f'{config.judge.template!r}?')
  return value, valid, {
      'judge/invalid_frac': float(bad.mean()),
      'judge/score_mass': metrics.mean(verdicts.mass[verdicts.exists]),
      'judge/empty_frac': 1.0 - len(asked) / len(traces)}


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
