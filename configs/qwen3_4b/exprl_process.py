r"""ExpRL-Process with Qwen3-4B-Instruct-2507 as policy and judge.

  python -m exprl_jax.main --config=configs/qwen3_4b/exprl_process.py \
    --config.policy.init=/models/Qwen3-4B-Instruct-2507 \
    --config.judge.init=/models/Qwen3-4B-Instruct-2507 \
    --config.data.train=/data/train.jsonl \
    --config.eval.problems=/data/eval.jsonl

The numbers are those of the ExpRL paper, arXiv 2606.17024: 36 problems of 10
samples a step, 16,384 new tokens, temperature 0.8, one update a batch, AdamW
at 1e-6 without warm-up, k3 KL of 1e-3 to the starting policy, DeltaNorm with
the final score as the first baseline, 230 steps.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'train'
  c.seed = 1
  c.steps = 230
  c.reward = 'process'
  c.policy = ConfigDict(dict(
      init='/models/Qwen3-4B-Instruct-2507', dtype='bfloat16', remat='full'))
  c.judge = ConfigDict(dict(
      init='/models/Qwen3-4B-Instruct-2507', dtype='bfloat16', template='math',
      delimiter='###', max_steps=16, max_prompt_tokens=8192))
  c.data = ConfigDict(dict(train='/data/train.jsonl', batch=36))
  c.rollout = ConfigDict(dict(
      group_size=10, max_prompt_tokens=4096, max_new_tokens=16384,
      temperature=0.8, overlong='zero', system_prompt=(
          'Please reason step by step, and put your final answer within '
          '\\boxed{}.')))
  c.credit = ConfigDict(dict(rule='delta', first='final', single='zero'))
  c.loss = ConfigDict(dict(
      clip_low=0.2, clip_high=0.26, dual_clip=3.0, kl_coef=1e-3,
      logprob_chunk=512))
  c.optim = ConfigDict(dict(
      lr=1e-6, schedule='constant', warmup_steps=0, b1=0.9, b2=0.999, eps=1e-8,
      weight_decay=0.01, clip_norm=1.0, updates=1, micro_batches=45))
  c.eval = ConfigDict(dict(
      problems='/data/eval.jsonl', every=10, samples=4, ks=(1, 4)))
  c.checkpoint = ConfigDict(dict(every=30, keep=2))
  c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1))
  return c
