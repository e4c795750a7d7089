"""A tokenizer.json, run by the tokenizers library."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import functools
import json
import re
import secrets
from typing import Any, NamedTuple

from etils import epath
import tokenizers

from exprl_jax.data import forked_text
from exprl_jax.runtime import inputs
from exprl_jax.types import InputError


class Piece(NamedTuple):
  """A part of a text that is encoded as one."""

  text: str
  trusted: bool = True  # '<|im_end|>' and the like in it are special tokens


@contextlib.contextmanager
def _library(path: epath.Path) -> Iterator[None]:
  """Within it the library runs; what it objects to is the file's fault."""
  try:
    yield
  except (KeyboardInterrupt, SystemExit):
    raise
  # It raises bare Exception; its panics are not even that.
  except BaseException as e:  # pylint: disable=broad-exception-caught
    raise InputError(f'{path}: not a tokenizer ({e})') from None


class TokenizerJson:
  """tokenizer.json, with the ids that the library gives.

  Attributes:
    named: no texts of special tokens; other files name them.
    special_tokens: texts of the special tokens, by id.
    vocab_size: ids are below it.
    separator: between the decoded texts of parts of a token sequence: a blank
      if tokens are words.
  """

  def __init__(self, path: epath.Path) -> None:
    """Reads the file.

    Raises:
      InputError: it is not a tokenizer.
    """
    self.named: dict[str, str] = {}
    self._path = path
    self._model = self._load(keep_blanks=True)
    self.vocab_size = max(self._model.get_vocab().values(), default=-1) + 1
    if not 0 < self.vocab_size < 2**24:
      raise InputError(f'{path}: not a tokenizer (ids up to {self.vocab_size})')
    added = self._model.get_added_tokens_decoder()
    self._added = [t for _, t in sorted(added.items()) if t.special]
    self.special_tokens = tuple(t.content for t in self._added)
    self.separator = ' ' if self._model.decoder is None else ''

  def _load(self, keep_blanks: bool) -> tokenizers.Tokenizer:
    spec = inputs.read_object(self._path)
    with _library(self._path):
      if keep_blanks:
        for part in ('normalizer', 'pre_tokenizer', 'decoder'):
          spec[part] = _keep_blanks(spec.get(part))
      model = tokenizers.Tokenizer.from_str(json.dumps(spec))
    model.no_truncation()
    model.no_padding()
    return model

  def token_to_id(self, token: str) -> int | None:
    """Returns the id of a token; None: there is no such token."""
    return self._model.token_to_id(token)

  def bos_ids(self, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns what the file's post-processor puts before a text."""
    del config  # tokenizer.json has it
    with _library(self._path):
      ids = self._model.encode('a', add_special_tokens=True).ids
      plain = self._model.encode('a', add_special_tokens=False).ids
      return tuple(ids[:ids.index(plain[0])] if plain else ())

  def encode(self, text: str, special: bool) -> list[int]:
    """Encodes a continuation; see Tokenizer.encode."""
    self._model.encode_special_tokens = not special
    return self._model.encode(text, add_special_tokens=False).ids

  def encode_pieces(self, texts: Sequence[Sequence[Piece]]) -> list[list[int]]:
    """Encodes whole texts; see Tokenizer.encode_pieces."""
    model, _, ids = self._guarded
    joined = list(map(self._join, texts))
    return [[ids.get(i, i)
             for i in encoding.ids]
            for encoding in model.encode_batch(joined, add_special_tokens=False)
           ]

  def encode_forked(
      self, trees: Sequence[tuple[Sequence[Piece], Sequence[Sequence[Piece]]]]
  ) -> list[forked_text.Tree]:
    """Encodes whole texts that begin alike; see Tokenizer.encode_forked."""
    model, _, ids = self._guarded
    encode = functools.partial(model.encode_batch, add_special_tokens=False)
    texts = [(self._join(trunk), list(map(self._join, branches)))
             for trunk, branches in trees]
    return [
        forked_text.Tree([ids.get(i, i)
                          for i in tree.ids], [
                              b._replace(ids=[ids.get(i, i)
                                              for i in b.ids])
                              for b in tree.branches
                          ])
        for tree in forked_text.encode(texts, encode)
    ]

  def _join(self, pieces: Sequence[Piece]) -> str:
    """The text of pieces, special tokens of trusted ones renamed."""
    _, guard, _ = self._guarded
    return ''.join(guard(p.text) if p.trusted else p.text for p in pieces)

  @functools.cached_property
  def _guarded(self) -> tuple[tokenizers.Tokenizer, Any, dict[int, int]]:
    """The tokenizer as it is, but for special tokens.

    They are encoded as text, so that untrusted text cannot contain one. For
    each there is an added token that does the same, under a name that no text
    can know.

    Returns:
      The tokenizer; the function that renames special tokens in a trusted text;
      and the ids that replace those of the added tokens.
    """
    model, nonce = self._load(keep_blanks=False), secrets.token_hex(8)
    names: dict[str, str] = {}
    ids: dict[int, int] = {}
    for i, token in enumerate(self._added):
      name = names[token.content] = f'\ue000{nonce}.{i}\ue001'
      model.add_tokens([
          tokenizers.AddedToken(name, single_word=token.single_word,
                                lstrip=token.lstrip, rstrip=token.rstrip,
                                normalized=token.normalized, special=False)
      ])
      ids[_id_of(model, name)] = _id_of(model, token.content)
    model.encode_special_tokens = True
    longest_first = sorted(map(re.escape, names), key=len, reverse=True)
    pattern = re.compile('|'.join(longest_first) or '(?!)')
    return model, lambda text: pattern.sub(lambda m: names[m[0]], text), ids

  def decode(self, ids: list[int], special: bool) -> str:
    """Decodes; see Tokenizer.decode."""
    return self._model.decode(ids, skip_special_tokens=not special)


def _id_of(model: tokenizers.Tokenizer, token: str) -> int:
  """Returns the id of a token that exists."""
  found = model.token_to_id(token)
  assert found is not None, token
  return found


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
