"""Traces for run='judge': of a file, or samples of the policy; their scores."""

from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any, NamedTuple

from etils import epath
import jax
from jaxtyping import Bool, Float
import numpy as np

from exprl_jax.config import Config, resolve
from exprl_jax.data import chat, problems, validation
from exprl_jax.data import steps as steps_lib
from exprl_jax.data.sources import jsonl as lines
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.grading import grader as grading
from exprl_jax.judge import readouts
from exprl_jax.judge.factory import AnyJudge
from exprl_jax.judge.tree import Item, Judgments, concatenate
from exprl_jax.models import references
from exprl_jax.rollout import sampler as sampler_lib
from exprl_jax.rollout.requests import Fork, Request, Sample
from exprl_jax.runtime import jsonl
from exprl_jax.types import InputError, Problem

NEEDS = ('solution', 'answer')  # of the problems that the policy samples
WAVE = 256  # traces between two writes


class Trace(NamedTuple):
  """A trace to be judged."""

  id: str
  problem: Problem
  steps: list[str]
  correct: bool | None  # the final answer; None: not known
  first_wrong: int | None = None  # step, from 0; -1: none; None: not known
  # Of a trace that the policy has written, else empty:
  prompt: Sequence[int] = ()
  tokens: Sequence[int] = ()
  ends: Sequence[int] = ()  # of the steps, in `tokens`, exclusive

  @property
  def item(self) -> Item:
    """As a judge takes it."""
    return self.problem, self.steps


def read_traces(config: Config, tokenizer: Tokenizer,
                grader: grading.Grader | None = None) -> list[Trace]:
  """Reads judge.traces.

  A line has `id`, `question`, `solution`, `trace` and perhaps `correct`, or the
  `answer` by which it is graded, and `rubric`. Where it is known which step is
  the first wrong one, it has `wrong_at`, a place in `trace` (characters from 0;
  -1: no step is wrong); or `steps`, a list of texts, in place of `trace`, and
  `label`, the number of the step (from 0, or -1).

  Args:
    config: its `judge`, `grading` and `reward`.
    tokenizer: the judge's; it finds the steps.
    grader: of answers; by default one by config.grading.

  Raises:
    InputError: no such file, or a bad line; names file and line.
  """
  path = resolve(config.judge.traces)
  if not path.is_file():
    raise InputError(f'config.judge.traces={path}: no such file')
  segment = steps_lib.segmenter(config.judge, tokenizer,
                                config.reward == 'process')
  grader = grader or grading.Grader(config.grading)
  traces: list[Trace] = []
  ungraded: list[tuple[int, str]] = []  # (number of the trace, its text)
  for number, where, row in lines.objects(path):
    trace = parse(row, where, number, segment)
    if trace.correct is None and trace.problem.answer:
      joined = tokenizer.separator.join(trace.steps)
      ungraded.append((len(traces), row.get('trace', joined)))
    traces.append(trace)
  if not traces:
    raise InputError(f'{path}: no traces in it')
  grades = grader([(text, traces[i].problem) for i, text in ungraded])
  for (i, _), grade in zip(ungraded, grades):
    traces[i] = traces[i]._replace(correct=grade.correct)
  return traces


def parse(row: dict[str, Any], where: str, number: int,
          segment: steps_lib.Segmenter) -> Trace:
  """Reads the object of a line; not graded."""
  problem = validation.check_row(row, where, number, ('solution',))
  correct = row.get('correct')
  if correct is not None and not isinstance(correct, bool):
    raise InputError(f'{where}: correct={correct!r} should be true or false')
  steps = row.get('steps')
  if steps is not None:
    if not (isinstance(steps, list) and steps
            and all(isinstance(step, str) for step in steps)):
      raise InputError(f'{where}: steps should be a list of texts')
    first = _place(row, 'label', len(steps), where)
    return Trace(problem.id, problem, segment.spaced(steps), correct, first)
  text = row.get('trace')
  if not isinstance(text, str):
    raise InputError(f'{where}: row has no trace, a text')
  steps = segment.split(text)
  at = _place(row, 'wrong_at', len(text), where)
  return Trace(problem.id, problem, steps, correct,
               at if at is None or at < 0 else step_at(steps, text, at))


def _place(row: dict[str, Any], key: str, end: int, where: str) -> int | None:
  """Reads a number from -1 up to `end`, exclusive; None where there is none."""
  value = row.get(key)
  if value is None:
    return None
  if type(value) is not int or not -1 <= value < end:
    raise InputError(f'{where}: {key}={value!r} should be a number from 0 to '
                     f'{end - 1}, or -1 if no step is wrong')
  return value


def step_at(steps: Sequence[str], text: str, at: int) -> int:
  """Finds the step that a character of the text is in.

  Steps may differ from their text in white space, which is not counted.
  """
  count = len(''.join(text[:at].split()))
  ends = itertools.accumulate(len(''.join(step.split())) for step in steps)
  return next((i for i, end in enumerate(ends) if count < end), len(steps) - 1)


