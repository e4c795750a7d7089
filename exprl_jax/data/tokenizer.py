"""Tokenizers and chat templates, offline and without torch.

Texts are encoded in pieces (template, question, steps of a trace) whose ids are
joined, and ids are split and the parts decoded. So nothing may be added to a
piece or taken from it. Many sentencepiece models put a blank before a text (the
dummy prefix) and strip it when they decode; that is switched off, also in
tokenizer.json. A text that should begin with a blank has to have one: what
sentencepiece makes of `text` is encode(' ' + text) here.
"""

from collections.abc import Sequence
import datetime
import hashlib
import json
import os
from typing import Any

from etils import epath
import jinja2
import jinja2.ext
import jinja2.parser
import jinja2.sandbox
import numpy as np
import tokenizers

from exprl_jax.data.sentencepiece import SentencePiece
from exprl_jax.types import InputError

# What a text becomes depends on them.
_FILES = ('tokenizer.json', 'tokenizer.model', 'tokenizer_config.json',
          'special_tokens_map.json', 'added_tokens.json',
          'generation_config.json', 'chat_template.jinja')


class Tokenizer:
  """A tokenizer (tokenizer.json, else tokenizer.model) with its chat template.

  Attributes:
    folder: where it was loaded from.
    eos_ids: tokens that end a turn: those of generation_config.json, else the
      tokenizer's eos_token, which comes first in any case.
    pad_id: fills up arrays, behind a mask.
    vocab_size: ids are below it.
  """

  def __init__(self, folder: str | os.PathLike) -> None:
    """Reads the tokenizer files of a model directory, local or gs://.

    Raises:
      InputError: there is no tokenizer, it has no EOS token, or a file is not
        what its name says.
    """
    self.folder = epath.Path(folder)
    config = _read_json(self.folder / 'tokenizer_config.json')
    special_map = _read_json(self.folder / 'special_tokens_map.json')
    named = _named(special_map) | _named(config)
    self._tokenizer = _load(self.folder, special_map | config,
                            {*named.values()})
    self._special = self._tokenizer.named | named
    self.vocab_size = self._tokenizer.vocab_size
    self.eos_ids = self._eos_ids()
    pad = self._tokenizer.token_to_id(self._special.get('pad_token', ''))
    self.pad_id = self.eos_ids[0] if pad is None else pad
    self._template = _read_template(self.folder, config)

  def digest(self) -> str:
    """Hashes the files that decide what a text becomes."""
    out = hashlib.blake2b(digest_size=16)
    for name in _FILES:
      path = self.folder / name
      out.update(path.read_bytes() if path.exists() else b'')
      out.update(name.encode())
    return out.hexdigest()

  def _eos_ids(self) -> tuple[int, ...]:
    token = self._special.get('eos_token')
    own = token and self._tokenizer.token_to_id(token)
    if token and own is None:
      raise InputError(f'{self.folder}: eos_token {token!r} is not in the '
                       'vocabulary')
    generation = _read_json(self.folder / 'generation_config.json')
    ids = generation.get('eos_token_id')
    ids = ids if isinstance(ids, list) else [own if ids is None else ids]
    if ids in ([], [None]):
      raise InputError(f'{self.folder}: no eos_token in tokenizer_config.json '
                       'and no eos_token_id in generation_config.json')
    return tuple(sorted(ids, key=lambda i: i != own))

  @property
  def special_tokens(self) -> tuple[str, ...]:
    """Texts of the special tokens, in the order of their ids."""
    return self._tokenizer.special_tokens

  def encode(self, text: str, special: bool = False) -> list[int]:
    """Encodes a text.

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

  def render(self, messages: Sequence[dict[str, str]],
             add_generation_prompt: bool = True) -> str:
    """Renders a chat with the model's template, with thinking switched off.

    Args:
      messages: each with 'role' and 'content'.
      add_generation_prompt: whether the assistant's turn is opened.

    Raises:
      InputError: the model has no chat template, or it refuses the messages
        (some know no system role).
    """
    if self._template is None:
      raise InputError(f'{self.folder}: no chat template (chat_template.jinja '
                       'or tokenizer_config.json)')
    try:
      return self._template.render(messages=list(messages), tools=None,
                                   documents=None,
                                   add_generation_prompt=add_generation_prompt,
                                   enable_thinking=False, **self._special)
    except jinja2.TemplateError as e:
      roles = ', '.join(m['role'] for m in messages)
      raise InputError(f'{self.folder}: the chat template refuses the messages '
                       f'({roles}): {e}') from None


class _Fast:
  """tokenizer.json, run by the tokenizers library.

  Attributes:
    named: no texts of special tokens; other files name them.
    special_tokens: texts of the special tokens, by id.
    vocab_size: ids are below it.
  """

  def __init__(self, path: epath.Path) -> None:
    self.named: dict[str, str] = {}
    spec = _read_json(path)
    try:
      for part in ('normalizer', 'pre_tokenizer', 'decoder'):
        spec[part] = _keep_blanks(spec.get(part))
      self._model = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as e:  # the library raises bare Exception
      raise InputError(f'{path}: not a tokenizer ({e})') from None
    self._model.no_truncation()
    self._model.no_padding()
    self.vocab_size = max(self._model.get_vocab().values()) + 1
    added = self._model.get_added_tokens_decoder()
    self.special_tokens = tuple(
        t.content for _, t in sorted(added.items()) if t.special)

  def token_to_id(self, token: str) -> int | None:
    return self._model.token_to_id(token)

  def encode(self, text: str, special: bool) -> list[int]:
    self._model.encode_special_tokens = not special
    return self._model.encode(text, add_special_tokens=False).ids

  def decode(self, ids: list[int], special: bool) -> str:
    return self._model.decode(ids, skip_special_tokens=not special)


class _Generation(jinja2.ext.Extension):
  """Renders {% generation %}, which marks an assistant's turns, as it is."""

  tags = {'generation'}

  def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    return jinja2.nodes.Scope(body, lineno=line)


