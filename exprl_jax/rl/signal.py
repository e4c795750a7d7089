"""How many rows of a batch have credit, and why the others have none.

A row without credit has an advantage of 0 at every token: the policy gradient
does not see it. A run of such rows trains on nothing while its metrics look
healthy, so it is counted, explained and, after a while, ended.
"""

from collections.abc import Mapping

from jaxtyping import Bool
import numpy as np

from exprl_jax.config import Config
from exprl_jax.rl import losses
from exprl_jax.rl.credit import Credit
from exprl_jax.rl.scored import ScoredRollouts

_MOSTLY = 0.9  # of the rows without credit are worth a warning
# Why a row has none -> what to look at.
_CAUSES = {
    'unreadable': 'have no valid score (judge/* in metrics.jsonl)',
    'unfinished': "do not end within rollout.max_new_tokens, and rollout."
    'overlong takes their score away',
    'one_step': "have one step, which credit.rule='delta' with first='final' "
    'gives 0: judge.delimiter does not cut these traces, or '
    'credit.single',
    'equal': 'have scores that are all equal in their group or trace'
}


def metrics(config: Config, scored: ScoredRollouts,
            credit: Credit) -> dict[str, float]:
  """The shares of rows without credit, 'credit/zero...', by cause.

  {} for a loss that needs no advantages.
  """
  if losses.kind(config.loss.kind).teacher:
    return {}
  zero = ~_credited(credit)
  causes = np.array([_cause(config, scored, i) for i in range(len(zero))])
  return {'credit/zero_frac': float(zero.mean())} | {
      f'credit/zero_{cause}_frac': float((zero & (causes == cause)).mean())
      for cause in _CAUSES
  }


def explain(values: Mapping[str, float]) -> str:
  """What to print about a step's metrics; '' if most rows have credit."""
  share = values.get('credit/zero_frac', 0.0)
  if share < _MOSTLY:
    return ''
  causes = sorted(
      ((values[f'credit/zero_{cause}_frac'], cause) for cause in _CAUSES),
      reverse=True)
  why = '; '.join(
      f'{part:.0%} {_CAUSES[cause]}' for part, cause in causes if part >= 0.05)
  return f'{share:.0%} of the rows have no credit and do not train: {why}'


def _credited(credit: Credit) -> Bool[np.ndarray, ' B']:
  """Rows that train with an advantage other than 0."""
  return np.array([
      bool(trains) and bool(np.any(a))
      for trains, a in zip(credit.trains, credit.advantages)
  ])


def _cause(config: Config, scored: ScoredRollouts, i: int) -> str:
  """Why row i would have no credit."""
  valid = int(np.sum(scored.scores.valid[i]))
  cfg, overlong = config.credit, config.rollout.overlong
  if not scored.trajectories[i].finished and overlong in ('mask', 'zero'):
    return 'unfinished'
  if not valid:
    return 'unreadable'
  alone = valid == 1 and not scored.outcome_rows[i]
  if alone and (cfg.rule, cfg.first, cfg.single) == ('delta', 'final', 'zero'):
    return 'one_step'
  return 'equal'