class TraceSampler:
  """The policy of a config as the author of traces, and of continuations."""

  def __init__(self, config: Config, mesh: jax.sharding.Mesh) -> None:
    """Loads the policy and reads the problems of data.train.

    Args:
      config: its `policy`, `data`, `rollout`, `judge` and `grading`.
      mesh: to sample on.

    Raises:
      InputError: a problem or the policy is not as it should be.
    """
    cfg, origin = config.rollout, references.find_to_sample(config.policy.init)
    self._grader = grading.Grader(config.grading)
    self._config = config
    self._tokenizer = Tokenizer(origin.folder, cfg.stop_ids)
    self._problems = problems.training_problems(config, NEEDS)
    self._grader.check(self._problems)  # calibration needs the truth
    self._prompts = chat.policy_prompts(self._tokenizer, self._problems, config)
    _, model, self._params = references.load(origin, mesh, config.policy.dtype,
                                             frozen=True)
    # A prompt may be a question with a trace, which the policy continues.
    longest = cfg.max_prompt_tokens + cfg.max_new_tokens
    self._sampler = sampler_lib.Sampler(
        dataclasses.replace(
            config,
            rollout=dataclasses.replace(cfg, max_prompt_tokens=longest)), model,
        self._tokenizer, mesh)

  def traces(self) -> list[Trace]:
    """Samples rollout.group_size traces of every problem, and grades them."""
    groups = self._sampler.generate(self._params, self._prompts,
                                    self._config.rollout.group_size,
                                    self._key(0))
    self._sampler.engine.release()  # the judge needs the memory
    segment = steps_lib.segmenter(self._config.judge, self._tokenizer,
                                  self._config.reward == 'process')
    traces = [
        _sampled(f'{problem.id}/{i}', problem, prompt, sample, segment)
        for problem, prompt, group in zip(self._problems, self._prompts, groups)
        for i, sample in enumerate(group)
    ]
    grades = self._grader([
        (self._tokenizer.decode(t.tokens), t.problem) for t in traces
    ])
    return [t._replace(correct=g.correct) for t, g in zip(traces, grades)]

  def success_rates(self, prefixes: Sequence[tuple[Trace, int]],
                    count: int) -> Float[np.ndarray, ' N']:
    """Estimates how often the policy ends on a right answer.

    Args:
      prefixes: a trace and one of its steps, after which the policy continues.
      count: continuations of each prefix.

    Returns:
      f64, the share of right answers of each prefix.
    """
    sampling = self._sampler.sampling
    requests = [
        Request([*t.prompt, *t.tokens], i * count, count, sampling,
                [Fork(len(t.prompt) + t.ends[step], [])] * count)
        for i, (t, step) in enumerate(prefixes)
    ]
    samples = self._sampler.engine.generate(self._params, requests,
                                            self._key(1))
    self._sampler.engine.release()
    grades = self._grader([(self._tokenizer.decode(
        [*t.tokens[:t.ends[step]], *samples[i * count + k].tokens]), t.problem)
                           for i, (t, step) in enumerate(prefixes)
                           for k in range(count)])
    return np.reshape([g.correct for g in grades], (-1, count)).mean(axis=1)

  def _key(self, number: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(self._config.seed), number)


def _sampled(name: str, problem: Problem, prompt: Sequence[int], sample: Sample,
             segment: steps_lib.Segmenter) -> Trace:
  """Makes a trace of a sample, not graded yet."""
  ids = sample.tokens.tolist()
  if sample.finish_reason == 'eos':
    ids.pop()
  return Trace(name, problem,
               segment.texts(ids) or [''], None, None, prompt, ids,
               segment(ids))


def score(judge: AnyJudge, traces: Sequence[Trace],
          path: epath.PathLike | None = None) -> Judgments:
  """Judges traces, WAVE at a time.

  Args:
    judge: any.
    traces: at least one.
    path: JSONL to write; a line appears when its wave is done.

  Returns:
    The judgments of N traces at S steps, those of the longest.
  """
  max_steps = max(len(t.steps) for t in traces)
  parts: list[Judgments] = []
  lines = jsonl.Lines(path) if path else None
  if lines:
    lines.keep(lambda row: False)  # of a run that did not end
  # Traces of a problem are neighbors, so that they share their prefix.
  order = sorted(range(len(traces)), key=lambda i:
                 (traces[i].problem.question, i))
  for start in range(0, len(traces), WAVE):
    wave = [traces[i] for i in order[start:start + WAVE]]
    judgments = judge.score([(t.problem, t.steps) for t in wave], max_steps)
    parts.append(judgments)
    if lines:
      for i, trace in enumerate(wave):
        lines.append(_line(trace, judgments, i))
  if lines:
    lines.close()
  return concatenate(parts).take(np.argsort(order))


def last(
    traces: Sequence[Trace], judgments: Judgments
) -> tuple[Float[np.ndarray, ' N'], Bool[np.ndarray, ' N']]:
  """Selects score and readability at the last step of every trace."""
  rows = np.arange(len(traces))
  at = np.array([len(t.steps) - 1 for t in traces], int)
  return judgments.score[rows, at], judgments.readable[rows, at]


def _line(trace: Trace, judgments: Judgments, i: int) -> dict[str, Any]:
  """Makes the row of judgments.jsonl of trace i."""
  n = len(trace.steps)
  row = {
      'id': trace.id, 'steps': trace.steps,
      'scores': [round(float(s), 5) for s in judgments.score[i, :n]
                ], 'score_token_probability': [
                    round(float(p), 5) if p == p else None
                    for p in judgments.score_token_probability[i, :n]
                ], 'valid': bool(judgments.readable[i, :n].all()),
      'status': [readouts.STATUSES[s] for s in judgments.status[i, :n]],
      'truncated': bool(judgments.truncated[i]), 'correct': trace.correct,
      'first_wrong': trace.first_wrong
  }
  if any(judgments.texts[i]):
    row['rationales'] = judgments.texts[i]
  return row
