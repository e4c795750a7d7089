r"""The paper's runs on four domains: Qwen3-8B, judged by the smaller Qwen3-4B.

  python -m exprl_jax.main --config=configs/qwen3_8b_mixed.py:exprl_outcome \
    --config.policy.init=/models/Qwen3-8B \
    --config.judge.init=/models/Qwen3-4B-Instruct-2507 \
    --config.data.train=/data/train.jsonl

Each argument is a function below, which shows what its recipe changes. Rows
name their domain: math, physics (open answers), science (multiple choice) or
code; each has its own judge template, system prompt and grader (the graders
only report accuracy; of code, docs/examples/code_grader.py runs programs that
the model wrote: read its warning). Paper (arXiv 2606.17024, section 4.6), mean
of four math sets: base 15.4, sft 4.8, self_distill 17.4, grpo 24.9,
exprl_outcome 31.0.
"""

from ml_collections import ConfigDict


def _base() -> ConfigDict:
  """The policy, 32 rows a step, and what all training runs share."""
  c = ConfigDict()
  c.seed = 1
  c.policy = ConfigDict(
      dict(init='/models/Qwen3-8B', dtype='bfloat16', remat='full'))
  c.rollout = ConfigDict(
      dict(group_size=1, max_prompt_tokens=4096, max_new_tokens=16384,
           temperature=0.8, slots=256, overlong='keep'))
  c.data = ConfigDict(dict(train='/data/train.jsonl', batch=32))
  c.optim = ConfigDict(
      dict(lr=1e-6, schedule='constant', warmup_steps=0, b1=0.9, b2=0.999,
           eps=1e-8, weight_decay=0.01, clip_norm=1.0, updates=1,
           row_tokens=20480))
  c.eval = ConfigDict(
      dict(problems='aime25=/data/aime25.jsonl,gpqa=/data/gpqa.jsonl',
           samples=4, ks=(1, 4)))
  c.checkpoint = ConfigDict(dict(every=20, keep=2))
  c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1, rollout_tensor=4))
  return c


def _train(c: ConfigDict) -> None:
  """Reinforcement learning: 16 samples a row, 270 steps of two updates."""
  c.run = 'train'
  c.steps = 270
  c.rollout.update(
      dict(
          group_size=16, system_prompt=(
              'Please reason step by step, and put your final answer within '
              '\\boxed{}.'), system_prompts=
          ('science=You are an expert scientist. Reason step by step and end '
           'with the letter of your choice within \\boxed{}.',
           'physics=You are an expert physicist. Reason step by step and put '
           'your final answer, with its unit, within \\boxed{}.',
           'code=Reason step by step, then give the whole program in one '
           'python code block.')))
  c.loss = ConfigDict(
      dict(kind='ppo', clip_low=0.2, clip_high=0.28, dual_clip=3.0,
           kl_coef=1e-3, aggregation='token_mean'))
  c.optim.updates = 2
  c.grading = ConfigDict(
      dict(domains=('science=choice',
                    'code=docs/examples/code_grader.py:grade')))
  c.eval.every = 10


def exprl_outcome(c: ConfigDict) -> None:
  """ExpRL-Outcome: 36 problems of 16 samples a step, two updates, 270 steps.

  --config=configs/qwen3_8b_mixed.py:exprl_outcome

  The judge writes up to 4,096 tokens before its score.
  """
  _train(c)
  c.reward = 'outcome'
  c.judge = ConfigDict(
      dict(init='/models/Qwen3-4B-Instruct-2507', dtype='bfloat16',
           template='math', readout='generate_expect', rationale_tokens=4096,
           max_prompt_tokens=8192,
           templates=('physics=science', 'science=science', 'code=code')))
  c.data.batch = 36
  c.rollout.overlong = 'zero'
  c.credit = ConfigDict(dict(rule='group', divide_by_std=True))
  c.checkpoint.every = 10


def exprl_mixed(c: ConfigDict) -> None:
  """ExpRL-Process where there are steps, ExpRL-Outcome elsewhere.

  --config=configs/qwen3_8b_mixed.py:exprl_mixed

  The authors' mixed script (not in the paper): math and multiple choice are
  judged by steps, code and open physics by one score a trace. That score gives
  all tokens of its trace the group advantage; the authors' code puts it on the
  last one.
  """
  exprl_outcome(c)
  c.reward = 'process'
  c.judge.update(dict(delimiter='###', max_steps=16, readout='direct'))
  c.credit = ConfigDict(
      dict(rule='delta', first='final', single='zero',
           outcome_domains=('physics', 'code')))


def grpo(c: ConfigDict) -> None:
  """Sparse GRPO: 32 problems of 16 samples a step, two updates.

  --config=configs/qwen3_8b_mixed.py:grpo

  The authors' script trains on math alone, while the paper compares on all
  domains; this config takes whatever data.train holds.
  """
  _train(c)
  c.reward = 'sparse'
  c.credit = ConfigDict(dict(rule='group', divide_by_std=True))
  c.loss.clip_high = 0.26


def self_distill(c: ConfigDict) -> None:
  """On-policy self-distillation, as configs/qwen3_4b.py:self_distill.

  --config=configs/qwen3_8b_mixed.py:self_distill

  The teacher's prompt is rendered like the policy's, with thinking switched
  off; the authors' is not.
  """
  _train(c)
  c.reward = 'teacher'
  c.teacher = ConfigDict(dict(max_prompt_tokens=16384))
  c.credit = ConfigDict(dict(rule='token'))
  c.loss = ConfigDict(
      dict(kind='reinforce', kl_coef=0.0, aggregation='seq_mean_token_mean'))
  c.optim.update(dict(lr=1e-7, updates=1, row_tokens=36864))


def sft(c: ConfigDict) -> None:
  """Supervised fine-tuning on the solutions, as configs/qwen3_4b.py:sft.

  --config=configs/qwen3_8b_mixed.py:sft

  Two epochs of 4,001 rows are 250 steps.
  """
  c.run = 'sft'
  c.steps = 250
  c.optim.update(dict(schedule='cosine', warmup_steps=25, b2=0.95))
  c.checkpoint.every = 125


RECIPES = {
    recipe.__name__: recipe
    for recipe in (exprl_outcome, exprl_mixed, grpo, self_distill, sft)
}


def get_config(argument: str) -> ConfigDict:
  c = _base()
  RECIPES[argument](c)
  return c
