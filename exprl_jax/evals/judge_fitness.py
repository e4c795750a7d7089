"""What a judge is fit for, by its report card (evals/judge_calibration.py).

The limits are ours. A judge that guesses has .5 in both; the paper's, Qwen3-4B
with the reference on mathematics, misplaces 18 % of the traces (Table 5).
"""

from collections.abc import Mapping
from typing import Any

READABLE = 0.9  # share of judgments
RIGHT_ABOVE_WRONG = 0.7  # AUROC, or comparisons of made traces that are won
FALLS_AT_WRONG_STEP = 0.65  # AUROC of a step's change of the score
_CHANCE = 0.5  # that the lower end of an interval has to be above
_FEWEST = 10  # traces of each kind, or comparisons

_NAMES = {
    '': 'not fit', 'outcome': 'fit for outcome rewards, not for process '
    'rewards', 'process': 'fit for outcome and for process rewards'
}


def fitness(report: Mapping[str, Any]) -> dict[str, str]:
  """Reads a report card.

  Returns:
    `for`: 'process' (and outcome rewards), 'outcome' or '' (neither); `why`: a
    sentence to be read by a person.
  """
  whole, whole_why = _whole_traces(report)
  steps, steps_why = _steps(report)
  readable = report['readable'] >= READABLE
  fit = '' if not (readable and whole) else 'process' if steps else 'outcome'
  why = [
      f'{report["readable"]:.0%} of its judgments are readable' +
      ('' if readable else f' (want {READABLE:.0%})'), whole_why, steps_why
  ]
  return {'for': fit, 'why': f'{_NAMES[fit]}: {"; ".join(filter(None, why))}'}


def _whole_traces(report: Mapping[str, Any]) -> tuple[bool, str]:
  """Whether complete traces are told apart, and what was seen."""
  own = report.get('conditions', {}).get('own')
  if own and min(own['n_correct'], own['n'] - own['n_correct']) >= _FEWEST:
    text = 'it ranks a right trace above a wrong one in {} of cases'
    return _judged(own['auroc'], RIGHT_ABOVE_WRONG, text)
  pairs = report.get('pairs')
  if pairs and pairs['problems'] >= _FEWEST:
    text = ('it ranks a reference above a flawed trace in {} of cases (there '
            'are too few labeled traces)')
    return _judged(pairs['won'], RIGHT_ABOVE_WRONG, text)
  return False, 'there are too few traces to tell right from wrong'


def _steps(report: Mapping[str, Any]) -> tuple[bool, str]:
  """Whether the first wrong step is seen, and how well."""
  for name, more in (('first_wrong_step', ''), ('made_first_wrong_step',
                                                ' of traces that were made')):
    found = report.get(name)
    if found and found['n_wrong'] >= _FEWEST and (found['change_auroc']['value']
                                                  is not None):
      text = (f'at the first wrong step{more} its score changes for the worse, '
              'compared with a right step, in {} of cases')
      return _judged(found['change_auroc'], FALLS_AT_WRONG_STEP, text)
  return False, 'no traces show whether it sees the first wrong step'


def _judged(estimate: Mapping[str, float | None], limit: float,
            text: str) -> tuple[bool, str]:
  value, low, high = (estimate[k] for k in ('value', 'low', 'high'))
  if value is None or low is None or high is None:
    return False, text.format('an unknown share')
  good = value >= limit and low > _CHANCE
  shown = f'{value:.2f} [{low:.2f}, {high:.2f}]'
  wanted = '' if good else f' (want {limit:.2f}, and more than chance)'
  return good, text.format(shown) + wanted
