"""Judge prompts: text templates, rendered with the judge's own chat template.

A file of judge/templates has sections, each opened by a line `[name]`:

  [system]                       instructions (optional)
  [outcome] [process] [segment]  replace {task}: a complete trace, a trace so
                                 far, a single step
  [direct] [reason]              replace {answer}: a number at once, or a
                                 rationale and a last line `Score: N`
  [user]                         the layout
  [group]                        stands before [outcome] where several traces
                                 are read together
  [solution] [rubric] [both]     replace {reference}
  [whole] [item] [member]        replace {ask}: the question after the trace,
                                 about all of it, about one rubric item, or
                                 about one of several traces
  [score]                        how an answer begins; the score comes next

The text then has the slots {problem}, {trace} and {solution} or {rubric} or
both, once each, {nonce} on both sides of {trace}, and {item} where the judge is
asked about rubric items (its text) or several traces (a number). Slots are
filled with plain text, in one pass: nothing in a problem, reference or trace is
ever read as part of the template, and special tokens in them are spelled out.
The nonce is a code that the author of the trace cannot know.

What precedes the trace is the same for all traces of a problem, so the judge
computes it once. A template that puts the reference after the trace
(math_paper) computes the reference for every question.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import pathlib
import re
from typing import Any, NamedTuple

from exprl_jax.config import Judge
from exprl_jax.data import chat
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.data.tokenizer_json import Piece
from exprl_jax.runtime import inputs
from exprl_jax.types import InputError, Problem

_FOLDER = pathlib.Path(__file__).parent / 'templates'
SCORES = ('1', '2', '3', '4', '5')
_SECTIONS = {
    'system', 'user', 'score', 'outcome', 'process', 'segment', 'direct',
    'reason', 'solution', 'rubric', 'both', 'whole', 'item', 'group', 'member'
}
# Of judge.judgment: the section that replaces {ask}.
_ASK = {'overall': 'whole', 'rubric_items': 'item', 'group': 'member'}
_SLOTS = ('problem', 'solution', 'rubric', 'nonce', 'trace', 'item')
SLOT = re.compile('{(' + '|'.join(_SLOTS) + ')}')


@dataclasses.dataclass(frozen=True, eq=False)
class Template:
  """A template, rendered for one judge.

  Attributes:
    tokenizer: the judge's.
    parts: of the prompt up to where the judge begins to write; a part that is
      not trusted has the name of a slot as its text.
    score: how the line with the score begins.
    begun: how the answer begins: `score`, or '' before a rationale.
    force: tokens that ask for the score after a rationale; () without one.
    score_ids: tokens of the scores 1 to 5, after `begun` or after `force`.
    text: of the file, for the cache key and for probes.
  """

  tokenizer: Tokenizer
  parts: tuple[Piece, ...]
  score: str
  begun: str
  force: tuple[int, ...]
  score_ids: tuple[int, ...]
  text: str

  def head(self, problem: Problem) -> list[Piece]:
    """Returns what precedes the nonce: the same for all traces of a problem."""
    return _fill(self.parts[:self.parts.index(_NONCE)], problem)

  def up_to_trace(self, problem: Problem, nonce: str,
                  trace: str) -> list[Piece]:
    """Returns the prompt up to the end of the trace."""
    end = self.parts.index(_TRACE) + 1
    return _fill(self.parts[:end], problem, nonce, trace)

  def question(self, problem: Problem, nonce: str, trace: str,
               item: str = '') -> list[Piece]:
    """Returns the whole prompt, with `begun` and a score if one follows."""
    asked = _fill(self.parts, problem, nonce, trace, item)
    return [*asked, Piece(f'{self.begun} {SCORES[0]}')] if self.begun else asked

  def without_score(self, ids: list[int]) -> list[int]:
    """Removes the score from the tokens of a question."""
    return ids[:-1] if self.begun else ids


_NONCE, _TRACE = Piece('nonce', False), Piece('trace', False)


def _fill(parts: Sequence[Piece], problem: Problem, nonce: str = '',
          trace: str = '', item: str = '') -> list[Piece]:
  """Puts the texts of slots in their places."""
  values = slot_values(problem, nonce, trace, item)
  return [
      part if part.trusted else Piece(values[part.text], False)
      for part in parts
  ]


def slot_values(problem: Problem, nonce: str, trace: str,
                item: str) -> dict[str, str]:
  """Returns the texts of all slots."""
  return {
      'problem': problem.question, 'solution': problem.solution,
      'rubric': problem.rubric, 'nonce': nonce, 'trace': trace, 'item': item
  }


def items(cfg: Judge, problem: Problem) -> list[str]:
  """Returns what fills {item} in the questions about a trace; '' if nothing.
  """
  if cfg.judgment == 'rubric_items':
    return [item.text for item in problem.rubric_items]
  return ['1'] if cfg.judgment == 'group' else ['']


def nonce(problem: Problem, steps: list[str]) -> str:
  """Makes four numbers that do not occur in the trace.

  They are a hash of problem and trace, so judgments can be cached and repeated,
  and the author of a trace would have to write its own hash to forge them.
  """
  traces = {''.join(steps), ' '.join(steps)}
  attempt = 0
  while True:
    text = json.dumps([problem.question, problem.solution, steps, attempt])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    code = ' '.join(
        str(10 + int.from_bytes(digest[4 * i:4 * i + 4]) % 90)
        for i in range(4))
    if not any(code in trace for trace in traces):
      return code
    attempt += 1


class Source(NamedTuple):
  """A template that is read and checked, before any tokenizer."""

  path: pathlib.Path
  messages: list[dict[str, str]]  # role and content, with slots
  score: str  # how the line with the score begins
  reasons: bool  # whether a rationale comes before it
  text: str  # of the file


def read(cfg: Judge, task: str, generates: bool) -> Source:
  """Reads and checks a template; arguments and errors are those of `load`."""
  path = _find(cfg.template)
  sections = _sections(path)
  reasons = generates and 'reason' in sections
  messages = _messages(sections, _choices(cfg, task, reasons), path)
  _check_slots(SLOT.findall(messages[-1]['content']), cfg, path)
  return Source(path, messages, sections['score'], reasons, _read(path))


def load(cfg: Judge, tokenizer: Tokenizer, task: str,
         generates: bool) -> Template:
  """Reads, checks and renders a template.

  Args:
    cfg: template (a file of judge/templates without '.txt', or a path),
      reference, context and judgment.
    tokenizer: the judge's.
    task: 'outcome' or 'process'; becomes 'segment' for context='segment'.
    generates: the readout lets the judge write a rationale, if the template has
      a section [reason].

  Raises:
    InputError: no such template, or it is not as described above.
  """
  # 1. The prompt, in pieces.
  path, messages, score, reasons, text = read(cfg, task, generates)
  parts = _render(tokenizer, messages,
                  chat.template_options(cfg.chat_template_options), path)
  # 2. The tokens of the scores, at once or after a rationale.
  template = Template(tokenizer, parts, score, '' if reasons else score, (), (),
                      text)
  if reasons:
    rows = [tokenizer.encode(f'\n{score} {n}', special=True) for n in SCORES]
    force, score_ids = _score_tokens(rows, score, path)
    return dataclasses.replace(template, force=force, score_ids=score_ids)
  rows = tokenizer.encode_pieces([[
      *_fill(parts, Problem('', 'x', 'x', rubric='x'), 'x', 'x', 'x'),
      Piece(f'{score} {n}')
  ] for n in SCORES])
  return dataclasses.replace(template,
                             score_ids=_score_tokens(rows, score, path)[1])


def _render(tokenizer: Tokenizer, messages: list[dict[str, str]],
            options: dict[str, Any], path: pathlib.Path) -> tuple[Piece, ...]:
  """Renders the chat; the parts that are not trusted name their slots.

  Raises:
    InputError: the judge's chat template changes the text of a slot.
  """
  # Texts that a template which strips or escapes them would change.
  sample = {f'{{{slot}}}': f' {slot} "\\\n' for slot in _SLOTS}
  slots = {text: slot[1:-1] for slot, text in sample.items()}
  parts = []
  for piece in chat.fill(tokenizer, messages, sample, options):
    if not piece.trusted and piece.text not in slots:
      raise InputError(f'{tokenizer.folder}: the chat template changes the '
                       f'slots of {path}; use one that keeps text as it is')
    parts.append(piece if piece.trusted else Piece(slots[piece.text], False))
  return tuple(parts)


def _find(name: str) -> pathlib.Path:
  """Finds a template by name or by path."""
  path = _FOLDER / f'{name}.txt'
  path = path if path.is_file() else pathlib.Path(name)
  if not path.is_file():
    known = sorted(p.stem for p in _FOLDER.glob('*.txt'))
    raise InputError(f'judge.template={name!r}: no such template or '
                     f'file; known: {", ".join(known)}')
  return path


def _choices(cfg: Judge, task: str, reasons: bool) -> dict[str, str]:
  """Chooses the section that replaces each of {task}, {answer} and so on."""
  if task == 'process' and cfg.context == 'segment':
    task = 'segment'
  if cfg.judgment == 'group':
    task = 'group+outcome'
  return {
      'task': task, 'answer': 'reason' if reasons else 'direct',
      'reference': cfg.reference, 'ask': _ASK[cfg.judgment]
  }


_RENAMED = {
    '{fence}': '{nonce}', '{checkpoint}': '{item}', '[checkpoint]': '[item]'
}


def _read(path: pathlib.Path) -> str:
  """Reads a template, as text with line feeds."""
  text = inputs.decode(inputs.read_bytes(path), str(path))
  return text.replace('\r\n', '\n')


def _sections(path: pathlib.Path) -> dict[str, str]:
  """Reads a template: texts by name of the section."""
  text = _read(path)
  for old, new in _RENAMED.items():
    if old in text:
      raise InputError(f'{path}: {old} was renamed to {new}')
  parts = re.split(r'^\[(\w+)\]\n', text, flags=re.MULTILINE)
  sections = {k: v.strip() for k, v in zip(parts[1::2], parts[2::2])}
  if not {'user', 'score'} <= set(sections) <= _SECTIONS or parts[0].strip():
    raise InputError(
        f'{path}: want the sections [user] and [score], and '
        f'perhaps {", ".join(sorted(_SECTIONS - {"user", "score"}))}; '
        f'found {", ".join(sections) or "none"}')
  return sections


def _messages(sections: dict[str, str], choices: dict[str, str],
              path: pathlib.Path) -> list[dict[str, str]]:
  """Makes the chat, the chosen sections in [system] and [user]."""
  messages = [{'role': role, 'content': _expand(sections, role, choices, path)}
              for role in ('system', 'user')
              if role in sections]
  for message in messages[:-1]:
    if slots := SLOT.findall(message['content']):
      raise InputError(f'{path}: [system] holds {{{slots[0]}}}: problem, '
                       'reference and trace belong into [user]')
  return messages


def _expand(sections: dict[str, str], role: str, choices: dict[str, str],
            path: pathlib.Path) -> str:
  """Puts the chosen sections into [system] or [user]."""

  def section(slot: str, name: str) -> str:
    if name not in sections:
      if name in ('solution', 'rubric'):
        return f'{{{name}}}'
      if name == 'whole':
        return ''
      raise InputError(f'{path}: {{{slot}}} needs a section [{name}]')
    return sections[name]

  return re.sub(
      '{(task|answer|reference|ask)}', lambda match: '\n\n'.join(
          section(match[1], name) for name in choices[match[1]].split('+')),
      sections[role])


def _check_slots(slots: list[str], cfg: Judge, path: pathlib.Path) -> None:
  """Checks that every slot appears once, the nonce around the trace.

  Raises:
    InputError: it is otherwise.
  """
  references = {
      'solution': ['solution'], 'rubric': ['rubric'],
      'both': ['solution', 'rubric']
  }[cfg.reference]
  wanted = ['problem', 'trace', *references, 'nonce', 'nonce']
  wanted += ['item'] * (cfg.judgment != 'overall')
  if sorted(slots) != sorted(wanted):
    raise InputError(
        f'{path}: [user] should hold {_names(wanted)} (judge.reference='
        f'{cfg.reference!r}, judge.judgment={cfg.judgment!r}); it holds '
        f'{_names(slots)}')
  at = slots.index('trace')
  around = slots[at - 1:at + 2]
  if around != ['nonce', 'trace', 'nonce'] or 'problem' in slots[at:]:
    raise InputError(f'{path}: [user] should hold {{problem}} first and '
                     f'{{nonce}} {{trace}} {{nonce}} in this order; it holds '
                     f'{_names(slots)}')
  if 'item' in slots[:at]:
    raise InputError(f'{path}: {{item}} belongs behind {{trace}}, into '
                     '{ask}')


def _names(slots: list[str]) -> str:
  return ' '.join(f'{{{slot}}}' for slot in slots)


def _score_tokens(
    rows: list[list[int]], score: str,
    path: pathlib.Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Splits the tokens of the five scores, each behind the same text.

  Returns:
    The tokens of the text, and those of the scores.

  Raises:
    InputError: a score is not one token.
  """
  common = rows[0][:-1]
  if any(row[:-1] != common for row in rows):
    raise InputError(f"{path}: a score after {score!r} is not one token of the "
                     "judge's tokenizer")
  return tuple(common), tuple(row[-1] for row in rows)
