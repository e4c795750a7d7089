"""Behaviors in traces: counts by word patterns, and their comparison.

  verification     checks earlier work
  backtracking     drops a line of attack for another
  self_correction  revises something already written
  restart          starts the whole solution again

Word counts are crude: they see what a trace says, not what it does ('let me
check' and no check follows), and English only. behavior_judge.py has the judge
count instead.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from jaxtyping import Float
import numpy as np

KINDS = ('verification', 'backtracking', 'self_correction', 'restart')

# Phrases that start such a passage. Each belongs to one kind; a space matches
# any white space.
WORDS = {
    'verification': ('(?:double|cross)(?:-| )check', 'sanity check',
                     'check (?:that|'
                     'this|it|my|our|the|whether|if)', 'to check',
                     'verify(?:ing)?', 'let me confirm', 'to confirm',
                     'plug(?:ging)? (?:it |this |these |'
                     'them )?back',
                     'substitut(?:e|ing) (?:it |this |these |them )?back'),
    'backtracking': (
        'backtrack(?:ing)?', 'go(?:ing)? back to', 'dead end', 'alternatively',
        '(?:another|a different|an alternative) (?:approach|way|method|idea)',
        '(?:doesn\'t|does not|didn\'t|did not|won\'t|will not) work',
        'instead,? (?:let|i|we) (?:me|us|will|can|could|try)',
        'instead,? (?:let\'s|try)'),
    'self_correction': (
        'wait', 'oops', 'scratch that', 'correction', 'i was wrong',
        '(?:made|make) (?:a|an) (?:\\w+ )?(?:mistake|error)', 'my mistake',
        'that(?:\'s| is| was) (?:wrong|incorrect|not right|a mistake)',
        'no, (?:that|it|this)'),
    'restart': ('start(?:ing)? (?:over|again|afresh)', 'restart(?:ing)?',
                'from scratch', 'begin(?:ning)? again',
                'from the (?:very )?beginning',
                'let me redo (?:this|it|everything|the whole)'),
}
_PATTERNS = {
    kind: re.compile(r'\b(?:' + '|'.join(phrases).replace(' ', r'\s+') + r')\b',
                     re.IGNORECASE) for kind, phrases in WORDS.items()
}


def count_words(text: str) -> dict[str, int]:
  """Counts the phrases of each kind, by KINDS."""
  text = text.replace('\u2019', "'")
  return {
      kind: len(pattern.findall(text)) for kind, pattern in _PATTERNS.items()
  }


def means(
    rows: Sequence[Sequence[Mapping[str, Any]]]
) -> dict[str, Float[np.ndarray, ' P']]:
  """Returns the mean counts per sample of each problem, by kind.

  Leaves out samples that the judge failed on; nan if that is all of them.
  """
  read = [[row for row in samples if 'failed' not in row] for samples in rows]
  return {
      kind: np.array([
          np.mean([row[kind]
                   for row in samples]) if samples else np.nan
          for samples in read
      ])
      for kind in KINDS
  }


def compare(
    rows: Sequence[Sequence[Mapping[str, Any]]],
    first: Sequence[Sequence[Mapping[str,
                                     Any]]]) -> dict[str, dict[str, float]]:
  """Compares the counts with the first model's, by kind.

  Returns:
    `mean` per trace; `gain` and `loss`, the number of problems whose mean is
    above or below the first model's; `net` = gain - loss.
  """
  mine, theirs, out = means(rows), means(first), {}
  for kind in KINDS:
    counts = [
        row[kind] for samples in rows for row in samples if 'failed' not in row
    ]
    gain = int((mine[kind] > theirs[kind]).sum())
    loss = int((mine[kind] < theirs[kind]).sum())
    out[kind] = {
        'mean': float(np.mean(counts)) if counts else float('nan'),
        'gain': gain, 'loss': loss, 'net': gain - loss
    }
  return out
