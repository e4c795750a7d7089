r"""Stage 2: sparse RL from a checkpoint of stage 1, with Qwen3-4B.

  python -m exprl_jax.main --config=configs/qwen3_4b/stage2.py \
    --config.policy.init=/runs/exprl_process \
    --config.data.train=/data/train.jsonl

policy.init is the workdir of stage 1 (or WORKDIR@STEP, or any model folder).
As the paper has it (arXiv 2606.17024): 500 steps, 32 problems of 32 samples,
GRPO with its standard deviation, clip 0.2 / 0.26, no KL. What the authors ran
instead: stage2_authors.py. Paper, AIME25 pass@1 after stage 2: from the base
with GRPO 56.0, from ExpRL-Outcome 59.1, from ExpRL-Process 58.1.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'train'
  c.seed = 1
  c.steps = 500
  c.reward = 'sparse'
  c.policy = ConfigDict(
      dict(init='/runs/exprl_process', dtype='bfloat16', remat='full'))
  c.data = ConfigDict(dict(train='/data/train.jsonl', batch=32))
  c.rollout = ConfigDict(
      dict(
          group_size=32, max_prompt_tokens=4096, max_new_tokens=16384,
          temperature=0.8, slots=256, overlong='keep', system_prompt=(
              'Please reason step by step, and put your final answer within '
              '\\boxed{}.')))
  c.credit = ConfigDict(dict(rule='group', divide_by_std=True))
  c.loss = ConfigDict(
      dict(kind='ppo', clip_low=0.2, clip_high=0.26, dual_clip=3.0, kl_coef=0.0,
           aggregation='token_mean'))
  c.optim = ConfigDict(
      dict(lr=1e-6, schedule='constant', warmup_steps=0, b1=0.9, b2=0.999,
           eps=1e-8, weight_decay=0.01, clip_norm=1.0, updates=1,
           row_tokens=20480))
  c.eval = ConfigDict(
      dict(problems='aime25=/data/aime25.jsonl,aime26=/data/aime26.jsonl',
           every=10, samples=4, ks=(1, 4)))
  c.checkpoint = ConfigDict(dict(every=50, keep=2))
  c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1, rollout_tensor=4))
  return c
