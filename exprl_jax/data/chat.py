"""Prompts: a chat template around untrusted text, as token ids."""

from collections.abc import Mapping, Sequence
import re

from exprl_jax.config import Config, by_domain
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.types import InputError, Problem


def policy_prompt(tokenizer: Tokenizer, question: str,
                  system_prompt: str = '') -> list[int]:
  """The policy's prompt. It takes the question, so no solution can leak."""
  slot = '{question}'
  messages = [{'role': 'user', 'content': slot}]
  if system_prompt:
    messages.insert(0, {'role': 'system', 'content': system_prompt})
  return render(tokenizer, messages, {slot: question})


def render(tokenizer: Tokenizer, messages: Sequence[dict[str, str]],
           slots: Mapping[str, str]) -> list[int]:
  """Token ids of a chat whose messages hold each of `slots` once.

  The text that fills a slot is encoded with special tokens disarmed; the chat
  template and the messages around it are not.
  """
  # Marks that no text holds, so that a question may well speak of a slot.
  marks = {f'\x00{i}\x00': slot for i, slot in enumerate(slots)}
  for mark, slot in marks.items():
    messages = [
        m | {'content': m['content'].replace(slot, mark)} for m in messages
    ]
  pieces = re.split('(\x00[0-9]+\x00)', tokenizer.render(messages))
  ids: list[int] = []
  for piece in filter(None, pieces):
    if piece in marks:
      ids += tokenizer.encode(slots[marks[piece]])
    else:
      ids += tokenizer.encode(piece, special=True)
  return ids


def policy_prompts(tokenizer: Tokenizer, problems: Sequence[Problem],
                   config: Config) -> list[list[int]]:
  """The policy's prompts of problems.

  Raises:
    InputError: a question does not fit; names the problem.
  """
  budget, out = config.rollout.max_prompt_tokens, []
  by_name = by_domain(config, 'rollout.system_prompts')
  for problem in problems:
    system = by_name.get(problem.domain, config.rollout.system_prompt)
    ids = policy_prompt(tokenizer, problem.question, system)
    if len(ids) > budget:
      raise InputError(f'problem {problem.id}: its prompt has {len(ids)} '
                       f'tokens, rollout.max_prompt_tokens={budget}')
    out.append(ids)
  return out
