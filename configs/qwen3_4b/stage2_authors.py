r"""Stage 2 as the authors' code runs it, not as the paper has it.

  python -m exprl_jax.main --config=configs/qwen3_4b/stage2_authors.py \
    --config.policy.init=/runs/exprl_process \
    --config.data.train=/data/train.jsonl

Differences to stage2.py: 16 problems of 32 samples; advantages without the
standard deviation; a clip so wide (epsilon 4) that only ratios above 5 are cut;
the loss is summed over a trace's tokens, so long traces weigh more; an entropy
bonus of 1e-4; gradients clipped at 0.3. Theirs is asynchronous; here every
step samples from its own policy.
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
  c.data = ConfigDict(dict(train='/data/train.jsonl', batch=16))
  c.rollout = ConfigDict(
      dict(
          group_size=32, max_prompt_tokens=4096, max_new_tokens=16384,
          temperature=0.8, slots=256, overlong='keep', system_prompt=(
              'Please reason step by step, and put your final answer within '
              '\\boxed{}.')))
  c.credit = ConfigDict(dict(rule='group', divide_by_std=False))
  c.loss = ConfigDict(
      dict(kind='ppo', clip_low=4.0, clip_high=4.0, dual_clip=0.0, kl_coef=0.0,
           entropy_coef=1e-4, tis_cap=5.0, aggregation='seq_mean_token_sum'))
  c.optim = ConfigDict(
      dict(lr=1e-6, schedule='constant', warmup_steps=0, b1=0.9, b2=0.999,
           eps=1e-8, weight_decay=0.01, clip_norm=0.3, updates=1,
           row_tokens=20480))
  c.eval = ConfigDict(
      dict(problems='aime25=/data/aime25.jsonl,aime26=/data/aime26.jsonl',
           every=12, samples=4, ks=(1, 4)))
  c.checkpoint = ConfigDict(dict(every=50, keep=2))
  c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1, rollout_tensor=4))
  return c
