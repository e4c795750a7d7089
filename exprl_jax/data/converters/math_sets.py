r"""Large sets of mathematics with solutions.

Shapes of rows, by their dataset cards on the Hugging Face Hub:

    gsm8k        openai/gsm8k: question, answer (a solution with calculator
                 annotations, <<48/2=24>>, and `#### 24` as its last line)
    math         hendrycks/competition_math, EleutherAI/hendrycks_math: problem,
                 level, type, solution; HuggingFaceH4/MATH-500 adds answer,
                 subject, unique_id
    deepscaler   agentica-org/DeepScaleR-Preview-Dataset: problem, answer,
                 solution (often empty)
    numina_math  AI-MO/NuminaMath-1.5: problem, solution, answer, problem_type,
                 question_type, problem_is_valid, solution_is_valid, source,
                 synthetic; AI-MO/NuminaMath-CoT: source, problem, solution,
                 messages
    openr1_math  open-r1/OpenR1-Math-220k: the same as NuminaMath-1.5, with
                 uuid and generations
"""

import re

from exprl_jax.data.converters import base
from exprl_jax.data.converters.base import Row

_CALCULATOR = re.compile(r'<<.*?>>')
_FINAL_LINE = re.compile(r'^####[ \t]*(.+?)\s*\Z', re.M)
_LETTER = re.compile(r'\(?[A-E]\)?')


def gsm8k(row: Row) -> dict[str, str] | None:
  """Takes the answer out of the solution, and the calculator's annotations.

  The final line of the solution becomes a box.
  """
  question, full = base.text(row, 'question'), base.text(row, 'answer')
  final = _FINAL_LINE.search(full)
  if not question or not final:
    return None
  steps = _CALCULATOR.sub('', full[:final.start()]).strip()
  answer = final[1].replace(',', '')
  return {
      'id': base.digest_id('gsm8k', question, full), 'question': question,
      'solution': f'{steps}\n\\boxed{{{answer}}}'.strip(), 'answer': answer
  }


def math(row: Row) -> dict[str, str] | None:
  """Reads MATH; the answer is the last box. Drops rows without a box."""
  question = base.text(row, 'problem')
  solution = base.text(row, 'solution')
  answer = base.optional(row, 'answer') or base.boxed(solution)
  if not question or not answer:
    return None
  return {
      'id': base.optional(row, 'unique_id')
      or base.digest_id('math', question, solution), 'question': question,
      'solution': solution, 'answer': answer
  }


def deepscaler(row: Row) -> dict[str, str] | None:
  """Reads DeepScaleR, rows with an empty solution included."""
  question, answer = base.text(row, 'problem'), base.text(row, 'answer')
  if not question or not answer:
    return None
  solution = base.text(row, 'solution')
  return {
      'id': base.digest_id('deepscaler', question, answer, solution),
      'question': question, 'solution': base.worked(solution), 'answer': answer
  }


def deepscaler_solved(row: Row) -> dict[str, str] | None:
  """Reads the rows of DeepScaleR that have a solution."""
  out = deepscaler(row)
  return out if out and out['solution'] else None


def numina_math(row: Row) -> dict[str, str] | None:
  """Reads NuminaMath and sets made from it.

  Drops proofs, rows that the set marks as not valid, and rows without an
  answer. An answer that is a letter gets the domain of choices.
  """
  flags = [base.optional(row, f'{x}_is_valid') for x in ('problem', 'solution')]
  if base.optional(row, 'question_type') == 'proof' or any(
      flag not in ('', 'Yes') for flag in flags):
    return None
  question = base.text(row, 'problem')
  solution = base.text(row, 'solution')
  answer = base.optional(row, 'answer') or base.boxed(solution)
  if not question or answer.lower() in ('', 'proof', 'notfound'):
    return None
  letter = (base.optional(row, 'question_type') == 'MCQ'
            and _LETTER.fullmatch(answer))
  return {
      'id': base.optional(row, 'uuid')
      or base.digest_id('numina_math', question, solution),
      'question': question, 'solution': base.worked(solution), 'answer': answer,
      'domain': base.CHOICE if letter else base.MATH
  }


CONVERTERS = {
    'deepscaler': deepscaler,
    'deepscaler_solved': deepscaler_solved,
    'gsm8k': gsm8k,
    'math': math,
    'numina_math': numina_math,
    'openr1_math': numina_math,
}
