"""Which problems a step draws, and which groups it trains on."""

from collections.abc import Callable, Sequence

import numpy as np

from exprl_jax.config import Config
from exprl_jax.data import problems as data
from exprl_jax.types import Problem, Scores

# (step, attempt) -> problems; attempt 0 is the step's batch, later ones refill.
Draw = Callable[[int, int], list[Problem]]


def zero_spread(scores: Scores, group_size: int,
                tolerance: float = 1e-6) -> np.ndarray:
  """bool[P]: groups whose scores, of all rows and steps, are all equal.

  They teach nothing: advantages compare scores. So do groups without any.
  """
  shape = (-1, group_size * scores.value.shape[1])
  valid = np.asarray(scores.valid).reshape(shape)
  value = np.asarray(scores.value).reshape(shape)
  high = np.max(value, axis=1, where=valid, initial=-np.inf)
  low = np.min(value, axis=1, where=valid, initial=np.inf)
  return high - low <= tolerance


def drawing(problems: Sequence[Problem], config: Config,
            table: 'SolveRates') -> Draw:
  """The problems of a step, as a function of step, attempt and solve rates.

  Without curriculum the solve rates do not matter: every epoch is another
  permutation, and a resumed run needs nothing but its step.
  """
  size, seed = config.data.batch, config.seed
  if config.select.curriculum:
    return lambda step, attempt: table.draw(size, (seed, step, attempt))
  streams = {}

  def draw(step, attempt):
    if attempt not in streams:  # a stream of its own for each attempt
      streams[attempt] = data.batches(problems, size, seed + 1000 * attempt)
    return streams[attempt](step)

  return draw


class SolveRates:
  """How often each problem is solved: the curriculum's table.

  A problem that is solved sometimes teaches most: with rate p it is drawn with
  weight floor + (1 - floor) 4 p (1 - p). A problem that was not tried yet
  counts as p = 0.5, so all of them get their turn.
  """

  def __init__(self, problems: Sequence[Problem], config: Config):
    self._cfg, self._problems = config.select, problems
    self._rates: dict[str, float] = {}

  def draw(self, size: int, seed: Sequence[int]) -> list[Problem]:
    """Problems without replacement (with, if there are fewer than `size`)."""
    rate = np.array([self._rates.get(p.id, 0.5) for p in self._problems])
    floor = self._cfg.floor
    weight = floor + (1 - floor) * 4 * rate * (1 - rate)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(rate), size, size > len(rate),
                        weight / weight.sum())
    return [self._problems[i] for i in chosen]

  def update(self, problems: Sequence[Problem], solved: np.ndarray) -> None:
    """Moves the rates of problems; solved f32[P] is the share of right rows."""
    memory = self._cfg.memory
    for problem, new in zip(problems, solved.tolist()):
      old = self._rates.get(problem.id, new)
      self._rates[problem.id] = old + memory * (new - old)

  def metrics(self) -> dict[str, float]:
    """How many problems were tried, are never solved, always."""
    rates = np.array(list(self._rates.values()))
    if not len(rates):
      return {}
    return {
        'data/tried_frac': len(rates) / len(self._problems),
        'data/never_solved_frac': float((rates <= 0).mean()),
        'data/always_solved_frac': float((rates >= 1).mean())
    }

  def save(self) -> dict[str, float]:
    """What a checkpoint keeps."""
    return dict(self._rates)

  def restore(self, saved: dict[str, float]) -> None:
    """Takes over what `save` gave."""
    self._rates = dict(saved)
