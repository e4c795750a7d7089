"""The Python API: it is lazy, its page runs, and it equals the command."""

import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import exprl_jax as ex
from exprl_jax import main
from exprl_jax.runtime import metrics
from tests.test_sample import QUESTION
from tests.test_train import without_times

ROOT = pathlib.Path(ex.__file__).parents[1]
# Of the page, as flags.
FLAGS = [
    '--config.steps=2', '--config.compare=', '--config.data.batch=4',
    '--config.eval.limit=4', '--config.eval.every=0'
]


def test_the_import_is_light():
  code = ('import sys, exprl_jax, exprl_jax.grading.worker; '
          'print({"jax", "numpy", "ml_collections"} & set(sys.modules))')
  out = subprocess.run([sys.executable, '-c', code], capture_output=True,
                       text=True, check=True)
  assert out.stdout.strip() == 'set()'


def test_all_names_are_there_and_no_other():
  assert all(getattr(ex, name) for name in ex.__all__)
  assert set(ex.__all__) <= set(dir(ex))
  assert not hasattr(ex, 'smaple')


def test_no_function_is_hidden_by_a_package():
  """`import exprl_jax.NAME` would put a module in its place."""
  modules = {p.stem for p in (ROOT / 'exprl_jax').iterdir()}
  assert not modules & set(ex.__all__)


@pytest.mark.slow
def test_the_page_runs_and_trains_as_the_command_does(tmp_path, monkeypatch):
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  monkeypatch.chdir(tmp_path)
  page = (ROOT / 'docs/python.md').read_text()
  names = {}
  for block in re.findall(r'```python\n(.*?)```', page, re.DOTALL):
    exec(block, names)
  right, wrong, *others = names['scored']
  np.testing.assert_allclose(right.scores, [0.24, 0.48, 0.89], atol=0.02)
  np.testing.assert_allclose(wrong.scores, [0.0, 0.14], atol=0.02)
  assert len(names['completions']) == len(others) == 4
  main.main(['--config=configs/tiny.py', '--workdir=command', *FLAGS])
  result, rows = names['result'], metrics.read(tmp_path /
                                               'command/metrics.jsonl')
  assert without_times(result.rows) == without_times(rows)
  assert len(names['losses']) == 2
  assert result.rows == metrics.read(result.workdir / 'metrics.jsonl')


@pytest.mark.slow
def test_a_config_that_is_compared_runs_both(tmp_path, monkeypatch):
  """From any folder."""
  monkeypatch.chdir(tmp_path)
  config = ex.load_config(ROOT / 'configs/tiny.py:grpo', steps=1,
                          compare='tiny.py:stage2', data={'batch': 4},
                          eval={'problems': ''})
  result = ex.run(config)
  try:
    rows = metrics.read(result.workdir / 'compare/metrics.jsonl')
    assert len(rows) == len(result.rows) == 1
    rates = [x['optim/lr'] for x in (result.rows[0], rows[0])]
    np.testing.assert_allclose(rates, [5e-4, 2e-4], rtol=1e-6)
  finally:
    shutil.rmtree(result.workdir)


def test_samples_are_those_of_the_command(tmp_path):
  model = ex.load_model('asset:tiny_policy')
  chat = [{'role': 'user', 'content': QUESTION}]
  text = model.tokenizer.render(chat)
  ids = model.tokenizer.encode(text, special=True)
  ours = ex.sample(model, [text, chat, ids], n=3, max_new_tokens=24, seed=5,
                   temperature=0.8)
  path = tmp_path / 'in.jsonl'
  path.write_text('\n'.join(
      map(json.dumps, [{'prompt': text}, {'messages': chat}, {'tokens': ids}])))
  config = ex.load_config(
      'configs/sample.py', seed=5,
      sample={'prompts': str(path), 'out': str(tmp_path / 'out.jsonl')},
      rollout={'group_size': 3, 'max_new_tokens': 24})
  assert ex.run(config) is None
  rows = map(json.loads, (tmp_path / 'out.jsonl').read_text().splitlines())
  theirs = {(int(r['id']) - 1, r['sample']): r for r in rows}
  assert len({tuple(s.tokens) for group in ours for s in group}) > 1
  for i, group in enumerate(ours):
    for k, sample in enumerate(group):
      row = theirs[i, k]
      assert (sample.tokens, sample.text,
              sample.finish_reason) == (row['tokens'], row['text'],
                                        row['finish_reason'])
      np.testing.assert_allclose(sample.logprobs, row['logprobs'], atol=2e-6)


def test_a_loaded_judge_scores_as_its_folder_does():
  problem = ex.Problem('', QUESTION, '\\boxed{ 17 }')
  traces = [['\\boxed{ 17 }', 'oh'], []]
  model = ex.load_model('asset:tiny_judge')
  by_model, by_folder = (ex.score(judge, [problem] * 2, traces, template='tiny',
                                  reward='outcome')
                         for judge in (model, 'asset:tiny_judge'))
  assert [len(x) for x in by_model] == [2, 0]
  for a, b in zip(by_model[0], by_folder[0]):
    assert a.steps == b.steps and len(a.steps) == 1
    np.testing.assert_array_equal(a.scores, b.scores)
  assert ex.score(model, [problem], [[]], template='tiny') == [[]]


@pytest.mark.parametrize('call, message', [
    (lambda m: ex.load_config('configs/tiny.py', stpes=3), 'mean steps'),
    (lambda m: ex.load_config('configs/tiny.py', optim=3), 'a group of keys'),
    (lambda m: ex.load_config('configs/tiny.py', reward='x'), 'reward'),
    (lambda m: ex.load_model('nowhere'), 'nowhere: no config.json'),
    (lambda m: ex.load_model('asset:tiny_policy', 'float16'), 'policy.dtype'),
    (lambda m: ex.sample(m, 'how many ?'), 'should be a list'),
    (lambda m: ex.sample(m, [[10**6]]), 'prompt 0: `tokens` should be'),
    (lambda m: ex.sample(m, [[]]), 'prompt 0 has 0 tokens'),
    (lambda m: ex.sample(m, [[1]], top_p=0.0), 'top_p=0.0'),
    (lambda m: ex.sample(m, [[1]], top_kk=1), 'did you mean rollout.top_k'),
    (lambda m: ex.score(m, [{'question': 'a'}], [['b']]), 'no solution'),
    (lambda m: ex.score(m, [ex.Problem('', 'a', 'b')], ['c']), 'lists of'),
    (lambda m: ex.score(m, [ex.Problem('', 'a', 'b')], [['c']], 'x'),
     'readout'),
    (lambda m: ex.score(m, [], [], reward='sparse'), 'needs no judge'),
    (lambda m: ex.score('nowhere', [], []), 'nowhere: no config.json'),
])  # yapf: disable
def test_mistakes_are_named(call, message):
  with pytest.raises(ex.InputError, match=message):
    call(ex.load_model('asset:tiny_policy'))


def test_a_changed_config_is_checked_again():
  config = ex.load_config('configs/tiny.py')
  with pytest.raises(ex.InputError, match='config.steps=-1'):
    ex.dry_run(dataclasses.replace(config, steps=-1))
