r"""Extracts final answers from texts: \boxed{} and letters of choices."""

import re
from typing import NamedTuple
import unicodedata

LONGEST = 50_000  # characters; of a longer text only the end is read

# A list has only signs, `and` or `or` between two boxes, or a few words of one
# sentence that end in `and`, `or` or `and y =`.
_GAP = r'(?:[\s$,;&]|\\[()\[\],;! ]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\})*'
_LISTED = re.compile(
    rf'{_GAP}(?:(?:[^.\n]{{0,50}}\W)?(?:and|or)\b\W{{0,5}})?{_GAP}'
    rf'(?:[\w{{}}()]{{1,12}}\s*=)?{_GAP}')
_LONGEST_CHOICE = 2000  # characters that are searched for a letter
_LONGEST_GAP = 100  # characters between two boxes of a list
# A box without braces has one number, letter or command.
_BRACES = re.compile(
    r'(\\(?:boxed|fbox)\s*\{)'
    r'|\\(?:boxed|fbox)[ \t]{0,20}(?:(?<=[ \t])|(?=[\d\\-]))'
    r'(-?\d[\d.,]*(?<![.,])|\\[A-Za-z]+(?![A-Za-z{])|[A-Za-z](?![A-Za-z]))'
    r'|(?<!\\)\\[{}]|([{}])')

# What may surround the letter of a choice.
_FONT = re.compile(r'\\(?:text|textbf|textit|textrm|textsf|texttt|mathrm|mathbf'
                   r'|mathsf|mathit|mathcal|boldsymbol|bm|mbox|emph|underline'
                   r'|operatorname|boxed|fbox)\s*\{([^{}]*)\}')
_SIZE = re.compile(r'\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])')
_SWITCH = re.compile(r'\\(?:rm|bf|it|sf|tt|bfseries|itshape|displaystyle'
                     r')(?![A-Za-z])|\\[,;:! ()\[\]]|~')
_SPACE = re.compile(r'\\q?quad(?![A-Za-z])')
_ORNAMENTS = ' \t\n\r$*`"\'{}_'
_CLOSERS = '[)\\]}>*_"\'`$]'
_LETTER = re.compile(
    r'(?:(?:answer|option|choice)\s*(?:is|:)?\s*)?[(\[<]?\s*([A-Za-z])'
    rf'(?:\s*$|{_CLOSERS}*(?:[).:,\]>]+|\s+[-=:]\s|(?<={_CLOSERS})\s)'
    r'\s*(?P<rest>.*)|\s+(?=[\d\\])(?P<more>.*))', re.S | re.I)
_OTHERS = re.compile(
    r'(?:,\s*|\s*(?:or|and|/|&)\s+|\s*/\s*)?(?:(?:or|and)\s+)?[(\[]?[A-Za-z]'
    r'[)\].:,]*(?:\s*$|\s+(?:or|and)\b|\s*,)')
_STATED = re.compile(
    r'(?<![A-Za-z])(?:answer|option|choice)(?![A-Za-z])'
    r'(?:[ \t]*(?:choice|option|letter)?[ \t*_]{0,20}'
    r'(?:(?:(?:would|should|must)[ \t]+be|is)(?![A-Za-z])'
    r'|[=:>\uff1a])[ \t*_]{0,20}:?|(?=[ \t]\(?[A-Z]\)))[ \t*_]{0,20}\s{0,9}'
    r'(?=(?P<said>\S.{0,300}))', re.I)
_SAID = re.compile(
    r'[\s*_$({\[`"\']*(?:(?:option|choice|letter)[ \t]+)?[\s*_$({\[`"\'<]*'
    r'([A-Za-z])(?![A-Za-z\d\'])[\s*_)}\]`"\'>$]*(.*)', re.I | re.S)
# Behind a letter: nothing, a sign, a reason, or the text of the choice.
_GOES_ON = re.compile(
    r'$|[.;:!<\u2014-]|,(?!\s*[A-Za-z]\b(?!\'))|because\b|since\b|as\b|with\b'
    r'|which\b|\(?not\b|[\d\\]')
