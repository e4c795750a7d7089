import dataclasses
import pathlib
import re
import typing

import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax import main
from exprl_jax.config import files, loading, schema
from exprl_jax.runs import recipes
from exprl_jax.types import InputError

CONFIGS = sorted(pathlib.Path('configs').rglob('*.py'))
assert CONFIGS, 'run pytest from the repository'
# Files with one recipe.
ALONE = ('sample', 'judge', 'export', 'rubrics', 'validate')
COMMANDS = [
    (path, argument) for path in CONFIGS for argument in files.arguments(path)
]


def command(path, argument):
  return f'{path}:{argument}' if argument else str(path)


@pytest.mark.parametrize('path, argument', COMMANDS,
                         ids=lambda x: getattr(x, 'stem', x))
def test_every_recipe_is_valid_and_has_its_command(path, argument):
  name = command(path, argument)
  config = recipes.freeze(config_lib.load(name))
  assert hash(config) == hash(recipes.freeze(config_lib.load(name)))
  assert re.search(f'--config={name}(?![:a-z])',
                   path.read_text()), 'its command'


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_configs_import_ml_collections_only(path):
  imports = [
      line for line in path.read_text().splitlines()
      if line.startswith(('import ', 'from ')) or ' import ' in line
  ]
  assert imports == ['from ml_collections import ConfigDict']


def test_the_families_have_all_recipes():
  """A recipe that drops out of RECIPES would be tested by nothing."""
  assert {path.stem: set(files.arguments(path)) for path in CONFIGS} == {
      'tiny': {
          '', 'outcome', 'grpo', 'sft', 'self_distill', 'stage2', 'evaluate',
          'policy', 'judge'
      },
      'paper_tiny': {
          'process', 'outcome', 'grpo', 'self_distill', 'sft', 'oracle',
          'wrong_references', 'stage2'
      },
      'word_problems': {'', 'base', 'judge', 'outcome', 'grpo', 'sft'},
      'qwen3_4b': {
          'exprl_outcome', 'exprl_process', 'exprl_process_fast',
          'exprl_process_authors', 'exprl_process_end', 'exprl_process_group',
          'grpo', 'self_distill', 'sft', 'stage2', 'stage2_authors', 'passk'
      },
      'qwen3_8b_mixed': {
          'exprl_outcome', 'exprl_process', 'exprl_mixed', 'grpo',
          'self_distill', 'sft', 'passk'
      },
      **{name: {''} for name in ALONE},
  }


def test_every_recipe_is_a_fresh_config():
  """What a recipe or a caller changes stays in its own config."""
  config_lib.load('configs/tiny.py:stage2')
  first = files.read('configs/tiny.py:grpo')
  first.optim.lr = 7.0
  assert files.read('configs/tiny.py:grpo').optim.lr == 5e-4


@pytest.mark.parametrize('path, message', [
    ('configs/tiny.py:gpro', "has no 'gpro' .did you mean 'grpo'.*: one of "
     'outcome, grpo, sft'),
    ('configs/tiny.py:x', "has no 'x': one of outcome"),
    ('configs/qwen3_4b.py', 'needs an argument, such as configs/qwen3_4b.py:'
     'exprl_outcome: one of exprl_outcome, exprl_process'),
    ('configs/sample.py:x', 'configs/sample.py takes no argument'),
    ('configs/tiny_grpo.py', 'configs/tiny_grpo.py was renamed to '
     'configs/tiny.py:grpo$'),
    ('configs/tiny_self_distill.py', 'to configs/tiny.py:self_distill$'),
    ('configs/qwen3_4b/grpo.py', 'configs/qwen3_4b/grpo.py was renamed to '
     'configs/qwen3_4b.py:grpo$'),
    ('configs/qwen3_8b_mixed/exprl_mixed.py', 'configs/qwen3_8b_mixed.py:'
     'exprl_mixed$'),
    ('configs/prepare.py', 'configs/prepare.py was renamed to configs/'
     'rubrics.py$'),
    ('configs/tiny_nothing.py', 'tiny_nothing.py: no such file'),
    ('configs/nothing.py:grpo', 'nothing.py:grpo: no such file'),
])
def test_a_bad_argument_is_one_clear_line(path, message):
  with pytest.raises(InputError, match=message) as e:
    config_lib.load(path)
  assert '\n' not in str(e.value)
  assert str(e.value).startswith(f'--config={path}')


