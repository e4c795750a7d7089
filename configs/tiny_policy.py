"""How the tiny policy was made: pre-training on misread worked traces.

  python -m exprl_jax.main --config=configs/tiny_policy.py --workdir=/tmp/p
  cp /tmp/p/model/* exprl_jax/assets/tiny_policy/
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'sft'
  c.steps = 3072
  c.policy = ConfigDict(dict(init='asset:tiny_policy', random=True))
  c.data = ConfigDict(dict(train='tiny:pretraining', batch=64))
  c.rollout = ConfigDict(
      dict(max_prompt_tokens=48, max_new_tokens=48, temperature=0.8))
  c.optim = ConfigDict(
      dict(lr=5e-3, schedule='cosine', warmup_steps=100, b2=0.98,
           weight_decay=0.01, clip_norm=1.0, micro_rows=64))
  c.eval = ConfigDict(
      dict(problems='asset:tiny_problems/validation.jsonl', samples=16,
           ks=(1, 16)))
  c.checkpoint = ConfigDict(dict(every=500))
  c.mesh = ConfigDict(dict(data=-1, fsdp=1))
  return c
