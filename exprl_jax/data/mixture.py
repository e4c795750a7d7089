"""Sets of problems that are mixed by weight: data.mixture."""

from collections.abc import Iterator, Sequence
import math
import re
from typing import NamedTuple

import numpy as np

from exprl_jax.data.lazy import Lazy, digest, digest_of
from exprl_jax.types import InputError, Problem

_ENTRY = re.compile(r'\s*([A-Za-z][\w-]*)\s*=\s*([^,\s]+)\s*,\s*(.+)')


class Set(NamedTuple):
  """One set of a mixture."""

  name: str
  weight: float
  files: str


class Mixture(Lazy):
  """Problems of several sets, one set after the other.

  Attributes:
    parts: the sets.
    weights: positive; batches.py draws from the sets in this ratio.
  """

  def __init__(self, parts: Sequence[Sequence[Problem]],
               weights: Sequence[float]) -> None:
    self.parts, self.weights = parts, weights
    self._ends = np.cumsum([len(part) for part in parts])
    if all(names := [digest_of(part) for part in parts]):
      self.digest = digest(names)

  def __len__(self) -> int:
    return int(self._ends[-1])

  def get(self, i: int) -> Problem:
    """See Lazy."""
    part = int(np.searchsorted(self._ends, i, 'right'))
    return self.parts[part][i - int(self._ends[part - 1] if part else 0)]

  def __iter__(self) -> Iterator[Problem]:
    for part in self.parts:
      yield from part

  def problem_weights(self) -> np.ndarray:
    """f64[N], how often each problem is drawn: its part of its set's."""
    return np.concatenate([
        np.full(len(part), weight / len(part))
        for part, weight in zip(self.parts, self.weights)
    ])


def parse(entries: Sequence[str]) -> list[Set]:
  """Parses the entries 'NAME=WEIGHT,FILES' of data.mixture.

  Raises:
    InputError: an entry has another form, a weight is not positive, or two sets
      have the same name.
  """
  sets: list[Set] = []
  for entry in entries:
    match = _ENTRY.fullmatch(entry)
    try:
      weight = float(match[2]) if match else 0.0
    except ValueError:
      weight = 0.0
    if not match or not 0 < weight < math.inf:
      raise InputError(f"config.data.mixture: {entry!r} should be 'NAME=WEIGHT,"
                       "FILES', the weight positive")
    if match[1] in {s.name for s in sets}:
      raise InputError(f'config.data.mixture: two sets are named {match[1]}')
    sets.append(Set(match[1], weight, match[3].strip()))
  return sets
