"""run='train_judge': of the tiny judge, and on labeled traces of a file."""

import json
import math

import jax
import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax import main
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.evals import labeled_traces
from exprl_jax.judge import factory
from exprl_jax.rl import optimizer
from exprl_jax.runs import recipes, train_judge
from exprl_jax.runtime import metrics
from exprl_jax.types import InputError
from tests.test_train import run

JUDGE = 'asset:tiny_judge'
TRACES = 'asset:tiny_problems/traces.jsonl'
FLAGS = [
    '--config=configs/tiny.py:judge', '--config.policy.init=',
    f'--config.judge_training.traces={TRACES}', '--config.data.batch=8',
    '--config.optim.lr=1e-3', '--config.optim.warmup_steps=0',
    '--config.judge_training.warmup_steps=0',
    '--config.judge_training.round_steps=1000'
]


def frozen(*flags):
  return recipes.freeze(main.parse([*FLAGS, *flags])[1])


@pytest.mark.slow
def test_the_tiny_judge_can_be_trained_again(tmp_path):
  """A round of each kind of data, and an adversary."""
  rows = run('tiny:judge', tmp_path, '--config.steps=4',
             '--config.data.limit=16', '--config.judge_training.start=',
             '--config.judge_training.warmup_steps=1',
             '--config.judge_training.round_steps=2',
             '--config.judge_training.adversary_steps=2',
             '--config.judge_training.policy_steps=2',
             '--config.judge_training.problems=2')
  assert {'adversary/judge', 'adversary/truth'} <= set(rows[0])
  saved = [(tmp_path / name / 'model.safetensors').read_bytes()
           for name in ('judges/00000002', 'judges/00000004', 'model')]
  assert saved[0] != saved[1] == saved[2]


def test_a_judge_learns_its_labels_and_is_examined(tmp_path, capsys):
  """Labels of 0 and 1 by whether all is right, which it did not give before."""
  flags = [
      '--config.steps=30', '--config.data.batch=16', '--config.optim.lr=2e-3',
      f'--config.judge_training.held_out={TRACES}'
  ]
  main.main([*FLAGS, *flags, f'--workdir={tmp_path}'])
  rows = metrics.read(tmp_path / 'metrics.jsonl')
  assert rows[-1]['judge/score_loss'] < 0.6 * rows[0]['judge/score_loss']
  assert 'judge/hint_loss' not in rows[0]
  assert '\njudge ' in capsys.readouterr().out
  card = json.loads((tmp_path / 'calibration.json').read_text())
  assert card['first_wrong_step']['n'] == 96 and 'fit' in card
  assert (tmp_path / 'model/model.safetensors').exists()


@pytest.mark.slow
def test_a_resumed_run_is_the_same(tmp_path, monkeypatch):
  flags = ['--config.steps=6', '--config.checkpoint.every=2']
  main.main([*FLAGS, *flags, f'--workdir={tmp_path / "whole"}'])
  step, calls = train_judge._step, []

  def stops(*args):
    calls.append(1)
    if len(calls) == 5:
      raise KeyboardInterrupt
    return step(*args)

  monkeypatch.setattr(train_judge, '_step', stops)
  with pytest.raises(KeyboardInterrupt):
    main.main([*FLAGS, *flags, f'--workdir={tmp_path / "resumed"}'])
  monkeypatch.setattr(train_judge, '_step', step)
  main.main([*FLAGS, *flags, f'--workdir={tmp_path / "resumed"}'])
  models = [(tmp_path / name / 'model/model.safetensors').read_bytes()
            for name in ('whole', 'resumed')]
  assert models[0] == models[1]


