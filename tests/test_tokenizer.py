"""Tokenizers: what sentencepiece and transformers do, in pieces."""

import io
import json
import pathlib
import random
import subprocess
import sys

from etils.epath import testing as epath_testing
import pytest
import sentencepiece
import tokenizers

from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.types import InputError

TEXTS = [
    'the sum of primes', ' leading', '  two  blanks  ', '\n', 'a\n\n\nb\t', ' ',
    'x_1 = \\frac{1}{2}', 'naïve Ünï', '日本 😀', '<0x0A> <s> </s> <unk>'
]
# As Llama 2 and Gemma do, and as sentencepiece does where nothing is asked for.
KEEP = {
    'normalization_rule_name': 'identity', 'remove_extra_whitespaces': False,
    'allow_whitespace_only_pieces': True
}
MODELS = {
    'llama': KEEP | {'model_type': 'bpe'}, 'gemma': KEEP | {
        'model_type': 'bpe', 'add_dummy_prefix': False, 'eos_piece': '<eos>',
        'user_defined_symbols': ['<turn>', '<unused0>', '\n\n', '▁▁']
    }, 'unigram': KEEP | {'normalization_rule_name': 'nfkc'}, 'default': {}
}
# The ways in which a tokenizer.json asks for a blank before a text.
PREFIX = {
    'prepend': {
        'normalizer': {
            'type': 'Sequence', 'normalizers': [{
                'type': 'Prepend', 'prepend': '▁'
            }, {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'}]
        }
    }, 'metaspace': {
        'pre_tokenizer': {
            'type': 'Metaspace', 'replacement': '▁', 'split': False,
            'prepend_scheme': 'first'
        }
    }, 'older': {
        'pre_tokenizer': {
            'type': 'Metaspace', 'replacement': '▁', 'split': False,
            'add_prefix_space': True
        }
    }
}


@pytest.fixture(scope='session')
def models(tmp_path_factory):
  """Folders with nothing but a tokenizer.model."""
  rng, folders = random.Random(0), {}
  words = ['the', 'sum', ' of', 'primes', '\\frac{1}{2}', 'x_1', '=', 'Ünï']
  corpus = [' '.join(rng.choices(words, k=9)) for _ in range(200)]
  for name, options in MODELS.items():
    folders[name] = tmp_path_factory.mktemp(name)
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus),
                                             model_writer=out, vocab_size=320,
                                             byte_fallback=True,
                                             hard_vocab_limit=False,
                                             minloglevel=2, **options)
    (folders[name] / 'tokenizer.model').write_bytes(out.getvalue())
  return folders


@pytest.fixture
def write(tmp_path):
  """Makes a folder with a tokenizer.json as of Llama 2, and other files."""

  def make(config=None, prefix='prepend', **files):
    special = ['<unk>', '<s>', '</s>', '<|end|>']
    vocab = [*special, *(f'<0x{i:02X}>' for i in range(256)), *'▁the', 'th']
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE({t: i for i, t in enumerate(vocab)}, [('t', 'h')],
                              byte_fallback=True))
    model.add_special_tokens(special)
    part = tokenizers.decoders
    model.decoder = part.Sequence([
        part.Replace('▁', ' '),
        part.ByteFallback(),
        part.Fuse(),
        part.Strip(' ', 1, 0)
    ])
    model.enable_truncation(4)
    files['tokenizer'] = json.loads(model.to_str()) | PREFIX[prefix]
    files['tokenizer_config'] = {'eos_token': '</s>'} | (config or {})
    for name, content in files.items():
      (tmp_path / f'{name}.json').write_text(json.dumps(content))
    return tmp_path

  return make


@pytest.mark.parametrize('name', ['llama', 'gemma', 'unigram'])
def test_ids_are_those_of_sentencepiece(models, name):
  tokenizer = Tokenizer(models[name])
  theirs = sentencepiece.SentencePieceProcessor(
      model_file=str(models[name] / 'tokenizer.model'))
  prefix = '' if name == 'gemma' else ' '
  for text in TEXTS:
    assert tokenizer.encode(prefix + text) == theirs.encode(text), text
  assert tokenizer.vocab_size == theirs.get_piece_size()
  assert tokenizer.eos_ids == (theirs.eos_id(),)


@pytest.mark.parametrize('name', [*MODELS, *PREFIX])
def test_nothing_is_added_to_a_piece_or_taken_from_it(models, write, name):
  tokenizer = Tokenizer(write(prefix=name) if name in PREFIX else models[name])
  encode, decode = tokenizer.encode, tokenizer.decode
  # 'default' has sentencepiece's normalization, which makes blanks of '\n'.
  for text in (t for t in TEXTS if name != 'default' or t.isprintable()):
    for i in range(len(text) + 1):
      assert decode(encode(text[:i]) + encode(text[i:])) == text
    for i in range(len(ids := encode(text)) if text.isascii() else 0):
      assert decode(ids[:i]) + decode(ids[i:]) == text


