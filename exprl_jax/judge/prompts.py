"""Judge prompts: text templates, rendered with the judge's own chat template.

A file of judge/templates has sections, each opened by a line `[name]`:

  [system]                     instructions (may be left out)
  [outcome] [process] [segment]  stand for {task}: a whole trace, a trace so
                               far, a single step
  [direct] [reason]            stand for {answer}: a number at once, or a
                               rationale and a last line `Score: N`
  [user]                       the layout
  [solution] [rubric] [both]   stand for {reference}
  [whole] [item]         stand for {ask}: the question after the trace
  [score]                      how an answer begins; the score comes next

After that the text holds {problem}, {trace}, {solution} or {rubric} or both
once each, {nonce} on both sides of {trace}, and {item} where items
are asked for. These are filled with plain text, as token ids, in one pass:
nothing in a problem, reference or trace is ever read as part of the template,
and special tokens in them are spelt out. The nonce is a code that the writer
of the trace cannot know.

What comes before the trace is the same for all traces of a problem, so the
judge computes it once; a template may put the reference after the trace and
pay for it (math_paper_order).
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import re

from exprl_jax.config import Judge
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.types import InputError, Problem

SCORES = ('1', '2', '3', '4', '5')
_ALL = {
    'system', 'user', 'score', 'outcome', 'process', 'segment', 'direct',
    'reason', 'solution', 'rubric', 'both', 'whole', 'item'
}
_SLOTS = ('problem', 'solution', 'rubric', 'nonce', 'trace', 'item')
_SPLIT = re.compile('{(' + '|'.join(_SLOTS) + ')}')


@dataclasses.dataclass(frozen=True, eq=False)
class Template:
  """A template for one judge; token ids come out.

  Attributes:
    tokenizer: the judge's.
    pieces: texts (even places) and slots (odd places) of the prompt, up to
      where the judge begins to write.
    tail: tokens of the last text, with the beginning of the answer.
    score: how the line with the score begins.
    begun: the beginning of the answer: `score`, or '' before a rationale.
    force: tokens that ask for the score after a rationale; () without one.
    score_ids: the tokens of the scores 1 to 5 after `tail`, or after `force`.
    text: the file, for the cache and for probes.
  """

  tokenizer: Tokenizer
  pieces: tuple[str, ...]
  tail: tuple[int, ...]
  score: str
  begun: str
  force: tuple[int, ...]
  score_ids: tuple[int, ...]
  text: str

  def head(self, problem: Problem) -> list[int]:
    """All that precedes the nonce: the same for all traces of a problem."""
    return self._fill(self.pieces[:self.pieces.index('nonce')], problem)

  def opening(self, nonce: str) -> list[int]:
    """The nonce and what stands between it and the trace."""
    first = self.pieces.index('nonce')
    return self._fill(('', *self.pieces[first:first + 2]), nonce=nonce)

  def ask(self, problem: Problem, nonce: str, item: str = '') -> list[int]:
    """All that follows the trace, up to what the judge is to write."""
    after = self.pieces[self.pieces.index('trace') + 1:-1]
    return [*self._fill(after, problem, nonce, item), *self.tail]

  def _fill(self, pieces, problem=None, nonce='', item='') -> list[int]:
    """Token ids of texts and slots in turn, a text first."""
    out = list(_encode(self.tokenizer, pieces[0]))
    for slot, text in itertools.zip_longest(pieces[1::2], pieces[2::2],
                                            fillvalue=''):
      value = (nonce if slot == 'nonce' else item if slot == 'item' else
               getattr(problem, {'problem': 'question'}.get(slot, slot)))
      out += self.tokenizer.encode(value)
      out += _encode(self.tokenizer, text)
    return out


@functools.lru_cache(maxsize=256)
def _encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
  return tuple(tokenizer.encode(text, special=True))


def nonce(problem: Problem, steps: list[str]) -> str:
  """Four numbers that do not occur in the trace.

  They are a hash of problem and trace, so verdicts can be cached and repeated,
  and whoever writes the trace would have to write its own hash to forge them.
  """
  whole = {''.join(steps), ' '.join(steps)}
  attempt = 0
  while True:
    text = json.dumps([problem.question, problem.solution, steps, attempt])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    code = ' '.join(
        str(10 + int.from_bytes(digest[4 * i:4 * i + 4]) % 90)
        for i in range(4))
    if not any(code in text for text in whole):
      return code
    attempt += 1


def load(cfg: Judge, tokenizer: Tokenizer, task: str,
         generates: bool) -> Template:
  """Reads, checks and renders a template.

  Args:
    cfg: template (a file of judge/templates without '.txt', or a path),
      reference, context, readout and verdict.
    tokenizer: the judge's.
    task: 'outcome' or 'process'; becomes 'segment' for context='segment'.
    generates: the readout may let the judge write a rationale.

  Raises:
    InputError: no such template, or it is not as described above.
  """
  path = pathlib.Path(__file__).parent / 'templates' / f'{cfg.template}.txt'
  path = path if path.is_file() else pathlib.Path(cfg.template)
  if not path.is_file():
    known = sorted(p.stem for p in (pathlib.Path(__file__).parent /
                                    'templates').glob('*.txt'))
    raise InputError(f'judge.template={cfg.template!r}: no such template or '
                     f'file; known: {", ".join(known)}')
  sections = _sections(path)
  if task == 'process' and cfg.context == 'segment':
    task = 'segment'
  reasons = generates and 'reason' in sections
  per_item = cfg.judgment == 'rubric_items'
  choice = {
      'task': task, 'answer': 'reason' if reasons else 'direct',
      'reference': cfg.reference, 'ask': 'item' if per_item else 'whole'
  }
  messages = [{'role': role, 'content': _expand(sections, role, choice, path)}
              for role in ('system', 'user')
              if role in sections]
  for message in messages[:-1]:
    if found := _SPLIT.findall(message['content']):
      raise InputError(f'{path}: [system] holds {{{found[0]}}}: problem, '
                       'reference and trace belong into [user]')
  _lint(_SPLIT.findall(messages[-1]['content']), cfg, path)
  text = tokenizer.render(messages)
  pieces = tuple(_SPLIT.split(text))
  text = path.read_text()
  if reasons:
    score_ids, force = _score_tokens(tokenizer, '\n' + sections['score'], path)
    return Template(tokenizer, pieces, _encode(tokenizer, pieces[-1]),
                    sections['score'], '', force, score_ids, text)
  score_ids, tail = _score_tokens(tokenizer, pieces[-1] + sections['score'],
                                  path)
  return Template(tokenizer, pieces, tail, sections['score'], sections['score'],
                  (), score_ids, text)


_RENAMED = {
    '{fence}': '{nonce}', '{checkpoint}': '{item}', '[checkpoint]': '[item]'
}


def _sections(path: pathlib.Path) -> dict[str, str]:
  for old, new in _RENAMED.items():
    if old in path.read_text():
      raise InputError(f'{path}: {old} was renamed to {new}')
  parts = re.split(r'^\[(\w+)\]\n', path.read_text(), flags=re.MULTILINE)
  sections = {k: v.strip() for k, v in zip(parts[1::2], parts[2::2])}
  if not {'user', 'score'} <= set(sections) <= _ALL or parts[0].strip():
    raise InputError(f'{path}: want the sections [user] and [score], and '
                     f'perhaps {", ".join(sorted(_ALL - {"user", "score"}))}; '
                     f'found {", ".join(sections) or "none"}')
  return sections


def _expand(sections, role: str, choice: dict[str, str], path) -> str:
  """[system] or [user] with the chosen sections in it."""

  def section(match):
    name = choice[match.group(1)]
    if name not in sections:
      if name in ('solution', 'rubric'):
        return f'{{{name}}}'
      if name == 'whole':
        return ''
      raise InputError(f'{path}: {{{match.group(1)}}} needs a section [{name}]')
    return sections[name]

  return re.sub('{(task|answer|reference|ask)}', section, sections[role])


def _lint(found: list[str], cfg: Judge, path) -> None:
  """Every text appears once, the nonce around the trace."""
  references = {
      'solution': ['solution'], 'rubric': ['rubric'],
      'both': ['solution', 'rubric']
  }[cfg.reference]
  wanted = ['problem', 'trace', *references, 'nonce', 'nonce']
  wanted += ['item'] * (cfg.judgment == 'rubric_items')
  if sorted(found) != sorted(wanted):
    raise InputError(
        f'{path}: [user] should hold {_names(wanted)} (judge.reference='
        f'{cfg.reference!r}, judge.judgment={cfg.judgment!r}); it holds '
        f'{_names(found)}')
  at = found.index('trace')
  if found[at - 1:at + 2] != ['nonce', 'trace', 'nonce'] or ('problem'
                                                             in found[at:]):
    raise InputError(f'{path}: [user] should hold {{problem}} first and '
                     f'{{nonce}} {{trace}} {{nonce}} in this order; it holds '
                     f'{_names(found)}')
  if 'item' in found[:at]:
    raise InputError(f'{path}: {{item}} belongs behind {{trace}}, into '
                     '{ask}')


def _names(slots: list[str]) -> str:
  return ' '.join(f'{{{slot}}}' for slot in slots)


def _score_tokens(tokenizer: Tokenizer, before: str, path: pathlib.Path):
  """The five score tokens and what precedes them, tokenised in context."""
  rows = [
      tokenizer.encode(f'{before} {score}', special=True) for score in SCORES
  ]
  common = rows[0][:-1]
  if any(row[:-1] != common for row in rows):
    raise InputError(f"{path}: a score after {before[-20:]!r} is not one token "
                     "of the judge's tokenizer")
  return tuple(row[-1] for row in rows), tuple(common)
