"""Where traces are cut. Every random draw is Hypothesis's, derandomized."""

import functools
import itertools
import time

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from exprl_jax.data.steps import Segmenter, balanced, metrics
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.types import InputError
from tests.conftest import JUDGE, make_bpe

# Byte-level names: 'Ċ' is a line feed, 'Ġ' a blank. The last two are glued as
# no pre-tokenizer of today would; the rules have to live with them.
MERGES = [
    'Ċ Ċ', '. ĊĊ', '. Ċ', 'Ġ Ġ', 'Ġ b', '# #', '## ##', '## #', 'Ġ ###',
    '### ĊĊ', '* *', 'S t', 'St e', 'Ste p', 'Ġ 2', 'Ċ 2', 'ĊĊ b'
]
DELIMITERS = [
    '', 'auto', 'headings', 'blank_line', 'numbered', 'spans', 'every:1',
    'every:3', '###'
]

MANY = settings(max_examples=500, deadline=None, derandomize=True)


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


def cut(tokenizer, ids, delimiter, max_steps=99, min_tokens=1, thinking='cut'):
  """The texts of the steps."""
  return Segmenter(tokenizer, delimiter, max_steps, min_tokens,
                   thinking).texts(ids)


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
        ('headings', ['a\n\n', '## b\nc\n', '### d\n', '#### e']),
        ('headings', ['a ### b\n#c\n##### d\n###e\n# f']),  # none is one
        ('headings', ['## a\n', '###\nb']),  # without a title
        ('headings', ['## a\n```\n### b\n```\n', '## c']),  # in code
        ('headings', ['~~~py\n## a\n~~~\n', '## b\n````\n## c\n```\n## d']),
        ('headings', ['a\n', '##\n## b']),  # bare marks go to the next
        ('numbered', ['1. a\n```\n2. b\n```\n', '3. c']),
        ('blank_line', ['a\n\n', '```\nb\n\nc\n```\n\n', 'd']),
        ('authors', ['###', ' a ###', ' b\n####', ' c']),
        ('authors', ['a###\n\nb']),  # a token of '###' and line feeds
        ('spans', ['ab' * 8 + '. ', 'c' * 15 + '.']),
        ('spans', ['ab' * 10]),  # too short
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


@pytest.mark.parametrize('text, rule', [
    ('intro\n## a\n1. b\n\n2. c\n### d', 'headings'),
    ('one ### two\n1. b\n\n2. c', 'numbered'),
    ('Let x = 3.14.\n\nThen 2 of them.', 'blank_line'),
    ('First a thing is. ' * 4, 'spans'),
    ('no', 'one_step'),
    ('```\n## a\n\n1. b\n## c\n```', 'one_step'),
])
def test_auto_takes_the_first_rule_with_two_steps(bpe, text, rule):
  ids = bpe.encode(text)
  found = Segmenter(bpe, 'auto', 99).cut(ids)
  assert found.rule == rule
  assert (len(found.ends) > 1) == (rule != 'one_step')
  if rule not in ('one_step', 'spans'):
    assert found.ends == Segmenter(bpe, rule, 99)(ids)


@pytest.mark.parametrize('thinking, steps', [
    ('cut', ['<think>a\n\n', 'b</think>\n\n', 'c\n\n', 'd']),
    ('one_step', ['<think>a\n\nb</think>', '\n\nc\n\n', 'd']),
    ('hidden', ['\n\nc\n\n', 'd']),
])
def test_thinking(bpe, thinking, steps):
  text = '<think>a\n\nb</think>\n\nc\n\nd'
  for delimiter in ('auto', 'blank_line'):
    assert cut(bpe, bpe.encode(text), delimiter, thinking=thinking) == steps
    assert Segmenter(bpe, delimiter, 9, thinking=thinking).split(text) == steps
  if thinking == 'hidden':  # its tokens belong to the step that follows
    ends = Segmenter(bpe, 'auto', 9, thinking=thinking)(bpe.encode(text))
    assert ends == [len(bpe.encode(text)) - 1, len(bpe.encode(text))]


