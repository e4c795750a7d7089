r"""A published 135M model on word problems, on the two cores of a laptop.

  python benchmarks/small_run.py --model=FOLDER --root=runs/small

runs all of it: problems, the base policy, the judge, four arms, and their
comparison on held-out problems. MODEL is SmolLM2-135M-Instruct as a Hugging
Face folder or name. Every recipe below is one run of it; docs/results.md has
the results.
"""

from ml_collections import ConfigDict

_MODEL = 'HuggingFaceTB/SmolLM2-135M-Instruct'
_DATA = 'runs/small/data'


def _base() -> ConfigDict:
  """Sets the model, the prompt, and the limits of prompts and samples."""
  c = ConfigDict()
  c.seed = 0
  c.policy = ConfigDict(dict(init=_MODEL, dtype='bfloat16', remat='full'))
  c.rollout = ConfigDict(
      dict(max_prompt_tokens=112, max_new_tokens=64, temperature=1.0, page=32,
           system_prompt='Solve step by step.'))
  c.mesh = ConfigDict(dict(data=-1, fsdp=1))
  return c


def _judge(c: ConfigDict) -> None:
  c.judge = ConfigDict(
      dict(init='runs/small/judge/model', dtype='bfloat16',
           template='configs/small/judge.txt', delimiter='blank_line',
           max_steps=7, max_prompt_tokens=224, page=32,
           traces=f'{_DATA}/judge_test.jsonl'))


def _train(c: ConfigDict) -> None:
  """Sets up RL: 8 problems x 6 samples per step, adapters of rank 16."""
  c.run = 'train'
  c.steps = 16
  c.policy.update(dict(lora_rank=16, lora_alpha=32.0))
  c.data = ConfigDict(dict(train=f'{_DATA}/train.jsonl', batch=8))
  c.rollout.group_size = 6
  c.loss = ConfigDict(dict(clip_low=0.2, clip_high=0.28, kl_coef=0.0))
  c.optim = ConfigDict(
      dict(lr=2e-4, warmup_steps=2, weight_decay=0.0, clip_norm=1.0, updates=1,
           row_tokens=512, micro_rows=4))
  c.eval = ConfigDict(
      dict(problems=f'{_DATA}/validation.jsonl', samples=2, ks=(1, 2)))
  c.checkpoint = ConfigDict(dict(every=8, keep=1))


def base(c: ConfigDict) -> None:
  """Makes the base policy.

  python -m exprl_jax.main --config=configs/small/word_problems.py:base

  It learns the form of a trace from problems of one and two steps, and from few
  longer ones that there is more to do; it seldom does four steps right.
  """
  c.run = 'sft'
  c.steps = 48
  c.data = ConfigDict(dict(train=f'{_DATA}/warm_up.jsonl', batch=16))
  c.optim = ConfigDict(
      dict(lr=2e-4, schedule='cosine', warmup_steps=2, clip_norm=1.0,
           micro_rows=4))
  c.eval = ConfigDict(
      dict(problems=f'{_DATA}/validation.jsonl', samples=2, ks=(1, 2)))


def judge(c: ConfigDict) -> None:
  """Makes the judge: the published model, on labeled traces.

  python -m exprl_jax.main --config=configs/small/word_problems.py:judge
  """
  c.run = 'train_judge'
  c.steps = 150
  _judge(c)
  c.judge.init = _MODEL
  c.judge.min_score_probability = 0.0
  c.data = ConfigDict(dict(batch=8))
  c.optim = ConfigDict(
      dict(lr=3e-4, schedule='cosine', warmup_steps=4, b2=0.98, clip_norm=1.0,
           micro_rows=4))
  c.judge_training = ConfigDict(
      dict(traces=f'{_DATA}/judge.jsonl', held_out=f'{_DATA}/judge_test.jsonl',
           round_steps=1000))
  c.calibration = ConfigDict(dict(readouts=(), pairs=0))


def process(c: ConfigDict) -> None:
  """ExpRL-Process. The default.

  python -m exprl_jax.main --config=configs/small/word_problems.py
  """
  _train(c)
  _judge(c)
  c.reward = 'process'
  c.credit = ConfigDict(dict(rule='delta', first='zero'))  # a progress score


def outcome(c: ConfigDict) -> None:
  """ExpRL-Outcome.

  python -m exprl_jax.main --config=configs/small/word_problems.py:outcome
  """
  _train(c)
  _judge(c)
  c.reward = 'outcome'
  c.credit = ConfigDict(dict(rule='group', min_std=0.05))


def grpo(c: ConfigDict) -> None:
  """Sparse GRPO: 1 for a right final answer.

  python -m exprl_jax.main --config=configs/small/word_problems.py:grpo
  """
  _train(c)
  c.reward = 'sparse'
  c.credit = ConfigDict(dict(rule='group'))
  c.select = ConfigDict(dict(max_empty_steps=1000))  # starving is the point


def sft(c: ConfigDict) -> None:
  """Supervised fine-tuning on the references of the same problems.

  python -m exprl_jax.main --config=configs/small/word_problems.py:sft
  """
  _train(c)
  c.run = 'sft'
  c.data.batch = 48


RECIPES = {
    '': process,
    'base': base,
    'judge': judge,
    'outcome': outcome,
    'grpo': grpo,
    'sft': sft,
}


def get_config(argument: str = '') -> ConfigDict:
  c = _base()
  RECIPES[argument](c)
  return c
