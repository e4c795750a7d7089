r"""Supervised fine-tuning of Qwen3-8B on solutions of four domains.

  python -m exprl_jax.main --config=configs/qwen3_8b_mixed/sft.py \
    --config.policy.init=/models/Qwen3-8B \
    --config.data.train=/data/train.jsonl

As qwen3_4b/sft.py: two epochs of 4,001 rows are 250 steps.
Paper: mean of four math sets 4.8 (base 15.4).
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'sft'
  c.seed = 1
  c.steps = 250
  c.policy = ConfigDict(
      dict(init='/models/Qwen3-8B', dtype='bfloat16', remat='full'))
  c.data = ConfigDict(dict(train='/data/train.jsonl', batch=32))
  c.rollout = ConfigDict(
      dict(group_size=1, max_prompt_tokens=4096, max_new_tokens=16384,
           temperature=0.8, slots=256, overlong='keep'))
  c.optim = ConfigDict(
      dict(lr=1e-6, schedule='cosine', warmup_steps=25, b1=0.9, b2=0.95,
           eps=1e-8, weight_decay=0.01, clip_norm=1.0, updates=1,
           row_tokens=20480))
  c.eval = ConfigDict(
      dict(problems='aime25=/data/aime25.jsonl,gpqa=/data/gpqa.jsonl',
           samples=4, ks=(1, 4)))
  c.checkpoint = ConfigDict(dict(every=125, keep=2))
  c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1, rollout_tensor=4))
  return c
