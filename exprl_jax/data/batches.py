"""The order in which a run sees its problems."""

from collections.abc import Callable, Sequence

import grain

from exprl_jax.data.mixture import Mixture
from exprl_jax.types import Problem


def batches(problems: Sequence[Problem], size: int,
            seed: int) -> Callable[[int], list[Problem]]:
  """The function from a step to its batch of problems.

  Every epoch is another permutation. The sets of a mixture take turns by their
  weights, each with epochs of its own. As no state is kept, resuming at a step
  needs nothing but its number.
  """
  order = (grain.MapDataset.mix([_order(p, seed) for p in problems.parts],
                                problems.weights)
           if isinstance(problems, Mixture) else _order(problems, seed))
  return lambda step: [order[step * size + i] for i in range(size)]


def _order(problems: Sequence[Problem], seed: int) -> grain.MapDataset:
  return grain.MapDataset.source(problems).seed(seed).shuffle().repeat()
