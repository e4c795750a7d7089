r"""Sparse GRPO on four domains with Qwen3-8B.

  python -m exprl_jax.main --config=configs/qwen3_8b_mixed/grpo.py \
    --config.policy.init=/models/Qwen3-8B \
    --config.data.train=/data/train.jsonl

The paper's numbers (arXiv 2606.17024): 32 problems of 16 samples a step, two
updates. The authors' script trains on math alone, while the paper compares on
all domains; this config takes whatever data.train holds.
Paper: mean of four math sets 24.9 (base 15.4).
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'train'
  c.seed = 1
  c.steps = 270
  c.reward = 'sparse'
  c.policy = ConfigDict(
      dict(init='/models/Qwen3-8B', dtype='bfloat16', remat='full'))
  c.data = ConfigDict(dict(train='/data/train.jsonl', batch=32))
  c.rollout = ConfigDict(
      dict(
          group_size=16, max_prompt_tokens=4096, max_new_tokens=16384,
          temperature=0.8, slots=256, overlong='keep', system_prompts=
          ('science=You are an expert scientist. Reason step by step and end '
           'with the letter of your choice within \\boxed{}.',
           'physics=You are an expert physicist. Reason step by step and put '
           'your final answer, with its unit, within \\boxed{}.',
           'code=Reason step by step, then give the whole program in one '
           'python code block.'), system_prompt=(
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
  c.grading = ConfigDict(
      dict(domains=('science=choice',
                    'code=docs/examples/code_grader.py:grade')))
  c.eval = ConfigDict(
      dict(problems='aime25=/data/aime25.jsonl,gpqa=/data/gpqa.jsonl', every=10,
           samples=4, ks=(1, 4)))
  c.checkpoint = ConfigDict(dict(every=20, keep=2))
  c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1, rollout_tensor=4))
  return c
