r"""The paper in miniature: five arms at equal budgets, then stage 2 from each.

  python benchmarks/paper_tiny.py --workdir=paper_tiny

runs them all, for eight seeds, and writes a table; docs/paper_tiny.md has it.
An arm is 120 steps of 64 samples (SFT: of 64 rows), stage 2 is 60 of 64. The
test problems are those of tiny:paper_test, a split that no choice ever saw;
base and judge are the tiny world's (configs/tiny.py).

Two arms are not ExpRL: `oracle` is rewarded by the program that labels the
judge's training data, `wrong_references` by the judge with the references of
other problems.
"""

from ml_collections import ConfigDict


def _base() -> ConfigDict:
  """Sets what all arms have in common."""
  c = ConfigDict()
  c.seed = 0
  c.steps = 120
  c.policy = ConfigDict(dict(init='asset:tiny_policy'))
  c.data = ConfigDict(dict(train='asset:tiny_problems/train.jsonl', batch=16))
  c.rollout = ConfigDict(
      dict(max_prompt_tokens=48, max_new_tokens=48, temperature=0.8,
           group_size=4))
  c.loss = ConfigDict(dict(kl_coef=1e-3))
  c.optim = ConfigDict(dict(lr=5e-4, updates=2, micro_rows=4))
  c.eval = ConfigDict(dict(problems='tiny:paper_test', samples=16, ks=(1, 16)))
  c.mesh = ConfigDict(dict(data=-1, fsdp=1))
  return c


def _judged(c: ConfigDict) -> None:
  c.judge = ConfigDict(
      dict(init='asset:tiny_judge', template='tiny', max_prompt_tokens=96,
           traces='asset:tiny_problems/traces.jsonl'))


def process(c: ConfigDict) -> None:
  """ExpRL-Process.

  python -m exprl_jax.main --config=configs/paper_tiny.py:process
  """
  _judged(c)
  c.reward = 'process'
  c.judge.update(dict(delimiter='###', max_steps=8))
  c.credit = ConfigDict(dict(rule='delta', first='zero'))


def outcome(c: ConfigDict) -> None:
  """ExpRL-Outcome.

  python -m exprl_jax.main --config=configs/paper_tiny.py:outcome
  """
  _judged(c)
  c.reward = 'outcome'
  c.data.batch, c.rollout.group_size = 8, 8
  c.credit = ConfigDict(dict(rule='group', min_std=0.05))
  c.loss.kl_coef = 0.03


def grpo(c: ConfigDict) -> None:
  """Sparse GRPO.

  python -m exprl_jax.main --config=configs/paper_tiny.py:grpo
  """
  c.reward = 'sparse'
  c.credit = ConfigDict(dict(rule='group'))
  c.select = ConfigDict(dict(max_empty_steps=1000))  # starving is the point


def self_distill(c: ConfigDict) -> None:
  """On-policy self-distillation from the base, shown the solution.

  python -m exprl_jax.main --config=configs/paper_tiny.py:self_distill
  """
  c.reward = 'teacher'
  c.teacher = ConfigDict(
      dict(template='asset:tiny_policy/teacher.txt', max_prompt_tokens=96))
  c.credit = ConfigDict(dict(rule='token'))
  c.loss = ConfigDict(
      dict(kind='reinforce', kl_coef=0.0, aggregation='seq_mean_token_mean'))
  c.optim.update(dict(lr=1e-4, updates=1, row_tokens=192, micro_rows=8))


def sft(c: ConfigDict) -> None:
  """Supervised fine-tuning on the references.

  python -m exprl_jax.main --config=configs/paper_tiny.py:sft
  """
  c.run = 'sft'
  c.data.batch = 64
  c.loss = ConfigDict()
  c.rollout.group_size = 1
  c.optim.update(
      dict(schedule='cosine', warmup_steps=12, b2=0.95, updates=1,
           micro_rows=8))


def oracle(c: ConfigDict) -> None:
  """Not ExpRL: the program that labels the judge's training data.

  python -m exprl_jax.main --config=configs/paper_tiny.py:oracle
  """
  process(c)
  c.reward = 'exprl_jax.tiny.judge_data:truth'


def wrong_references(c: ConfigDict) -> None:
  """Not ExpRL: the judge sees the references of other problems.

  python -m exprl_jax.main --config=configs/paper_tiny.py:wrong_references
  """
  process(c)
  c.data.train = 'tiny:train_wrong_references'
  c.judge.min_separation = 0.0  # it cannot tell right from wrong


def stage2(c: ConfigDict) -> None:
  r"""Sparse GRPO from an arm's policy.

  python -m exprl_jax.main --config=configs/paper_tiny.py:stage2 \
    --config.policy.init=WORKDIR
  """
  grpo(c)
  c.steps = 60
  c.loss.kl_coef = 0.0
  c.optim.update(dict(lr=2e-4, updates=1))


RECIPES = {
    'process': process,
    'outcome': outcome,
    'grpo': grpo,
    'self_distill': self_distill,
    'sft': sft,
    'oracle': oracle,
    'wrong_references': wrong_references,
    'stage2': stage2,
}


def get_config(argument: str) -> ConfigDict:
  c = _base()
  RECIPES[argument](c)
  return c
