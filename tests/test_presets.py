"""The recipes against the values of the paper and its authors' scripts.

What differs has to stand in the table of docs/method.md, with its reason.
"""

import pathlib
import re

import pytest

from exprl_jax import config as config_lib
from exprl_jax.config.loading import get

# arXiv 2606.17024 and its released scripts. `None` is 'no such limit'.
RL = {
    'rollout.max_prompt_tokens': 4096, 'rollout.max_new_tokens': 16384,
    'rollout.temperature': 0.8, 'rollout.top_p': 1.0, 'rollout.top_k': 0,
    'optim.b1': 0.9, 'optim.b2': 0.999, 'optim.eps': 1e-8,
    'optim.weight_decay': 0.01, 'optim.decay': 'all', 'optim.warmup_steps': 0,
    'optim.schedule': 'constant', 'optim.lr': 1e-6, 'optim.clip_norm': 1.0,
    'loss.kind': 'ppo', 'loss.clip_low': 0.2, 'loss.clip_high': 0.26,
    'loss.dual_clip': 3.0, 'loss.aggregation': 'token_mean',
    'loss.kl_coef': 1e-3, 'loss.kl_estimator': 'k3', 'loss.kl_in': 'loss',
    'loss.kl_clamp': 10.0, 'loss.entropy_coef': 0.0, 'loss.tis_cap': 0.0,
    'select.drop_zero_variance': False, 'rollout.oversampling': 0,
    'eval.system_prompt': 'boxed'
}
JUDGE = {
    'judge.scale': 'smooth',
    'judge.readout': 'generate',
    'judge.rationale_tokens': 2048,
    'judge.reference': 'solution',
    # 32,768 with the trace.
    'judge.max_prompt_tokens': 16384,
    'rollout.overlong': 'zero'
}
STAGE1_4B = RL | JUDGE | {
    'steps': 230, 'data.batch': 36, 'rollout.group_size': 10
}
OUTCOME = {
    'reward': 'outcome', 'credit.rule': 'group', 'credit.divide_by_std': True,
    'credit.min_std': 0.0, 'optim.updates': 2, 'loss.clip_high': 0.28
}
PROCESS = {
    'reward': 'process', 'credit.rule': 'delta', 'credit.first': 'final',
    'credit.single': 'zero', 'judge.context': 'prefix', 'optim.updates': 1,
    'judge.delimiter': 'authors', 'judge.max_steps': None,
    'judge.min_step_tokens': 1
}
GRPO = RL | {
    'reward': 'sparse', 'credit.rule': 'group', 'credit.divide_by_std': True,
    'data.batch': 32, 'rollout.group_size': 16, 'optim.updates': 2,
    'rollout.overlong': 'keep'
}
DISTILL = RL | {
    'reward': 'teacher',
    'credit.rule': 'token',
    'loss.kind': 'reinforce',
    'loss.kl_coef': 0.0,
    'loss.aggregation': 'seq_mean_token_mean',
    'optim.lr': 1e-7,
    'optim.updates': 1,
    'data.batch': 32,
    'rollout.group_size': 16,
    'rollout.overlong': 'keep',
    'loss.clip_high': 0.28,
    'loss.dual_clip': 3.0  # not read by this loss
}
SFT = {
    'run': 'sft', 'data.batch': 32, 'optim.lr': 1e-6, 'optim.b1': 0.9,
    'optim.b2': 0.95, 'optim.weight_decay': 0.01, 'optim.clip_norm': 1.0,
    'optim.schedule': 'cosine', 'loss.aggregation': 'token_mean',
    'rollout.max_prompt_tokens': 4096, 'rollout.max_new_tokens': 16384,
    'rollout.system_prompt': '', 'eval.system_prompt': 'boxed'
}
STAGE2 = GRPO | {
    'steps': 500, 'rollout.group_size': 32, 'optim.updates': 1,
    'loss.kl_coef': 0.0, 'checkpoint.every': 50
}
PASSK = {
    'run': 'evaluate', 'eval.samples': 128, 'rollout.temperature': 0.8,
    'rollout.top_p': 1.0, 'rollout.top_k': 0, 'rollout.max_new_tokens': 16384,
    'eval.system_prompt': 'boxed'
}
STAGE1_8B = STAGE1_4B | {'steps': 270, 'rollout.group_size': 16}
METHOD = {
    'qwen3_4b:exprl_outcome': STAGE1_4B | OUTCOME | {'checkpoint.every': 30},
    'qwen3_4b:exprl_process': STAGE1_4B | PROCESS | {'checkpoint.every': 30},
    'qwen3_4b:exprl_process_fast': STAGE1_4B | PROCESS,
    'qwen3_4b:exprl_process_authors': STAGE1_4B | PROCESS,
    'qwen3_4b:exprl_process_end': STAGE1_4B | PROCESS | {
        'credit.rule': 'end', 'credit.last': 'score'
    },
    'qwen3_4b:exprl_process_group': STAGE1_4B | PROCESS | {
        'credit.rule': 'group_process', 'credit.baseline': 'steps'
    },
    'qwen3_4b:grpo': GRPO | {'steps': 230, 'checkpoint.every': 20},
    'qwen3_4b:self_distill': DISTILL | {'steps': 230, 'checkpoint.every': 30},
    'qwen3_4b:sft': SFT | {'steps': 94, 'optim.warmup_steps': 9},
    'qwen3_4b:stage2': STAGE2,
    'qwen3_4b:stage2_authors': STAGE2 | {
        'data.batch': 16, 'credit.divide_by_std': False, 'loss.clip_low': 4.0,
        'loss.clip_high': 4.0, 'loss.dual_clip': 0.0, 'loss.entropy_coef': 1e-4,
        'loss.aggregation': 'seq_mean_token_sum', 'optim.clip_norm': 0.3
    },
    'qwen3_4b:passk': PASSK,
    'qwen3_8b_mixed:exprl_outcome': STAGE1_8B | OUTCOME | {
        'judge.rationale_tokens': 4096, 'checkpoint.every': 10
    },
    'qwen3_8b_mixed:exprl_process': STAGE1_8B | PROCESS | {
        'checkpoint.every': 30
    },
    'qwen3_8b_mixed:exprl_mixed': STAGE1_8B | PROCESS | {
        'judge.rationale_tokens': 4096, 'loss.clip_high': 0.28,
        'optim.updates': 2, 'credit.min_std': 0.0, 'checkpoint.every': 10
    },
    'qwen3_8b_mixed:grpo': GRPO | {'steps': 270, 'checkpoint.every': 20},
    'qwen3_8b_mixed:self_distill': DISTILL | {
        'steps': 270, 'checkpoint.every': 20
    },
    'qwen3_8b_mixed:sft': SFT | {'steps': 250, 'optim.warmup_steps': 25},
    'qwen3_8b_mixed:passk': PASSK
}  # yapf: disable


