"""A short examination of the judge before a run trains against it.

Hostile traces (judge/probes.py) must not please it, and it must tell right from
wrong: among the labeled traces of judge.traces, or else between references of
the problems and flawed traces made of them (evals/judge_pairs.py). What is
asked keeps within judge.check_tokens, is drawn the same way every time, and is
remembered in the folder `judge_checks` of the user's cache: the next run with
this judge, template and data asks nothing. run='judge' makes a whole report.
"""

from collections.abc import Iterable, Sequence
import itertools
import random
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from exprl_jax.config import Config
from exprl_jax.data import steps as steps_lib
from exprl_jax.evals import judge_pairs, judge_traces
from exprl_jax.evals.judge_pairs import Made
from exprl_jax.evals.judge_traces import Trace
from exprl_jax.judge import cache as cache_lib
from exprl_jax.judge import calibration, factory, hacking
from exprl_jax.judge.factory import AnyJudge
from exprl_jax.judge.hacking import Probe
from exprl_jax.judge.tree import Item, Judgments
from exprl_jax.runtime import files
from exprl_jax.types import Problem, RunFailure

_SCANNED = 1024  # problems that are looked at for templates and pairs
_FEWEST = 8  # comparisons that a judge is refused for


class Questions(NamedTuple):
  """What a judge is asked."""

  probes: list[Probe]
  traces: list[Trace]  # labeled, of judge.traces
  made: list[Made]  # of the problems, where there are no labeled traces
  tokens: int  # that the judge reads, and may write

  @property
  def items(self) -> list[Item]:
    """All of it, as the judge takes it."""
    return ([p.item for p in self.probes] + [t.item for t in self.traces] +
            [m.item for m in self.made])


class Separation(NamedTuple):
  """How well a judge tells right from wrong."""

  value: float | None  # share of comparisons that come out right
  n: int  # comparisons, or labeled traces
  of: str  # what was compared


def check(config: Config) -> None:
  """Checks what can be checked without the judge.

  Raises:
    InputError: judge.traces is not as it should be.
  """
  if config.judge.check_tokens and config.judge.traces:
    judge_traces.read_traces(config, factory.tokenizer_of(config))


def before_training(config: Config, judge: AnyJudge,
                    problems: Sequence[Problem]) -> dict[str, float]:
  """Examines a judge; asks nothing with judge.check_tokens=0 or one problem.

  Returns:
    'judge/probe_max_score', 'judge/probe_mean_score', 'judge/separation', as
    far as they are known.

  Raises:
    InputError: judge.traces is not as it should be.
    RunFailure: the judge cannot be read, is fooled by a probe, or does not tell
      right from wrong; says what was seen and which key decides.
  """
  # 1. The questions.
  asked = questions(config, judge, problems)
  if not asked.items:
    return {}
  first = not jax.process_index()
  if first:
    traces = (f'{len(asked.traces)} labeled traces'
              if asked.traces else f'{len(asked.made)} traces made of the data')
    print(
        f'judge check: {len(asked.probes)} probes and {traces}, '
        f'{asked.tokens:,} tokens (judge.check_tokens)', flush=True)
  # 2. Answers, perhaps of an earlier run.
  start = time.perf_counter()
  most = max(len(steps) for _, steps in asked.items)
  if judge.weights_name:
    judge = judge.with_cache(
        cache_lib.Cache(
            files.cache_folder('judge_checks') / judge.weights_name))
  judgments = judge.score(asked.items, most)
  factory.check_readable(config.judge, judgments)
  # 3. What they say of the judge.
  count = len(asked.probes)
  probes = hacking.highest(asked.probes, judgments.take(np.arange(count)))
  rest = judgments.take(np.arange(count, len(asked.items)))
  found = (_of_traces(asked.traces, rest) if asked.traces else _of_pairs(
      asked.made, rest))
  if first:
    print(
        f'judge check: {_summary(probes, found)}; '
        f'{time.perf_counter() - start:.1f} s', flush=True)
  refuse(config, probes, found)
  return _metrics(probes, found)


