"""Texts that begin alike have the tokens that each has as a whole."""

import random

import pytest
import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

from exprl_jax.data import forked_text
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.data.tokenizer_json import Piece
from tests.conftest import make_bpe
from tests.test_prompts import VOCABULARIES, _converted

VOCABULARIES = VOCABULARIES | {
    'mistral-v1 converted': lambda f: _converted(f, 'tokenizer.model.v1')
}
# Of such parts texts are drawn: words, numbers, blanks, marks that combine with
# what precedes them, special tokens.
PARTS = [
    'the ', 'sum', ' of', ' terms', '\n', '\n\n', ' ', '   ', '\t', '12', '345',
    '6789012', '$x_{1}^2$', '\\frac{1}{2}', '.', ', ', 'e\u0301', '\u0301',
    '\u65e5\u672c', '\U0001f600', '\U0001f469\u200d\U0001f52c', "n't", '\xe9',
    '=' * 40, '\xa0', '<s>', '[INST]', '\u01c5', '\u0663'
]


@pytest.fixture(scope='module')
def tokenizer_of(tmp_path_factory):
  made = {}

  def tokenizer(vocabulary):
    if vocabulary not in made:
      folder = tmp_path_factory.mktemp('vocabulary')
      VOCABULARIES[vocabulary](folder)
      made[vocabulary] = Tokenizer(folder)
    return made[vocabulary]

  return tokenizer


def draw_text(rng, most):
  return ''.join(rng.choice(PARTS) for _ in range(rng.randrange(most)))


def draw_tree(rng, tokenizer):
  """A trunk, and branches that leave it anywhere, also inside of a word."""
  special = tokenizer.special_tokens[:1]
  head = Piece(''.join(special) + draw_text(rng, 8))
  trunk = draw_text(rng, 300)
  branches = []
  for _ in range(8):
    text = Piece(trunk[:rng.randint(0, len(trunk))], False)
    branches.append([head, text, Piece(draw_text(rng, 12) + ''.join(special))])
  return [head, Piece(trunk, False)], branches


@pytest.mark.parametrize('vocabulary', VOCABULARIES)
def test_forked_texts_have_the_tokens_of_whole_ones(tokenizer_of, vocabulary):
  tokenizer, rng = tokenizer_of(vocabulary), random.Random(0)
  trees = [draw_tree(rng, tokenizer) for _ in range(25)]
  for (trunk, branches), got in zip(trees, tokenizer.encode_forked(trees)):
    want, *others = tokenizer.encode_pieces([trunk, *branches])
    assert got.ids == want
    for branch, ids in zip(got.branches, others):
      assert want[:branch.at] + branch.ids == ids
      assert branch.at == forked_text.common(want, ids)


SPLITS = {
    'metaspace': (None, pre_tokenizers.Metaspace(prepend_scheme='first')),
    'bert': (normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()),
    'accents': (normalizers.Sequence(
        [normalizers.NFD(),
         normalizers.StripAccents()]), pre_tokenizers.ByteLevel()),
    'looks_back': (None,
                   pre_tokenizers.Split(
                       Regex(r'(?<=[a-z])(?=[^a-z])|(?<=\d)\s'), 'isolated')),
    'from_the_right': (None,
                       pre_tokenizers.Split(Regex(r'\d{1,3}(?=(?:\d{3})*\b)'),
                                            'isolated'))
}


@pytest.mark.parametrize('split', SPLITS)
def test_any_way_to_split_texts(split):
  """Also those that look far ahead, or behind: such a window is refused."""
  rng, parts = random.Random(1), [*PARTS, '1234567890' * 4]
  draw = lambda most: ''.join(
      rng.choice(parts) for _ in range(rng.randrange(most)))
  model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token='<s>'))
  normalizer, model.pre_tokenizer = SPLITS[split]
  if normalizer:
    model.normalizer = normalizer
  model.train_from_iterator([draw(60) for _ in range(200)],
                            tokenizers.trainers.BpeTrainer(
                                vocab_size=300, special_tokens=['<s>'],
                                show_progress=False))
  trees = []
  for _ in range(60):
    trunk = draw(200)
    ends = [rng.randint(0, len(trunk)) for _ in range(6)]
    trees.append((trunk, [trunk[:end] + draw(12) for end in ends]))
  for (_, branches), got in zip(trees,
                                forked_text.encode(trees, model.encode_batch)):
    for branch, text in zip(got.branches, branches):
      assert got.ids[:branch.at] + branch.ids == model.encode(text).ids


def test_little_is_encoded_twice(tmp_path):
  """Ten questions about a trace: its length and a little for each of them."""
  make_bpe(tmp_path, ['h e', 't he', 'Ġ the'])
  model, _, _ = Tokenizer(tmp_path)._tokenizer._guarded
  encoded = []

  def encode(texts):
    encoded.extend(map(len, texts))
    return model.encode_batch(texts, add_special_tokens=False)

  trunk = 'the sum of the terms is then 12.\n\n' * 200
  ends = range(len(trunk) // 10, len(trunk) + 1, len(trunk) // 10)
  questions = [trunk[:end] + 'Score: 1' for end in ends]
  forked_text.encode([(trunk, questions)], encode)
  assert sum(encoded) < len(trunk) + len(questions) * 200


def test_a_window_that_differs_is_not_used(tmp_path):
  """A normalizer that looks back from the end of a text: the whole counts."""
  make_bpe(tmp_path, ['h e'])
  model, _, _ = Tokenizer(tmp_path)._tokenizer._guarded
  trunk = ' '.join('he' for _ in range(50))

  def encode(texts):
    # Long texts are in capitals: words of a window are not those of the trunk.
    return model.encode_batch([t.upper() if len(t) > 100 else t for t in texts],
                              add_special_tokens=False)

  (tree,) = forked_text.encode([(trunk, [trunk + ' or not'])], encode)
  (branch,) = tree.branches
  want = encode([trunk + ' or not'])[0].ids
  assert tree.ids[:branch.at] + branch.ids == want


@pytest.mark.parametrize('a, b, count', [('', 'a', 0), ('ab', 'ab', 2),
                                         ('abc', 'abd', 2), ([1, 2], [2], 0),
                                         ([1, 2, 3], [1, 2, 3, 4], 3)])
def test_common(a, b, count):
  assert forked_text.common(a, b) == forked_text.common(b, a) == count
