"""Source 'reasoning_gym:': tasks that a program makes and scores.

    --config.data.train='reasoning_gym:chain_sum?size=500&seed=1&min_terms=2'
    --config.grading.grader=exprl_jax.grading.reasoning_gym:grade

Needs the extra `reasoning_gym`. docs/datasets.md says what it is for.
"""

from collections.abc import Sequence
import difflib
from typing import Any

from exprl_jax.data.lazy import Lazy, digest
from exprl_jax.grading import reasoning_gym
from exprl_jax.types import InputError, Problem

_WHERE = 'reasoning_gym:'


class Tasks(Lazy):
  """The tasks of a family, made on access."""

  def __init__(self, name: str, tasks: Any, size: int) -> None:
    """Makes no task yet.

    Args:
      name: the beginning of the ids.
      tasks: a data set of reasoning-gym.
      size: number of tasks.
    """
    self._name, self._tasks, self._size = name, tasks, size
    self.digest = digest(name, size)

  def __len__(self) -> int:
    return self._size

  def get(self, i: int) -> Problem:
    """See Lazy."""
    task = self._tasks[i]
    answer = task['answer']
    return Problem(
        id=f'{self._name}#{i}',
        question=task['question'].strip(),
        # Only gsm_symbolic tells how its answer comes about.
        solution=task['metadata'].get('answer_cot', ''),
        answer='' if answer is None else str(answer),
        domain=f'reasoning_gym/{self._name.partition("?")[0]}')


def read(name: str, needs: Sequence[str], limit: int) -> Sequence[Problem]:
  """Makes the tasks of FAMILY?OPTIONS.

  Options are `size` (500), `seed` (0) and those of the family's config.

  Args:
    name: such as 'chain_sum?size=500&seed=1&min_terms=2'.
    needs: fields that must not be empty. `answer` may be: the scorers of some
      families need none.
    limit: number of tasks; 0: all.

  Raises:
    InputError: reasoning-gym is not installed, there is no such family, it does
      not take the options, or its tasks lack a field of `needs`.
  """
  try:
    full = reasoning_gym.full_name(name)
    family, options = reasoning_gym.parse(full)
    known = reasoning_gym.families()
    if family not in known:
      close = difflib.get_close_matches(family, known, 3)
      raise ValueError(f'no family {family!r}; '
                       f'{"close: " if close else ""}'
                       f'{", ".join(close or known)}')
    tasks = reasoning_gym.dataset(full)
  except (ImportError, ValueError) as e:
    raise InputError(f'{_WHERE}{name}: {e}') from None
  size = options['size']
  problems = Tasks(full, tasks, min(size, limit) if limit else size)
  if not problems:
    raise InputError(f'{_WHERE}{name}: no tasks; set size to 1 or more')
  for need in needs:
    if need != 'answer' and not getattr(problems[0], need):
      raise InputError(
          f'{_WHERE}{name}: its tasks have no {need}; they are for '
          "evaluations and config.reward='sparse'")
  return problems


SOURCES = {_WHERE: read}
