"""How the tiny judge was made (exprl_jax/tiny/train_judge.py).

  python -m exprl_jax.main --config=configs/tiny_judge.py

is the first of five passes; docs/tiny.md has all commands.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'train_judge'
  c.steps = 2400
  c.policy = ConfigDict(dict(init='asset:tiny_policy'))
  c.judge = ConfigDict(
      dict(init='asset:tiny_judge', template='tiny', max_steps=8, min_mass=0.0,
           max_prompt_tokens=96))
  c.data = ConfigDict(dict(batch=32))
  c.rollout = ConfigDict(
      dict(group_size=8, max_prompt_tokens=48, max_new_tokens=48,
           temperature=0.8))
  c.optim = ConfigDict(
      dict(lr=3e-3, schedule='cosine', warmup_steps=100, b2=0.98))
  c.judge_training = ConfigDict(
      dict(warmup_steps=600, round_steps=150, adversary_steps=40,
           policy_steps=80, problems=8, hint_weight=1.0, start='/tmp/start'))
  c.mesh = ConfigDict(dict(data=-1, fsdp=1))
  return c
