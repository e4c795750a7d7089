"""A tokenizer.model, run by the sentencepiece library itself."""

from collections.abc import Mapping, Sequence
import itertools
import re
from typing import Any

from etils import epath
import sentencepiece

from exprl_jax.data import forked_text
from exprl_jax.data.tokenizer_json import Piece
from exprl_jax.runtime import inputs
from exprl_jax.types import InputError

# Appended to a serialized ModelProto, protobuf merges it into its
# normalizer_spec: add_dummy_prefix = remove_extra_whitespaces = false.
_KEEP_BLANKS = b'\x1a\x04\x18\x00\x20\x00'
# Role of a special token -> the method that tells its id, or -1.
_ROLES = {
    'bos_token': 'bos_id', 'eos_token': 'eos_id', 'unk_token': 'unk_id',
    'pad_token': 'pad_id'
}


class SentencePiece:
  """tokenizer.model, with the ids that sentencepiece gives.

  Around it is what Hugging Face adds: special tokens that text can name, and
  added tokens, which are no pieces of the model.

  Attributes:
    named: text of the special token in each role, such as 'eos_token'.
    special_tokens: texts of the special tokens, by id.
    vocab_size: ids are below it.
    separator: '': decoded parts of a sequence join to its text.
  """

  separator = ''

  def __init__(self, path: epath.Path, special: set[str],
               added_ids: Mapping[str, int],
               decoder: Mapping[str, dict[str, Any]]) -> None:
    """Reads a model.

    Args:
      path: tokenizer.model.
      special: texts of the special tokens that config files name.
      added_ids: added_tokens.json, ids by text.
      decoder: added_tokens_decoder of tokenizer_config.json, tokens by id.

    Raises:
      InputError: it is not a sentencepiece model.
    """
    # 1. The model, and the tokens it has roles for.
    self._model = _load(path, _KEEP_BLANKS)
    # Whether a text begins with a blank that is not in it (the dummy prefix).
    self._prefix = ' ' * (_load(path).encode('a') != self._model.encode('a'))
    self._num_pieces = self._model.get_piece_size()
    ids = {k: getattr(self._model, method)() for k, method in _ROLES.items()}
    self.named = {
        k: self._model.id_to_piece(i) for k, i in ids.items() if i >= 0
    }
    # 2. Ids by text of what is not left to sentencepiece; `plain` tokens among
    # them are words like others, all else is special.
    self._ids, plain = self._find_ids(special, added_ids, decoder)
    self._texts = {i: t for t, i in self._ids.items()}
    self._special = {i for t, i in self._ids.items() if t not in plain}
    self.special_tokens = tuple(self._texts[i] for i in sorted(self._special))
    self.vocab_size = max(self._num_pieces, *(i + 1 for i in self._texts))
    # 3. Their encodings, and patterns that find them: special tokens as what
    # they are, or disarmed.
    self._words = self._disarmed(plain), {t: [i] for t, i in self._ids.items()}
    self._patterns = [_any_of(words) for words in self._words]

  def _find_ids(
      self, special: set[str], added_ids: Mapping[str, int],
      decoder: Mapping[str, dict[str, Any]]) -> tuple[dict[str, int], set[str]]:
    """Ids of special and added tokens, and the texts of those not special."""
    model = self._model
    reserved = {
        model.id_to_piece(i): i
        for i in range(self._num_pieces)
        if model.is_control(i) or model.is_unknown(i)
    }
    added = {t['content']: int(i) for i, t in decoder.items()}
    plain = {t['content'] for t in decoder.values() if not t.get('special')}
    plain -= special
    pieces = {t for t in plain if model.piece_to_id(t) == added[t]}
    ids = reserved | {
        t: i for t in special if (i := model.piece_to_id(t)) != model.unk_id()
    }
    ids |= added_ids
    ids |= {t: i for t, i in added.items() if t not in pieces}
    return ids, plain - pieces  # sentencepiece finds pieces itself

  def _disarmed(self, plain: set[str]) -> dict[str, list[int]]:
    """Encodings of words in text whose special tokens are to be text.

    Sentencepiece finds user-defined symbols in any text. One that stands for a
    special token is disarmed: encoded in two parts.
    """
    model = self._model
    pieces = {
        model.id_to_piece(i): i for i in self._special if i < self._num_pieces
    }
    return {t: [self._ids[t]] for t in plain} | {
        t: model.encode(t[:1]) + model.encode(t[1:])
        for t, i in pieces.items()
        if model.encode(t) == [i]
    }

  def token_to_id(self, token: str) -> int | None:
    """The id of a special or added token; None: there is no such token."""
    return self._ids.get(token)

  def bos_ids(self, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns BOS if the model begins texts with it, as Llama and Gemma do."""
    bos = self.token_to_id(self.named.get('bos_token', ''))
    adds = config.get('add_bos_token', True)
    return () if bos is None or not adds else (bos,)

  def encode(self, text: str, special: bool) -> list[int]:
    """Token ids; see Tokenizer.encode."""
    words, ids, start = self._words[special], [], 0
    for match in self._patterns[special].finditer(text):
      ids += self._model.encode(text[start:match.start()])
      ids += words[match.group()]
      start = match.end()
    return ids + self._model.encode(text[start:])

  def encode_pieces(self, texts: Sequence[Sequence[Piece]]) -> list[list[int]]:
    """Token ids of whole texts; see Tokenizer.encode_pieces."""
    return [self._encode_text(pieces) for pieces in texts]

  def encode_forked(
      self, trees: Sequence[tuple[Sequence[Piece], Sequence[Sequence[Piece]]]]
  ) -> list[forked_text.Tree]:
    """Encodes whole texts; see Tokenizer.encode_forked."""
    return [
        forked_text.tree(self._encode_text(trunk),
                         [self._encode_text(pieces)
                          for pieces in branches])
        for trunk, branches in trees
    ]

  def _encode_text(self, pieces: Sequence[Piece]) -> list[int]:
    # 1. Runs of text between special tokens, which only trusted pieces have.
    runs: list[str] = ['']
    between: list[list[int]] = []
    words, pattern = self._words[True], self._patterns[True]
    for text, trusted in pieces:
      start = 0
      for match in pattern.finditer(text) if trusted else ():
        runs[-1] += text[start:match.start()]
        between.append(words[match.group()])
        runs.append('')
        start = match.end()
      runs[-1] += text[start:]
    # 2. The blank before a text, unless it begins with a special token.
    if runs[0]:
      runs[0] = self._prefix + runs[0]
    # 3. Each run at once, with special tokens disarmed.
    ids = self.encode(runs[0], special=False)
    for word, run in zip(between, runs[1:]):
      ids += word + self.encode(run, special=False)
    return ids

  def decode(self, ids: Sequence[int], special: bool) -> str:
    """The text; see Tokenizer.decode. Ids that do not exist are left out."""
    known = [
        i for i in ids if (special or i not in self._special) and (
            i < self._num_pieces or i in self._texts)
    ]
    parts = []
    for is_added, run in itertools.groupby(known, self._texts.__contains__):
      if is_added:
        parts += [self._texts[i] for i in run]
      else:
        parts.append(self._model.decode(list(run)))
    return ''.join(parts)


def _load(path: epath.Path,
          settings: bytes = b'') -> sentencepiece.SentencePieceProcessor:
  data = inputs.read_bytes(path) + settings
  try:
    return sentencepiece.SentencePieceProcessor(model_proto=data)
  except RuntimeError as e:
    raise InputError(f'{path}: not a sentencepiece model ({e})') from None


def _any_of(words: Mapping[str, list[int]]) -> re.Pattern[str]:
  """Matches any of the words, the longest first; nothing if there is none."""
  longest_first = sorted(map(re.escape, words), key=len, reverse=True)
  return re.compile('|'.join(longest_first) or '(?!)')
