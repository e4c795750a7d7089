"""Where traces are cut. Every random draw is Hypothesis's, derandomized."""

import functools
import itertools
import time

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from exprl_jax.data.steps import Segmenter
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.types import InputError
from tests.conftest import JUDGE, make_bpe

# Byte-level names: 'Ċ' is a line feed, 'Ġ' a blank. The last two are glued as
# no pre-tokenizer of today would; the rules have to live with them.
MERGES = [
    'Ċ Ċ', '. ĊĊ', '. Ċ', 'Ġ Ġ', 'Ġ b', '# #', '## ##', '## #', 'Ġ ###',
    '### ĊĊ', '* *', 'S t', 'St e', 'Ste p', 'Ġ 2', 'Ċ 2', 'ĊĊ b'
]
DELIMITERS = ['', 'blank_line', 'numbered', 'every:1', 'every:3', '###']


@pytest.fixture(scope='module')
def bpe(tmp_path_factory):
  """A byte-level BPE tokenizer with the merges above and an '<eos>'."""
  return make_bpe(tmp_path_factory.mktemp('bpe'), MERGES, '<eos>')


@pytest.fixture(scope='module')
def words():
  return Tokenizer(JUDGE)


@functools.cache
def named(tokenizer):
  """The ids of tokens by their text."""
  return {tokenizer.decode([i]): i for i in range(tokenizer.vocab_size)}


def cut(tokenizer, ids, delimiter, max_steps=99, min_tokens=1):
  """The texts of the steps."""
  return Segmenter(tokenizer, delimiter, max_steps, min_tokens).texts(ids)


@pytest.mark.parametrize(
    'delimiter, steps',
    [
        ('', ['a\n\n### 1. b']),
        ('', ['\n']),
        ('blank_line', ['a.\n\n', 'b']),  # glued to the full stop
        ('blank_line', ['a\n \t\n', 'b']),  # blanks between the line feeds
        ('blank_line', ['a\r\n\r\n', 'b']),
        ('blank_line', ['a\n\n\n\n', 'b\nc'
                       ]),  # one blank line is as good as four
        ('blank_line', ['a\n\n  ', ' b'
                       ]),  # ' b' is a token: its blank comes along
        ('blank_line', ['\n\na.\n\n', 'b\n\n']),  # at the ends there is no step
        ('blank_line', ['\n\n']),
        ('blank_line', ['é\n\n', '→ ü']),  # tokens that are no characters
        ('numbered', ['1. a\n', '2. b\n', '10) c']),
        ('numbered', ['a:\n\n', '1. b\n  ', '2. c'
                     ]),  # indented, after a preamble
        ('numbered', ['Step 1: a\n', 'step 2 b\n', 'STEP 3. c\n', 'Step 4\nd']),
        ('numbered',
         ['**Step 1** a\n', '**Step 2:** b\n', '**3.** c\n', '# 4. d']),
        ('numbered', ['a\n', '3. b\n3.14 c\n3 d\nin 4. e\nSteps 5 f\nstep 6th'
                     ]),
        ('numbered', ['1.\n2. a\n', '3. b\n4.\n**Step 5:**\n']),  # bare ones
        ('numbered', ['1.']),
        ('every:2', ['ab', 'cd', 'e']),
        ('every:2', ['ab', '\n\n \n \nc', 'd']),  # white space goes to the next
        ('every:9', ['abc']),
        ('###', ['a', ' ### b', ' ### c']),
        ('###', ['a #### b ##### c']),  # other tokens
        ('###', ['a\n', '###\n\nb\n', '### c ### ###']),
    ])
def test_texts_by_hand(bpe, delimiter, steps):
  assert cut(bpe, bpe.encode(''.join(steps)), delimiter) == steps


def test_the_texts_by_hand_have_the_tokens_they_are_about(bpe):
  glued = ['.\n\n', ' b', ' ###', '###\n\n', '####', 'Step', '**']
  for text in glued:
    assert len(bpe.encode('a' + text)) == 2, text
  assert len(bpe.encode('ab\n\n \n \ncd')) == 9
  assert len(bpe.encode('→')) == 3


