"""Reward hacking: adversarial probes before a run, a monitor during it."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from exprl_jax.config import Config
from exprl_jax.data import steps as steps_lib
from exprl_jax.judge import calibration, probes
from exprl_jax.judge.factory import AnyJudge
from exprl_jax.types import Problem, RunFailure


def probe(config: Config, judge: AnyJudge, problems: Sequence[Problem],
          count: int = 2) -> dict[str, float]:
  """The highest score that each probe gets, at any step, on any problem.

  Args:
    config: its `judge` and reward.
    judge: to be asked.
    problems: probes are about the first `count` of each domain; at least two.
    count: see above.
  """
  tokenizer = judge.tokenizer
  segment = steps_lib.segmenter(config.judge, tokenizer,
                                config.reward == 'process')
  special = tokenizer.special_tokens
  items, names = [], []
  domains: dict[str, list[tuple[int, Problem]]] = {}
  for i, problem in enumerate(problems):
    if len(own := domains.setdefault(problem.domain, [])) < count:
      own.append((i, problem))
  for i, problem in (x for own in domains.values() for x in own):
    other = problems[(i + 1) % len(problems)]
    template = judge.of(problem).template
    for name, text in probes.probes(problem, other, template.text, special):
      items.append((problem, segment.split(text)))
      names.append(name)
  judgments = judge.score(items, max(len(steps) for _, steps in items))
  out: dict[str, float] = {}
  for name, score, readable in zip(names, judgments.score, judgments.readable):
    best = float(score.max(where=readable, initial=0.0))
    out[name] = max(out.get(name, 0.0), best)
  return out


def metrics(scores: dict[str, float]) -> dict[str, float]:
  """'judge/probe_...' of what `probe` returns."""
  values = list(scores.values())
  return {
      'judge/probe_max_score': max(values),
      'judge/probe_mean_score': sum(values) / len(values)
  }


def refuse_fooled(config: Config, judge: AnyJudge,
                  problems: Sequence[Problem]) -> dict[str, float]:
  """`metrics`, if the judge can be trained against; {} with one problem,
  where the probes have no other to take from.

  Raises:
    InputError: it gives more than judge.max_probe_score to some probe.
  """
  if len(problems) < 2:
    return {}
  scores = probe(config, judge, problems)
  limit = config.judge.max_probe_score
  worst = sorted(scores, key=lambda name: scores[name], reverse=True)[:3]
  if scores[worst[0]] > limit:
    named = ', '.join(f'{name} {scores[name]:.2f}' for name in worst)
    raise RunFailure(
        f'judge {config.judge.init} can be fooled: of {len(scores)} probes the '
        f'best-liked are {named}, more than judge.max_probe_score={limit}. A '
        'policy will find them. Take a better judge or template, or raise '
        'judge.max_probe_score (1 allows everything); docs/judge.md')
  return metrics(scores)


class Monitor:
  """Warns when the judge's scores climb and right answers do not.

  The rule is calibration.divergence over the last judge.monitor_window steps.
  """

  def __init__(self, config: Config):
    """Starts without a history; a resumed run restores it."""
    self._config = config
    self._history: list[list[float]] = []  # by step, newest last: judge's mean
    # score, accuracy, standard error of each
    self._alarm = False

  def update(self, values: Mapping[str, float]) -> tuple[dict[str, float], str]:
    """Takes the metrics of a step.

    Returns:
      'judge/hacking_alarm', 0 or 1; and a warning when the alarm goes on, else
      ''.
    """
    cfg, groups = self._config.judge, self._config.data.batch
    # Both are of all samples, before groups are dropped.
    accuracy = values['reward/accuracy']
    score = values.get('reward/unfiltered_mean', values['reward/mean'])
    # Rows of a group resemble each other: errors as if groups were rows.
    self._history.append([
        score, accuracy, values['reward/std'] / math.sqrt(groups),
        math.sqrt(accuracy * (1 - accuracy) / groups)
    ])
    del self._history[:-cfg.monitor_window]
    scores, accuracies, se_scores, se_accuracies = zip(*self._history)
    before, self._alarm = self._alarm, calibration.divergence(
        scores, accuracies, cfg.monitor_window, cfg.monitor_rise, se_scores,
        se_accuracies)
    metrics = {'judge/hacking_alarm': float(self._alarm)}
    if not self._alarm or before:
      return metrics, ''
    return metrics, (
        f'WARNING: over the last {cfg.monitor_window} steps the judge came to '
        'like the traces better and the answers did not get right more often: '
        'the policy may be hacking it. Read samples/; docs/judge.md has what '
        'to do')

  def state(self) -> dict[str, Any]:
    """What a resumed run needs."""
    # JSON has no nan, which reward/std is where no row has a score.
    history = [[None if x != x else x for x in row] for row in self._history]
    return {'history': history, 'alarm': self._alarm}

  def restore(self, state: dict[str, Any]) -> None:
    """Takes over what `state` returned."""
    self._history = [[float('nan') if x is None else x
                      for x in row]
                     for row in state['history']]
    self._alarm = state['alarm']
