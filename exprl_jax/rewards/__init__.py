"""Rewards: from rollouts to scores, one file each.

REWARDS maps config.reward to its entry; `lookup` takes import paths, too.
"""

from exprl_jax.rewards.base import Reward, Scorer
from exprl_jax.runtime import registry

REWARDS: dict[str, Reward] = registry.collect('exprl_jax.rewards', 'REWARDS')


def lookup(name: str) -> Reward:
  """The entry of REWARDS, or a scorer `FILE.py:FUNCTION`, `MODULE:FUNCTION`.

  Such a function takes a list of Trace and returns (value f32[B, S], valid
  bool[B, S], metrics). Its attribute `granularity`, 'row' by default, says
  whether traces are cut into steps.

  Raises:
    InputError: there is no such reward.
  """
  if ':' in name:
    scorer: Scorer = registry.load_function(name, 'reward')
    return Reward(getattr(scorer, 'granularity', 'row'),
                  lambda config, judge: scorer)
  return registry.lookup(REWARDS, name, 'reward')
