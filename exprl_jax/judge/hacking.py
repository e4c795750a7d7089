"""Reward hacking: adversarial probes of a judge, a monitor during a run."""

from collections.abc import Mapping, Sequence
import itertools
import math
from typing import Any, NamedTuple

from exprl_jax.config import Config
from exprl_jax.data import steps as steps_lib
from exprl_jax.judge import calibration, probes
from exprl_jax.judge.factory import AnyJudge
from exprl_jax.judge.tree import Item, Judgments
from exprl_jax.types import Problem


class Probe(NamedTuple):
  """A probe of one problem, as a judge is asked about it."""

  name: str
  item: Item


def probes_of(config: Config, judge: AnyJudge, problems: Sequence[Problem],
              count: int = 2) -> list[Probe]:
  """Makes the probes about the first `count` problems of each template.

  Args:
    config: its `judge` and reward.
    judge: to be asked; domains with the same template share their probes.
    problems: at least two.
    count: see above.
  """
  tokenizer = judge.tokenizer
  segment = steps_lib.segmenter(config.judge, tokenizer,
                                config.reward == 'process')
  by_judge: dict[int, list[int]] = {}
  for i, problem in enumerate(problems):
    if len(own := by_judge.setdefault(id(judge.of(problem)), [])) < count:
      own.append(i)
  out = []
  for i in itertools.chain(*by_judge.values()):
    problem, other = problems[i], problems[(i + 1) % len(problems)]
    texts = probes.probes(problem, other,
                          judge.of(problem).template_text,
                          tokenizer.special_tokens)
    out += [Probe(name, (problem, segment.split(text))) for name, text in texts]
  return out


def highest(asked: Sequence[Probe], judgments: Judgments) -> dict[str, float]:
  """The highest score that each probe gets, at any step, on any problem."""
  out: dict[str, float] = {}
  for probe_, score, readable in zip(asked, judgments.score,
                                     judgments.readable):
    best = float(score.max(where=readable, initial=0.0))
    out[probe_.name] = max(out.get(probe_.name, 0.0), best)
  return out


def probe(config: Config, judge: AnyJudge, problems: Sequence[Problem],
          count: int = 2) -> dict[str, float]:
  """Asks about all of `probes_of` and returns `highest`."""
  asked = probes_of(config, judge, problems, count)
  most = max(len(p.item[1]) for p in asked)
  return highest(asked, judge.score([p.item for p in asked], most))


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
