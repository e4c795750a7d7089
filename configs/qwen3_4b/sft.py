r"""Supervised fine-tuning of Qwen3-4B-Instruct-2507 on the reference solutions.

  python -m exprl_jax.main --config=configs/qwen3_4b/sft.py \
    --config.policy.init=/models/Qwen3-4B-Instruct-2507 \
    --config.data.train=/data/train.jsonl

The authors' numbers (arXiv 2606.17024): 32 solutions a step, 94 steps (two
epochs of 1,516 problems), lr 1e-6 with a warm-up of a tenth and cosine decay,
beta2 0.95, no system prompt in training. Paper: AIME25 pass@1 6.0 (base 46.5):
references are not written as the model thinks.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'sft'
  c.seed = 1
  c.steps = 94
  c.policy = ConfigDict(
      dict(init='/models/Qwen3-4B-Instruct-2507', dtype='bfloat16',
           remat='full'))
  c.data = ConfigDict(dict(train='/data/train.jsonl', batch=32))
  c.rollout = ConfigDict(
      dict(group_size=1, max_prompt_tokens=4096, max_new_tokens=16384,
           temperature=0.8, slots=256, overlong='keep'))
  c.optim = ConfigDict(
      dict(lr=1e-6, schedule='cosine', warmup_steps=9, b1=0.9, b2=0.95,
           eps=1e-8, weight_decay=0.01, clip_norm=1.0, updates=1,
           row_tokens=20480))
  c.eval = ConfigDict(
      dict(problems='aime25=/data/aime25.jsonl,aime26=/data/aime26.jsonl',
           samples=4, ks=(1, 4)))
  c.checkpoint = ConfigDict(dict(every=47, keep=2))
  c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1, rollout_tensor=4))
  return c
