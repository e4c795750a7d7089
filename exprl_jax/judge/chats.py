"""Judge prompts as messages of a chat, for judges behind an endpoint.

The templates are those of prompts.py. The service renders the messages with a
chat template and a tokenizer that are not known here, so what may be a special
token of some model is broken up in all that is not trusted.
"""

from collections.abc import Mapping
import dataclasses
import re

from exprl_jax.config import Judge
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.judge import prompts
from exprl_jax.judge.readouts import UNREADABLE, Judgment
from exprl_jax.judge.readouts.base import written
from exprl_jax.types import Problem

Messages = list[dict[str, str]]  # of a chat: role and content
_SHORT_ANSWER = 16  # tokens of an answer that is a score alone
# How special tokens of chat models begin: <|im_end|>, its wide form, </s>,
# <start_of_turn>, [INST].
_SPECIAL = re.compile(
    r'<(?=[|\uff5c])|<(?=/?(?:s|bos|eos|pad|unk|think|(?:start|end)_of_\w+)>)'
    r'|\[(?=/?(?:INST|SYSTEM_PROMPT|TOOL_\w+|AVAILABLE_TOOLS)\])',
    re.IGNORECASE)


def disarm(text: str) -> str:
  """Puts a space into what a tokenizer may take for a special token."""
  return _SPECIAL.sub(lambda match: f'{match[0]} ', text)


@dataclasses.dataclass(frozen=True, eq=False)
class Chat:
  """A template, as messages whose contents hold slots.

  Attributes:
    source: of the messages.
    max_tokens: of an answer.
  """

  source: prompts.Source
  max_tokens: int

  @property
  def text(self) -> str:
    """Of the template's file."""
    return self.source.text

  def messages(self, problem: Problem, nonce: str, trace: str,
               item: str = '') -> Messages:
    """Returns the chat that asks about a trace."""
    values = prompts.slot_values(problem, nonce, trace, item)
    safe = {slot: disarm(text) for slot, text in values.items()}
    return [_filled(m, safe) for m in self.source.messages]

  def count(self, tokenizer: Tokenizer, problem: Problem, nonce: str,
            trace: str, item: str = '') -> int:
    """Counts the tokens of a chat's contents, as another tokenizer has them."""
    return sum(
        len(tokenizer.encode(m['content']))
        for m in self.messages(problem, nonce, trace, item))

  def judgment(self, text: str, scale: str) -> Judgment:
    """Reads an answer as the readout 'generate' does.

    Without a rationale an answer may be a number alone: it continues the line
    that a judge on our own devices has begun.
    """
    found = written(text, scale)
    if found.status == UNREADABLE and not self.source.reasons:
      found = written(f'{self.source.score} {text.strip()}', scale)
    return found._replace(text=text)


def load(cfg: Judge, task: str) -> Chat:
  """Reads and checks the template of an endpoint.

  Args:
    cfg: as of prompts.load.
    task: 'outcome' or 'process'.

  Raises:
    InputError: as prompts.load.
  """
  source = prompts.read(cfg, task, True)
  return Chat(source, cfg.rationale_tokens if source.reasons else _SHORT_ANSWER)


def _filled(message: Mapping[str, str], values: Mapping[str,
                                                        str]) -> dict[str, str]:
  """Fills the slots, in one pass: a trace may well speak of a slot."""
  content = prompts.SLOT.sub(lambda m: values[m[1]], message['content'])
  return {'role': message['role'], 'content': content}
