"""Is the judge fooled? Probes before and during a run, and an alarm."""

from collections.abc import Sequence
import math

from exprl_jax.config import Config
from exprl_jax.data import steps as steps_lib
from exprl_jax.judge import calibration, probes
from exprl_jax.judge.tree import Judge
from exprl_jax.types import InputError, Problem


def probe(config: Config, judge: Judge, problems: Sequence[Problem],
          count: int = 2) -> dict[str, float]:
  """The highest score that each probe gets, at any step, on any problem.

  Args:
    config: its `judge` and reward.
    judge: to be asked.
    problems: probes are about the first `count` of each domain; at least two.
    count: see above.
  """
  tokenizer = judge.tokenizer
  segment = steps_lib.of_config(config, tokenizer)
  special = tokenizer.special_tokens
  items, names = [], []
  domains = {
      d: [p
          for p in problems
          if p.domain == d]
      for d in dict.fromkeys(p.domain for p in problems)
  }
  chosen = [p for own in domains.values() for p in own[:count]]
  for problem in chosen:
    other = problems[(problems.index(problem) + 1) % len(problems)]
    template = judge.of(problem).template
    for name, text in probes.probes(problem, other, template.text, special):
      items.append((problem, segment.split(text)))
      names.append(name)
  verdicts = judge.score(items, max(len(steps) for _, steps in items))
  out: dict[str, float] = {}
  for name, score, readable in zip(names, verdicts.score, verdicts.readable):
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


def refuse_fooled(config: Config, judge: Judge,
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
  worst = sorted(scores, key=scores.get, reverse=True)[:3]
  if scores[worst[0]] > limit:
    named = ', '.join(f'{name} {scores[name]:.2f}' for name in worst)
    raise InputError(
        f'judge {config.judge.init} can be fooled: of {len(scores)} probes the '
        f'best-liked are {named}, more than judge.max_probe_score={limit}. A '
        'policy will find them. Take a better judge or template, or raise '
        'judge.max_probe_score (1 allows everything); docs/judge.md')
  return metrics(scores)


class Alarm:
  """Goes off when the judge's scores climb and right answers do not.

  The rule is calibration.divergence over the last judge.alarm_window steps.
  """

  def __init__(self, config: Config, rows: Sequence[dict] = ()):
    """`rows` of metrics.jsonl are what a resumed run has seen before."""
    self._config, self._seen = config, []
    self._on = False
    for row in rows:
      if 'reward/mean' in row:
        self(row)

  def __call__(self, values: dict[str, float]) -> str:
    """Takes the metrics of a step; adds 'judge/alarm' to them, 0 or 1.

    Returns:
      A warning when it goes off, else ''.
    """
    cfg, groups = self._config.judge, self._config.data.batch
    a = values['reward/accuracy']  # of all samples, so that of the judge, too
    j = values.get('reward/unfiltered_mean', values['reward/mean'])
    # Rows of a group resemble each other: errors as if groups were rows.
    self._seen.append((j, a, values['reward/std'] / math.sqrt(groups),
                       math.sqrt(a * (1 - a) / groups)))
    del self._seen[:-cfg.alarm_window]
    judge, accuracy, se_judge, se_accuracy = zip(*self._seen)
    was, self._on = self._on, calibration.divergence(judge, accuracy,
                                                     cfg.alarm_window,
                                                     cfg.alarm_rise, se_judge,
                                                     se_accuracy)
    values['judge/alarm'] = float(self._on)
    if not self._on or was:
      return ''
    return (f'WARNING: over the last {cfg.alarm_window} steps the judge came '
            'to like the traces better and the answers did not get right more '
            'often: the policy may be fooling it. Read samples/; '
            'docs/judge.md has what to do')
