"""Training sets of the ExpRL paper.

Shapes of rows:

    int   d1shs0ap/unified-hard-set-with-student-solutions-guided-rl: problem,
          answer, solution; CMU-AIRe/InT-RL and InT-hard-set (dataset cards):
          problem, answer, source, reference_solution,
          reference_solution_source
    pope  CohenQu/POPE-hard-dataset-...-gemini-success: problem, answer,
          gemini_solution; CohenQu/POPE-source-dataset (card): problem, answer
    verl  what the paper's code makes of all its sets, and the sets with
          solutions by Gemini (violetxi/..._gemini-3-pro): data_source, prompt,
          ability, reward_model.ground_truth, extra_info (question, solution,
          answer and more)
"""

import json
from typing import Any

from exprl_jax.data.converters import base
from exprl_jax.data.converters.base import Row


def int_(row: Row) -> dict[str, str] | None:
  """Reads InT. Drops rows without an answer."""
  return _problem('int', row, 'reference_solution', 'solution')


def pope(row: Row) -> dict[str, str] | None:
  """Reads POPE; the source set has no solutions. Drops rows without answer."""
  return _problem('pope', row, 'gemini_solution', 'solution')


def _problem(name: str, row: Row, *solution: str) -> dict[str, str] | None:
  question, answer = base.text(row, 'problem'), base.text(row, 'answer')
  if not question or not answer:
    return None
  reference = base.optional(row, *solution)
  return {
      'id': base.digest_id(name, question, answer, reference),
      'question': question, 'solution': reference, 'answer': answer
  }


def verl(row: Row) -> dict[str, str] | None:
  """Reads a record of verl, of any domain.

  `extra_info` has the question; else it is the last message of the prompt. The
  answers of code are its tests: '' if they call a function, which the example
  grader cannot.
  """
  extra = base.field(row, 'extra_info') or {}
  gold = base.field(row, 'reward_model') or {}
  prompt = base.field(row, 'prompt')
  question = (base.optional(extra, 'question')
              or base.text(prompt[-1], 'content'))
  if not question:
    return None
  solution = base.optional(extra, 'solution')
  domain = _domain(
      base.optional(row, 'ability').lower(), base.optional(extra, 'type'))
  truth = (base.optional(gold, 'ground_truth')
           or base.optional(extra, 'answer', 'answerKey'))
  return {
      'id': base.digest_id(base.text(row, 'data_source'), question, solution),
      'question': question, 'solution': solution,
      'answer': _tests(truth) if domain == base.CODE else truth,
      'domain': domain
  }


def _domain(ability: str, kind: str) -> str:
  if kind.startswith('mcq'):
    return base.CHOICE
  return base.SCIENCE if ability == 'physics' else ability or base.MATH


def _tests(truth: str) -> str:
  """Turns {inputs, outputs} into pairs; '' if a function is to be called."""
  try:
    tests: Any = json.loads(truth)
  except json.JSONDecodeError:
    return ''
  if not isinstance(tests, dict) or tests.get('fn_name'):
    return ''
  pairs = list(zip(tests.get('inputs', ()), tests.get('outputs', ())))
  return json.dumps(pairs) if pairs else ''


CONVERTERS = {'int': int_, 'pope': pope, 'verl': verl}