def text(value):
  """A value as the table has it."""
  return 'none' if value is None else str(value)


def ours(name, key):
  c = config_lib.freeze(config_lib.load(f'configs/{name}'.replace(':', '.py:')))
  if key == 'eval.system_prompt':  # evaluation has no prompt of its own
    return 'boxed' if '\\boxed{}' in c.rollout.system_prompt else 'none'
  return get(c, key)


def declared():
  """(recipe, key) -> (theirs, ours), of the table in docs/method.md."""
  page = pathlib.Path('docs/method.md').read_text()
  table = page[page.index('### What the recipes change'):]
  table = table[:table.index('\nNot in the table')]
  found = {}
  for line in table.split('\n'):
    if line.startswith('| `'):
      key, recipes, theirs, here, why = (
          c.strip() for c in line.strip('|').split('|'))
      assert why, line
      for recipe in re.findall('`([^`]+)`', recipes):
        assert (recipe, key.strip('`')) not in found, line
        found[recipe, key.strip('`')] = theirs.strip('`'), here.strip('`')
  return found


@pytest.mark.parametrize('name', METHOD)
def test_a_recipe_is_the_papers_but_for_what_is_declared(name):
  table = declared()
  for key, theirs in METHOD[name].items():
    if text(ours(name, key)) != text(theirs):
      assert table.get((name, key)) == (text(theirs), text(ours(
          name, key))), f'{key}: {theirs}, here {ours(name, key)}'
    else:
      assert (name, key) not in table, f'{key} is no longer different'


def test_all_recipes_are_compared_and_all_rows_are_about_one():
  for family in ('qwen3_4b', 'qwen3_8b_mixed'):
    names = config_lib.files.arguments(pathlib.Path(f'configs/{family}.py'))
    assert {f'{family}:{name}' for name in names
           } == {name for name in METHOD if name.startswith(family)}
  for name, key in declared():
    assert key in METHOD[name], (name, key)