def _load(folder: epath.Path, config: dict[str, Any],
          special: set[str]) -> _Fast | SentencePiece:
  if (path := folder / 'tokenizer.json').exists():
    return _Fast(path)
  if (path := folder / 'tokenizer.model').exists():
    more = config.get('additional_special_tokens') or ()
    return SentencePiece(path, special | {_text_of(t) for t in more},
                         _read_json(folder / 'added_tokens.json'),
                         config.get('added_tokens_decoder') or {})
  raise InputError(f'{folder}: neither tokenizer.json nor tokenizer.model')


def _keep_blanks(part: dict[str, Any] | None) -> dict[str, Any] | None:
  """Changes a part of tokenizer.json so that it keeps blanks at the ends."""
  if part is None or part['type'] in ('Prepend', 'Strip'):
    return None
  part = dict(part)
  for name in ('normalizers', 'pretokenizers', 'decoders'):
    if name in part:
      part[name] = [p for p in map(_keep_blanks, part[name]) if p]
  if part['type'] == 'Metaspace':
    part['prepend_scheme'] = 'never'
  if 'add_prefix_space' in part:
    part['add_prefix_space'] = False
  return part


def _read_json(path: epath.Path) -> dict[str, Any]:
  """Reads a JSON object; {} if there is no such file."""
  try:
    return json.loads(path.read_bytes()) if path.exists() else {}
  except ValueError as e:
    raise InputError(f'{path}: not JSON ({e})') from None


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


def _read_template(folder: epath.Path,
                   config: dict[str, Any]) -> jinja2.Template | None:
  """Reads the chat template of a model; None: it has none."""
  path = folder / 'chat_template.jinja'
  source = (path.read_text(
      encoding='utf-8') if path.exists() else config.get('chat_template'))
  if isinstance(source, list):  # several templates with names
    source = {t['name']: t['template'] for t in source}.get('default')
  if source is None:
    return None
  try:
    return _environment().from_string(source)
  except jinja2.TemplateError as e:
    raise InputError(
        f'{folder}: the chat template is not Jinja ({e})') from None


def _environment() -> jinja2.Environment:
  """The functions and settings that chat templates are written for."""

  def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

  def tojson(x: Any, ensure_ascii: bool = False, **kwargs: Any) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, **kwargs)

  env = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True,
      extensions=[jinja2.ext.loopcontrols, _Generation])
  env.filters['tojson'] = tojson
  env.globals['raise_exception'] = raise_exception
  env.globals['strftime_now'] = lambda f: datetime.datetime.now().strftime(f)
  return env
