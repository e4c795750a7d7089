"""Hugging Face tokenizers and chat templates, offline and without torch."""

from collections.abc import Sequence
import datetime
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers

from exprl_jax.types import InputError


class Tokenizer:
  """A fast tokenizer with its chat template.

  Attributes:
    folder: where it was loaded from.
    eos_ids: tokens that end a turn (generation_config.json, else the
      tokenizer's eos_token).
    pad_id: fills up arrays; never looked at.
  """

  def __init__(self, folder: str | pathlib.Path):
    """Reads the tokenizer files of a model directory.

    Raises:
      InputError: there is no tokenizer, or it has no EOS token.
    """
    self.folder = pathlib.Path(folder)
    self._tokenizer = _load(self.folder)
    config = _read_json(self.folder / 'tokenizer_config.json')
    self._special = {k: _content(v) for k, v in config.items()
                     if k.endswith('_token') and v}
    generation = _read_json(self.folder / 'generation_config.json')
    eos = generation.get('eos_token_id')
    if eos is None:
      eos = self._tokenizer.token_to_id(self._special.get('eos_token', ''))
    if eos is None:
      raise InputError(f'{folder}: no eos_token in tokenizer_config.json and '
                       'no eos_token_id in generation_config.json')
    self.eos_ids = tuple(eos) if isinstance(eos, list) else (eos,)
    pad = self._tokenizer.token_to_id(self._special.get('pad_token', ''))
    self.pad_id = self.eos_ids[0] if pad is None else pad
    self.vocab_size = self._tokenizer.get_vocab_size()
    self._template = _read_template(self.folder, config)

  def encode(self, text: str, special: bool = False) -> list[int]:
    """Token ids of a text.

    Args:
      text: what to encode; nothing is added to it.
      special: whether '<|im_end|>' and its like become special tokens. False
        disarms them, which is what untrusted text needs.
    """
    self._tokenizer.encode_special_tokens = not special
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int], special: bool = False) -> str:
    """The text of token ids; special tokens are left out unless asked for."""
    return self._tokenizer.decode(list(map(int, ids)),
                                  skip_special_tokens=not special)

  def render(self, messages: Sequence[dict[str, str]],
             add_generation_prompt: bool = True) -> str:
    """A chat as the model's own template writes it, thinking switched off.

    Raises:
      InputError: the model has no chat template.
    """
    if self._template is None:
      raise InputError(f'{self.folder}: no chat template (chat_template.jinja '
                       'or tokenizer_config.json)')
    return self._template.render(
        messages=list(messages), add_generation_prompt=add_generation_prompt,
        enable_thinking=False, **self._special)


def _load(folder: pathlib.Path) -> tokenizers.Tokenizer:
  path = folder / 'tokenizer.json'
  if path.exists():
    try:
      return tokenizers.Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises bare Exception
      raise InputError(f'{path}: not a tokenizer ({e})') from None
  if not (folder / 'tokenizer.model').exists():
    raise InputError(f'{folder}: neither tokenizer.json nor tokenizer.model')
  # Only for sentencepiece models: transformers converts them to a fast
  # tokenizer. It is slow to import, and it imports torch where there is one.
  import transformers  # pylint: disable=g-import-not-at-top
  return transformers.AutoTokenizer.from_pretrained(
      folder, local_files_only=True).backend_tokenizer


def _read_json(path: pathlib.Path) -> dict:
  return json.loads(path.read_text()) if path.exists() else {}


def _content(token) -> str:
  return token['content'] if isinstance(token, dict) else token


def _read_template(folder: pathlib.Path, config: dict):
  path = folder / 'chat_template.jinja'
  source = path.read_text() if path.exists() else config.get('chat_template')
  if source is None:
    return None
  if isinstance(source, list):  # several named templates
    source = {t['name']: t['template'] for t in source}['default']

  def raise_exception(message):
    raise InputError(f'{folder}: the chat template says: {message}')

  env = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True,
      extensions=[jinja2.ext.loopcontrols])
  env.filters['tojson'] = lambda x, **kw: json.dumps(
      x, ensure_ascii=False, **kw)
  env.globals['raise_exception'] = raise_exception
  env.globals['strftime_now'] = datetime.datetime.now().strftime
  return env.from_string(source)
