r"""ExpRL-Process with Qwen3-4B-Instruct-2507 as policy and judge.

  python -m exprl_jax.main --config=configs/qwen3_4b/exprl_process.py \
    --config.policy.init=/models/Qwen3-4B-Instruct-2507 \
    --config.judge.init=/models/Qwen3-4B-Instruct-2507 \
    --config.data.train=/data/train.jsonl

As the paper describes it (arXiv 2606.17024): 36 problems of 10 samples a step,
every prefix of a trace judged, DeltaNorm with the final score as the first
baseline (a trace of one step has no advantage), one update, KL 1e-3. The scores
are read off directly, at all steps of a trace in one pass. What the authors ran
instead: exprl_process_authors.py. Paper, after stage 1: AIME25 pass@1 51.8
(base 46.5), AIME26 57.5 (51.5), HMMT 45.2 (40.6).
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'train'
  c.seed = 1
  c.steps = 230
  c.reward = 'process'
  c.policy = ConfigDict(
      dict(init='/models/Qwen3-4B-Instruct-2507', dtype='bfloat16',
           remat='full'))
  c.judge = ConfigDict(
      dict(init='/models/Qwen3-4B-Instruct-2507', dtype='bfloat16',
           template='math', delimiter='###', max_steps=16, readout='direct',
           rationale_tokens=2048, max_prompt_tokens=8192))
  c.data = ConfigDict(dict(train='/data/train.jsonl', batch=36))
  c.rollout = ConfigDict(
      dict(
          group_size=10, max_prompt_tokens=4096, max_new_tokens=16384,
          temperature=0.8, slots=256, overlong='zero', system_prompt=(
              'Please reason step by step, and put your final answer within '
              '\\boxed{}.')))
  c.credit = ConfigDict(dict(rule='delta', first='final', single='zero'))
  c.loss = ConfigDict(
      dict(kind='ppo', clip_low=0.2, clip_high=0.26, dual_clip=3.0,
           kl_coef=1e-3, aggregation='token_mean'))
  c.optim = ConfigDict(
      dict(lr=1e-6, schedule='constant', warmup_steps=0, b1=0.9, b2=0.999,
           eps=1e-8, weight_decay=0.01, clip_norm=1.0, updates=1,
           row_tokens=20480))
  c.eval = ConfigDict(
      dict(problems='aime25=/data/aime25.jsonl,aime26=/data/aime26.jsonl',
           every=10, samples=4, ks=(1, 4)))
  c.checkpoint = ConfigDict(dict(every=30, keep=2))
  c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1, rollout_tensor=4))
  return c
