"""Tokenizers with their chat templates, offline and without torch.

Whole texts, such as prompts, are encoded at once (`encode_pieces`), with the
ids that the model was trained on. What continues a sequence of tokens, and the
parts of a sequence that is split, are texts to which nothing may be added and
from which nothing may be taken (`encode`, `decode`). Many sentencepiece models
put a blank before a text (the dummy prefix) and strip it when they decode; for
continuations that is switched off, also in tokenizer.json.
"""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import os
import re
from typing import Any

from etils import epath
import numpy as np

from exprl_jax.data import chat_template, forked_text
from exprl_jax.data.sentencepiece import SentencePiece
from exprl_jax.data.tokenizer_json import Piece, TokenizerJson
from exprl_jax.runtime import inputs
from exprl_jax.types import InputError, printable

# What a text becomes depends on them.
_FILES = ('tokenizer.json', 'tokenizer.model', 'tokenizer_config.json',
          'special_tokens_map.json', 'added_tokens.json',
          'generation_config.json', 'chat_template.jinja')

# Names of special tokens with which models end a turn.
_END_LIKE = re.compile(
    '</s>|[<[][|｜]?(eos|im_end|end([_▁]?of[_▁]?[a-z]+)?|eo[tms](_id)?|return)'
    r'[|｜]?[>\]]', re.IGNORECASE)


class Tokenizer:
  """A tokenizer (tokenizer.json, else tokenizer.model) with its chat template.

  Attributes:
    folder: where it was loaded from.
    eos_ids: tokens that end a turn: the tokenizer's eos_token, which comes
      first, those of generation_config.json, and `stop_ids`.
    bos_ids: tokens before a text that no chat template renders.
    pad_id: fills up arrays, behind a mask.
    vocab_size: ids are below it.
  """

  def __init__(self, folder: str | os.PathLike,
               stop_ids: Sequence[int] = ()) -> None:
    """Reads the tokenizer files of a model directory, local or gs://.

    Args:
      folder: of the model.
      stop_ids: further tokens that end a turn (rollout.stop_ids).

    Raises:
      InputError: there is no tokenizer, it has no EOS token, or a file is not
        what its name says.
    """
    self.folder = epath.Path(folder)
    config = _read_config(self.folder / 'tokenizer_config.json')
    special_map = _read_config(self.folder / 'special_tokens_map.json')
    named = _named(special_map) | _named(config)
    self._tokenizer = _load(self.folder, special_map | config,
                            {*named.values()})
    self._special = self._tokenizer.named | named
    self.vocab_size = self._tokenizer.vocab_size
    self.eos_ids = self._eos_ids(stop_ids)
    pad = self._tokenizer.token_to_id(self._special.get('pad_token', ''))
    self.pad_id = self.eos_ids[0] if pad is None else pad
    self.bos_ids = self._tokenizer.bos_ids(config)
    self._template = chat_template.read(self.folder, config, self._special)

  def digest(self) -> str:
    """Hashes the files that decide what a text becomes."""
    out = hashlib.blake2b(digest_size=16)
    for name in _FILES:
      path = self.folder / name
      out.update(path.read_bytes() if path.exists() else b'')
      out.update(name.encode())
    return out.hexdigest()

  def _eos_ids(self, stop_ids: Sequence[int]) -> tuple[int, ...]:
    token = self._special.get('eos_token')
    own = token and self._tokenizer.token_to_id(token)
    if token and own is None:
      raise InputError(f'{self.folder}: eos_token {token!r} is not in the '
                       'vocabulary')
    path = self.folder / 'generation_config.json'
    ids = _read_json(path).get('eos_token_id')
    ids = ids if isinstance(ids, list) else [ids]
    for i in ids:
      if i is not None and (type(i) is not int or not 0 <= i < self.vocab_size):
        raise InputError(f'{path}: eos_token_id={i!r} is not a token of the '
                         f'{self.vocab_size} in the vocabulary')
    found = [i for i in (own, *ids, *stop_ids) if i is not None]
    if not found:
      raise InputError(f'{self.folder}: no eos_token in tokenizer_config.json, '
                       'no eos_token_id in generation_config.json, and no '
                       'config.rollout.stop_ids')
    for i in stop_ids:
      if not 0 <= i < self.vocab_size:
        raise InputError(f'config.rollout.stop_ids: {i} is not a token of '
                         f'{self.folder}, which has {self.vocab_size}')
    return tuple(dict.fromkeys(found))

  def describe_ends(self) -> str:
    """The end tokens, to be read by a person."""
    return printable(', '.join(
        f'{self.decode([i], special=True)} ({i})' for i in self.eos_ids))

  def other_ends(self) -> dict[int, str]:
    """Special tokens that look like the end of a turn and are none here."""
    like = filter(_END_LIKE.fullmatch, self.special_tokens)
    found = {self._tokenizer.token_to_id(text): text for text in like}
    return {
        token: text
        for token, text in found.items()
        if token is not None and token not in self.eos_ids
    }

  @property
  def special_tokens(self) -> tuple[str, ...]:
    """Texts of the special tokens, in the order of their ids."""
    return self._tokenizer.special_tokens

  @property
  def separator(self) -> str:
    """What stands between the decoded texts of the parts of a sequence.

    '' but for tokenizers whose tokens are words, where it is a blank.
    """
    return self._tokenizer.separator

  @property
  def has_chat_template(self) -> bool:
    """Whether `render` has a template; base models often have none."""
    return self._template is not None

  def encode_pieces(self, texts: Sequence[Sequence[Piece]]) -> list[list[int]]:
    """Encodes texts, each given in pieces, in several threads.

    The ids are those of the joined text, as transformers encodes it with
    add_special_tokens=False, but special tokens in a piece that is not trusted
    are spelled out.
    """
    return self._tokenizer.encode_pieces(texts)

  def encode_forked(
      self, trees: Sequence[tuple[Sequence[Piece], Sequence[Sequence[Piece]]]]
  ) -> list[forked_text.Tree]:
    """Encodes texts that begin alike, each as `encode_pieces` would.

    Args:
      trees: (trunk, branches); branches are whole texts, given in pieces.
    """
    return self._tokenizer.encode_forked(trees)

  def encode(self, text: str, special: bool = False) -> list[int]:
    """Encodes the continuation of a text.

    Args:
      text: what to encode; nothing is added to it.
      special: whether '<|im_end|>' and the like become special tokens. False
        keeps them text, as untrusted text requires.
    """
    return self._tokenizer.encode(text, special)

  def decode(self, ids: Sequence[int] | np.ndarray,
             special: bool = False) -> str:
    """Decodes token ids, special tokens only if asked for."""
    return self._tokenizer.decode(list(map(int, ids)), special)

  def render(self, messages: Sequence[Mapping[str, str]],
             add_generation_prompt: bool = True,
             options: Mapping[str, Any] | None = None) -> str:
    """Renders a chat with the model's template.

    Without one, as a base model reads it: the messages as plain text, a blank
    line behind each.

    Args:
      messages: each with 'role' and 'content'.
      add_generation_prompt: whether to open the assistant's turn.
      options: variables of the template; by default enable_thinking is False.

    Raises:
      InputError: the template fails or refuses the messages.
    """
    if self._template is None:
      start = self.decode(self.bos_ids, special=True)
      return start + ''.join(m['content'] + '\n\n' for m in messages)
    return self._template.render(messages, add_generation_prompt,
                                 {'enable_thinking': False} |
                                 dict(options or {}))