def test_every_file_that_a_recipe_replaced_says_so():
  for path, argument in COMMANDS:
    if argument and path.parent.name == 'configs':
      for old in (f'{path.stem}_{argument}.py', f'{path.stem}/{argument}.py'):
        with pytest.raises(InputError, match=f'renamed to {path}:{argument}$'):
          files.read(f'configs/{old}')


def test_a_file_without_recipes_may_take_any_argument(tmp_path):
  path = tmp_path / 'c.py'
  path.write_text('from ml_collections import ConfigDict\n'
                  'def get_config(steps="7"):\n'
                  '  return ConfigDict(dict(steps=int(steps)))\n')
  assert config_lib.load(str(path)).steps == 7
  assert config_lib.load(f'{path}:12').steps == 12
  with pytest.raises(InputError, match="c.py:many: line 3: .*'many'"):
    config_lib.load(f'{path}:many')


def test_a_file_that_fails_or_has_no_get_config_is_named(tmp_path):
  path = tmp_path / 'c.py'
  path.write_text('steps = 1\n')
  with pytest.raises(InputError, match='c.py has no get_config'):
    files.read(str(path))
  path.write_text('import nothing_of_that_name\n')
  for name in (path, tmp_path / 'c_grpo.py'):
    with pytest.raises(InputError, match='c.py: line 1: ModuleNotFoundError'):
      files.read(str(name))


def help_of(flag, capsys):
  with pytest.raises(SystemExit) as e:
    main.main([flag])
  assert not e.value.code
  return capsys.readouterr().out.split('\n')


@pytest.mark.parametrize('flag', ['-h', '--help'])
def test_help_lists_configs_modes_and_sections(flag, capsys):
  lines = help_of(flag, capsys)
  assert any('small/word_problems tiny validate' in x for x in lines)
  assert any('train sft evaluate' in x for x in lines)
  sections = {x.split()[0] for x in lines if x.startswith('  --help=')}
  assert sections == {
      f'--help={name.partition(".")[0]}'
      for name, _ in loading.hints(config_lib.Config)
      if '.' in name
  } | {'--help=all', '--help=run'}


@pytest.mark.parametrize('about, keys', [
    ('mesh', [
        'mesh.data', 'mesh.fsdp', 'mesh.expert', 'mesh.tensor',
        'mesh.rollout_tensor', 'mesh.sampling_devices'
    ]),
    ('max_new', ['rollout.max_new_tokens', 'rubrics.max_new_tokens']),
    ('run', [
        'run', 'seed', 'steps', 'reward', 'compare', 'compile_cache',
        'watchdog_minutes'
    ]),
])
def test_help_of_a_section_or_of_a_part_of_a_name(about, keys, capsys):
  lines = help_of(f'--help={about}', capsys)
  assert [
      x.strip().partition('=')[0] for x in lines if x.startswith('  --config.')
  ] == [f'--config.{k}' for k in keys]


def test_help_of_nothing_says_so():
  with pytest.raises(InputError, match='--help=nothing: no key has that'):
    main.main(['--help=nothing'])


