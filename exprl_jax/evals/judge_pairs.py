r"""Traces made out of problems and their solutions, good ones and flawed ones.

Where nobody has labeled traces, these show whether a judge reads what it should
read: the reference as a trace has to be scored above

  wrong_box        itself with another final answer
  wrong_step       itself with a wrong number in one of its steps
  two_boxes        itself with another box behind its own
  truncated        its first half
  answer_only      its box alone
  other            the solution of another problem
  wrong_reference  itself, judged with another problem's reference

Not every kind can be made of every problem.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import random
import re
from typing import Any, NamedTuple

import numpy as np

from exprl_jax.data.steps import Segmenter
from exprl_jax.evals import judge_traces
from exprl_jax.grading.answers import boxes_of, final_answer
from exprl_jax.judge import calibration
from exprl_jax.judge.probes import wrong_answer
from exprl_jax.judge.step_calibration import Marked
from exprl_jax.judge.tree import Item, Judgments
from exprl_jax.types import Problem

REFERENCE = 'reference'
# Kinds that no sound judge confuses with the reference, whatever its template
# asks for: a run may be refused for them.
CLEAR = ('wrong_box', 'other', 'wrong_reference')
_NUMBER = re.compile(r'(?<![\d.])\d{1,4}(?![\d.]*\d)')


class Made(NamedTuple):
  """A trace that was made."""

  kind: str
  problem: Problem  # as the judge is shown it
  steps: list[str]
  first_wrong: int | None = None  # step, from 0; -1: none; None: hard to say

  @property
  def item(self) -> Item:
    """As a judge takes it."""
    return self.problem, self.steps


def make(problem: Problem, other: Problem, segment: Segmenter) -> list[Made]:
  """Makes the traces of a problem, the reference first.

  Args:
    problem: has a solution.
    other: another one, with a solution that differs.
    segment: cuts traces into steps, as the run does.

  Returns:
    [] where the solution is blank.
  """
  if not problem.solution.strip():
    return []
  right = _boxed(problem)
  steps = segment.split(right)
  out = [Made(REFERENCE, problem, steps, -1)]
  for kind, text, at in _flawed(problem, other, right):
    if text.strip() and text != right:
      cut = segment.split(text)
      out.append(
          Made(kind, problem, cut,
               None if at is None else judge_traces.step_at(cut, text, at)))
  if len(steps) > 1:
    out.append(Made('truncated', problem, steps[:len(steps) // 2]))
  if other.solution.strip() != problem.solution.strip():
    changed = dataclasses.replace(problem, solution=other.solution,
                                  rubric=other.rubric,
                                  rubric_items=other.rubric_items)
    out.append(Made('wrong_reference', changed, steps))
  return out


def _flawed(problem: Problem, other: Problem,
            right: str) -> Iterator[tuple[str, str, int | None]]:
  """Yields kind, text, and the first wrong character; None: hard to say."""
  end = None
  if boxes := boxes_of(right):
    box, end = boxes[-1], boxes[-1].start
    yield 'answer_only', right[box.start:box.end], None
    if answer := box.content.strip():
      at = right.rindex(answer, box.start, box.end)
      wrong = wrong_answer(answer, other.answer.strip())
      text = right[:at] + wrong + right[at + len(answer):]
      second = text[box.start:box.end + len(wrong) - len(answer)]
      yield 'wrong_box', text, box.start
      yield 'two_boxes', f'{right.rstrip()} {second}', None
  if changed := _wrong_step(problem, right, end):
    yield 'wrong_step', *changed
  yield 'other', _boxed(other), 0


def _boxed(problem: Problem) -> str:
  """The solution, with the answer in a box behind it if it has none."""
  solution, answer = problem.solution.strip(), problem.answer.strip()
  if not answer or final_answer(solution) is not None:
    return solution
  return f'{solution}\n\n\\boxed{{{answer}}}'


def _wrong_step(problem: Problem, right: str,
                end: int | None) -> tuple[str, int] | None:
  """Changes a number before the answer: (text, where); None without any."""
  numbers = list(_NUMBER.finditer(right[:end]))
  if end is None:  # the answer may be among the last ones
    numbers = numbers[:-1]
  if not numbers:
    return None
  rng = random.Random(problem.question)
  chosen = rng.choice(numbers)
  value = int(chosen[0])
  new = str(value + rng.choice([k for k in (-3, -2, -1, 1, 2, 3)
                                if value + k >= 0]))  # yapf: disable
  return right[:chosen.start()] + new + right[chosen.end():], chosen.start()


def others(problems: Sequence[Problem]) -> list[Problem]:
  """For each problem the next one with another solution; itself if all agree.
  """
  out = []
  for i, problem in enumerate(problems):
    rest = [*problems[i + 1:], *problems[:i]]
    out.append(
        next((p for p in rest
              if p.solution.strip() not in ('', problem.solution.strip())),
             problem))
  return out


def report(made: Sequence[Made], judgments: Judgments,
           seed: int = 0) -> dict[str, Any]:
  """Compares the reference's score with those of the flawed traces.

  Returns:
    Counts `problems` and `n`; `score`, the mean score of the reference;
    Estimate `won`, the share of comparisons with the kinds of CLEAR that the
    reference wins, a tie counting half; `kinds`, {kind: {n, score, won}}.
    Estimates are bootstrapped over problems. Unreadable traces are left out.
  """
  last = [len(m.steps) - 1 for m in made]
  rows = np.arange(len(made))
  score = judgments.score[rows, last].astype(float)
  readable = judgments.readable[rows, last]
  best = {
      m.problem.question: s
      for m, s, ok in zip(made, score, readable)
      if ok and m.kind == REFERENCE
  }
  rows_of: dict[str, list[tuple[str, float, float]]] = {}
  for m, s, ok in zip(made, score, readable):
    if ok and m.kind != REFERENCE and m.problem.question in best:
      reference = best[m.problem.question]
      won = float(reference > s) + (reference == s) / 2
      rows_of.setdefault(m.kind, []).append((m.problem.question, s, won))
  clear = [row for kind in CLEAR for row in rows_of.get(kind, ())]
  return {
      'problems': len(best), 'n': sum(map(len, rows_of.values())),
      'score': float(np.mean(list(best.values()))) if best else None,
      'won': _won(clear, seed), 'kinds': {
          kind: {
              'n': len(rows), 'score': float(np.mean([r[1] for r in rows])),
              'won': _won(rows, seed)
          } for kind, rows in rows_of.items()
      }
  }


def _won(rows: Sequence[tuple[str, float, float]],
         seed: int) -> calibration.Estimate:
  values = np.array([[won] for *_, won in rows]).reshape(-1, 1)
  (share,) = calibration.estimates(
      lambda weights: calibration.means(weights, values, np.ones_like(values)),
      [row[0] for row in rows], seed)
  return share


def marked(made: Sequence[Made], judgments: Judgments) -> list[Marked]:
  """The traces of which the first wrong step is known, with their scores."""
  out = []
  for i, m in enumerate(made):
    n = len(m.steps)
    if n > 1 and m.first_wrong is not None and judgments.readable[i, :n].all():
      out.append(
          Marked(m.problem.question, judgments.score[i, :n].astype(float),
                 m.first_wrong))
  return out
