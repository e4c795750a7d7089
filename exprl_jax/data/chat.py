"""Prompts: a chat template around untrusted text, as token ids.

The ids are those of `transformers.apply_chat_template` with the text in place,
except that special tokens in it are spelled out.
"""

from collections.abc import Mapping, Sequence
import json
import re
from typing import Any

from exprl_jax.config import Config, by_domain
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.data.tokenizer_json import Piece
from exprl_jax.types import InputError, Problem

Messages = Sequence[Mapping[str, str]]  # of a chat: each has role and content


def fill(tokenizer: Tokenizer, messages: Messages, values: Mapping[str, str],
         options: Mapping[str, Any] | None = None) -> list[Piece]:
  """Renders a chat and fills its slots.

  Args:
    tokenizer: has the chat template.
    messages: their contents hold slots, such as '{question}'.
    values: slot -> the untrusted text that fills it.
    options: variables of the chat template.

  Returns:
    The text in pieces; those that are not trusted fill a slot.

  Raises:
    InputError: the template fails, drops a slot, repeats it or changes its
      text; names the slot.
  """
  # 1. Rendered with a mark for each slot, which shows where the slots are.
  slots = {f'\ue002{i}\ue003': slot for i, slot in enumerate(values)}
  marks = {slot: mark for mark, slot in slots.items()}
  marked = tokenizer.render(_replace(messages, marks), options=options)
  contents = ''.join(m['content'] for m in messages)
  for slot, mark in marks.items():
    count, wanted = marked.count(mark), contents.count(slot)
    if count != wanted:
      raise InputError(f'{tokenizer.folder}: the chat template renders '
                       f'{slot} {count} times instead of {wanted}')
  parts = re.split('(\ue002[0-9]+\ue003)', marked)
  # 2. Rendered with the texts; they must be found where the marks were.
  text = tokenizer.render(_replace(messages, values), options=options)
  for candidate in (values, _stripped(messages, values), _as_json(values)):
    pieces = [
        Piece(candidate[slots[part]], False) if part in slots else Piece(part)
        for part in parts
        if part
    ]
    if ''.join(piece.text for piece in pieces) == text:
      return pieces
  raise InputError(f'{tokenizer.folder}: the chat template changes the text of '
                   f'{", ".join(values)}; only white space at the ends of a '
                   'message may be stripped')


def _replace(messages: Messages, values: Mapping[str,
                                                 str]) -> list[dict[str, str]]:
  """Fills slots, in one pass: a text may well speak of a slot."""
  pattern = re.compile('|'.join(map(re.escape, values)) or '(?!)')
  return [
      dict(m) | {'content': pattern.sub(lambda s: values[s[0]], m['content'])}
      for m in messages
  ]


def _stripped(messages: Messages, values: Mapping[str, str]) -> dict[str, str]:
  """Texts of templates that strip the contents of messages."""
  out = dict(values)
  for m in messages:
    for slot in values:
      if m['content'].startswith(slot):
        out[slot] = out[slot].lstrip()
      if m['content'].endswith(slot):
        out[slot] = out[slot].rstrip()
  return out


def _as_json(values: Mapping[str, str]) -> dict[str, str]:
  """Texts of templates that write the contents of messages as JSON."""
  return {
      slot: json.dumps(text, ensure_ascii=False)[1:-1]
      for slot, text in values.items()
  }


def policy_text(tokenizer: Tokenizer, question: str, system_prompt: str = '',
                options: Mapping[str, Any] | None = None,
                prompt_template: str = '') -> list[Piece]:
  """Returns the policy's prompt as text.

  It takes the question, so no solution can leak.

  Args:
    tokenizer: the policy's.
    question: untrusted text.
    system_prompt: '' for none.
    options: variables of the chat template.
    prompt_template: a text with {question}, in place of the chat template.

  Raises:
    InputError: see `fill`; names the key that helps.
  """
  slot = '{question}'
  if prompt_template:
    before, _, after = prompt_template.partition(slot)
    return [Piece(before), Piece(question, False), Piece(after)]
  if not tokenizer.has_chat_template:
    raise InputError(f'{tokenizer.folder}: no chat template; for a base model '
                     "set config.rollout.prompt_template, such as 'Problem: "
                     "{question}\\nSolution:'")
  messages = [{'role': 'user', 'content': slot}]
  if system_prompt:
    messages.insert(0, {'role': 'system', 'content': system_prompt})
  return fill(tokenizer, messages, {slot: question}, options)


def policy_prompts(tokenizer: Tokenizer, problems: Sequence[Problem],
                   config: Config) -> list[list[int]]:
  """Returns the token ids of the policy's prompts.

  Raises:
    InputError: a question does not fit; names the problem.
  """
  budget = config.rollout.max_prompt_tokens
  prompts = prompt_ids(tokenizer, problems, config)
  for problem, ids in zip(problems, prompts):
    if len(ids) > budget:
      raise InputError(f'problem {problem.id}: its prompt has {len(ids)} '
                       f'tokens, rollout.max_prompt_tokens={budget}')
  return prompts


def prompt_ids(tokenizer: Tokenizer, problems: Sequence[Problem],
               config: Config) -> list[list[int]]:
  """Returns the token ids of the policy's prompts, of any length."""
  before = tokenizer.bos_ids if config.rollout.prompt_template else ()
  texts = _policy_texts(tokenizer, problems, config)
  return [[*before, *ids] for ids in tokenizer.encode_pieces(texts)]


def policy_target(tokenizer: Tokenizer, problem: Problem, config: Config,
                  prompt: list[int]) -> list[int]:
  """Returns the tokens of a solution behind its prompt, without an end token.

  They are those of the joined text. Where that would merge the end of the
  prompt with the solution, the solution is encoded by itself.
  """
  (text,) = _policy_texts(tokenizer, [problem], config)
  (ids,) = tokenizer.encode_pieces([[*text, Piece(problem.solution, False)]])
  before = tokenizer.bos_ids if config.rollout.prompt_template else ()
  ids = [*before, *ids]
  if ids[:len(prompt)] == prompt:
    return ids[len(prompt):]
  return tokenizer.encode(problem.solution)


def _policy_texts(tokenizer: Tokenizer, problems: Sequence[Problem],
                  config: Config) -> list[list[Piece]]:
  cfg, by_name = config.rollout, by_domain(config, 'rollout.system_prompts')
  options = template_options(cfg.chat_template_options)
  return [
      policy_text(tokenizer, p.question, by_name.get(p.domain,
                                                     cfg.system_prompt),
                  options, cfg.prompt_template) for p in problems
  ]


def template_options(entries: Sequence[str]) -> dict[str, Any]:
  """Parses chat_template_options: ('enable_thinking=true', 'effort=high').

  Values are JSON, else text.

  Raises:
    InputError: an entry is not NAME=VALUE.
  """
  out: dict[str, Any] = {}
  for entry in entries:
    name, equals, value = entry.partition('=')
    if not (name.isidentifier() and equals):
      raise InputError(f'chat_template_options: {entry!r} should be NAME=VALUE')
    try:
      out[name] = json.loads(value)
    except ValueError:
      out[name] = value
  return out
