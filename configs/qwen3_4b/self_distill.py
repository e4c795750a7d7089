r"""On-policy self-distillation with Qwen3-4B-Instruct-2507.

  python -m exprl_jax.main --config=configs/qwen3_4b/self_distill.py \
    --config.policy.init=/models/Qwen3-4B-Instruct-2507 \
    --config.data.train=/data/train.jsonl

The frozen base model, shown the solution, is the teacher. As the authors of
ExpRL ran it (arXiv 2606.17024): 32 problems of 16 samples a step, one update,
lr 1e-7, the log-ratio of teacher and policy at the sampled tokens as their
advantage. --config.loss.kind=exact_kl takes the exact reverse KL over the
vocabulary instead. Paper, after stage 1: AIME25 pass@1 43.0 (base 46.5), AIME26
53.9 (51.5), HMMT 39.9 (40.6).
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'train'
  c.seed = 1
  c.steps = 230
  c.reward = 'teacher'
  c.policy = ConfigDict(
      dict(init='/models/Qwen3-4B-Instruct-2507', dtype='bfloat16',
           remat='full'))
  c.teacher = ConfigDict(dict(max_prompt_tokens=16384))
  c.data = ConfigDict(dict(train='/data/train.jsonl', batch=32))
  c.rollout = ConfigDict(
      dict(
          group_size=16, max_prompt_tokens=4096, max_new_tokens=16384,
          temperature=0.8, slots=256, overlong='keep', system_prompt=(
              'Please reason step by step, and put your final answer within '
              '\\boxed{}.')))
  c.credit = ConfigDict(dict(rule='token'))
  c.loss = ConfigDict(
      dict(kind='reinforce', kl_coef=0.0, aggregation='seq_mean_token_mean'))
  c.optim = ConfigDict(
      dict(lr=1e-7, schedule='constant', warmup_steps=0, b1=0.9, b2=0.999,
           eps=1e-8, weight_decay=0.01, clip_norm=1.0, updates=1,
           row_tokens=36864))
  c.eval = ConfigDict(
      dict(problems='aime25=/data/aime25.jsonl,aime26=/data/aime26.jsonl',
           every=10, samples=4, ks=(1, 4)))
  c.checkpoint = ConfigDict(dict(every=30, keep=2))
  c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1, rollout_tensor=4))
  return c
