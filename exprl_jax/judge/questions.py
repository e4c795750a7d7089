"""Prompts in judge/questions: what the judge is asked beside scores."""

from collections.abc import Mapping, Sequence
import pathlib
import re

from exprl_jax.data import chat, forked_text
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.data.tokenizer_json import Piece

FOLDER = pathlib.Path(__file__).parent / 'questions'


class QuestionPrompt:
  """A file of judge/questions in the judge's own chat format.

  It has sections [system] and [user]; slots such as {problem} are filled in
  one pass and with special tokens spelled out.
  """

  def __init__(self, tokenizer: Tokenizer, name: str) -> None:
    """Reads FOLDER/`name`.txt; `tokenizer` is the judge's."""
    self.tokenizer = tokenizer
    parts = re.split(r'^\[(system|user)\]\n',
                     (FOLDER / f'{name}.txt').read_text(), flags=re.MULTILINE)
    self._messages = [{'role': role, 'content': text.strip()}
                      for role, text in zip(parts[1::2], parts[2::2])]

  def encode(
      self, values: Sequence[Mapping[str, str]]) -> tuple[list[list[int]], int]:
    """Encodes prompts.

    Args:
      values: for each prompt, name of a slot -> its text.

    Returns:
      Their token ids, and how many first tokens all of them share.
    """
    texts = [
        chat.fill(self.tokenizer, self._messages,
                  {f'{{{slot}}}': text
                   for slot, text in v.items()})
        for v in values
    ]
    heads = [t[:[*t, _ANY].index(_first_slot(t))] for t in texts[:1]]
    ids = self.tokenizer.encode_pieces([*texts, *heads])
    head = ids.pop() if heads else []
    return ids, min((forked_text.common(head, row) for row in ids), default=0)


_ANY = Piece('', False)


def _first_slot(pieces: Sequence[Piece]) -> Piece:
  """Returns the first piece that fills a slot."""
  return next((p for p in pieces if not p.trusted), _ANY)
