"""Tokenizers and chat templates, offline and without torch.

Texts are encoded in pieces (template, question, steps of a trace) and the ids
glued, and ids are cut and the parts decoded. So nothing is added to a piece
and nothing taken from it: the blank that many sentencepiece models put before
a text (the dummy prefix) and strip from a decoded one is switched off, in
tokenizer.json, too. A text that should begin with a blank has to have it. In
sentencepiece's terms encode(' ' + text) is what it makes of `text`.
"""

from collections.abc import Sequence
import datetime
import itertools
import json
import os
import re

from etils import epath
import jinja2
import jinja2.ext
import jinja2.sandbox
import sentencepiece
import tokenizers

from exprl_jax.types import InputError

# Appended to a serialised ModelProto, protobuf merges it into its
# normalizer_spec: add_dummy_prefix = remove_extra_whitespaces = false.
_KEEP_BLANKS = b'\x1a\x04\x18\x00\x20\x00'


class Tokenizer:
  """A tokenizer (tokenizer.json, else tokenizer.model) with its chat template.

  Attributes:
    folder: where it was loaded from.
    eos_ids: tokens that end a turn (generation_config.json, else the
      tokenizer's eos_token), the tokenizer's own first.
    pad_id: fills up arrays; never looked at.
    vocab_size: ids are below it.
  """

  def __init__(self, folder: str | os.PathLike):
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
    """Token ids of a text.

    Args:
      text: what to encode; nothing is added to it.
      special: whether '<|im_end|>' and its like become special tokens. False
        disarms them, which is what untrusted text needs.
    """
    return self._tokenizer.encode(text, special)

  def decode(self, ids: Sequence[int], special: bool = False) -> str:
    """The text of token ids; special tokens are left out unless asked for."""
    return self._tokenizer.decode(list(map(int, ids)), special)

  def render(self, messages: Sequence[dict[str, str]],
             add_generation_prompt: bool = True) -> str:
    """A chat as the model's own template writes it, thinking switched off.

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
  """tokenizer.json."""

  named = {}

  def __init__(self, path: epath.Path):
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
    self.token_to_id = self._model.token_to_id
    added = self._model.get_added_tokens_decoder()
    self.special_tokens = tuple(
        t.content for _, t in sorted(added.items()) if t.special)

  def encode(self, text: str, special: bool) -> list[int]:
    self._model.encode_special_tokens = not special
    return self._model.encode(text, add_special_tokens=False).ids

  def decode(self, ids: list[int], special: bool) -> str:
    return self._model.decode(ids, skip_special_tokens=not special)


class _SentencePiece:
  """tokenizer.model, run by sentencepiece itself: its ids by construction.

  Around it is what Hugging Face adds: special tokens that text can name.
  """

  def __init__(self, path: epath.Path, config: dict, special: set[str]):
    try:
      self._model = model = sentencepiece.SentencePieceProcessor(
          model_proto=path.read_bytes() + _KEEP_BLANKS)
    except RuntimeError as e:
      raise InputError(f'{path}: not a sentencepiece model ({e})') from None
    self._size = model.get_piece_size()
    roles = {
        'bos_token': model.bos_id(), 'eos_token': model.eos_id(),
        'unk_token': model.unk_id(), 'pad_token': model.pad_id()
    }
    self.named = {k: model.id_to_piece(i) for k, i in roles.items() if i >= 0}
    reserved = {
        model.id_to_piece(i): i
        for i in range(self._size)
        if model.is_control(i) or model.is_unknown(i)
    }
    special = special | {
        _content(t) for t in config.get('additional_special_tokens') or ()
    }
    tokens = (config.get('added_tokens_decoder') or {}).items()
    added = {t['content']: int(i) for i, t in tokens}
    plain = {t['content'] for _, t in tokens if not t.get('special')} - special
    own = {t for t in plain if model.piece_to_id(t) == added[t]}
    plain -= own  # sentencepiece finds them
    self._ids = (reserved | {
        t: i for t in special if (i := model.piece_to_id(t)) != model.unk_id()
    } | _read_json(path.parent / 'added_tokens.json') |
                 {t: i for t, i in added.items() if t not in own})
    self._texts = {i: t for t, i in self._ids.items()}
    self._special = {i for t, i in self._ids.items() if t not in plain}
    self.special_tokens = tuple(self._texts[i] for i in sorted(self._special))
    self.vocab_size = max(self._size, *(i + 1 for i in self._texts))
    self.token_to_id = self._ids.get
    # Words that are not left to sentencepiece. It finds user-defined symbols in
    # any text; one that stands for a special token is disarmed by a cut.
    armed = {t: [i] for t, i in self._ids.items()}
    pieces = {model.id_to_piece(i): i for i in self._special if i < self._size}
    disarmed = {t: [self._ids[t]] for t in plain} | {
        t: model.encode(t[:1]) + model.encode(t[1:])
        for t, i in pieces.items()
        if model.encode(t) == [i]
    }
    self._words = disarmed, armed
    self._split = [
        re.compile(
            '|'.join(sorted(map(re.escape, words), key=len, reverse=True))
            or '(?!)') for words in self._words
    ]

  def encode(self, text: str, special: bool) -> list[int]:
    words, ids, start = self._words[special], [], 0
    for match in self._split[special].finditer(text):
      ids += self._model.encode(text[start:match.start()])
      ids += words[match.group()]
      start = match.end()
    return ids + self._model.encode(text[start:])

  def decode(self, ids: list[int], special: bool) -> str:
    ids = [
        i for i in ids if (special or i not in self._special) and (
            i < self._size or i in self._texts)
    ]
    return ''.join(
        ''.join(map(self._texts.get, run)
               ) if named else self._model.decode(list(run))
        for named, run in itertools.groupby(ids, self._texts.__contains__))


class _Generation(jinja2.ext.Extension):
  """{% generation %}: marks what an assistant wrote; here it just renders."""

  tags = {'generation'}

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    return jinja2.nodes.Scope(body, lineno=line)


def _load(folder: epath.Path, config: dict,
          special: set[str]) -> _Fast | _SentencePiece:
  if (path := folder / 'tokenizer.json').exists():
    return _Fast(path)
  if (path := folder / 'tokenizer.model').exists():
    return _SentencePiece(path, config, special)
  raise InputError(f'{folder}: neither tokenizer.json nor tokenizer.model')


def _keep_blanks(part: dict | None) -> dict | None:
  """A part of tokenizer.json that adds and strips no blanks at the ends."""
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


def _read_json(path: epath.Path) -> dict:
  try:
    return json.loads(path.read_bytes()) if path.exists() else {}
  except ValueError as e:
    raise InputError(f'{path}: not JSON ({e})') from None


def _named(config: dict) -> dict[str, str]:
  """bos_token, eos_token and so on."""
  return {
      k: _content(v)
      for k, v in config.items()
      if k.endswith('_token') and v and isinstance(v, (str, dict))
  }


def _content(token: str | dict) -> str:
  return token['content'] if isinstance(token, dict) else token


def _read_template(folder: epath.Path, config: dict) -> jinja2.Template | None:
  path = folder / 'chat_template.jinja'
  source = (path.read_text(
      encoding='utf-8') if path.exists() else config.get('chat_template'))
  if isinstance(source, list):  # several named templates
    source = {t['name']: t['template'] for t in source}.get('default')
  if source is None:
    return None

  def raise_exception(message):
    raise jinja2.TemplateError(message)

  def tojson(x, ensure_ascii=False, **kwargs):
    return json.dumps(x, ensure_ascii=ensure_ascii, **kwargs)

  env = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True,
      extensions=[jinja2.ext.loopcontrols, _Generation])
  env.filters['tojson'] = tojson
  env.globals['raise_exception'] = raise_exception
  env.globals['strftime_now'] = lambda f: datetime.datetime.now().strftime(f)
  try:
    return env.from_string(source)
  except jinja2.TemplateError as e:
    raise InputError(
        f'{folder}: the chat template is not Jinja ({e})') from None