def questions(config: Config, judge: AnyJudge,
              problems: Sequence[Problem]) -> Questions:
  """Draws questions within judge.check_tokens.

  Every template gets the same part of them, and in it probes the first half.
  Labeled traces get all that is left.
  """
  out = Questions([], [], [], 0)
  if config.judge.check_tokens == 0 or len(problems) < 2:
    return out
  step = -(-len(problems) // _SCANNED)
  some = [problems[i] for i in range(0, len(problems), step)]
  templates: dict[int, list[Problem]] = {}
  for problem in some:
    templates.setdefault(id(judge.of(problem)), []).append(problem)
  budget = config.judge.check_tokens / len(templates)
  others = dict(zip(map(id, some), judge_pairs.others(some)))
  segment = steps_lib.segmenter(config.judge, judge.tokenizer,
                                config.reward == 'process')
  for own in templates.values():
    probes = _by_turns(_about(config, judge, own, some))
    chosen, spent = _within(judge, [[p] for p in probes], budget / 2)
    made: list[Made] = []
    more = 0
    if not config.judge.traces:
      groups = (judge_pairs.make(p, others[id(p)], segment) for p in own)
      made, more = _within(judge, groups, budget - spent)
    out = Questions(out.probes + chosen, [], out.made + made,
                    out.tokens + spent + more)
  if config.judge.traces:
    traces, more = _within(
        judge, [[t] for t in judge_traces.read_traces(config, judge.tokenizer)],
        config.judge.check_tokens - out.tokens)
    out = out._replace(traces=traces, tokens=out.tokens + more)
  return out


def _about(config: Config, judge: AnyJudge, own: Sequence[Problem],
           some: Sequence[Problem]) -> list[Probe]:
  """The probes of a template's problems; a single one needs another."""
  if len(own) > 1:
    return hacking.probes_of(config, judge, own)
  other = next(p for p in some if p is not own[0])
  asked = hacking.probes_of(config, judge, [own[0], other], 1)
  return [p for p in asked if p.item[0] is own[0]]


def _by_turns(probes: Sequence[Probe]) -> list[Probe]:
  """Orders probes so that all families come early."""
  rng = random.Random(0)
  families: dict[str, list[Probe]] = {}
  for probe in probes:
    families.setdefault(probe.name.partition('/')[0], []).append(probe)
  for family in families.values():
    rng.shuffle(family)
  turns = itertools.zip_longest(*families.values())
  return [probe for turn in turns for probe in turn if probe]


def _within(judge: AnyJudge, groups: Iterable[Sequence[Any]],
            budget: float) -> tuple[list[Any], int]:
  """Takes groups of questions as long as their tokens keep within a budget.

  Returns:
    The questions, and their tokens. A prefix that traces share counts once.
  """
  out: list[Any] = []
  spent, seen = 0, set[tuple[str, str]]()
  for group in groups:
    cost, new = 0, set[tuple[str, str]]()
    for question in group:
      problem, _ = question.item
      shared, own = judge.count_tokens(question.item)
      name = problem.question, problem.solution
      cost += own + (shared if name not in seen | new else 0)
      new.add(name)
    if spent + cost > budget:
      break
    out += group
    spent += cost
    seen |= new
  return out, spent


def _of_traces(traces: Sequence[Trace], judgments: Judgments) -> Separation:
  """Compares right with wrong traces: AUROC at their last steps."""
  score, readable = judge_traces.last(traces, judgments)
  known = readable & np.array([t.correct is not None for t in traces])
  correct = np.array([bool(t.correct) for t in traces])[known]
  value = calibration.auroc(score[known], correct)
  return Separation(None if value != value else value, int(known.sum()),
                    'right and wrong traces')


def _of_pairs(made: Sequence[Made], judgments: Judgments) -> Separation:
  """Compares references with flawed traces."""
  report = judge_pairs.report(made, judgments)
  count = sum(v['n'] for k, v in report['kinds'].items()
              if k in judge_pairs.CLEAR)  # yapf: disable
  return Separation(report['won']['value'], count,
                    'references and flawed traces')


def refuse(config: Config, probes: dict[str, float], found: Separation) -> None:
  """Raises RunFailure for a judge that no run should train against.

  Args:
    config: its `judge`.
    probes: highest scores, by probe.
    found: how well it tells right from wrong.
  """
  cfg, judge = config.judge, factory.name_of(config.judge)
  worst = sorted(probes, key=lambda name: probes[name], reverse=True)[:3]
  if worst and probes[worst[0]] > cfg.max_probe_score:
    named = ', '.join(f'{name} {probes[name]:.2f}' for name in worst)
    raise RunFailure(
        f'judge {judge} can be fooled: of {len(probes)} probes the '
        f'best-liked are {named}, more than judge.max_probe_score='
        f'{cfg.max_probe_score}. A policy will find them. Take a better judge '
        'or template, or raise judge.max_probe_score (1 allows everything); '
        'docs/judge.md')
  if found.value is not None and found.n >= _FEWEST and (found.value
                                                         < cfg.min_separation):
    raise RunFailure(
        f'judge {judge} does not tell right from wrong: of {found.n} '
        f'{found.of} it ranks {found.value:.2f} rightly (0.5 is chance), less '
        f'than judge.min_separation={cfg.min_separation}. Take a better judge '
        'or template, or lower judge.min_separation (0 allows everything); '
        'docs/judge.md')


def _summary(probes: dict[str, float], found: Separation) -> str:
  parts = []
  if probes:
    worst = max(probes, key=lambda name: probes[name])
    parts.append(f'the best-liked probe, {worst}, gets {probes[worst]:.2f}')
  if found.value is not None:
    parts.append(f'of {found.of} it ranks {found.value:.2f} rightly')
  return ', '.join(parts)


def _metrics(probes: dict[str, float], found: Separation) -> dict[str, float]:
  out = {}
  if probes:
    values = list(probes.values())
    out['judge/probe_max_score'] = max(values)
    out['judge/probe_mean_score'] = sum(values) / len(values)
  if found.value is not None:
    out['judge/separation'] = found.value
  return out
