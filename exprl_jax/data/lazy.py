"""Sequences of problems that are made when they are asked for."""

import abc
from collections.abc import Callable, Sequence
import hashlib
import json
import operator
from typing import Any, overload

from exprl_jax.types import Problem


class Lazy(Sequence[Problem]):
  """A sequence that reads or makes a problem on access.

  Attributes:
    digest: of all that its problems are made from; '' if that is not known.
  """

  digest: str = ''

  @abc.abstractmethod
  def get(self, i: int) -> Problem:
    """Returns problem i, 0 <= i < len(self)."""

  @overload
  def __getitem__(self, i: int) -> Problem:
    ...

  @overload
  def __getitem__(self, i: slice) -> list[Problem]:
    ...

  def __getitem__(self, i: int | slice) -> Problem | list[Problem]:
    if isinstance(i, slice):
      return [self.get(j) for j in range(*i.indices(len(self)))]
    return self.get(range(len(self))[operator.index(i)])


class Mapped(Lazy):
  """Applies a function to each problem of a sequence."""

  def __init__(self, problems: Sequence[Problem],
               function: Callable[[Problem], Problem], *name: Any) -> None:
    """Args: `name` says in JSON what the function does, for the digest."""
    self._problems, self._function = problems, function
    if own := digest_of(problems):
      self.digest = digest(own, *name)

  def __len__(self) -> int:
    return len(self._problems)

  def get(self, i: int) -> Problem:
    """See Lazy."""
    return self._function(self._problems[i])


def digest(*parts: Any) -> str:
  """Hashes what JSON can hold; other values by their `repr`."""
  text = json.dumps(parts, sort_keys=True, default=repr)
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digest_of(problems: Sequence[Problem]) -> str:
  """Returns the digest of problems; '' if it is not known."""
  if isinstance(problems, list):
    return digest(*map(repr, problems))
  return getattr(problems, 'digest', '')
