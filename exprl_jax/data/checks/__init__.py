"""Checks of data sets, row by row, in a single pass.

Rows come as (FILE:LINE, Problem). What is kept of them are hashes. KINDS has
all kinds of findings; docs/validation.md describes them. Several processes
share what takes long: the texts and tokens of a row.
"""

from collections.abc import Iterable, Iterator, Sequence
import itertools
from typing import Any

import jax

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
from exprl_jax.runtime import mesh
from exprl_jax.types import InputError, Problem

__all__ = [
    'KINDS', 'Budget', 'Evaluation', 'Finding', 'Report', 'Row', 'check',
    'error_kinds', 'find', 'with_unreadable'
]

_CHUNK = 1024  # rows whose gold answers are graded together
Words = Sequence[list[str]]  # tokens of each question: text.tokens


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

  def of_rows(chunk: Sequence[Row], words: Words) -> Iterator[Finding]:
    for (where, p), own in zip(chunk, words):
      yield from _of_row(where, p, own, needs, budgets, evaluation)

  def together(chunk: Sequence[Row], words: Words) -> Iterator[Finding]:
    for (where, p), own in zip(chunk, words):
      yield from earlier.check(where, p, text.key(own, p.question))
    if grader:  # process 0 grades for all
      yield from golds.check(chunk, grader)

  earlier, stream = rows.Earlier(), iter(data)
  numbered = enumerate(iter(lambda: list(itertools.islice(stream, _CHUNK)), []))
  if jax.process_count() == 1:
    for _, chunk in numbered:
      words = [text.tokens(p.question) for _, p in chunk]
      yield from of_rows(chunk, words)
      yield from together(chunk, words)
    return
  common: list[list[Finding]] = []
  mine: list[tuple[int, list[Finding]]] = []
  error = ''
  for i, chunk in numbered:
    words = [text.tokens(p.question) for _, p in chunk]
    common.append(list(together(chunk, words)))
    if mesh.is_mine(i) and not error:
      mine.append((i, []))
      error = _collect(of_rows(chunk, words), mine[-1][1])
  yield from _merged(mesh.everywhere([error, mine]), common)


def _of_row(where: str, p: Problem, words: list[str], needs: Sequence[str],
            budgets: Sequence[Budget],
            evaluation: Evaluation | None) -> Iterator[Finding]:
  """Checks what does not depend on other rows; `words` are the question's."""
  found = list(rows.texts(where, p, needs))
  yield from found
  # A tokenizer may refuse texts with half a character.
  if all(f.kind != 'control_characters' for f in found):
    yield from rows.lengths(where, p, budgets)
  yield from rows.copied(where, p, words)
  if evaluation:
    yield from evaluation.check(where, words, text.key(words, p.question))


def _collect(findings: Iterator[Finding], out: list[Finding]) -> str:
  """Adds a chunk's findings; returns the error that all processes raise."""
  try:
    out += findings
  except InputError as e:
    return str(e)
  return ''


def _merged(shares: Sequence[Any],
            common: Sequence[Sequence[Finding]]) -> Iterator[Finding]:
  """Yields all findings, as a single process would.

  Args:
    shares: [error, [(chunk, its findings), ...]] of each process.
    common: findings that all processes have made, by chunk.

  Raises:
    InputError: a process had an error.
  """
  if error := next((error for error, _ in shares if error), ''):
    raise InputError(error)
  found = {i: own for _, parts in shares for i, own in parts}
  for i, others in enumerate(common):
    yield from (Finding(*values) for values in found[i])
    yield from others