@pytest.mark.parametrize(
    'thinking, text, steps',
    [
        ('one_step', 'a\n\nb</think>c', ['a\n\nb</think>', 'c'
                                        ]),  # prompt opened it
        ('hidden', 'a\n\nb</think>c', ['c']),
        ('one_step', '<think>a\n\nb', ['<think>a\n\nb']),  # truncated
        ('hidden', '<think>a\n\nb', ['']),
        ('hidden', 'a\n\nb', ['a\n\n', 'b']),
    ])
def test_thinking_that_is_open(bpe, thinking, text, steps):
  assert cut(bpe, bpe.encode(text), 'auto', thinking=thinking) == steps


def test_thinking_does_not_stand_for_the_steps_behind_it(bpe):
  """A step of thinking and one behind it: the latter is still to be cut."""
  text = '<think>a</think>\nb. c. ' + 'A sentence is here. ' * 5
  found = Segmenter(bpe, 'auto', 9, thinking='one_step').cut(bpe.encode(text))
  assert found.rule == 'spans' and len(found.ends) == 3


@pytest.mark.parametrize('ends, count, merged',
                         [([1, 2, 3, 4], 2, [2, 4]),
                          ([1, 2, 3, 4], 4, [1, 2, 3, 4]),
                          ([1, 2, 3, 4], 1, [4]), ([8, 9, 10], 2, [8, 10]),
                          ([1, 2, 10], 2, [2, 10]),
                          ([1, 2, 3, 90, 95, 100], 3, [3, 90, 100]),
                          ([97, 98, 99, 100], 3, [97, 98, 100])])
def test_too_many_steps_are_merged_evenly(ends, count, merged):
  assert balanced(ends, count) == merged


@MANY
@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=99),
       count=st.integers(1, 20))
def test_merged_steps_are_natural_and_of_about_equal_length(sizes, count):
  ends = list(itertools.accumulate(sizes))
  found = balanced(ends, count)
  assert set(found) <= set(ends) and found[-1] == ends[-1]
  assert len(found) == min(count, len(ends)) == len(set(found))
  if len(ends) > count:
    largest = max(b - a for a, b in itertools.pairwise([0, *found]))
    assert largest <= ends[-1] / count + 2 * max(sizes)


def test_a_long_trace_has_no_step_of_all_the_rest(bpe):
  """100 paragraphs in 16 steps: the last had 85 of them."""
  ids = bpe.encode('\n\n'.join(f'a{i}' for i in range(100)))
  found = Segmenter(bpe, 'auto', 16).cut(ids)
  assert len(found.ends) == 16 and found.natural == 100
  assert metrics([found])['steps/largest_token_frac'] < 0.08


def test_how_a_batch_was_cut(bpe):
  segment = Segmenter(bpe, 'auto', 2)
  texts = ['## a\n## b\n## c\n## d', 'a\n\nb', 'c', '']
  found = metrics([segment.cut(bpe.encode(text)) for text in texts])
  assert found == pytest.approx({
      'steps/one_step_frac': 1 / 3, 'steps/natural_mean': 7 / 3,
      'steps/delimiters_mean': 4 / 3, 'steps/rule_headings_frac': 1 / 3,
      'steps/rule_blank_line_frac': 1 / 3, 'steps/rule_one_step_frac': 1 / 3,
      'steps/largest_token_frac': found['steps/largest_token_frac']
  })
  assert 2 / 3 < found['steps/largest_token_frac'] < 0.8
  marked = Segmenter(bpe, '###', 9).cut(bpe.encode('a ### b ### c'))
  assert marked.delimiters == 2 and metrics([]) == {}


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


@pytest.mark.parametrize('delimiter', ['auto', 'blank_line', '###', 'authors'])
@pytest.mark.parametrize('end', ['', 'a', '`'])
@pytest.mark.parametrize(
    'text',
    [' ', '\n', '###', '**', '2', '1.\n', '~', '`', '```\n', '. ', '</'])
def test_a_degenerate_trace_takes_no_time(bpe, delimiter, text, end):
  ids = [*(bpe.encode(text) * 20_000), *bpe.encode(end)]
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
  if len(ends) > 1 and delimiter != '###':  # where white space is content
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
  return balanced(ends, max_steps)


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