@pytest.mark.parametrize(
    'delimiter, steps',
    [
        ('blank_line', [['a', '\n', '\n'], ['b']]),  # spread over tokens
        ('blank_line', [['a', '\n', ' ', '\n', '\n\n', '  '], ['b']]),
        ('blank_line', [['a', '\n\nb'], ['c']]),  # begins after the run
        ('blank_line', [['a', '\n', '2']]),
        ('numbered', [['1', '.', 'a'], ['\n2', '.', 'b']]),  # holds the '2'
        ('numbered', [['1', '.', 'a', '\n'], [' 2', '.', 'b']]),
        ('numbered', [['1', '.', 'a', '\n', ' '], ['2', ')', 'b']]),
        ('numbered', [['1', '.', 'a', '\n2', '\n'], ['2', '.', 'b']]),
        ('numbered', [['a', '\n'], ['', '2', '.', 'b']]),  # '' is <eos>
        ('###', [['a', '\n'], ['###', '##'], [' ###', '.'],
                 ['###', ' ###', ')']]),
        ('###', [[' '], ['###', '\n'], ['###', 'a']]),  # white space, as ever
    ])
def test_tokens_by_hand(bpe, delimiter, steps):
  ids = [named(bpe)[t] for t in itertools.chain(*steps)]
  if delimiter == 'numbered' and '' in steps[1]:
    steps = [[*steps[0], ''], steps[1][1:]]  # it is not the token of the '2'
  want = list(itertools.accumulate(map(len, steps)))
  assert Segmenter(bpe, delimiter, 99)(ids) == want


@pytest.mark.parametrize(
    'delimiter, min_tokens, steps',
    [
        ('blank_line', 3, ['a\n\nbc\n\n', 'def']),  # two tokens go to the next
        ('blank_line', 3, ['abc\n\nd']),  # the last to the previous
        ('blank_line', 9, ['a\n\nb']),
        ('blank_line', 4, ['a\n\nb\n\n', 'cde\n\nf'
                          ]),  # merged ones count as one
        ('every:2', 3, ['abcd', 'efgh']),
        ('numbered', 4, ['1. a\n', '2. b\n', '3. c']),
        ('###', 3, ['a ### b', ' ### cd ###e']),
    ])
def test_short_steps_are_merged(bpe, delimiter, min_tokens, steps):
  ids = bpe.encode(''.join(steps))
  assert cut(bpe, ids, delimiter, min_tokens=min_tokens) == steps


@pytest.mark.parametrize('max_steps, steps',
                         [(1, ['1. a\n2. b\n3.']), (2, ['1. a\n', '2. b\n3.']),
                          (2, ['1. a\n', '2. b\n3. c\n4. d'])])
def test_steps_beyond_the_cap_go_to_the_last(bpe, max_steps, steps):
  assert cut(bpe, bpe.encode(''.join(steps)), 'numbered', max_steps) == steps


def test_a_word_level_tokenizer(words):
  ids = words.encode('max has 2 ### ann has 3 pens ### ### by jan 4 ###')
  assert Segmenter(words, '###', 8)(ids) == [3, 8, 14]
  assert Segmenter(words, '###', 8, 6)(ids) == [8, 14]
  assert Segmenter(words, 'every:5', 8)(ids) == [5, 10, 14]
  for delimiter in ('', 'blank_line', 'numbered'):  # it has no line feed
    assert Segmenter(words, delimiter, 8)(ids) == [14]


@pytest.mark.parametrize('delimiter', [
    '\n\n', '# #', ' ###', 'every:0', 'every:-1', 'every:', 'every:1.5',
    'every:M', 'blank', 'no_such_token', '<eos>'
])
def test_an_unknown_delimiter_is_named(bpe, delimiter):
  with pytest.raises(InputError, match='every:M') as e:
    Segmenter(bpe, delimiter, 8)
  assert str(e.value).startswith(f'config.judge.delimiter={delimiter!r}: ')


