"""Exported folders in transformers and in lm-evaluation-harness."""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

torch = pytest.importorskip('torch', reason='pip install -e ".[test]"')
import transformers

import exprl_jax as ex
from exprl_jax.config import resolve

PAGE = (pathlib.Path(ex.__file__).parents[1] / 'docs/neighbors.md').read_text()
TOKENS = 48


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  folder = tmp_path_factory.mktemp('neighbors') / 'exported'
  ex.run(
      ex.load_config('configs/export.py', policy={'init': 'asset:tiny_policy'},
                     export={'out': str(folder), 'dtype': 'float32'}))
  return folder


@pytest.fixture(scope='module')
def problems():
  path = ex.load_config('configs/tiny.py').eval.problems
  lines = resolve(path).read_text().splitlines()[:16]
  return [json.loads(line) for line in lines]


@pytest.fixture(scope='module')
def completions(exported, problems, one_device):
  """Our own, greedy."""
  model = ex.load_model(exported, mesh=one_device)
  chats = [[{'role': 'user', 'content': p['question']}] for p in problems]
  return [
      sample for sample, in ex.sample(model, chats, temperature=0,
                                      max_new_tokens=TOKENS)
  ]


def test_transformers_completes_as_we_do(exported, problems, completions):
  """By its own tokenizer, chat template and `generate`."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
  model = transformers.AutoModelForCausalLM.from_pretrained(
      exported, dtype='float32')
  for problem, sample in list(zip(problems, completions))[:4]:
    inputs = tokenizer.apply_chat_template(
        [{'role': 'user', 'content': problem['question']}],
        add_generation_prompt=True, return_dict=True, return_tensors='pt')
    ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False,
                         eos_token_id=tokenizer.eos_token_id)
    assert ids[0, inputs['input_ids'].shape[1]:].tolist() == sample.tokens


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec('lm_eval') is None,
    reason='pip install -e ".[lm_eval]"')
def test_lm_eval_completes_as_we_do(exported, problems, completions, tmp_path):
  """By the task and the command of docs/neighbors.md."""
  task, = re.findall(r'```yaml\n(.*?)```', PAGE, re.DOTALL)
  command, = re.findall(r'```shell\npython (.*?)```', PAGE, re.DOTALL)
  shutil.copytree(exported, tmp_path / 'exported')
  (tmp_path / 'my_task.yaml').write_text(task)
  (tmp_path / 'problems.jsonl').write_text(''.join(
      json.dumps(p) + '\n' for p in problems))
  subprocess.run(
      [sys.executable, *shlex.split(command)], cwd=tmp_path, check=True,
      env=os.environ | {
          'HF_HUB_OFFLINE': '1', 'HF_HOME': str(tmp_path / 'cache'),
          'OMP_NUM_THREADS': '1'
      })
  (path,) = (tmp_path / 'results').rglob('samples_*.jsonl')
  rows = sorted(map(json.loads,
                    path.read_text().splitlines()),
                key=lambda row: row['doc_id'])
  assert [row['resps'] for row in rows] == [[[s.text]] for s in completions]
  (path,) = (tmp_path / 'results').rglob('results_*.json')
  score = json.loads(
      path.read_text())['results']['my_task']['exact_match,boxed']
  right = [
      f'\\boxed{{ {p["answer"]} }}' in s.text
      for p, s in zip(problems, completions)
  ]
  assert score == pytest.approx(sum(right) / len(right))
