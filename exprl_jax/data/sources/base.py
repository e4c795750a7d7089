"""What a source of problems is."""

from collections.abc import Sequence
from typing import Protocol

from exprl_jax.types import Problem


class Source(Protocol):
  """An entry of SOURCES.

  A source checks every row that it returns: data/validation.py has the checks
  of rows and of ids.
  """

  def __call__(self, name: str, needs: Sequence[str],
               limit: int) -> Sequence[Problem]:
    """Reads problems.

    Args:
      name: the path of a file, or what stands behind the prefix.
      needs: fields that must not be empty, beside `question`.
      limit: number of problems to read; 0: all.

    Returns:
      At least one problem, each with an id of its own. A sequence whose items
      are made on access is fine.

    Raises:
      InputError: no such file, no rows, or a bad row; names file and line.
    """