@pytest.mark.parametrize('delimiter', DELIMITERS)
def test_an_empty_trace_has_no_step(bpe, delimiter):
  assert Segmenter(bpe, delimiter, 8)([]) == []


@pytest.mark.parametrize('delimiter', ['blank_line', 'numbered', '###'])
@pytest.mark.parametrize('text', [' ', '\n', '###', '**', '2', '1.\n'])
def test_a_degenerate_trace_takes_no_time(bpe, delimiter, text):
  ids = [*(bpe.encode(text) * 20_000), *bpe.encode('a')]
  segment = Segmenter(bpe, delimiter, 8)
  start = time.monotonic()
  segment(ids)
  assert time.monotonic() - start < 5  # backtracking would take minutes


# Tokens that matter, by their texts; '' is <eos>.
TEXTS = [
    '', 'a', ' b', '.', ')', '1', ' 2', '\n2', 'Step', ' ', '  ', '\t', '\r',
    '\n', '\n\n', '.\n', '.\n\n', '\n\nb', '*', '**', '##', '###', '####',
    ' ###', '###\n\n'
]
TRACES = st.lists(st.sampled_from(TEXTS), max_size=40)
MANY = settings(max_examples=500, deadline=None, derandomize=True)


@MANY
@given(texts=TRACES, delimiter=st.sampled_from(DELIMITERS),
       max_steps=st.integers(1, 6), min_tokens=st.integers(1, 5))
def test_steps_cover_the_trace(bpe, texts, delimiter, max_steps, min_tokens):
  ids = [named(bpe)[t] for t in texts]
  ends = Segmenter(bpe, delimiter, max_steps, min_tokens)(ids)
  assert (len(ends) == 0) == (not ids) and len(ends) <= max_steps
  assert ends[-1:] == [len(ids)][:len(ends)]
  sizes = [b - a for a, b in itertools.pairwise([0, *ends])]
  assert all(n >= (min_tokens if len(ends) > 1 else 1) for n in sizes)
  if len(ends) > 1 and delimiter != '###':
    assert all(
        bpe.decode(ids[a:b]).strip() for a, b in itertools.pairwise([0, *ends]))


def step_ends(ids, delimiters, max_steps):
  """The rule for markers, spelt out."""
  ends, has_content = [], False
  for i, token in enumerate(ids):
    if token in delimiters:
      if has_content:
        ends.append(i)
      has_content = False
    else:
      has_content = True
  if not ids:
    return []
  if has_content or not ends:
    ends.append(len(ids))
  ends[-1] = len(ids)
  return ends[:max_steps - 1] + ends[-1:] if len(ends) > max_steps else ends


@MANY
@given(data=st.data(), word_level=st.booleans(), max_steps=st.integers(1, 9))
def test_a_marker_cuts_as_step_ends_does(bpe, words, data, word_level,
                                         max_steps):
  tokenizer = words if word_level else bpe
  texts = ['max', '2', '###', '.', ''] if word_level else TEXTS
  ids = [
      named(tokenizer)[t]
      for t in data.draw(st.lists(st.sampled_from(texts), max_size=40))
  ]
  want = step_ends(
      ids, {
          i for i in range(tokenizer.vocab_size)
          if tokenizer.decode([i]).strip() == '###'
      }, max_steps)
  assert Segmenter(tokenizer, '###', max_steps)(ids) == want


@MANY
@given(texts=TRACES, data=st.data())
def test_four_hashes_do_not_open_a_step(bpe, texts, data):
  """Next to content: between two '###' they are the content of a step."""
  ids = [named(bpe)[t] for t in [*texts, 'a']]
  place = data.draw(
      st.sampled_from(
          [i for i, t in enumerate([*texts, 'a']) if t.strip() != '###']))
  segment = Segmenter(bpe, '###', 99)
  more = [*ids[:place], named(bpe)['####'], *ids[place:]]
  assert [end - (end > place) for end in segment(more)] == segment(ids)
