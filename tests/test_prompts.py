"""Prompts by token ids: those of transformers, with real vocabularies."""

import itertools
import json
import pathlib
import shutil

import pytest
import transformers

from exprl_jax import config as config_lib
from exprl_jax.data import chat, chat_template
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.data.tokenizer_json import Piece
from exprl_jax.types import InputError, Problem
from tests.conftest import make_bpe

# How families write a chat. Tokens merge at a blank before the content.
TEMPLATES = {
    'mistral': '{{ bos_token }}{% for m in messages %}'
    '{% if m.role == "system" %}'
    '{{ m.content }}\n\n{% elif m.role == "user" %}[INST] {{ m.content }} '
    '[/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}'
    '{% endfor %}',
    'chatml': '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}'
    '<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>'
    'assistant\n{% if enable_thinking is defined and not enable_thinking '
    '%}<think>\n\n</think>\n\n{% endif %}{% endif %}',
    'trims': '{{ bos_token }}{% for m in messages %}### {{ m.role }}: '
    '{{ m.content | trim }}\n{% endfor %}### assistant:',
    'json': '{{ bos_token }}{% for m in messages %}'
    '{{ {"role": m.role, "content": '
    'm.content} | tojson }}\n{% endfor %}',
}
QUESTIONS = [
    'What is 1 + 1?', ' leads with a blank', 'ends with one ', '1', '\n\nx\n',
    'say "hi" \\ {question}', 'naïve Ünï', '日本 😀', 'a\tb  c   d',
    'x<y>z [/INST', "I'll 'do' 3.14159, 10,000 and 2^{10}"
]


def _mistral(folder, name):
  data = pytest.importorskip('mistral_common')
  source = pathlib.Path(data.__file__).parent / 'data' / name
  shutil.copy(source, folder / 'tokenizer.model')
  (folder / 'tokenizer_config.json').write_text(
      json.dumps({
          'tokenizer_class': 'LlamaTokenizer', 'bos_token': '<s>',
          'eos_token': '</s>', 'unk_token': '<unk>', 'add_bos_token': True
      }))


def _converted(folder, name):
  """The same as tokenizer.json, as transformers converts it."""
  _mistral(folder, name)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  (folder / 'tokenizer.model').unlink()
  theirs.save_pretrained(folder)


def _tekken(folder):
  data = pytest.importorskip('mistral_common')
  from transformers.integrations.mistral.tokenizer import MistralConverter
  source = pathlib.Path(data.__file__).parent / 'data/tekken_240911.json'
  MistralConverter(str(source)).converted().save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(
      json.dumps({
          'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<s>',
          'eos_token': '</s>'
      }))


def _byte_level(folder):
  make_bpe(folder, ['h e', 'Ġ W', 'ĠW h', 'a t'], special=('<|im_start|>',))
  config = json.loads((folder / 'tokenizer_config.json').read_text())
  config |= {
      'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<|im_start|>'
  }
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))


VOCABULARIES = {
    'mistral-v1': lambda f: _mistral(f, 'tokenizer.model.v1'),
    'mistral-v2': lambda f: _mistral(
        f, 'mistral_instruct_tokenizer_240216.model.v2'),
    'mistral-v3': lambda f: _mistral(
        f, 'mistral_instruct_tokenizer_240323.model.v3'), 'tekken': _tekken,
    'byte-level': _byte_level
}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  made = {}

  def folder(vocabulary):
    if vocabulary not in made:
      path = tmp_path_factory.mktemp(vocabulary)
      VOCABULARIES[vocabulary](path)
      made[vocabulary] = path, transformers.AutoTokenizer.from_pretrained(path)
    return made[vocabulary]

  return folder


# A large vocabulary takes seconds to load.
_QUICK = [
    pytest.param(v, marks=[pytest.mark.slow] * (v == 'tekken'))
    for v in VOCABULARIES
]


@pytest.mark.parametrize('vocabulary, template', [
    pytest.param(v, t, marks=[pytest.mark.slow] *
                 (v == 'tekken' and t != 'mistral'))
    for v, t in itertools.product(VOCABULARIES, TEMPLATES)
])
def test_prompts_have_the_ids_of_transformers(folders, vocabulary, template):
  folder, theirs = folders(vocabulary)
  theirs.chat_template = TEMPLATES[template]
  (folder / 'chat_template.jinja').write_text(TEMPLATES[template])
  ours = Tokenizer(folder)
  # transformers' conversion merges runs of blanks unlike sentencepiece, whose
  # ids these models were trained on.
  differs = (folder / 'tokenizer.model').exists()
  for question, system in itertools.product(QUESTIONS, ['', 'Be brief.']):
    messages = [{'role': 'user', 'content': question}]
    if system:
      messages.insert(0, {'role': 'system', 'content': system})
    want = theirs.apply_chat_template(messages, tokenize=True,
                                      add_generation_prompt=True,
                                      return_dict=False, enable_thinking=False)
    pieces = chat.policy_text(ours, question, system)
    if differs and '  ' in ''.join(piece.text for piece in pieces):
      continue
    (ids,) = ours.encode_pieces([pieces])
    assert ids == want, (question, theirs.decode(want), ours.decode(ids, True))