@pytest.mark.slow
def test_micro_batches_change_nothing(one_device):
  config = frozen()
  judge = factory.load(config, one_device)
  source = train_judge.File(config, one_device)
  batch = source.draw(0)
  results = []
  for size in (8, 3, 1):
    # The first step of Adam divides by |gradient| + eps: with 1e-8 the noise of
    # a gradient near 0 would be as large as the step.
    cfg = frozen(f'--config.optim.micro_rows={size}', '--config.optim.eps=1e-5')
    state = optimizer.init_state(source.start(judge.model), cfg.optim, 10)
    state, values = train_judge._step(cfg, judge, state, source, batch,
                                      one_device)
    results.append((state.params, values))
  for params, values in results[1:]:
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(results[0][0])):
      np.testing.assert_allclose(x, y, atol=2e-5)
    for name, value in values.items():
      np.testing.assert_allclose(value, results[0][1][name], rtol=1e-4)


def test_the_loss_is_that_of_the_scores_that_a_run_reads(one_device):
  """Of the judge's own probabilities, by the judge itself."""
  config = frozen()
  judge = factory.load(config, one_device)
  source = train_judge.File(config, one_device)
  batch = source.draw(1)
  state = optimizer.init_state(source.start(judge.model), config.optim, 10)
  _, values = train_judge._step(config, judge, state, source, batch, one_device)
  judgments = judge.score([(b.problem, b.steps) for b in batch], 8)
  errors = [
      abs(judgments.score[i, s] - label)
      for i, b in enumerate(batch)
      for s, label in enumerate(b.labels)
      if label == label
  ]
  np.testing.assert_allclose(values['judge/abs_error'], np.mean(errors),
                             atol=1e-4)


def test_labels_of_a_file(tmp_path):
  path = tmp_path / 'in.jsonl'
  row = {'question': 'q', 'solution': 's'}

  def labels(**more):
    path.write_text(json.dumps(row | more) + '\n')
    config = frozen(f'--config.judge_training.traces={path}')
    tokenizer = Tokenizer(config_lib.resolve(JUDGE))
    (item,) = labeled_traces.read(config, tokenizer)
    return [None if math.isnan(x) else x for x in item.labels]

  steps = ['jan 1 + 1 = 2', 'feb 2 + 1 = 4', '\\boxed{ 4 }']
  trace = ' ### '.join(steps)
  assert labels(steps=steps, scores=[1, 0.5, None]) == [1.0, 0.5, None]
  assert labels(trace=trace, score=0.25) == [None, None, 0.25]
  assert labels(steps=steps, label=1) == [1.0, 0.0, 0.0]
  assert labels(trace=trace, wrong_at=-1, correct=False) == [1.0, 1.0, 1.0]
  assert labels(trace=trace, correct=False) == [None, None, 0.0]
  for more, message in ((dict(trace=trace), 'no label: one of'), (dict(
      trace=trace,
      scores=[1]), 'one for each of `steps`'), (dict(steps=steps, scores=[1,
                                                                          1]),
                                                'a list of 3 numbers'),
                        (dict(steps=steps, scores=[1, 1,
                                                   2]), 'scores holds 2, want'),
                        (dict(trace=trace,
                              score=True), 'score holds True, want'),
                        (dict(steps=steps * 3,
                              label=-1), '9 steps, judge.max_steps=8')):
    with pytest.raises(InputError, match=message):
      labels(**more)
  with pytest.raises(InputError, match='no such file'):
    labeled_traces.read(frozen('--config.judge_training.traces=/no/file'),
                        Tokenizer(config_lib.resolve(JUDGE)))


def test_what_cannot_be_trained_on_is_said_first(capsys):
  main.main([*FLAGS, '--dry_run'])
  assert 'run train_judge, 96 traces' in capsys.readouterr().out
  for flag, message in (('readout=generate', "readout='generate'.* 'direct'"),
                        ('context=segment', "context='segment'.* 'prefix'"),
                        ('max_prompt_tokens=20', '32 of 32 problems do not')):
    with pytest.raises(InputError, match=message):
      main.main([*FLAGS, '--dry_run', f'--config.judge.{flag}'])
