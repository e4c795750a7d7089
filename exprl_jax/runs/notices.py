"""What a run tells about itself besides its numbers, before it is too late."""

from collections.abc import Mapping

import numpy as np

from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.rl import signal
from exprl_jax.rl.scored import ScoredRollouts
from exprl_jax.runs import signs

_GAP = 10  # steps between the first two notices of a kind, then twice as many
_TRUNCATED = 0.5  # of the samples: then it is asked why


class Notices:
  """Warnings about training steps; each kind more and more seldom."""

  def __init__(self, tokenizer: Tokenizer, stepwise: bool = True) -> None:
    """Args: `stepwise`, whether traces are meant to have steps."""
    self._tokenizer = tokenizer
    self._signs = signs.Signs(stepwise)
    self._given: dict[str, int] = {}  # notices so far, by kind
    self._next: dict[str, int] = {}  # the step from which it is said again

  def of_step(self, step: int, scored: ScoredRollouts,
              values: Mapping[str, float]) -> list[str]:
    """Returns the lines to print.

    Args:
      step: as it is logged.
      scored: the rows that train, or all if none does.
      values: the step's metrics.
    """
    found = {'credit': signal.explain(values), 'ends': self._ends(scored)
            } | self._signs.of_step(values)
    out = []
    for kind, text in found.items():
      if text and step >= self._next.get(kind, 0):
        given = self._given.get(kind, 0)
        self._given[kind] = given + 1
        self._next[kind] = step + _GAP * 2**given
        out.append(f'step {step}: {text}')
    return out

  def _ends(self, scored: ScoredRollouts) -> str:
    """Whether samples run on behind something that looks like an end."""
    cut = [t.completion for t in scored.trajectories if not t.finished]
    if not cut or len(cut) < _TRUNCATED * len(scored.traces):
      return ''
    for token, text in self._tokenizer.other_ends().items():
      share = np.mean([token in completion for completion in cut])
      if share >= _TRUNCATED:
        return (f'{len(cut)} of {len(scored.traces)} samples used up rollout.'
                f'max_new_tokens, and {share:.0%} of these have written {text} '
                'before; if it ends an answer, set '
                f'--config.rollout.stop_ids="({token},)"')
    return ''
