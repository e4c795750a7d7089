"""Science: choices and open questions.

Shapes of rows:

    gpqa          Idavidrein/gpqa (CSV): Question, Correct Answer, Incorrect
                  Answer 1, 2 and 3, Explanation, Record ID, and more
    sciknoweval   hicai-zju/SciKnowEval: question, answer, choices {text,
                  label}, answerKey, type (mcq-4-choices, mcq-2-choices,
                  open-ended-qa, true_or_false, ...), domain, details {level,
                  task, subtask}, prompt (by the README of its evaluation)
    olympiadbench Hothan/OlympiadBench: id, question, context, solution (list),
                  final_answer (list), unit, subject, image_1 to image_9, and
                  more
"""

from exprl_jax.data.converters import base
from exprl_jax.data.converters.base import Row


def gpqa(row: Row) -> dict[str, str] | None:
  """Letters the choices in an order that is a function of the record's id.

  The last line of the solution names the letter.
  """
  question = base.text(row, 'Question')
  right = base.text(row, 'Correct Answer')
  wrong = [base.text(row, f'Incorrect Answer {i}') for i in (1, 2, 3)]
  if not question or not right:
    return None
  name = base.optional(row, 'Record ID') or base.digest_id('gpqa', question)
  choices = base.shuffled([right, *wrong], name)
  answer = base.letter(choices.index(right))
  explanation = base.optional(row, 'Explanation')
  return {
      'id': name, 'question': base.with_choices(question, choices),
      'solution': f'{explanation}\n\nAnswer: {answer}' if explanation else '',
      'answer': answer, 'domain': base.CHOICE
  }


def sciknoweval(row: Row) -> dict[str, str] | None:
  """Reads choices and open questions; drops all other types.

  Also drops choices without a right one among them. The set has no solutions.
  """
  kind, question = base.text(row, 'type'), base.text(row, 'question')
  if kind == 'open-ended-qa':
    answer, domain = base.optional(row, 'answer'), base.SCIENCE
  elif kind in ('mcq-4-choices', 'mcq-2-choices'):
    choices = base.field(row, 'choices')
    texts, labels = list(choices['text']), list(choices['label'])
    key = base.text(row, 'answerKey')
    # A few rows have more labels than texts.
    if key not in labels or len(texts) != len(labels) or not question:
      return None
    answer, domain = base.letter(labels.index(key)), base.CHOICE
    question = base.with_choices(question, texts)
  else:
    return None
  if not question or not answer:
    return None
  return {
      'id': base.digest_id('sciknoweval', question, answer),
      'question': question, 'answer': answer, 'domain': domain
  }


def olympiadbench(row: Row) -> dict[str, str] | None:
  """Reads OlympiadBench in mathematics and physics.

  The context goes before the question, and the unit that the answer is wanted
  in after it. Drops problems with images, and proofs.
  """
  if any(row.get(f'image_{i}') is not None for i in range(1, 10)):
    return None
  question = base.text(row, 'question')
  answers = [str(a).strip() for a in base.field(row, 'final_answer') or ()]
  answer = ', '.join(filter(None, answers))
  if not question or not answer:
    return None
  unit = base.optional(row, 'unit')
  parts = (base.optional(row, 'context'), question,
           f'Give the answer in {unit}.' if unit else '')
  asked = '\n\n'.join(filter(None, parts))
  physics = base.optional(row, 'subject').lower() == 'physics'
  solutions = base.field(row, 'solution') or ()
  return {
      'id': base.digest_id('olympiadbench', asked, answer), 'question': asked,
      'solution': '\n\n'.join(str(s).strip() for s in solutions),
      'answer': answer, 'domain': base.SCIENCE if physics else base.MATH
  }


CONVERTERS = {
    'gpqa': gpqa, 'olympiadbench': olympiadbench, 'sciknoweval': sciknoweval
}
