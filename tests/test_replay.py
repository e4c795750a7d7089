"""run='replay': a step again, from its kept traces."""

import json

import jax
import numpy as np
import pytest

from exprl_jax import main
from exprl_jax.runs import recipes
from exprl_jax.runs.replay import replay
from exprl_jax.runtime import checkpoints, jsonl, metrics
from exprl_jax.types import InputError

SHORT = [
    '--config.compare=', '--config.steps=3', '--config.eval.problems=',
    '--config.data.batch=4', '--config.rollout.group_size=4',
    '--config.checkpoint.every=1', '--config.checkpoint.keep=3'
]


def train(workdir, recipe, *flags):
  main.main([
      f'--config=configs/tiny.py:{recipe}', f'--workdir={workdir}', *SHORT,
      *flags
  ])


def again(workdir, recipe, *flags, step=3):
  """Replays a step of the run in `workdir`."""
  _, values, _ = main.parse([
      f'--config=configs/tiny.py:{recipe}', *SHORT, '--config.run=replay',
      f'--config.replay.source={workdir}', f'--config.replay.step={step}',
      f'--config.replay.out={workdir}/replay.jsonl', *flags
  ])
  state, values = replay(recipes.freeze(values))
  return state, values, jsonl.read(workdir / 'replay.jsonl').rows


@pytest.mark.parametrize('recipe, more', [
    pytest.param('', ['--config.rollout.overlong=zero'],
                 marks=pytest.mark.slow),
    pytest.param('outcome', ['--config.credit.sparse_weight=0.5'],
                 marks=pytest.mark.slow),
    pytest.param('self_distill', ['--config.policy.lora_rank=2'],
                 marks=pytest.mark.slow)
])
def test_a_replayed_step_is_the_step(recipe, more, tmp_path, capsys):
  """Advantages, metrics, and every bit of the state after the update."""
  train(tmp_path, recipe, *more)
  state, values, rows = again(tmp_path, recipe, *more)
  assert all(r['advantages'] == r['advantages_kept'] for r in rows)
  assert '16 traces, the advantages of 0 differ' in capsys.readouterr().out
  logged = [r for r in metrics.read(tmp_path / 'metrics.jsonl')
            if r['step'] == 3 and 'policy/loss' in r][0]  # yapf: disable
  assert {k: logged[k] for k in values} == values
  saved = checkpoints.restore_step(tmp_path, 3,
                                   jax.tree.map(lambda x: x.copy(), state))
  jax.tree.map(np.testing.assert_array_equal, saved, state)


@pytest.mark.slow
def test_another_rule_and_what_is_not_there(tmp_path):
  train(tmp_path, '')
  same, _, rows = again(tmp_path, '', step=1)
  assert all(r['advantages'] == r['advantages_kept'] for r in rows)
  saved = checkpoints.restore_step(tmp_path, 1,
                                   jax.tree.map(lambda x: x.copy(), same))
  jax.tree.map(np.testing.assert_array_equal, saved, same)
  _, _, rows = again(tmp_path, '', '--config.credit.rule=end',
                     '--config.credit.first=final', step=1)
  for row in rows:  # EndNorm by hand
    *some, last = row['scores']
    np.testing.assert_allclose(row['advantages'],
                               [*(s - last for s in some), last], atol=1e-6)
  with pytest.raises(InputError, match='no traces of step 4; .* 1 to 3'):
    again(tmp_path, '', step=4)
  with pytest.raises(InputError, match='group_size=3 that of the run'):
    again(tmp_path, '', '--config.rollout.group_size=3')
  config = json.loads((tmp_path / 'config.json').read_text())
  assert config['run'] == 'train'
