"""SFT on the reference solutions, on a laptop.

  python -m exprl_jax.main --config=configs/tiny_sft.py

The references are right but written without the working that the policy
needs, as human experts write; imitating them teaches it to guess.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'sft'
  c.seed = 0
  c.steps = 160
  c.policy = ConfigDict(dict(init='asset:tiny_policy'))
  c.data = ConfigDict(dict(train='asset:tiny_problems/train.jsonl', batch=32))
  c.rollout = ConfigDict(
      dict(max_prompt_tokens=48, max_new_tokens=48, temperature=0.8))
  c.optim = ConfigDict(
      dict(lr=5e-4, schedule='cosine', warmup_steps=16, b2=0.95,
           weight_decay=0.01, clip_norm=1.0, micro_rows=8))
  c.eval = ConfigDict(
      dict(problems='asset:tiny_problems/test.jsonl', every=40, samples=16,
           ks=(1, 16)))
  c.mesh = ConfigDict(dict(data=-1, fsdp=1))
  return c