def _load(folder: epath.Path, config: dict[str, Any],
          special: set[str]) -> TokenizerJson | SentencePiece:
  if (path := folder / 'tokenizer.json').exists():
    return TokenizerJson(path)
  if (path := folder / 'tokenizer.model').exists():
    more = config.get('additional_special_tokens') or ()
    added = _read_json(folder / 'added_tokens.json')
    if not all(type(i) is int and 0 <= i < 10**9 for i in added.values()):
      raise InputError(f'{folder}/added_tokens.json: want ids by text; copy it '
                       'again')
    return SentencePiece(path, special | {_text_of(t) for t in more}, added,
                         config.get('added_tokens_decoder') or {})
  raise InputError(f'{folder}: neither tokenizer.json nor tokenizer.model')


def _read_json(path: epath.Path) -> dict[str, Any]:
  """Reads a JSON object; {} if there is no such file."""
  return inputs.read_object(path) if path.exists() else {}


def _read_config(path: epath.Path) -> dict[str, Any]:
  """Reads tokenizer_config.json or special_tokens_map.json.

  Raises:
    InputError: what is read of it has another form; names file and key.
  """
  config = _read_json(path)
  for key, value in config.items():
    is_good = _FORMS.get(key, _is_role if key.endswith('_token') else None)
    if is_good and value is not None and not is_good(value):
      raise InputError(f'{path}: {key} is not as transformers writes it; copy '
                       'the file again')
  return config


def _is_token(value: Any) -> bool:
  return isinstance(value, str) or isinstance(value, dict) and isinstance(
      value.get('content'), str)


def _is_role(value: Any) -> bool:
  """Of 'eos_token' and the like, among which are switches: add_bos_token."""
  return isinstance(value, bool) or _is_token(value)


def _are_added(value: Any) -> bool:
  return isinstance(value, dict) and all(
      re.fullmatch('[0-9]{1,9}', i) and isinstance(t, dict) and _is_token(t)
      for i, t in value.items())


def _is_template(value: Any) -> bool:
  """A template, or several with names."""
  return isinstance(value, str) or isinstance(value, list) and all(
      isinstance(t, dict) and isinstance(t.get('name'), str)
      and isinstance(t.get('template'), str) for t in value)


# Keys of the files that something depends on.
_FORMS: Mapping[str, Callable[[Any], bool]] = {
    'additional_special_tokens': lambda x: isinstance(x, list) and all(
        map(_is_token, x)), 'added_tokens_decoder': _are_added,
    'chat_template': _is_template
}


def _text_of(token: str | dict[str, Any]) -> str:
  """The text of a token, which config files may wrap in an object."""
  return token['content'] if isinstance(token, dict) else token


def _named(config: dict[str, Any]) -> dict[str, str]:
  """Texts of the special tokens in each role: bos_token, eos_token, ..."""
  return {
      k: _text_of(v)
      for k, v in config.items()
      if k.endswith('_token') and v and isinstance(v, (str, dict))
  }
