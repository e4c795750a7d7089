r"""Extracts final answers from texts: \boxed{} and letters of choices."""

import re
from typing import NamedTuple

LONGEST = 50_000  # characters; of a longer text only the end is read

# A list has only signs, `and` or `or` between two boxes, or a few words of one
# sentence that end in `and`, `or` or `and y =`.
_GAP = r'(?:[\s$,;&]|\\[()\[\],;! ]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\})*'
_LISTED = re.compile(
    rf'{_GAP}(?:(?:[^.\n]{{0,50}}\W)?(?:and|or)\b\W{{0,5}})?{_GAP}'
    rf'(?:[\w{{}}()]{{1,12}}\s*=)?{_GAP}')
_LONGEST_GAP = 100  # characters between two boxes of a list
_BRACES = re.compile(r'(\\boxed\s*\{)|(?<!\\)\\[{}]|([{}])')
_ANSWER_LINE = re.compile(
    r'^[ \t*#>]*(?:the +)?(?:final +)?answer(?: +is)?[ *]*:?[ \t*]*(\S.*)$',
    re.I | re.M)


class _Box(NamedTuple):
  start: int  # of the backslash
  content: str
  end: int  # behind the closing brace


def boxed(text: str) -> str | None:
  r"""Returns the content of the last balanced \boxed{...}, or None."""
  boxes = _boxes(text)
  return boxes[-1].content if boxes else None


def final_answer(text: str) -> str | None:
  r"""Returns the last balanced box after the last `</think>`, or None.

  Joins the boxes of a list: `\boxed{1}, \boxed{2} and \boxed{3}` gives
  '1, 2, 3'.
  """
  text = without_thinking(text)
  boxes = _boxes(text)
  if not boxes:
    return None
  answers = [boxes[-1].content]
  for before, after in zip(boxes[-2::-1], boxes[:0:-1]):
    if not (before.end <= after.start <= before.end + _LONGEST_GAP
            and _LISTED.fullmatch(text[before.end:after.start])):
      break
    if before.content not in answers:
      answers.insert(0, before.content)
  return ', '.join(answers)


def gold_answer(answer: str) -> str:
  """Strips the box from a problem's `answer`; data sets differ in having one.

  Returns '' if there is no answer.
  """
  content = final_answer(answer)
  return (answer if content is None else content).strip()


def without_thinking(text: str) -> str:
  """Returns the text after the last `</think>`, its last LONGEST characters.

  Drops an open `<think>` and all that follows.
  """
  text = text.rpartition('</think>')[2].partition('<think>')[0]
  return text[-LONGEST:]


def choice_answer(text: str) -> str:
  """Returns the box, or else the answer on the last line like `Answer: C`.

  Returns '' if the text has neither.
  """
  answer = final_answer(text)
  if answer is not None:
    return answer
  lines = _ANSWER_LINE.findall(without_thinking(text))
  return lines[-1] if lines else ''


def choice_letter(answer: str) -> str:
  r"""Returns the letter of a choice in upper case, '' if it has none.

  Reads C, c, (C), C., \text{(C)}, `C) 42` and `**C**` as C.
  """
  text = re.sub(r'\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}', r'\1',
                answer)
  found = re.fullmatch(r'\(?([A-Za-z])(?:[).:]+(?:\s.*)?)?',
                       text.strip(' $*\n'), re.S)
  return found[1].upper() if found else ''


def _boxes(text: str) -> list[_Box]:
  """Finds all balanced boxes in one pass; sorts them by their start."""
  found: list[_Box] = []
  opened: list[tuple[int | None, int]] = []  # start of a box; first inside
  for match in _BRACES.finditer(text):
    box, brace = match.groups()
    if box or brace == '{':
      opened.append((match.start() if box else None, match.end()))
    elif brace and opened:
      start, inside = opened.pop()
      if start is not None:
        content = text[inside:match.start()].strip()
        found.append(_Box(start, content, match.end()))
  return sorted(found)
