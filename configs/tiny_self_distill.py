r"""On-policy self-distillation on a laptop.

  python -m exprl_jax.main --config=configs/tiny_self_distill.py

The starting policy, shown the solution, is the teacher. The tiny policy has
never seen a solution in a prompt, so it has little to teach: the recipe runs,
accuracy does not rise (docs/results.md). --config.loss.kind=exact_kl takes the
exact reverse KL over the vocabulary instead of sampled tokens.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.run = 'train'
  c.seed = 0
  c.steps = 120
  c.reward = 'teacher'
  c.policy = ConfigDict(dict(init='asset:tiny_policy'))
  c.teacher = ConfigDict(
      dict(template='asset:tiny_policy/teacher.txt', max_prompt_tokens=96))
  c.data = ConfigDict(dict(train='asset:tiny_problems/train.jsonl', batch=16))
  c.rollout = ConfigDict(
      dict(group_size=4, max_prompt_tokens=48, max_new_tokens=48,
           temperature=0.8))
  c.credit = ConfigDict(dict(rule='token'))
  c.loss = ConfigDict(
      dict(kind='reinforce', kl_coef=0.0, aggregation='seq_mean_token_mean'))
  c.optim = ConfigDict(
      dict(lr=1e-4, weight_decay=0.01, clip_norm=1.0, updates=1, row_tokens=192,
           micro_rows=8))
  c.eval = ConfigDict(
      dict(problems='asset:tiny_problems/test.jsonl', every=40, samples=16,
           ks=(1, 16)))
  c.checkpoint = ConfigDict(dict(every=40))
  c.mesh = ConfigDict(dict(data=-1, fsdp=1))
  return c
