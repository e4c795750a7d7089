"""Behaviors in traces: counts by word patterns, and their comparison.

BEHAVIORS and ARCHETYPES are those of the paper's appendix A.3 (arXiv
2606.17024). Words are counted for the former; a judge annotates both.

Word counts are crude: they see what a trace says, not what it does ('let me
check' and no check follows), and English only. behavior_judge.py has the judge
count instead.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from jaxtyping import Float
import numpy as np

BEHAVIORS = (
    'verification',  # checks earlier work
    'backtracking',  # drops a line of attack for another
    'self_correction',  # revises something already written
    'restart',  # starts the whole solution again
    'self_interruption',  # breaks off a thought
    'error_acknowledgment',  # says that something is wrong
    'exploration',  # tries things out before it commits to one
    'hedging',  # says that it is not sure
    'structured_steps'  # headings or numbered steps
)
# How a problem is attacked.
ARCHETYPES = ('coordinates', 'algebraic_system', 'symmetric_functions',
              'casework', 'witness_and_bound', 'inclusion_exclusion',
              'expectation_decomposition', 'recursion', 'number_theory',
              'digit_columns', 'geometric_transformation', 'parity_invariant')
KINDS = (*BEHAVIORS, *ARCHETYPES)
# A judge counts these; of the others it says 1 or 0.
COUNTED = ('self_correction', 'self_interruption')

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
    'self_interruption': ('wait', 'hold on', 'hmm+', 'hang on', 'oh,? no',
                          'actually,? (?:no|wait|let)'),
    'error_acknowledgment': (
        'i was wrong', '(?:my|a|an) (?:\\w+ )?(?:mistake|error|slip)',
        'that(?:\'s| is| was) (?:wrong|incorrect|not right)', 'incorrectly',
        '(?:this|which) contradicts'),
    'exploration': ('let(?:\'s| us| me) (?:try|explore|experiment|test)',
                    'what if', 'suppose (?:we|i) try',
                    '(?:we|i) (?:can|could) try', 'small cases?',
                    'one (?:idea|approach|option)'),
    'hedging': ('maybe', 'perhaps', 'possibly', 'i think', 'i guess',
                'not (?:entirely )?sure', 'it seems', 'presumably', 'might be',
                'probably'),
    'structured_steps': ('step \\d+', 'case \\d+', 'first(?:ly)?(?=,)',
                         'second(?:ly)?(?=,)', 'finally(?=,)'),
}
_PATTERNS = {
    kind: re.compile(r'\b(?:' + '|'.join(phrases).replace(' ', r'\s+') + r')\b',
                     re.IGNORECASE) for kind, phrases in WORDS.items()
}


def count_words(text: str) -> dict[str, int]:
  """Counts the phrases of each kind, by BEHAVIORS."""
  text = text.replace('\u2019', "'")
  return {
      kind: len(pattern.findall(text)) for kind, pattern in _PATTERNS.items()
  }


def kinds(rows: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
  """Returns what was counted in samples: BEHAVIORS, or KINDS."""
  names = {name for samples in rows for row in samples for name in row}
  return [kind for kind in KINDS if kind in names] or list(KINDS)


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
      for kind in kinds(rows)
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
  for kind in kinds([*rows, *first]):
    counts = [row[kind] for samples in rows for row in samples if kind in row]
    gain = int((mine[kind] > theirs[kind]).sum())
    loss = int((mine[kind] < theirs[kind]).sum())
    out[kind] = {
        'mean': float(np.mean(counts)) if counts else float('nan'),
        'gain': gain, 'loss': loss, 'net': gain - loss
    }
  return out
