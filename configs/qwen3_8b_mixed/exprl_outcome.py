r"""ExpRL-Outcome on four domains: Qwen3-8B, judged by the smaller Qwen3-4B.

  python -m exprl_jax.main --config=configs/qwen3_8b_mixed/exprl_outcome.py \
    --config.policy.init=/models/Qwen3-8B \
    --config.judge.init=/models/Qwen3-4B-Instruct-2507 \
    --config.data.train=/data/train.jsonl

The paper's numbers (arXiv 2606.17024, section 4.6): 36 problems of 16 samples a
step, two updates, 270 steps, the judge writes up to 4,096 tokens.
Rows say their domain: math, physics (open answers), science (multiple choice)
or code; each has its own judge template, system prompt and grader (the graders
only tell us how it goes; of code, docs/examples/code_grader.py runs programs
that the model wrote: read its warning).
Paper: mean of four math sets 31.0 (base 15.4, GRPO 24.9).
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'train'
  c.seed = 1
  c.steps = 270
  c.reward = 'outcome'
  c.policy = ConfigDict(
      dict(init='/models/Qwen3-8B', dtype='bfloat16', remat='full'))
  c.judge = ConfigDict(
      dict(init='/models/Qwen3-4B-Instruct-2507', dtype='bfloat16',
           template='math', readout='generate_expect', rationale_tokens=4096,
           max_prompt_tokens=8192,
           templates=('physics=science', 'science=science', 'code=code')))
  c.data = ConfigDict(dict(train='/data/train.jsonl', batch=36))
  c.rollout = ConfigDict(
      dict(
          group_size=16, max_prompt_tokens=4096, max_new_tokens=16384,
          temperature=0.8, slots=256, overlong='zero', system_prompts=
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
      dict(kind='ppo', clip_low=0.2, clip_high=0.28, dual_clip=3.0,
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
  c.checkpoint = ConfigDict(dict(every=10, keep=2))
  c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1, rollout_tensor=4))
  return c
