"""Sparse GRPO on a laptop: reward 1 for a right final answer, else 0.

  python -m exprl_jax.main --config=configs/tiny_grpo.py

The learning rate was chosen as that of ExpRL was: docs/results.md.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'train'
  c.seed = 0
  c.steps = 120
  c.reward = 'sparse'
  c.policy = ConfigDict(dict(init='asset:tiny_policy'))
  c.data = ConfigDict(dict(train='asset:tiny_problems/train.jsonl', batch=16))
  c.rollout = ConfigDict(
      dict(group_size=4, max_prompt_tokens=48, max_new_tokens=48,
           temperature=0.8))
  c.credit = ConfigDict(dict(rule='group'))
  c.loss = ConfigDict(
      dict(clip_low=0.2, clip_high=0.28, dual_clip=3.0, kl_coef=1e-3))
  c.optim = ConfigDict(
      dict(lr=5e-4, weight_decay=0.01, clip_norm=1.0, updates=2, micro_rows=4))
  c.eval = ConfigDict(
      dict(problems='asset:tiny_problems/test.jsonl', every=40, samples=16,
           ks=(1, 16)))
  c.checkpoint = ConfigDict(dict(every=40))
  c.mesh = ConfigDict(dict(data=-1, fsdp=1))
  return c
