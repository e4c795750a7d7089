"""Writes word problems in plain English, worked traces, and labeled traces.

  python benchmarks/word_problems.py FOLDER

A problem starts with a count and changes it step by step; the reference is the
bare chain of results. Files of FOLDER, no problem in two of them:

  warm_up.jsonl      1 and 2 steps, few of 3 and 4, worked: what the base policy
                     is tuned on
  train.jsonl        LENGTHS steps: what RL trains on
  validation.jsonl, test.jsonl   the same, held out
  judge.jsonl        traces with a score for each step: what the judge learns
  judge_test.jsonl   the same, held out, with the first wrong step
"""

from collections.abc import Sequence
import json
import pathlib
import random
import re
import sys
from typing import NamedTuple

LENGTHS = (4,)
# Without the long ones, a policy never writes a third step: there would be
# nothing to reward.
_WARM_UP = (1, 2) * 15 + (3, 4)
_SIZES = {
    'warm_up': 600, 'train': 1000, 'validation': 48, 'test': 160, 'judge': 800,
    'judge_test': 60
}
_NAMES = ('Tom Anna Ben Clara David Emma Felix Grace Henry Ivy Jack Kate Leo '
          'Mia Noah Olga Paul Rosa Sam Tina').split()
_THINGS = ('apples books marbles stickers shells coins cards pencils stamps '
           'cookies').split()
_MORE = ('buys {n} more', 'finds {n} more', 'gets {n} as a gift')
_LESS = ('loses {n} of them', 'gives {n} to a friend', 'sells {n}')
_THEN = ('Then', 'After that', 'Next', 'Later', 'In the end')
_STATED = re.compile(r'(\d+) ([-+*]) (\d+) = (\d+)')
_OPERATE = {'+': int.__add__, '-': int.__sub__, '*': int.__mul__}


class Change(NamedTuple):
  """One step: before, operator, operand, after."""

  before: int
  operator: str
  operand: int
  after: int

  def __str__(self) -> str:
    return f'{self.before} {self.operator} {self.operand} = {self.after}'


class Story(NamedTuple):
  """A problem and its changes."""

  id: str
  question: str
  changes: list[Change]

  @property
  def answer(self) -> int:
    """The last result."""
    return self.changes[-1].after

  def row(self, solution: str) -> dict[str, str]:
    """A row of a file of problems."""
    return {
        'id': self.id, 'question': self.question, 'solution': solution,
        'answer': str(self.answer)
    }

  def reference(self) -> str:
    """The results alone, as a terse expert writes them."""
    results = ', then '.join(str(c.after) for c in self.changes)
    return f'{results}. \\boxed{{{self.answer}}}'


def make_story(rng: random.Random, name: str, steps: int) -> Story:
  """Draws a story whose counts stay within 1 and 99."""
  who, things = rng.choice(_NAMES), rng.choice(_THINGS)
  value, changes = rng.randint(3, 20), []
  text = [f'{who} has {value} {things}.']
  for i in range(steps):
    operator, n = _draw_change(rng, value)
    said = {
        '+': rng.choice(_MORE), '-': rng.choice(_LESS),
        '*': 'doubles what is there' if n == 2 else 'triples what is there'
    }[operator].format(n=n)
    text.append(f'{_THEN[i]} {who} {said}.')
    changes.append(Change(value, operator, n, _OPERATE[operator](value, n)))
    value = changes[-1].after
  text.append(f'How many {things} does {who} have now?')
  return Story(name, ' '.join(text), changes)


def _draw_change(rng: random.Random, value: int) -> tuple[str, int]:
  """An operator and an operand that keep the count within 1 and 99."""
  while True:
    operator = rng.choice('++--*')
    n = rng.choice((2, 3)) if operator == '*' else rng.randint(2, 15)
    if 1 <= _OPERATE[operator](value, n) <= 99:
      return operator, n


def write_trace(changes: Sequence[object], answer: int | None) -> str:
  """Statements in paragraphs, the answer in a box at the end."""
  end = [] if answer is None else [f'\\boxed{{{answer}}}']
  return '\n\n'.join([*map(str, changes), *end])


