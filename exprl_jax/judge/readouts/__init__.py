"""From what a judge says to a score in [0, 1]."""

import re
from typing import NamedTuple

import numpy as np

# What became of a question to the judge. Only OK and EMPTY have a score.
OUTCOMES = ('ok', 'empty', 'unreadable', 'overlong', 'dropped')
OK, EMPTY, UNREADABLE, OVERLONG, DROPPED = range(5)

REMEDY = {
    'unreadable': 'is {judge.init} a judge for judge.template='
    '{judge.template!r}? The scores 1..5 have less probability '
    'than judge.min_mass={judge.min_mass}, or no line says '
    '`Score: N`', 'overlong': 'their prompts without the trace have more than '
    'judge.max_prompt_tokens={judge.max_prompt_tokens} tokens',
    'dropped': 'judge.scale={judge.scale!r} has no place for their scores'
}

# Likert 1..5 to [0, 1]; nan: such verdicts are dropped.
_NAN = float('nan')
SCALES = {
    'smooth': (0.0, 0.25, 0.5, 0.75, 1.0),
    'semi_smooth': (0.0, _NAN, _NAN, 0.8, 1.0),
    'extreme': (0.0, _NAN, _NAN, _NAN, 1.0)
}


class Reading(NamedTuple):
  """One verdict."""

  score: float  # in [0, 1]; 0 where the outcome has none
  mass: float  # probability of all legal scores; nan where none was read
  outcome: int  # index into OUTCOMES
  text: str = ''  # what the judge wrote


def expectation(logprobs: np.ndarray, scale: str, min_mass: float,
                text: str = '') -> Reading:
  """The mean of the scale over the judge's distribution of the next token.

  Renormalised over the scores that the scale keeps. A verdict is unreadable
  where all five have less than `min_mass`, and dropped where the scale drops
  the larger part of them.

  Args:
    logprobs: f32[5] of the score tokens.
    scale: a key of SCALES.
    min_mass: see above.
    text: the rationale.
  """
  p = np.exp(logprobs.astype(np.float64))
  values = np.array(SCALES[scale])
  kept = np.isfinite(values)
  mass = float(p.sum())
  if not mass >= min_mass or mass == 0:
    return Reading(0.0, mass, UNREADABLE, text)
  if p[kept].sum() < 0.5 * mass:
    return Reading(0.0, mass, DROPPED, text)
  return Reading(float(p[kept] @ values[kept] / p[kept].sum()), mass, OK, text)


def written(text: str, scale: str) -> Reading:
  """The score that the judge wrote down: see `last_score`."""
  level = last_score(text)
  if level is None:
    return Reading(0.0, _NAN, UNREADABLE, text)
  value = SCALES[scale][level - 1]
  if value != value:
    return Reading(0.0, _NAN, DROPPED, text)
  return Reading(value, _NAN, OK, text)


# A line that says nothing but the score, with the ornaments that models add:
# '**Score:** 4', '### Score' and the number in the next line, '[4]', '4/5'.
_SCORE_LINE = re.compile(
    r'^[\s#>*_-]*(?:final\s+)?score[*_]*[ \t]*(?::|=|[ \t]is\b|(?=\n)|[ \t])'
    r'[\s*_\[("]*([-+]?\d[\d.,]*)[*_\])"]*(?:[ \t]*/[ \t]*5)?[*_\])". \t]*$',
    re.IGNORECASE | re.MULTILINE)


def last_score(text: str) -> int | None:
  """The number of the last line that is a score and nothing else.

  None if there is no such line, or if the last one is not 1, 2, 3, 4 or 5:
  earlier ones are thoughts or quotations.
  """
  found = _SCORE_LINE.findall(text)
  last = found[-1].rstrip('.') if found else ''
  return int(last) if last in ('1', '2', '3', '4', '5') else None


def weighted(readings: list[Reading], weights: list[float]) -> Reading:
  """The verdicts on the checkpoints of a rubric as one, by their points."""
  failed = [r for r in readings if r.outcome != OK]
  text = '\n'.join(r.text for r in readings if r.text)
  mass = min(r.mass for r in readings)
  if failed:
    return Reading(0.0, mass, failed[0].outcome, text)
  score = np.average([r.score for r in readings], weights=weights)
  return Reading(float(score), mass, OK, text)