def test_special_tokens_of_a_sentencepiece_model(models, tmp_path):
  """A control, a user-defined, a renamed, two added pieces."""
  (tmp_path / 'tokenizer.model').write_bytes(
      (models['gemma'] / 'tokenizer.model').read_bytes())
  bare = Tokenizer(tmp_path)
  size, (turn,), (unused,), (blanks,) = bare.vocab_size, *map(
      bare.encode, ('<turn>', '<unused0>', '  '))
  (tmp_path / 'tokenizer_config.json').write_text(
      json.dumps({
          'added_tokens_decoder': {
              str(unused): {'content': '<image>', 'special': True},
              str(blanks): {'content': '▁▁', 'special': False},
              str(size + 1): {'content': '<think>', 'special': False}
          }
      }))
  (tmp_path / 'special_tokens_map.json'
  ).write_text('{"additional_special_tokens": ["<turn>"]}')
  (tmp_path / 'added_tokens.json').write_text(f'{{"<|end|>": {size}}}')
  tokenizer = Tokenizer(tmp_path)
  text = '<s>the <turn><image>\n<think>  sum<|end|><unused0>'
  ids = tokenizer.encode(text, special=True)
  assert [i for i in ids if i in (1, turn, unused, size, size + 1)
         ] == [1, turn, unused, size + 1, size, unused]
  assert tokenizer.decode(ids) == 'the \n<think>  sum'
  assert tokenizer.decode(ids, special=True) == text.replace('unused0', 'image')
  disarmed = tokenizer.encode(text)
  assert not {1, turn, unused, size} & {*disarmed} and size + 1 in disarmed
  assert tokenizer.decode(disarmed) == text
  assert tokenizer.vocab_size == size + 2
  assert tokenizer.decode([size + 9]) == ''  # a padded embedding's


def test_special_tokens_of_tokenizer_json(write):
  tokenizer = Tokenizer(write())
  ids = tokenizer.encode('<s>the sum of two<|end|>', special=True)
  assert (ids[0], ids[-1]) == (1, 3) and len(ids) > 4  # not truncated, either
  assert tokenizer.decode(ids) == 'the sum of two'
  assert tokenizer.vocab_size == 4 + 256 + 5
  disarmed = tokenizer.encode('<s>the sum<|end|>')
  assert not {1, 3} & {*disarmed}
  assert tokenizer.decode(disarmed) == '<s>the sum<|end|>'


@pytest.mark.parametrize(
    'config, others, eos, pad',
    [
        ({}, {}, (2,), 2),
        ({'eos_token': {'content': '<|end|>', 'lstrip': False}}, {}, (3,), 3),
        ({'eos_token': None}, {
            'special_tokens_map': {
                'eos_token': {'content': '<|end|>'}, 'pad_token': '<unk>'
            }
        }, (3,), 0),
        # All that are named end a turn; the tokenizer's own comes first.
        ({}, {'generation_config': {'eos_token_id': 3}}, (2, 3), 2),
        ({}, {'generation_config': {'eos_token_id': [3, 2]}}, (2, 3), 2),
        ({'eos_token': None}, {'generation_config': {'eos_token_id': [3, 1]}},
         (3, 1), 3),
    ])
def test_eos_and_pad(write, config, others, eos, pad):
  tokenizer = Tokenizer(write(config, **others))
  assert (tokenizer.eos_ids, tokenizer.pad_id) == (eos, pad)


def test_ends_of_the_users_own(write):
  folder = write({})
  tokenizer = Tokenizer(folder, (3, 2, 3))
  assert tokenizer.eos_ids == (2, 3) and not tokenizer.other_ends()
  assert tokenizer.describe_ends() == '</s> (2), <|end|> (3)'
  assert Tokenizer(folder).other_ends() == {3: '<|end|>'}
  with pytest.raises(InputError,
                     match='rollout.stop_ids: 99999 is not a token'):
    Tokenizer(folder, (99999,))


@pytest.mark.parametrize('name, content, message', [
    ('tokenizer_config.json', '{"eos_token": "<end>"}', "'<end>' is not in"),
    ('tokenizer_config.json', '{}', 'no eos_token'),
    ('tokenizer_config.json', '{', 'tokenizer_config.json: not JSON'),
    ('tokenizer.json', '{"model": 1}', 'not a tokenizer'),
    ('tokenizer.model', 'IQ== 0\nIg== 1\n', 'not a sentencepiece model'),
    ('other', '', 'neither tokenizer.json nor tokenizer.model'),
    ('chat_template.jinja', '{% if %}', 'not Jinja'),
])
def test_a_bad_folder_is_named(write, name, content, message):
  folder = write()
  if name in ('tokenizer.model', 'other'):
    (folder / 'tokenizer.json').unlink()
  (folder / name).write_text(content)
  with pytest.raises(InputError, match=message) as e:
    Tokenizer(folder)
  assert str(folder) in str(e.value)


