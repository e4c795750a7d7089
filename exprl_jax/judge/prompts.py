"""Judge prompts: text templates, rendered with the judge's own chat template.

A template file has the sections [system] (may be left out), [user] and
[score]. {problem}, {reference} and {trace} stand in [user], once each, the
trace last so that everything before it is common to all prefixes of it.
[score] is how the judge's answer begins; the score is its next token.
"""

import dataclasses
import pathlib
import re

from exprl_jax.tokenizer import Tokenizer
from exprl_jax.types import InputError, Problem

_SLOTS = ('problem', 'reference', 'trace')
SCORES = ('1', '2', '3', '4', '5')


@dataclasses.dataclass(frozen=True)
class Template:
  """A template in the judge's tokens.

  Attributes:
    before: tokens before the problem, before the reference, before the trace.
    ask: tokens after the trace; the score is the token after them.
    score_ids: the tokens of the scores 1 to 5.
  """

  before: tuple[tuple[int, ...], ...]
  ask: tuple[int, ...]
  score_ids: tuple[int, ...]

  def head(self, tokenizer: Tokenizer, problem: Problem) -> list[int]:
    """Everything before the trace; the problem's texts stay plain text."""
    return [*self.before[0], *tokenizer.encode(problem.question),
            *self.before[1], *tokenizer.encode(problem.solution),
            *self.before[2]]


def load(name: str, tokenizer: Tokenizer) -> Template:
  """Reads, checks and renders a template.

  Args:
    name: a file of judge/templates without '.txt', or a path.
    tokenizer: the judge's.

  Raises:
    InputError: no such template, or it is not as described above.
  """
  path = pathlib.Path(__file__).parent / 'templates' / f'{name}.txt'
  path = path if path.is_file() else pathlib.Path(name)
  if not path.is_file():
    known = sorted(p.stem for p in path.parent.glob('*.txt'))
    raise InputError(f'judge.template={name!r}: no such template or file; '
                     f'known: {", ".join(known) or "none"}')
  sections = _sections(path)
  messages = [{'role': role, 'content': sections[role]}
              for role in ('system', 'user') if role in sections]
  text = tokenizer.render(messages) + sections['score']
  pieces = re.split('|'.join(f'{{{slot}}}' for slot in _SLOTS), text)
  score_ids, ask = _score_tokens(tokenizer, pieces[3], path)
  before = tuple(tuple(tokenizer.encode(piece, special=True))
                 for piece in pieces[:3])
  return Template(before, ask, score_ids)


def _sections(path: pathlib.Path) -> dict[str, str]:
  parts = re.split(r'^\[(\w+)\]\n', path.read_text(), flags=re.MULTILINE)
  sections = {k: v.strip() for k, v in zip(parts[1::2], parts[2::2])}
  if not {'user', 'score'} <= set(sections) <= {'system', 'user', 'score'}:
    raise InputError(f'{path}: want the sections [system], [user], [score]')
  found = re.findall(r'\{(\w+)\}', sections['user'])
  if found != list(_SLOTS):
    raise InputError(f'{path}: [user] should hold {{problem}}, {{reference}} '
                     f'and {{trace}} once each, in this order; it holds '
                     f'{found}')
  return sections


def _score_tokens(tokenizer: Tokenizer, ask: str, path: pathlib.Path):
  """The five score tokens and what precedes them, tokenised in context."""
  rows = [tokenizer.encode(f'{ask} {score}', special=True) for score in SCORES]
  common = rows[0][:-1]
  if any(row[:-1] != common for row in rows):
    raise InputError(f"{path}: a score after {ask!r} is not one token of the "
                     "judge's tokenizer")
  return tuple(row[-1] for row in rows), tuple(common)
