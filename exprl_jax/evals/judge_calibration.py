"""Calibrates a judge on traces of which it is known whether they are right."""

from collections.abc import Callable, Sequence
import dataclasses
import random
from typing import Any

from jaxtyping import Bool, Float
import numpy as np

from exprl_jax.config import Config
from exprl_jax.evals import judge_traces
from exprl_jax.evals.judge_traces import Trace, TraceSampler
from exprl_jax.judge import calibration, hacking
from exprl_jax.judge.factory import AnyJudge
from exprl_jax.judge.tree import Judgments
from exprl_jax.types import Problem

_NO_REFERENCE = '(not given: judge the work by itself)'

Report = dict[str, Any]


def calibrate(config: Config, judge: AnyJudge, traces: Sequence[Trace],
              judgments: Judgments, sampler: TraceSampler | None) -> Report:
  """Makes the report of judge/calibration.py, with the scores of the probes.

  Complete traces are judged with their own reference, with none and with that
  of another problem. Scores of prefixes are compared with the success rate of
  their continuations (calibration.continuations), and readouts with each other.

  Args:
    config: its `judge`, `calibration`, `reward` and `seed`.
    judge: to be calibrated.
    traces: all of them with `correct`.
    judgments: of the traces.
    sampler: that wrote the traces; None: they are of a file.
  """
  cfg = config.calibration
  # 1. The traces with some text, and what the judge says at their ends.
  rows = [i for i, t in enumerate(traces) if ''.join(t.steps).strip()]
  chosen = [traces[i] for i in rows]
  own = judgments.take(np.array(rows, int))
  conditions = {'own': _outcome(config, chosen, own)}
  for name, other in _references(config, chosen).items():
    problems = other([t.problem for t in chosen])
    changed = [t._replace(problem=p) for t, p in zip(chosen, problems)]
    conditions[name] = _outcome(config, chosen,
                                judge_traces.score(judge, changed))
  report: Report = {'conditions': conditions}
  # 2. Prefixes and readouts.
  if sampler and cfg.continuations and config.reward == 'process':
    report['progress'] = _progress(config, traces, judgments, sampler)
  if cfg.readouts and chosen:
    report['agreement'] = _agreement(judge, chosen[:judge_traces.WAVE],
                                     cfg.readouts)
  # 3. Probes, which need another problem beside the one they are about.
  by_question = {t.problem.question: t.problem for t in traces}
  report['probes'] = (hacking.probe(config, judge, list(by_question.values()))
                      if len(by_question) > 1 else {})
  return report


def _outcome(config: Config, traces: Sequence[Trace],
             judgments: Judgments) -> dict[str, Any]:
  """Compares the readable scores of complete traces with the truth."""
  score, readable = _last(traces, judgments)
  correct = np.array([t.correct for t in traces], bool)
  questions = [t.problem.question for t, use in zip(traces, readable) if use]
  return calibration.outcome(score[readable], correct[readable], questions,
                             config.seed)


def _last(
    traces: Sequence[Trace], judgments: Judgments
) -> tuple[Float[np.ndarray, ' N'], Bool[np.ndarray, ' N']]:
  """Selects score and readability at the last step of every trace."""
  rows = np.arange(len(traces))
  last = np.array([len(t.steps) - 1 for t in traces], int)
  return judgments.score[rows, last], judgments.readable[rows, last]


# From problems to the same problems with other references.
_Reference = Callable[[Sequence[Problem]], list[Problem]]


def _references(config: Config,
                traces: Sequence[Trace]) -> dict[str, _Reference]:
  """Lists the conditions other than 'own' that these traces allow."""
  out: dict[str, _Reference] = {}
  # Without a rubric there are no items to ask about.
  if traces and config.judge.judgment != 'rubric_items':
    out['none'] = _without_reference
  if len({t.problem.question for t in traces}) > 1:
    out['wrong'] = _with_another_reference
  return out


def _without_reference(problems: Sequence[Problem]) -> list[Problem]:
  return [
      dataclasses.replace(p, solution=_NO_REFERENCE, rubric='')
      for p in problems
  ]


def _with_another_reference(problems: Sequence[Problem]) -> list[Problem]:
  """Gives each the reference of the next problem in a shuffled order."""
  by_question = {p.question: p for p in problems}
  order = sorted(by_question)
  random.Random(0).shuffle(order)
  following = dict(zip(order, order[1:] + order[:1]))
  others = [by_question[following[p.question]] for p in problems]
  return [
      dataclasses.replace(p, solution=o.solution, rubric=o.rubric,
                          rubric_items=o.rubric_items)
      for p, o in zip(problems, others)
  ]


def _progress(config: Config, traces: Sequence[Trace], judgments: Judgments,
              sampler: TraceSampler) -> dict[str, Any]:
  """Compares scores of prefixes with the success rate of continuations."""
  cfg = config.calibration
  prefixes = [(i, step)
              for i, t in enumerate(traces)
              for step in range(len(t.ends) - 1)
              if judgments.readable[i, step]]
  random.Random(config.seed).shuffle(prefixes)
  prefixes = sorted(prefixes[:cfg.prefixes])
  rates = sampler.success_rates([(traces[i], step) for i, step in prefixes],
                                cfg.continuations)
  return calibration.progress(
      np.array([judgments.score[i, step] for i, step in prefixes]), rates,
      [traces[i].problem.question for i, _ in prefixes], config.seed)


def _agreement(judge: AnyJudge, traces: Sequence[Trace],
               readouts: Sequence[str]) -> dict[str, dict[str, Any]]:
  """Compares readouts on complete traces that all of them can read."""
  max_steps = max(len(t.steps) for t in traces)
  scores, use = {}, np.ones(len(traces), bool)
  for name in readouts:
    judgments = judge.with_readout(name).score(
        [(t.problem, t.steps) for t in traces], max_steps)
    scores[name], readable = _last(traces, judgments)
    use &= readable
  return calibration.agreement({k: v[use] for k, v in scores.items()})