_HEDGE = re.compile(r'^\W*(?:or|and|/|&)\W|^\W*(?:or|and)\s+[A-Za-z]\b', re.I)


class Box(NamedTuple):
  """A \\boxed{...} in a text."""

  start: int  # of the backslash
  content: str
  end: int  # behind the closing brace


def boxed(text: str) -> str | None:
  r"""Returns the content of the last balanced \boxed{...}, or None."""
  boxes = boxes_of(text)
  return boxes[-1].content if boxes else None


def final_answer(text: str) -> str | None:
  r"""Returns the last balanced box after the last `</think>`, or None.

  Joins the boxes of a list: `\boxed{1}, \boxed{2} and \boxed{3}` gives
  '1, 2, 3'.
  """
  text = without_thinking(text)
  boxes = boxes_of(text)
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
  """Returns the letter or text that is said to be the answer.

  That is the box, if it has a letter; else what `Answer: C` or `the answer is
  C` says, the last time; else the box. Returns '' if the text has neither.
  """
  answer = final_answer(text)
  if answer is not None and choice_letter(answer):
    return answer
  said = [found['said'] for found in _STATED.finditer(without_thinking(text))]
  letters = [letter for x in said if (letter := _said_letter(x)) is not None]
  if letters and (letters[-1] or answer is None):
    return letters[-1] or said[-1][:LONGEST]
  return answer or (said[-1] if said else '')


def choice_letter(answer: str) -> str:
  r"""Returns the letter of a choice in upper case, '' if it has none.

  Reads C, c, (C), C., \text{(C)}, `C) 42`, `\textbf{(C)}\ 42`, `Option C` and
  `**C**` as C.
  """
  if len(answer) > _LONGEST_CHOICE:
    answer = answer[:_LONGEST_CHOICE]
  text = unicodedata.normalize('NFKC', answer)
  for _ in range(3):  # fonts in fonts
    text = _FONT.sub(r'\1', text)
  text = _SPACE.sub('  ', _SWITCH.sub(' ', _SIZE.sub('',
                                                     text))).strip(_ORNAMENTS)
  found = _LETTER.match(text)
  if not found:
    return ''
  rest = found['rest'] or found['more'] or ''
  return '' if _OTHERS.match(rest) else found[1].upper()


def _said_letter(said: str) -> str | None:
  """The letter that follows `the answer is`; '' for two; None without."""
  said = re.sub('[\u201c\u201d]', '"', unicodedata.normalize('NFKC', said))
  for _ in range(3):
    said = _FONT.sub(r'\1', said)
  said = _SPACE.sub('  ', _SWITCH.sub(' ', _SIZE.sub('', said)))
  found = _SAID.match(said)
  if not found:
    return None
  letter, rest = found[1], found[2].strip()
  if _HEDGE.match(rest) or re.match(r',\s*(?:or\s+)?[(\[]?[A-Za-z]\b(?!\')',
                                    rest):
    return ''
  if letter in 'aI' and rest[:1].isalnum():
    return None  # the answer is a number
  closed = said[found.end(1):found.start(2)].strip(' \t') != ''
  if closed or _GOES_ON.match(rest):
    return letter.upper()
  return None


def boxes_of(text: str) -> list[Box]:
  """Finds all balanced boxes in one pass; sorts them by their start."""
  found: list[Box] = []
  opened: list[tuple[int | None, int]] = []  # start of a box; first inside
  for match in _BRACES.finditer(text):
    box, bare, brace = match.groups()
    if bare:
      found.append(Box(match.start(), bare, match.end()))
    elif box or brace == '{':
      opened.append((match.start() if box else None, match.end()))
    elif brace and opened:
      start, inside = opened.pop()
      if start is not None:
        content = text[inside:match.start()].strip()
        found.append(Box(start, content, match.end()))
  return sorted(found)
