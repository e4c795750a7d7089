"""Known signs that a run fails, and what to do about each (docs/metrics.md)."""

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

_STEPS = 5  # whose mean counts: one odd batch is no sign


class Sign(NamedTuple):
  """A metric that is out of its healthy range.

  Attributes:
    metric: of metrics.jsonl.
    limit: the mean of the last steps is above it; or, with `of_start`, below
      this share of what it was in the first steps.
    text: what to say; {} is the mean.
    of_start: see `limit`.
  """

  metric: str
  limit: float
  text: str
  of_start: bool = False


SIGNS = {
    'truncated': Sign(
        'length/truncated_frac', 0.2,
        '{:.0%} of the samples use up rollout.max_new_tokens: raise it, or '
        "keep them out of training with rollout.overlong='mask'"),
    'entropy': Sign(
        'policy/entropy', 0.02,
        'the entropy fell to {:.4f} nats per token, a fiftieth of what it was: '
        'lower optim.lr, raise loss.kl_coef, or set '
        'loss.entropy_coef', of_start=True),
    'mismatch': Sign(
        'mismatch/kl', 0.02,
        'sampler and learner disagree (KL {:.3f} nats per token): sample in '
        'the precision that trains (rollout.kv_dtype, policy.dtype), or take '
        'fewer optim.updates'),
    'one_step': Sign(
        'steps/one_step_frac', 0.3,
        '{:.0%} of the traces are one step: judge.delimiter does not cut what '
        'the policy writes'),
}


class Signs:
  """Looks for all of them, step by step."""

  def __init__(self, stepwise: bool = True) -> None:
    """Args: `stepwise`, whether traces are meant to have steps."""
    self._signs = {
        k: x for k, x in SIGNS.items() if stepwise or k != 'one_step'
    }
    self._last = {name: deque[float](maxlen=_STEPS) for name in self._signs}
    self._start: dict[str, float] = {}

  def of_step(self, values: Mapping[str, float]) -> dict[str, str]:
    """Takes a step's metrics; returns what to say of each sign, or ''."""
    return {
        name: self._look(name, sign, values)
        for name, sign in self._signs.items()
    }

  def _look(self, name: str, sign: Sign, values: Mapping[str, float]) -> str:
    last = self._last[name]
    if sign.metric not in values:
      return ''
    last.append(values[sign.metric])
    mean = sum(last) / len(last)
    if len(last) < _STEPS:
      return ''
    if not sign.of_start:
      return sign.text.format(mean) if mean > sign.limit else ''
    start = self._start.setdefault(name, mean)
    return sign.text.format(mean) if mean < sign.limit * start else ''
