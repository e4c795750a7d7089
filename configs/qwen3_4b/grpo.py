r"""Sparse GRPO with Qwen3-4B-Instruct-2507: the baseline without a judge.

  python -m exprl_jax.main --config=configs/qwen3_4b/grpo.py \
    --config.policy.init=/models/Qwen3-4B-Instruct-2507 \
    --config.data.train=/data/train.jsonl

The paper's numbers (arXiv 2606.17024): 32 problems of 16 samples a step, two
updates, clip 0.2 / 0.26, KL 1e-3. Paper, after stage 1: AIME25 pass@1 48.7
(base 46.5), AIME26 51.4 (51.5), HMMT 41.7 (40.6).
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'train'
  c.seed = 1
  c.steps = 230
  c.reward = 'sparse'
  c.policy = ConfigDict(
      dict(init='/models/Qwen3-4B-Instruct-2507', dtype='bfloat16',
           remat='full'))
  c.data = ConfigDict(dict(train='/data/train.jsonl', batch=32))
  c.rollout = ConfigDict(
      dict(
          group_size=16, max_prompt_tokens=4096, max_new_tokens=16384,
          temperature=0.8, slots=256, overlong='keep', system_prompt=(
              'Please reason step by step, and put your final answer within '
              '\\boxed{}.')))
  c.credit = ConfigDict(dict(rule='group', divide_by_std=True))
  c.loss = ConfigDict(
      dict(kind='ppo', clip_low=0.2, clip_high=0.26, dual_clip=3.0,
           kl_coef=1e-3, aggregation='token_mean'))
  c.optim = ConfigDict(
      dict(lr=1e-6, schedule='constant', warmup_steps=0, b1=0.9, b2=0.999,
           eps=1e-8, weight_decay=0.01, clip_norm=1.0, updates=2,
           row_tokens=20480))
  c.eval = ConfigDict(
      dict(problems='aime25=/data/aime25.jsonl,aime26=/data/aime26.jsonl',
           every=10, samples=4, ks=(1, 4)))
  c.checkpoint = ConfigDict(dict(every=20, keep=2))
  c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1, rollout_tensor=4))
  return c
