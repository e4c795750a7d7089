"""Which problems a step draws: in order, or by how often they are solved."""

from collections.abc import Sequence, Set
import functools
from typing import NamedTuple

import numpy as np

from exprl_jax.config import Config
from exprl_jax.data.batches import batches
from exprl_jax.data.mixture import Mixture
from exprl_jax.types import Problem


class Solved(NamedTuple):
  """How often each problem of a step was solved."""

  problems: list[Problem]  # P
  rates: np.ndarray  # f64[P] share of right samples


class Curriculum:
  """Draws the problems of a step.

  Without select.curriculum every epoch is another permutation: a function of
  the step alone. With it, a problem that is solved sometimes is drawn more
  often, as it teaches most: with rate p it has weight floor + (1 - floor) 4 p
  (1 - p). A problem that was not tried counts as p = 0.5, so all get their
  turn. The rates are logged in either case.
  """

  def __init__(self, problems: Sequence[Problem], config: Config):
    self._config, self._problems = config, problems
    self._rates: dict[str, float] = {}
    self._numbers: dict[str, int] = {}  # of problems in self._problems
    # A stream of its own for each attempt.
    self._stream = functools.cache(lambda attempt: batches(
        problems, config.data.batch, config.seed + 1000 * attempt))

  def draw(self, step: int, attempt: int) -> list[Problem]:
    """The problems of a step; attempts after 0 refill its batch."""
    if self._config.select.curriculum:
      return self.weighted(self._config.data.batch,
                           (self._config.seed, step, attempt))
    return self._stream(attempt)(step)

  def weighted(self, size: int, seed: Sequence[int]) -> list[Problem]:
    """Problems by weight, without replacement (with, if they are too few)."""
    rate = np.full(len(self._problems), 0.5)
    self._find(self._rates.keys() - self._numbers.keys())
    for id_, value in self._rates.items():
      rate[self._numbers[id_]] = value
    floor = self._config.select.curriculum_floor
    weight = floor + (1 - floor) * 4 * rate * (1 - rate)
    if isinstance(self._problems, Mixture):
      weight *= self._problems.problem_weights()
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(rate), size, size > len(rate),
                        weight / weight.sum())
    problems = [self._problems[i] for i in chosen.tolist()]
    self._numbers |= {p.id: i for p, i in zip(problems, chosen.tolist())}
    return problems

  def _find(self, ids: Set[str]) -> None:
    """Finds the numbers of problems that `weighted` did not draw."""
    if ids:
      self._numbers |= {
          p.id: i for i, p in enumerate(self._problems) if p.id in ids
      }

  def update(self, solved: Solved) -> dict[str, float]:
    """Moves the rates of a step's problems; returns metrics of the table."""
    memory = self._config.select.curriculum_memory
    for problem, new in zip(solved.problems, solved.rates.tolist()):
      old = self._rates.get(problem.id, new)
      self._rates[problem.id] = old + memory * (new - old)
    rates = np.array(list(self._rates.values()))
    if not len(rates):
      return {}
    return {
        'data/tried_frac': len(rates) / len(self._problems),
        'data/never_solved_frac': float((rates <= 0).mean()),
        'data/always_solved_frac': float((rates >= 1).mean())
    }

  def state(self) -> dict[str, float]:
    """What a resumed run needs: the rates by problem id."""
    return dict(self._rates)

  def restore(self, state: dict[str, float]) -> None:
    """Takes over what `state` returned."""
    self._rates = dict(state)
