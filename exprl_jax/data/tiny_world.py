r"""The tiny world: running-total word problems, small enough for a laptop.

    question   max has 12 pens . dec loses 8 . jan doubles . how many ?
    trace      dec 12 - 8 = 4 ### jan 4 * 2 = 8 ### \boxed{ 8 }
    reference  by dec 4 by jan 8 \boxed{ 8 }

The policy is taught to write traces like this one: one step per `###`. The
reference is written as a human expert would: right, terse, without working.

Four verbs are easy: the policy's pre-training text nearly always reads them
right. Seven are hard: most of that text misreads them, each in one
characteristic way. So the policy has the skill (arithmetic) but little coverage
of right solutions, which is the setting of ExpRL on a small scale.

Everything is a deterministic function of a seed.
`python -m exprl_jax.tiny.assets` rewrites the shipped problem sets.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import random
import re

from exprl_jax.types import InputError, Problem

NAMES = ('max', 'ann', 'tom', 'eve', 'sam', 'kim', 'leo', 'mia', 'ben', 'zoe',
         'ian', 'amy', 'joe', 'liz', 'ray', 'sue')
OBJECTS = ('pens', 'cups', 'hats', 'keys', 'nuts', 'figs', 'toys', 'maps',
           'eggs', 'caps', 'pins', 'bags', 'jars', 'rugs', 'lamps', 'coins')
MONTHS = ('jan', 'feb', 'mar', 'apr', 'may', 'jun', 'jul', 'aug', 'sep', 'oct',
          'nov', 'dec')
# verb -> (operator, the one that pre-training text usually misreads it as)
EASY = {
    'buys': ('+', '-'), 'finds': ('+', '-'), 'loses': ('-', '+'),
    'gives': ('-', '+')
}
HARD = {
    'doubles': ('*', '+'), 'halves': ('/', '-'), 'triples': ('*', '+'),
    'lends': ('-', '+'), 'borrows': ('+', '-'), 'repays': ('-', '+'),
    'regains': ('+', '-')
}
VERBS = EASY | HARD
FIXED_OPERAND = {'doubles': 2, 'halves': 2, 'triples': 3}
READ_RIGHT = {verb: 0.97 for verb in EASY} | {verb: 0.30 for verb in HARD}
LARGEST = 99
# The largest trace: six steps of seven tokens, the box, EOS.
MAX_STEPS = 6

WORDS = (*NAMES, *OBJECTS, *MONTHS, *VERBS, 'has', 'how', 'many', 'by', '.',
         '?', '+', '-', '*', '/', '=', '###', '\\boxed{', '}',
         *map(str, range(LARGEST + 1)))


@dataclasses.dataclass(frozen=True)
class Story:
  """The hidden structure of a problem: start value and (month, verb, n)."""

  name: str
  objects: str
  start: int
  steps: tuple[tuple[str, str, int], ...]

  def question(self) -> str:
    """Writes the question, which is all that the policy is given."""
    events = ' . '.join(
        f'{month} {verb}' if verb in FIXED_OPERAND else f'{month} {verb} {n}'
        for month, verb, n in self.steps)
    return (f'{self.name} has {self.start} {self.objects} . {events} . '
            'how many ?')

  def values(self) -> list[int]:
    """Computes the right running total after each step."""
    total, out = self.start, []
    for _, verb, n in self.steps:
      total = apply(VERBS[verb][0], total, n)
      out.append(total)
    return out

  def reference(self) -> str:
    """Writes the reference, which only the judge is given."""
    totals = ' '.join(f'by {step[0]} {value}'
                      for step, value in zip(self.steps, self.values()))
    return f'{totals} \\boxed{{ {self.values()[-1]} }}'

  def worked(self, rng: random.Random | None = None, slip: float = 0.0) -> str:
    """Writes a worked trace.

    Args:
      rng: misreads verbs as pre-training text does; None: reads all right.
      slip: probability that a step's arithmetic is wrong.
    """
    total, out = self.start, []
    for month, verb, n in self.steps:
      misread = rng is not None and rng.random() > READ_RIGHT[verb]
      operator = VERBS[verb][misread]
      value = apply(operator, total, n)
      if rng is not None and rng.random() < slip:
        value = (value + rng.choice((-10, -2, -1, 1, 2, 10))) % (LARGEST + 1)
      out.append(statement(month, total, operator, n, value))
      total = value
    return ' ### '.join([*out, box(total)])

  def problem(self, problem_id: str) -> Problem:
    """Makes the row of a problem file."""
    return Problem(id=problem_id, question=self.question(),
                   solution=self.reference(), answer=str(self.values()[-1]))


def apply(operator: str, a: int, b: int) -> int:
  """Computes on 0..99: results are clamped, division rounds down."""
  result = {'+': a + b, '-': a - b, '*': a * b, '/': a // b}[operator]
  return min(max(result, 0), LARGEST)


def statement(month: str, a: int, operator: str, b: int, result: int) -> str:
  """Writes one step of a trace."""
  return f'{month} {a} {operator} {b} = {result}'


def box(value: int) -> str:
  """Writes the end of a trace."""
  return f'\\boxed{{ {value} }}'


def story(rng: random.Random, num_steps: int, hard_share: float) -> Story:
  """Draws a story whose results are never clamped, rounded or zero."""
  while True:
    first = rng.randrange(12)
    start, steps = rng.randint(2, 20), []
    total = start
    for i in range(num_steps):
      verb = rng.choice(tuple(HARD if rng.random() < hard_share else EASY))
      n = FIXED_OPERAND.get(verb) or rng.randint(1, 9)
      operator = VERBS[verb][0]
      exact = {'+': total + n, '-': total - n, '*': total * n,
               '/': total / n}[operator]
      if exact != int(exact) or not 0 < exact <= LARGEST:
        break
      total = int(exact)
      steps.append((MONTHS[(first + i) % 12], verb, n))
    if len(steps) == num_steps:
      return Story(rng.choice(NAMES), rng.choice(OBJECTS), start, tuple(steps))


_STATEMENT = re.compile(r'([a-z]{3}) (\d+) ([-+*/]) (\d+) = (\d+)')
_REFERENCE_STEP = re.compile(r'by ([a-z]{3}) (\d+)')
_BOX = re.compile(r'\\boxed\{ (\d+) \}')


def reference_steps(solution: str) -> list[tuple[str, str]]:
  """Finds (month, value) of each step of a reference."""
  return _REFERENCE_STEP.findall(solution)


def progress(solution: str, segments: list[str]) -> list[float]:
  """Scores every prefix of a trace by program.

  Judges are trained on these labels and measured against them; they never
  enter a dense reward. A month counts 1 if the first well-formed statement
  about it has the result that the reference gives. The right box counts 2, as
  the last segment and the only box. The score is the sum over (steps + 2).

  Args:
    solution: a reference of this world.
    segments: a trace split at its `###`.

  Returns:
    One score in [0, 1] for each prefix of `segments`.
  """
  wanted = dict(reference_steps(solution))
  answer = answer_of(solution)
  seen: set[str] = set()
  right, boxes, out = 0, 0, []
  for segment in segments:
    boxed, boxes = 0, boxes + segment.count('\\boxed')
    if match := _STATEMENT.fullmatch(segment):
      month, result = match.group(1, 5)
      right += month not in seen and wanted.get(month) == result
      seen.add(month)
    elif match := _BOX.fullmatch(segment):
      boxed = 2 * (boxes == 1 and match.group(1) == answer)
    out.append((right + boxed) / (len(wanted) + 2))
  return out


def answer_of(solution: str) -> str:
  """Returns what is in the box of a reference."""
  return _BOX.findall(solution)[0]


def segments_of(trace: str) -> list[str]:
  """Splits a trace at its `###`; empty segments are dropped."""
  pieces = [piece.strip() for piece in trace.split('###')]
  return [piece for piece in pieces if piece]


# ---------------------------------------------------------------------------
# Problem sets. Each has its own seed and leaves out all questions of the sets
# before it, so no two of them overlap.

# split -> (seed, size, share of hard verbs). With hard verbs alone, right
# samples are so rare that a sparse reward finds next to nothing.
SPLITS = {
    'train': (1, 512, 1.0),
    'validation': (2, 128, 1.0),
    'test': (3, 128, 1.0),
    'judge_train': (4, 4096, 0.85),
    'judge_accept': (5, 256, 0.85),
    # No choice was ever made on it (configs/paper_tiny.py).
    'paper_test': (6, 256, 1.0)
}
_WRONG = '_wrong_references'


def stories(split: str) -> list[Story]:
  """Draws the stories of a split; six steps each."""
  taken: set[str] = set()
  for name, (seed, size, hard_share) in SPLITS.items():
    rng = random.Random(f'{name}-{seed}')
    out: list[Story] = []
    while len(out) < size:
      candidate = story(rng, MAX_STEPS, hard_share)
      if candidate.question() not in taken:
        taken.add(candidate.question())
        out.append(candidate)
    if name == split:
      return out
  raise KeyError(split)


def problems(split: str) -> list[Problem]:
  """Makes the problems of a split, in the order of their ids."""
  return [s.problem(f'{split}-{i:04d}') for i, s in enumerate(stories(split))]


class PretrainingText:
  """The tiny policy's pre-training text: worked traces, hard verbs misread.

  A random-access sequence: row i is a function of (seed, i) alone. Six of ten
  problems have one to three steps. The questions of SPLITS never occur.
  """

  def __init__(self, size: int, seed: int = 0) -> None:
    self._size, self._seed = size, seed
    self._held_out = {s.question() for split in SPLITS for s in stories(split)}

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Problem:
    if not 0 <= index < self._size:
      raise IndexError(index)
    rng = random.Random(f'pretraining-{self._seed}-{index}')
    while True:
      short = rng.random() < 0.6
      s = story(rng, rng.randint(1, 3) if short else rng.randint(4, 6), 0.6)
      if s.question() not in self._held_out:
        break
    return Problem(id=f'pretraining-{index}', question=s.question(),
                   solution=s.worked(rng), answer=str(s.values()[-1]))


def named(name: str, limit: int = 0) -> Sequence[Problem] | PretrainingText:
  """Makes the problems of a split, or of 'pretraining'.

  Args:
    name: of the split; behind it, `_wrong_references` gives each problem the
      reference of the next.
    limit: rows, if positive.

  Raises:
    InputError: there is no such split.
  """
  if name == 'pretraining':
    return PretrainingText(limit or 2**20)
  split = name.removesuffix(_WRONG)
  if split not in SPLITS:
    raise InputError(f'tiny:{name}: one of pretraining, {", ".join(SPLITS)}, '
                     f'or one of these with {_WRONG}')
  found = problems(split)[:limit or None]
  if split != name:
    found = [
        dataclasses.replace(p, solution=other.solution)
        for p, other in zip(found, [*found[1:], found[0]])
    ]
  return found


def write_problems(folder: pathlib.Path) -> None:
  """Writes train, validation and test as JSONL, the shipped format."""
  folder.mkdir(parents=True, exist_ok=True)
  for split in ('train', 'validation', 'test'):
    rows = [{k: v
             for k, v in dataclasses.asdict(p).items()
             if v}
            for p in problems(split)]
    _write_jsonl(folder / f'{split}.jsonl', rows)
  _write_jsonl(
      folder / 'prompts.jsonl',
      [{'id': p.id, 'messages': [{'role': 'user', 'content': p.question}]}
       for p in problems('test')[:3]])


def _write_jsonl(path: pathlib.Path, rows: list[dict]) -> None:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