@pytest.mark.parametrize('vocabulary', _QUICK)
def test_special_tokens_in_a_question_are_spelled_out(folders, vocabulary):
  folder, _ = folders(vocabulary)
  (folder / 'chat_template.jinja').write_text(TEMPLATES['mistral'])
  tokenizer = Tokenizer(folder)
  plain = chat.policy_text(tokenizer, 'x')
  special = {
      tokenizer.encode(t, special=True)[0] for t in tokenizer.special_tokens
  }
  (before,) = tokenizer.encode_pieces([plain])
  for token in tokenizer.special_tokens[:40]:
    (ids,) = tokenizer.encode_pieces(
        [chat.policy_text(tokenizer, f'a {token} b')])
    assert [i for i in ids if i in special
           ] == [i for i in before if i in special]
    assert token in tokenizer.decode([i for i in ids if i not in special])


def _with_template(tmp_path, source):
  make_bpe(tmp_path)
  (tmp_path / 'chat_template.jinja').write_text(source)
  return Tokenizer(tmp_path)


@pytest.mark.parametrize('source, message', [
    ('{{ messages[0].role }}', 'renders {question} 0 times instead of 1'),
    ('{{ messages[0].content * 2 }}', 'renders {question} 2 times instead of'),
    ('{{ messages[0].content | upper }}', 'changes the text of {question}'),
    ('{{ messages[0].content | replace("a", "b") }}', 'changes the text of'),
    ('{{ messages[0].content[:9] }}', 'changes the text of|0 times'),
    ('{{ raise_exception("no\nway") }}', r'refuses the messages \(user\): no$'),
    ('{{ 1 / 0 }}', 'fails .ZeroDivisionError'),
    ('{{ nothing.at.all }}', 'refuses the messages'),
    ('{{ messages + 1 }}', 'fails .TypeError'),
    ('{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}', 'fails .RecursionErr'),
])
def test_a_template_that_loses_or_changes_text_is_named(tmp_path, source,
                                                        message):
  tokenizer = _with_template(tmp_path, source)
  with pytest.raises(InputError, match=message) as e:
    chat.policy_text(tokenizer, 'a question, longer than nine')
  assert str(tmp_path) in str(e.value) and '\n' not in str(e.value)


def test_an_endless_template_is_stopped(tmp_path, monkeypatch):
  monkeypatch.setattr(chat_template, 'SECONDS', 0.3)
  tokenizer = _with_template(
      tmp_path, '{% set r = range(9999) %}{% for a in r %}{% for b in r %}'
      '{% for c in r %}{% endfor %}{% endfor %}{% endfor %}')
  with pytest.raises(InputError, match='takes more than'):
    chat.policy_text(tokenizer, 'q')


def test_options_reach_the_template(tmp_path):
  tokenizer = _with_template(
      tmp_path, '{{ messages[0].content }} {{ enable_thinking }} {{ effort }}')
  config = config_lib.Config(rollout=config_lib.Rollout(
      chat_template_options=('enable_thinking=true', 'effort=high')))
  (ids,) = chat.policy_prompts(tokenizer, [Problem('', 'q')], config)
  assert tokenizer.decode(ids) == 'q True high'
  with pytest.raises(InputError, match="'effort' should be NAME=VALUE"):
    chat.template_options(['effort'])


def test_a_base_model_takes_a_plain_prompt(tmp_path, folders):
  tokenizer = _with_template(tmp_path, 'x')
  (tmp_path / 'chat_template.jinja').unlink()
  tokenizer = Tokenizer(tmp_path)
  with pytest.raises(InputError, match='rollout.prompt_template'):
    chat.policy_text(tokenizer, 'q')
  pieces = chat.policy_text(tokenizer, 'q <|im_end|>',
                            prompt_template='Problem: {question}\nSolution:')
  (ids,) = tokenizer.encode_pieces([pieces])
  assert tokenizer.decode(ids) == 'Problem: q <|im_end|>\nSolution:'
  folder, theirs = folders('mistral-v3')
  config = config_lib.Config(rollout=config_lib.Rollout(
      prompt_template='Problem: {question}\nSolution:'))
  (ids,) = chat.policy_prompts(Tokenizer(folder), [Problem('', 'q')], config)
  assert ids == theirs('Problem: q\nSolution:').input_ids


@pytest.mark.parametrize('vocabulary', _QUICK)
def test_a_target_continues_its_prompt(folders, vocabulary):
  """Prompt and target together are the ids of the joined text."""
  folder, theirs = folders(vocabulary)
  (folder / 'chat_template.jinja').write_text(TEMPLATES['chatml'])
  tokenizer, config = Tokenizer(folder), config_lib.Config()
  problem = Problem('', 'What is 1 + 1?', ' It is 2, as 1 + 1 = 2.')
  (prompt,) = chat.policy_prompts(tokenizer, [problem], config)
  target = chat.policy_target(tokenizer, problem, config, prompt)
  text = ''.join(
      piece.text for piece in chat.policy_text(tokenizer, problem.question))
  assert [*prompt, *target] == theirs(text + problem.solution,
                                      add_special_tokens=False).input_ids


def test_untrusted_text_cannot_forge_a_guard(tmp_path):
  """The names that stand in for special tokens are not to be guessed."""
  tokenizer = Tokenizer(make_bpe(tmp_path).folder)
  (ids,) = tokenizer.encode_pieces([[Piece('\ue0000\ue001<|im_end|>', False)]])
  assert tokenizer.decode(ids) == '\ue0000\ue001<|im_end|>'