def test_shipped_configs_have_names(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert config_lib.load('tiny:grpo') == config_lib.load('configs/tiny.py:grpo')
  assert files.title('tiny:grpo') == 'tiny:grpo'
  assert files.beside('tiny', 'tiny.py:grpo').endswith('configs/tiny.py:grpo')
  with pytest.raises(InputError, match='tinny: no such file, nor .* tiny,'):
    config_lib.load('tinny')
  (tmp_path / 'tiny.py').write_text('def get_config(): 1 / 0')
  with pytest.raises(InputError, match='ZeroDivisionError'):
    config_lib.load('tiny.py')  # a file of the user


def test_help_lists_every_key_with_its_comment(capsys):
  lines = help_of('--help=all', capsys)
  shown = [x.strip() for x in lines if x.startswith('  --config.')]
  assert [x.partition('=')[0] for x in shown] == [
      f'--config.{name}' for name, _ in loading.hints(config_lib.Config)
  ]
  for key, comment in (
      ('policy.init', 'model folder, ORG/NAME[@REVISION] of the Hub, adapters '
       'of PEFT, workdir, WORKDIR@STEP, asset:NAME'),  # goes on below
      ('policy.remat', 'Layers that the backward pass recomputes.'),  # above
      ('rollout.oversampling',
       'extra samples per problem, so that none waits for the longest')):
    at = next(
        i for i, x in enumerate(lines) if x.startswith(f'  --config.{key}='))
    assert lines[at + 1].strip() == comment


def test_runs_are_named_by_file_and_argument():
  assert files.title('configs/tiny.py') == 'tiny'
  assert files.title('configs/tiny.py:grpo') == 'tiny:grpo'
  assert files.beside('configs/tiny.py:outcome',
                      'tiny.py:grpo') == 'configs/tiny.py:grpo'


def test_the_comparison_differs_by_the_recipe_only():
  config = preset('tiny:outcome')
  other = main.compared(config, 'configs/tiny.py:outcome')
  assert (other.reward, other.compare) == ('sparse', '')
  assert (other.steps, other.data, other.rollout) == (200, config.data,
                                                      config.rollout)
  assert other.loss == preset('tiny:grpo').loss != config.loss


def preset(name):
  family, _, argument = name.partition(':')
  return config_lib.freeze(
      config_lib.load(command(f'configs/{family}.py', argument)))


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
    (['--config.credit.rule=group'], 'use delta or end or group_process'),
    (['--config.reward=outcome'], 'use group or rloo'),
    (['--config.optim.updates=3'], 'takes whole groups'),
    (['--config.optim.row_tokens=95'], 'hold the longest sequence, 96 tokens'),
    (['--config.loss.kind=exact_kl'], "needs reward='teacher'"),
    (['--config.loss.kind=pro'], "did you mean 'ppo'"),
    (['--config.loss.kind=reinforce', '--config.optim.updates=2'
     ], 'needs optim.updates=1'),
    (['--config.loss.kl_in=reward'], 'takes the KL off the score of a row'),
    (['--config.rollout.overlong=soft'], 'keep or mask or zero'),
    (['--config.credit.last=zero'], 'credit.last=.* is not read'),
    (['--config.credit.single=score'], "is not read with reward='process'"),
    (['--config.credit.min_std=0.1'], 'credit.min_std=0.1 is not read'),
    (['--config.select.curriculum_floor=0'], 'more than 0, at most 1'),
    (['--config.optim.clip_norm=0'], 'more than 0'),
    (['--config.data.contamination_overlap=0'], 'more than 0, at most 1'),
    (['--config.rollout.top_p=0'], 'top_p=0.0: more than 0, at most 1'),
    (['--config.rollout.min_p=1'], 'min_p=1.0: at least 0, less than 1'),
    (['--config.eval.ks=(0,4)'], 'eval.ks=0: at least 1'),
    (['--config.seed=-1'], 'seed=-1: at least 0'),
    (['--config.optim.lr=nan'], 'lr=nan: at least 0, at most 10, and finite'),
    (['--config.rollout.temperature=0'], 'draws the same sample'),
    (['--config.rollout.group_size=1', '--config.credit.sparse_weight=1'
     ], 'group_size=1: credit.sparse_weight compares'),
    (['--config.rollout.min_new_tokens=3'], 'truncate the distribution'),
    (["--config.judge.templates=('code',)"], "should be 'DOMAIN=VALUE'"),
    ([
        '--config.select.drop_zero_variance=True',
        '--config.rollout.partial_rollouts=2'
    ], 'does not go with'),
    (['--config.eval.ks=(1,64)'], 'pass@k needs eval.samples >= k'),
    (['--config.stpes=1'], 'unknown key config.stpes; did you mean steps.?$'),
    (['--config.sample.temperature=0'], 'unknown key config.sample.temperature'
     '; did you mean rollout.temperature'),
    (['--config.qqqqqqq=0'], 'unknown key config.qqqqqqq$'),
    (['--config.rollout.stop=A,B'], r"one text or two. write \('A', 'B'\)"),
    (['--config.steps=1.5'], 'config.steps=1.5'),
    (['--stpes=1'], 'Unknown command line flag'),
    (['steps=1'], 'not a flag'),
])
def test_a_bad_command_line_is_one_clear_line(flags, message):
  with pytest.raises(InputError, match=message) as e:
    _, values, _ = main.parse(['--config=configs/tiny.py', *flags])
    recipes.freeze(values)
  assert '\n' not in str(e.value)


def test_overrides_reach_keys_that_the_file_leaves_out():
  _, values, _ = main.parse([
      '--config', 'configs/tiny.py', '--config.optim.b2=0.95',
      '--config.seed=3', '--config.eval.ks=(1,4)'
  ])
  config = recipes.freeze(values)
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


