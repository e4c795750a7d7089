"""Checks of data sets, row by row, in a single pass.

Rows come as (FILE:LINE, Problem). What is kept of them are hashes. KINDS has
all kinds of findings; docs/validation.md describes them.
"""

from collections.abc import Iterable, Iterator, Sequence
import itertools

from exprl_jax.data.checks import golds, rows, text
from exprl_jax.data.checks.golds import Row
from exprl_jax.data.checks.overlap import Evaluation
from exprl_jax.data.checks.report import (
    KINDS,
    Finding,
    Report,
    error_kinds,
    summarize,
    with_unreadable,
)
from exprl_jax.data.checks.rows import Budget
from exprl_jax.grading.grader import Grader

__all__ = [
    'KINDS', 'Budget', 'Evaluation', 'Finding', 'Report', 'Row', 'check',
    'error_kinds', 'find', 'with_unreadable'
]

_CHUNK = 1024  # rows whose gold answers are graded together


def check(name: str, data: Iterable[Row], *, errors: Iterable[str],
          needs: Sequence[str] = (), budgets: Sequence[Budget] = (),
          grader: Grader | None = None, evaluation: Evaluation | None = None,
          keep: int = 0) -> Report:
  """Checks a data set; reads it once.

  Args:
    name: of the data set, for the report.
    data: FILE:LINE and problem of every row.
    errors: kinds that are errors, as of `error_kinds`.
    needs: fields that must not be empty.
    budgets: limits of tokens.
    grader: of gold answers; None: they are not checked.
    evaluation: questions that must not be among these; None: no such check.
    keep: number of bad rows whose errors the report keeps.
  """
  count = 0

  def counted() -> Iterator[Row]:
    nonlocal count
    for row in data:
      count += 1
      yield row

  found = find(counted(), needs, budgets, grader, evaluation)
  return summarize(name, found, frozenset(errors), keep, lambda: count)


def find(data: Iterable[Row], needs: Sequence[str] = (),
         budgets: Sequence[Budget] = (), grader: Grader | None = None,
         evaluation: Evaluation | None = None) -> Iterator[Finding]:
  """Yields the findings about a data set; `check` has the arguments."""
  earlier, stream = rows.Earlier(), iter(data)
  while chunk := list(itertools.islice(stream, _CHUNK)):
    for where, p in chunk:
      words = text.tokens(p.question)
      key = text.key(words, p.question)
      found = list(rows.texts(where, p, needs))
      yield from found
      # A tokenizer may refuse texts with half a character.
      if all(f.kind != 'control_characters' for f in found):
        yield from rows.lengths(where, p, budgets)
      yield from earlier.check(where, p, key)
      yield from rows.copied(where, p, words)
      if evaluation:
        yield from evaluation.check(where, words, key)
    if grader:
      yield from golds.check(chunk, grader)