def flawed(rng: random.Random, story: Story) -> str:
  """A trace of one of the kinds that policies write, right ones included."""
  kind = rng.choice(('right', 'right', 'misread', 'miscounted', 'short',
                     'wrong_box', 'skipped', 'unfinished', 'no_work'))
  if kind == 'right':
    return write_trace(story.changes, story.answer)
  if kind == 'no_work':
    return write_trace([], rng.choice((story.answer, rng.randint(1, 99))))
  at = rng.randrange(len(story.changes))
  if kind in ('short', 'unfinished'):
    kept = story.changes[:max(1, at)]
    return write_trace(kept, kept[-1].after if kind == 'short' else None)
  if kind == 'wrong_box':
    return write_trace(story.changes, _other(rng, story.answer))
  return write_trace(*_derailed(rng, story, at, kind))


def _derailed(rng: random.Random, story: Story, at: int,
              kind: str) -> tuple[list[Change], int]:
  """Goes wrong at a step and calculates on from there."""
  value, out = story.changes[0].before, []
  for i, change in enumerate(story.changes):
    if i == at and kind == 'skipped' and len(story.changes) > 1:
      continue
    operator, n = change.operator, change.operand
    if i == at and kind == 'misread':
      operator = rng.choice([o for o in '+-*' if o != operator])
    after = _OPERATE[operator](value, n)
    if i == at and kind == 'miscounted':
      after = _other(rng, after)
    out.append(Change(value, operator, n, after))
    value = after
  return out, value


def _other(rng: random.Random, value: int) -> int:
  """A near but different number."""
  return value + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))


def score_steps(story: Story, steps: Sequence[str]) -> list[float]:
  """The label of each prefix: (right steps + 2 for the right box) / (n + 2).

  A step is right where it states the story's next change. The box counts where
  it comes last and all changes have been stated.
  """
  reached, out = 0, []
  for i, step in enumerate(steps):
    points = 0
    stated = [
        Change(int(a), o, int(b), int(c))
        for a, o, b, c in _STATED.findall(step)
    ]
    if reached < len(story.changes) and stated == [story.changes[reached]]:
      reached += 1
    elif i == len(steps) - 1 and step.strip() == f'\\boxed{{{story.answer}}}':
      points = 2 * (reached == len(story.changes))
    out.append((reached + points) / (len(story.changes) + 2))
  return out


def first_wrong(story: Story, steps: Sequence[str]) -> int:
  """The first step that is not the story's next one; -1: none."""
  right = [*map(str, story.changes), f'\\boxed{{{story.answer}}}']
  return next((i for i, step in enumerate(steps)
               if i >= len(right) or step.strip() != right[i]), -1)


def labeled(story: Story, trace: str, held_out: bool) -> dict[str, object]:
  """A row of judge_training.traces, or of judge.traces."""
  steps = trace.split('\n\n')
  row: dict[str, object] = dict(story.row(story.reference()), steps=steps)
  if held_out:
    scores = score_steps(story, steps)
    return row | {
        'correct': scores[-1] == 1.0, 'label': first_wrong(story, steps)
    }
  return row | {'scores': score_steps(story, steps)}


def main(folder: pathlib.Path) -> None:
  """Writes all files."""
  folder.mkdir(parents=True, exist_ok=True)
  rng, seen = random.Random(17), set[str]()
  for name, size in _SIZES.items():
    rows: list[dict[str, object]] = []
    while len(rows) < size:
      lengths = {'warm_up': _WARM_UP,
                 'judge': (2, 3, *LENGTHS)}.get(name, LENGTHS)
      story = make_story(rng, f'{name}-{len(rows)}', rng.choice(lengths))
      if story.question in seen:
        continue
      seen.add(story.question)
      if name.startswith('judge'):
        rows.append(labeled(story, flawed(rng, story), name == 'judge_test'))
      elif name == 'warm_up':
        rows.append(story.row(write_trace(story.changes, story.answer)))
      else:
        rows.append(story.row(story.reference()))
    lines = (json.dumps(row) + '\n' for row in rows)
    (folder / f'{name}.jsonl').write_text(''.join(lines))


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
