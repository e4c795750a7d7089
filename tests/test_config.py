import pathlib

import pytest

from exprl_jax import config as config_lib
from exprl_jax import main
from exprl_jax.types import InputError

CONFIGS = sorted(pathlib.Path('configs').rglob('*.py'))
assert CONFIGS, 'run pytest from the repository'


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_every_config_is_valid_and_imports_nothing_of_ours(path):
  config = config_lib.freeze(config_lib.load(str(path)))
  assert hash(config) == hash(config_lib.freeze(config_lib.load(str(path))))
  assert 'exprl_jax' not in ''.join(
      line for line in path.read_text().splitlines() if 'import' in line)
  assert f'--config={path}' in path.read_text(), 'its command'


def test_the_papers_numbers():
  """METHOD of arXiv 2606.17024: ExpRL-Process with a 4B policy."""
  c = config_lib.freeze(config_lib.load('configs/qwen3_4b/exprl_process.py'))
  assert (c.data.batch, c.rollout.group_size, c.steps) == (36, 10, 230)
  assert (c.rollout.max_prompt_tokens, c.rollout.max_new_tokens) == (
      4096, 16384)
  assert (c.rollout.temperature, c.optim.lr, c.optim.updates) == (0.8, 1e-6, 1)
  assert (c.optim.b1, c.optim.b2, c.optim.eps) == (0.9, 0.999, 1e-8)
  assert (c.optim.weight_decay, c.optim.clip_norm) == (0.01, 1.0)
  assert (c.loss.clip_low, c.loss.clip_high, c.loss.dual_clip) == (
      0.2, 0.26, 3.0)
  assert c.loss.kl_coef == 1e-3
  assert (c.credit.rule, c.credit.first, c.credit.single) == (
      'delta', 'final', 'zero')
  assert '\\boxed{}' in c.rollout.system_prompt  # not a backspace


def write(tmp_path, body):
  path = tmp_path / 'c.py'
  path.write_text('from ml_collections import ConfigDict\n'
                  f'def get_config():\n  return ConfigDict({body})\n')
  return str(path)


@pytest.mark.parametrize('body, message', [
    ("dict(stpes=3)", 'unknown key stpes; did you mean steps'),
    ("dict(optim=dict(rate=3))", 'unknown key optim.rate'),
    ("dict(optim=dict(lrr=3))", 'optim.lrr; did you mean optim.lr'),
    ("dict(steps='many')", "steps='many' should be int"),
    ("dict(steps=1 / 0)", 'ZeroDivisionError'),
    ("dict(optim=3)", 'optim=3 should be a group of keys'),
])
def test_a_bad_file_is_named(tmp_path, body, message):
  with pytest.raises(InputError, match=message) as e:
    config_lib.load(write(tmp_path, body))
  assert 'c.py' in str(e.value)


@pytest.mark.parametrize('flags, message', [
    (['--config.run=trian'], "did you mean 'train'"),
    (['--config.steps=-1'], 'config.steps=-1: at least 0'),
    (['--config.policy.init='], 'config.policy.init is empty'),
    (['--config.credit.rule=group'], "use 'delta'"),
    (['--config.reward=outcome'], "use 'group'"),
    (['--config.optim.updates=3'], 'takes whole groups'),
    (['--config.optim.micro_batches=7'], 'do not divide'),
    (['--config.eval.ks=(1,64)'], 'pass@k needs eval.samples >= k'),
    (['--config.stpes=1'], 'Did you mean "steps"'),
    (['--config.steps=1.5'], 'config.steps=1.5'),
    (['--stpes=1'], 'Unknown command line flag'),
    (['steps=1'], 'not a flag'),
])
def test_a_bad_command_line_is_one_clear_line(flags, message):
  with pytest.raises(InputError, match=message) as e:
    _, values, _ = main.parse(['--config=configs/tiny.py', *flags])
    config_lib.freeze(values)
  assert '\n' not in str(e.value)


def test_overrides_reach_keys_that_the_file_leaves_out():
  _, values, _ = main.parse(['--config', 'configs/tiny.py',
                             '--config.optim.b2=0.95', '--config.seed=3',
                             '--config.eval.ks=(1,4)'])
  config = config_lib.freeze(values)
  assert (config.optim.b2, config.seed, config.eval.ks) == (0.95, 3, (1, 4))


def test_no_config():
  with pytest.raises(InputError, match='--config=FILE is missing'):
    main.parse([])
  with pytest.raises(InputError, match='nothing.py: no such file'):
    main.parse(['--config=nothing.py'])


def test_a_workdir_stands_for_its_model(tmp_path):
  assert config_lib.resolve(str(tmp_path)) == tmp_path
  (tmp_path / 'model').mkdir()
  (tmp_path / 'model/config.json').write_text('{}')
  assert config_lib.resolve(str(tmp_path)) == tmp_path / 'model'
