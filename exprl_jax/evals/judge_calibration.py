"""The report card of a judge: how far its scores can be trusted."""

from collections.abc import Callable, Sequence
import dataclasses
import random
from typing import Any

import numpy as np

from exprl_jax.config import Config
from exprl_jax.data import steps as steps_lib
from exprl_jax.evals import judge_fitness, judge_pairs, judge_traces
from exprl_jax.evals.judge_traces import Trace, TraceSampler
from exprl_jax.judge import calibration, hacking, step_calibration
from exprl_jax.judge.factory import AnyJudge
from exprl_jax.judge.step_calibration import Marked
from exprl_jax.judge.tree import Judgments
from exprl_jax.types import Problem

_NO_REFERENCE = '(not given: judge the work by itself)'

Report = dict[str, Any]


def calibrate(config: Config, judge: AnyJudge, traces: Sequence[Trace],
              judgments: Judgments, sampler: TraceSampler | None) -> Report:
  """Makes the judge's report card.

  Args:
    config: its `judge`, `calibration`, `reward` and `seed`.
    judge: to be calibrated.
    traces: some of them with `correct` or `first_wrong`.
    judgments: of the traces.
    sampler: that wrote the traces; None: they are of a file.

  Returns:
    JSON: `readable`, the share of judgments with a score; `conditions`, how
    scores tell right from wrong traces (calibration.outcome) with their own
    reference, with none and with another problem's; `readouts`, the same with
    the own reference for each of calibration.readouts, and `agreement` between
    them; `first_wrong_step` and `rising` (step_calibration), of marked traces;
    `progress` of prefixes against the success of their continuations; `pairs`
    and `made_first_wrong_step`, of traces made out of the problems
    (judge_pairs); `probes`; and `fit` (judge_fitness). A part without data is
    not there.
  """
  cfg = config.calibration
  report: Report = {
      'readable': float(judgments.readable[judgments.exists].mean())
  }
  # 1. Right and wrong traces with some text.
  rows = [
      i for i, t in enumerate(traces)
      if ''.join(t.steps).strip() and t.correct is not None
  ]
  chosen = [traces[i] for i in rows]
  if chosen or all(t.correct is not None for t in traces):
    report['conditions'] = _conditions(config, judge, chosen,
                                       judgments.take(np.array(rows, int)))
  if cfg.readouts and chosen:
    report |= _readouts(config, judge, chosen[:judge_traces.WAVE])
  # 2. Steps.
  marked = [
      Marked(t.problem.question,
             judgments.score[i, :len(t.steps)].astype(float), t.first_wrong)
      for i, t in enumerate(traces)
      if t.first_wrong is not None
      and judgments.readable[i, :len(t.steps)].all()
  ]
  if marked:
    report['first_wrong_step'] = step_calibration.first_wrong_step(
        marked, config.seed)
    report['rising'] = step_calibration.rising(marked, config.seed)
  if sampler and cfg.continuations and config.reward == 'process':
    report['progress'] = _progress(config, traces, judgments, sampler)
  # 3. Traces made of the problems, and probes. Both need another problem.
  problems = list({t.problem.question: t.problem for t in traces}.values())
  if len(problems) > 1 and cfg.pairs:
    report |= _pairs(config, judge, problems[:cfg.pairs])
  report['probes'] = (hacking.probe(config, judge, problems)
                      if len(problems) > 1 else {})
  report['fit'] = judge_fitness.fitness(report)
  return report


def _conditions(config: Config, judge: AnyJudge, traces: Sequence[Trace],
                own: Judgments) -> dict[str, Any]:
  """Compares scores with the truth, with several references."""
  out = {'own': _outcome(config, traces, own)}
  for name, other in _references(config, traces).items():
    problems = other([t.problem for t in traces])
    changed = [t._replace(problem=p) for t, p in zip(traces, problems)]
    out[name] = _outcome(config, changed, judge_traces.score(judge, changed))
  return out


def _pairs(config: Config, judge: AnyJudge,
           problems: Sequence[Problem]) -> Report:
  """Judges traces that are made out of problems."""
  segment = steps_lib.segmenter(config.judge, judge.tokenizer,
                                config.reward == 'process')
  made = [
      m for p, other in zip(problems, judge_pairs.others(problems))
      for m in judge_pairs.make(p, other, segment)
  ]
  if not made:
    return {}
  judgments = judge.score([m.item for m in made],
                          max(len(m.steps) for m in made))
  out: Report = {'pairs': judge_pairs.report(made, judgments, config.seed)}
  if marked := judge_pairs.marked(made, judgments):
    out['made_first_wrong_step'] = step_calibration.first_wrong_step(
        marked, config.seed)
  return out


def _outcome(config: Config, traces: Sequence[Trace],
             judgments: Judgments) -> dict[str, Any]:
  """Compares the readable scores of complete traces with the truth."""
  score, readable = judge_traces.last(traces, judgments)
  correct = np.array([t.correct for t in traces], bool)
  questions = [t.problem.question for t, use in zip(traces, readable) if use]
  return calibration.outcome(score[readable], correct[readable], questions,
                             config.seed)


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


def _readouts(config: Config, judge: AnyJudge,
              traces: Sequence[Trace]) -> Report:
  """Compares readouts on complete traces: with the truth, and, where all of
  them can be read, with each other."""
  max_steps = max(len(t.steps) for t in traces)
  outcomes, scores, use = {}, {}, np.ones(len(traces), bool)
  for name in config.calibration.readouts:
    judgments = judge.with_readout(name).score([t.item for t in traces],
                                               max_steps)
    outcomes[name] = _outcome(config, traces, judgments)
    scores[name], readable = judge_traces.last(traces, judgments)
    use &= readable
  agreement = calibration.agreement({k: v[use] for k, v in scores.items()})
  return {'readouts': outcomes, 'agreement': agreement}
