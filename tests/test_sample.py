"""run='sample': files in and out, resuming, mistakes."""

import json

import numpy as np
import pytest

from exprl_jax import main
from exprl_jax.models import head
from exprl_jax.types import InputError

QUESTION = 'ben has 19 figs . mar borrows 2 . how many ?'


def sample(tmp_path, lines, *flags, out='out.jsonl'):
  path = tmp_path / 'in.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  main.main([
      '--config=configs/sample.py', f'--config.sample.prompts={path}',
      f'--config.sample.out={tmp_path / out}',
      '--config.rollout.max_new_tokens=24', *flags
  ])
  return [
      json.loads(line) for line in (tmp_path / out).read_text().splitlines()
  ]


def test_text_chats_and_tokens(tmp_path, policy, capsys):
  cfg, params, tokenizer = policy
  chat = [{'role': 'user', 'content': QUESTION}]
  text = tokenizer.render(chat)
  ids = tokenizer.encode(text, special=True)
  rows = sample(tmp_path,
                [{'id': 'a', 'prompt': text}, {'id': 'b', 'messages': chat},
                 {'id': 'c', 'tokens': ids}], '--config.rollout.temperature=0',
                '--config.policy.init='
                'asset:tiny_policy')
  assert 'tokens/s' in capsys.readouterr().out
  assert sorted((r['id'], r['sample']) for r in rows) == [
      (i, n) for i in 'abc' for n in (0, 1)
  ]
  for row in rows:  # greedy: all the same
    assert row['tokens'] == rows[0]['tokens']
    assert row['text'] == tokenizer.decode(row['tokens'])
    assert row['finish_reason'] == ('eos' if row['tokens'][-1]
                                    in tokenizer.eos_ids else 'length')
  whole = np.array([ids + rows[0]['tokens']])
  lp, _ = head.token_logprobs(cfg, params, whole, np.ones_like(whole))
  np.testing.assert_allclose(lp[0, len(ids):], rows[0]['logprobs'], atol=1e-4)


def test_an_interrupted_run_goes_on(tmp_path, capsys):
  lines = [{'id': i, 'messages': [{'role': 'user', 'content': QUESTION}]}
           for i in range(3)]
  whole = sample(tmp_path, lines, out='whole.jsonl')
  assert len({tuple(r['tokens']) for r in whole}) > 1
  parts = tmp_path / 'parts.jsonl'
  kept = [whole[0], whole[4]]
  parts.write_text('\n'.join(map(json.dumps, kept)) + '\n{"id": "0", "sam')
  rows = sample(tmp_path, lines, out='parts.jsonl')
  assert '2 of them in' in capsys.readouterr().out
  key = lambda r: (r['id'], r['sample'])
  assert sorted(rows, key=key) == sorted(whole, key=key)
  assert rows[:2] == kept


@pytest.mark.parametrize('line, message', [
    ({'id': 1}, 'in.jsonl:1: has none of prompt, messages and tokens'),
    ({'prompt': 'a', 'tokens': [1]}, r"has \['prompt', 'tokens'\]"),
    ({'prompt': 3}, '`prompt` should be a text'),
    ({'messages': [{'role': 'user'}]}, '`messages` should be a list of'),
    ({'tokens': [10**6]}, '`tokens` should be token ids below'),
    ({'tokens': [1] * 65}, '65 tokens; config.rollout.max_prompt_tokens=64'),
    ([1], r'in\.jsonl:1: want an object, got list'),
])
def test_bad_lines_are_named(tmp_path, line, message):
  for flags in ((), ('--dry_run',)):
    with pytest.raises(InputError, match=message):
      sample(tmp_path, [line], *flags)


def test_other_mistakes_are_named(tmp_path):
  good = {'prompt': 'ben has'}
  with pytest.raises(InputError, match="id '1' stands there twice"):
    sample(tmp_path, [good | {'id': 1}, good | {'id': '1'}])
  with pytest.raises(InputError, match='no prompts in it'):
    sample(tmp_path, [])
  (tmp_path / 'out.jsonl').write_text('hello\n')
  with pytest.raises(InputError, match='holds something else'):
    sample(tmp_path, [good])
  with pytest.raises(InputError, match='top_p=0.0'):
    sample(tmp_path, [good], '--config.rollout.top_p=0.0')
  with pytest.raises(InputError, match="run='train' needs them off"):
    main.main(['--config=configs/tiny.py', '--config.rollout.top_k=4'])


def test_any_model_directory_answers(tmp_path, small_folder):
  rows = sample(tmp_path, [{'tokens': [5, 6]}], '--config.rollout.top_k=5',
                f'--config.policy.init={small_folder}',
                '--config.rollout.kv_dtype=int8')
  assert len(rows) == 2