QWEN = '''
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}'''
LLAMA = '''{{- bos_token }}
{%- if messages[0].role != 'system' %}
    {{- '<|head|>system\\n\\nToday: ' + strftime_now('%Y') + eos_token }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}{% generation %}
        {{- m.content | trim + eos_token }}
    {%- endgeneration %}{% else %}
        {{- '<|head|>' + m.role + '\\n\\n' + m.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if tools is not none %}{{- raise_exception('tools') }}{%- endif %}
{{ messages[0] | tojson(indent=2) }} {{ unk_token }}|{{ sep_token }}|'''
GEMMA = '''{{ bos_token }}{% if messages[0].role == 'system' %}
{{ raise_exception('no system role here') }}{% endif %}
{% for m in messages %}
{% if not m.content %}{% continue %}{% endif %}
{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) }}
{{ m.content | trim }}</turn>
{% endfor %}{% if add_generation_prompt %}<turn>model{% endif %}'''


def chat(*contents, system=False):
  roles = ['system'] * system + ['user', 'assistant', 'user']
  return [{'role': r, 'content': c} for r, c in zip(roles, contents)]


CHATS = [
    chat(' what is 1 < 2 & "ü"?\n'),
    chat('a', ' b ', 'c'),
    chat('a', ''),
    chat('be brief', 'a', '{"b": [1]}', system=True)
]


@pytest.mark.parametrize('source', [QWEN, LLAMA, GEMMA])
def test_chats_read_as_in_transformers(write, source):
  transformers = pytest.importorskip('transformers')
  folder = write({
      'bos_token': {'content': '<s>', '__type': 'AddedToken'},
      'unk_token': '<unk>', 'tokenizer_class': 'PreTrainedTokenizerFast',
      'chat_template': 'not this one', 'add_bos_token': True
  })
  (folder / 'chat_template.jinja').write_text(source, encoding='utf-8')
  ours = Tokenizer(folder)
  theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
  for messages in CHATS[:3] if source == GEMMA else CHATS:
    for prompt in (True, False):
      assert ours.render(messages, prompt) == theirs.apply_chat_template(
          messages, tokenize=False, add_generation_prompt=prompt,
          enable_thinking=False)


def test_a_template_that_refuses_a_role_is_named(write):
  folder = write({'chat_template': GEMMA, 'bos_token': '<s>'})
  with pytest.raises(InputError, match='no system role here') as e:
    Tokenizer(folder).render(CHATS[3])
  assert str(folder) in str(e.value)


def test_named_templates(write):
  templates = [{'name': 'tool_use', 'template': 'no'},
               {'name': 'default', 'template': QWEN}]
  config = {'chat_template': templates}
  text = Tokenizer(write(config)).render(CHATS[1])
  assert text.endswith('assistant\n<think>\n\n</think>\n\n')


def test_without_a_template_a_chat_is_plain_text(write):
  config = {'chat_template': [{'name': 'tool_use', 'template': 'no'}]}
  tokenizer = Tokenizer(write(config))
  assert not tokenizer.has_chat_template
  assert tokenizer.render([{'role': 'system', 'content': 'Be brief.'},
                           {'role': 'user',
                            'content': 'Hi'}]) == ('Be brief.\n\nHi\n\n')


def test_a_folder_may_be_on_gs(models, write):
  for folder in (write(), models['llama']):
    (folder / 'chat_template.jinja').write_text('hü', encoding='utf-8')
    local = lambda f, path, *a: f(
        str(path).replace('gs://bucket', str(folder)), *a)  # noqa: B023
    with epath_testing.mock_epath(open=local, exists=local):
      there = Tokenizer('gs://bucket')
    assert there.encode(TEXTS[0]) == Tokenizer(folder).encode(TEXTS[0])
    assert there.render([]) == 'hü'


def test_start_up_imports_no_torch(models):
  code = ('import sys, exprl_jax.main; from exprl_jax.data.tokenizer import *; '
          f'Tokenizer({str(models["llama"])!r}).encode("a"); '
          'print(*{"torch", "transformers"} & {*sys.modules})')
  out = subprocess.run([sys.executable, '-c', code],
                       cwd=pathlib.Path(__file__).parent.parent, check=True,
                       capture_output=True, text=True).stdout
  assert not out.strip()
