"""The order in which a run sees its problems."""

from collections.abc import Callable, Sequence

import grain

from exprl_jax.types import Problem


def batches(problems: Sequence[Problem], size: int,
            seed: int) -> Callable[[int], list[Problem]]:
  """The function from a step to its batch of problems.

  Every epoch is another permutation. As no state is kept, resuming at a step
  needs nothing but its number.
  """
  order = grain.MapDataset.source(problems).seed(seed).shuffle().repeat()
  return lambda step: [order[step * size + i] for i in range(size)]
