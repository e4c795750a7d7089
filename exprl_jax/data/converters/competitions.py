"""Competitions that models are evaluated on; most have no solutions.

Shapes of rows, by dataset cards on the Hugging Face Hub:

    aime             opencompass/AIME2025: question, answer; MathArena/aime_2025
                     and _2026: problem_idx, problem, answer, problem_type;
                     AI-MO/aimo-validation-aime and HuggingFaceH4/aime_2024: id,
                     problem, solution, answer, url; math-ai/aime24: id,
                     problem, solution (a box), url; Maxwell-Jia/AIME_2024: ID,
                     Problem, Solution, Answer
    hmmt             MathArena/hmmt_nov_2025 and the others: problem_idx,
                     problem, answer, problem_type
    imo_answerbench  Hwilner/imo-answerbench: Problem ID, Problem, Short Answer,
                     Category, Subcategory, Source

A number in a competition is no id, since files of several years are joined.
"""

from exprl_jax.data.converters import base
from exprl_jax.data.converters.base import Row


def aime(row: Row) -> dict[str, str] | None:
  """Reads AIME of any year. Drops rows without an answer."""
  return _competition('aime', row)


def hmmt(row: Row) -> dict[str, str] | None:
  """Reads HMMT, like all of MathArena. Drops rows without an answer."""
  return _competition('hmmt', row)


def _competition(name: str, row: Row) -> dict[str, str] | None:
  question = base.text(row, 'problem', 'question', 'Problem')
  solution = base.optional(row, 'solution', 'Solution')
  answer = base.optional(row, 'answer', 'Answer') or base.boxed(solution)
  if not question or not answer:
    return None
  return {
      'id': base.digest_id(name, question), 'question': question,
      'solution': base.worked(solution), 'answer': answer
  }


def imo_answerbench(row: Row) -> dict[str, str] | None:
  """Reads IMO-AnswerBench, which has short answers and no solutions."""
  question, answer = base.text(row, 'Problem'), base.text(row, 'Short Answer')
  if not question or not answer:
    return None
  return {
      'id': base.text(row, 'Problem ID'), 'question': question, 'answer': answer
  }


CONVERTERS = {'aime': aime, 'hmmt': hmmt, 'imo_answerbench': imo_answerbench}