@pytest.mark.parametrize('old, new', loading.RENAMED.items())
def test_old_names_say_what_they_were_renamed_to(tmp_path, old, new):
  key, equals, value = old.partition('=')
  section, _, name = key.rpartition('.')
  body = f'{name}={value or 1!r}' if equals else f'{name}=1'
  body = f'dict({section}=dict({body}))' if section else f'dict({body})'
  in_file = new.partition('.')[0] if section == 'prepare' else new
  with pytest.raises(InputError, match=f'renamed to {re.escape(in_file)}'):
    recipes.freeze(config_lib.load(write(tmp_path, body)))
  if not equals and section:  # as a flag
    with pytest.raises(InputError, match=f'was renamed to {re.escape(new)}'):
      main.parse(['--config=configs/tiny.py', f'--config.{old}=1'])


def test_choices_and_bounds_are_those_of_the_types():
  """Every Literal refuses another value, every bound what is outside."""
  checked = 0
  for name, hint in loading.hints(config_lib.Config):
    bad = ()
    if typing.get_origin(hint) is typing.Literal:
      bad = ('no such choice',)
    for bound in getattr(hint, '__metadata__', ()):
      bad = (bound.low - 1, bound.high * 2 + 1)
    for value in bad:
      checked += 1
      with pytest.raises(InputError, match=f'config.{name}='):
        loading.check(name, value, hint)
  assert checked > 60


def test_keeping_the_first_to_end_has_to_be_meant(rng):
  """It is biased toward short traces, by as much as docs/method.md says."""
  for flags in (['oversampling=2'], ['oversampling_rule=first_to_end']):
    _, values, _ = main.parse(
        ['--config=configs/tiny.py', *(f'--config.rollout.{f}' for f in flags)])
    with pytest.raises(InputError, match='prefers short .*partial_rollouts'):
      recipes.freeze(values)
  right = rng.random((50_000, 12)) < 0.5
  for wrong, length, accuracy in ((1, 0.68, 0.5), (2, 0.65, 0.55)):
    lengths = rng.exponential(size=right.shape) * np.where(right, 1, wrong)
    first = np.argsort(lengths, axis=1)[:, :10]
    kept = np.take_along_axis(lengths, first, axis=1)
    assert kept.mean() / lengths.mean() == pytest.approx(length, abs=0.01)
    assert np.take_along_axis(right, first, axis=1).mean() == pytest.approx(
        accuracy, abs=0.01)


def numeric_keys():
  """(name, int or float, its bounds) of all keys that are numbers."""
  for name, hint in loading.hints(schema.Config):
    if typing.get_origin(hint) is tuple:
      hint = typing.get_args(hint)[0]
    kind = getattr(hint, '__origin__', hint)
    if kind in (int, float):
      yield name, kind, getattr(hint, '__metadata__', ()), hint


def test_every_number_has_a_range():
  keys = list(numeric_keys())
  assert len(keys) > 100
  for name, _, bounds, _ in keys:
    assert len(bounds) == 1 and isinstance(bounds[0], schema.Bound), name


@pytest.mark.parametrize(
    'value', [float('nan'),
              float('inf'), -float('inf'), 0, -1, 1e18, 2**40])
def test_every_number_is_in_its_range_or_named(value):
  """Tried on all keys; what is accepted is finite and within the bounds."""
  for name, kind, (bound,), hint in numeric_keys():
    given = value if kind is float else (
        int(value) if np.isfinite(value) else None)
    if given is None:  # no integer
      continue
    try:
      loading.check(name, given, hint)
    except InputError as e:
      assert str(e).startswith(f'config.{name}='), e
      assert not bound.low < given < bound.high
    else:
      assert bound.low <= given <= bound.high


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
  mine = tmp_path / 'mine.py'
  mine.write_text(pathlib.Path('configs/tiny.py').read_text())
  monkeypatch.chdir(tmp_path)
  assert config_lib.load('configs/tiny.py:sft').run == 'sft'
  values = config_lib.freeze(config_lib.load('mine.py'))
  assert main.compared(values, 'mine.py').reward == 'sparse'  # the shipped one
  bad = dataclasses.replace(values, compare='nothing.py')
  with pytest.raises(InputError, match='^config.compare=nothing.py: .*no such'):
    main.compared(bad, 'mine.py')
