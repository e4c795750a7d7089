"""Source 'tiny:': the named problem sets of the tiny world."""

from collections.abc import Sequence
from typing import cast

from exprl_jax.data import tiny_world
from exprl_jax.types import Problem


def read(name: str, needs: Sequence[str], limit: int) -> Sequence[Problem]:
  """Makes a set: 'pretraining' is the text that the tiny policy is made from,
  any other name a split of the world's problems.

  Raises:
    InputError: there is no such set.
  """
  del needs  # every problem has question, solution and answer
  # PretrainingText makes its rows on access and has no more of a Sequence than
  # length and items.
  return cast(Sequence[Problem], tiny_world.named(name, limit))


SOURCES = {'tiny:': read}
