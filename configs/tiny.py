r"""The tiny world: every recipe on a laptop, with shipped models and problems.

  python -m exprl_jax.main --config=configs/tiny.py

trains with ExpRL-Process, then with sparse GRPO for comparison
(--config.compare='' skips it). configs/tiny.py:ARGUMENT selects another recipe,
a function below whose docstring has its command. docs/results.md has results.
"""

from ml_collections import ConfigDict

# The judge is examined with them: a reference of this world is no trace.
_TRACES = 'asset:tiny_problems/traces.jsonl'


def _base() -> ConfigDict:
  """Sets the shipped policy, and the limits of prompts and samples."""
  c = ConfigDict()
  c.seed = 0
  c.policy = ConfigDict(dict(init='asset:tiny_policy'))
  c.rollout = ConfigDict(
      dict(max_prompt_tokens=48, max_new_tokens=48, temperature=0.8))
  c.mesh = ConfigDict(dict(data=-1, fsdp=1))
  return c


def _held_out(c: ConfigDict) -> None:
  c.eval = ConfigDict(
      dict(problems='asset:tiny_problems/test.jsonl', samples=16, ks=(1, 16)))


def _train(c: ConfigDict) -> None:
  """Sets up RL: 16 problems x 4 samples per step."""
  _held_out(c)
  c.run = 'train'
  c.steps = 120
  c.data = ConfigDict(dict(train='asset:tiny_problems/train.jsonl', batch=16))
  c.rollout.group_size = 4
  c.loss = ConfigDict(
      dict(clip_low=0.2, clip_high=0.28, dual_clip=3.0, kl_coef=1e-3))
  c.optim = ConfigDict(
      dict(lr=5e-4, weight_decay=0.01, clip_norm=1.0, updates=2, micro_rows=4))
  c.eval.every = 40
  c.checkpoint = ConfigDict(dict(every=40))


def process(c: ConfigDict) -> None:
  """ExpRL-Process: the judge scores every step. The default.

  python -m exprl_jax.main --config=configs/tiny.py
  """
  _train(c)
  c.reward = 'process'
  c.compare = 'tiny.py:grpo'
  c.judge = ConfigDict(
      dict(init='asset:tiny_judge', template='tiny', delimiter='###',
           max_steps=8, max_prompt_tokens=96, traces=_TRACES))
  # The tiny judge scores progress: use the telescoping form (docs/method.md).
  c.credit = ConfigDict(dict(rule='delta', first='zero'))


def outcome(c: ConfigDict) -> None:
  """ExpRL-Outcome: the judge gives each trace one score.

  python -m exprl_jax.main --config=configs/tiny.py:outcome
  """
  _train(c)
  c.steps = 200
  c.reward = 'outcome'
  c.compare = 'tiny.py:grpo'
  c.judge = ConfigDict(
      dict(init='asset:tiny_judge', template='tiny', max_prompt_tokens=96,
           traces=_TRACES))
  c.data.batch = 8
  c.rollout.group_size = 8
  c.credit = ConfigDict(dict(rule='group', min_std=0.05))
  # With 1e-3, one policy of three drifts and fools the judge a little.
  c.loss.kl_coef = 0.03


def grpo(c: ConfigDict) -> None:
  """Sparse GRPO: reward 1 for a correct final answer, else 0.

  python -m exprl_jax.main --config=configs/tiny.py:grpo

  The learning rate was chosen like ExpRL's: docs/results.md.
  """
  _train(c)
  c.reward = 'sparse'
  c.credit = ConfigDict(dict(rule='group'))
  c.select = ConfigDict(dict(max_empty_steps=1000))  # starving is the point


def sft(c: ConfigDict) -> None:
  """Supervised fine-tuning on the reference solutions.

  python -m exprl_jax.main --config=configs/tiny.py:sft

  The references are correct but omit the working that the policy needs, as
  human experts do; imitating them teaches the policy to guess.
  """
  _held_out(c)
  c.run = 'sft'
  c.steps = 160
  c.data = ConfigDict(dict(train='asset:tiny_problems/train.jsonl', batch=32))
  c.optim = ConfigDict(
      dict(lr=5e-4, schedule='cosine', warmup_steps=16, b2=0.95,
           weight_decay=0.01, clip_norm=1.0, micro_rows=8))
  c.eval.every = 40


def self_distill(c: ConfigDict) -> None:
  """On-policy self-distillation.

  python -m exprl_jax.main --config=configs/tiny.py:self_distill

  The teacher is the starting policy with the solution in its prompt. The tiny
  policy has never seen a solution in a prompt, so it has little to teach: the
  recipe runs, but accuracy does not rise (docs/results.md).
  --config.loss.kind=exact_kl uses the exact reverse KL over the vocabulary
  instead of sampled tokens.
  """
  _train(c)
  c.reward = 'teacher'
  c.teacher = ConfigDict(
      dict(template='asset:tiny_policy/teacher.txt', max_prompt_tokens=96))
  c.credit = ConfigDict(dict(rule='token'))
  c.loss = ConfigDict(
      dict(kind='reinforce', kl_coef=0.0, aggregation='seq_mean_token_mean'))
  c.optim.update(dict(lr=1e-4, updates=1, row_tokens=192, micro_rows=8))


def stage2(c: ConfigDict) -> None:
  r"""Stage 2: sparse GRPO from a policy that ExpRL has primed.

  python -m exprl_jax.main --config=configs/tiny.py --workdir=/tmp/stage1 \
    --config.compare=
  python -m exprl_jax.main --config=configs/tiny.py:stage2 \
    --config.policy.init=/tmp/stage1

  policy.init is any workdir, WORKDIR@STEP or model folder. The default is the
  shipped policy, from which sparse rewards starve.
  """
  grpo(c)
  c.steps = 60
  c.loss.kl_coef = 0.0
  c.optim.update(dict(lr=2e-4, updates=1))
  c.eval.every = 20


def evaluate(c: ConfigDict) -> None:
  r"""Compares policies on the held-out problems.

  python -m exprl_jax.main --config=configs/tiny.py:evaluate \
    --config.eval.models="('WORKDIR', 'WORKDIR@40')"

  WORKDIR is the workdir of a run, such as that of configs/tiny.py; @40 selects
  its checkpoint of step 40. Prints pass@1, pass@16 and maj@16 of every model,
  differences from the shipped policy with paired intervals, the number of newly
  solved problems and its null, entropy, KL and steps. Writes samples/,
  newly_solved/, comparison.json and metrics.jsonl into its own workdir.
  docs/evaluation.md explains the numbers. The same command with the same
  --workdir samples only what is missing.

  Without flags, it compares the shipped policy with itself: all differences are
  0, since both use the same random draws.

  For models that write prose, add --config.eval.behaviors=words, or =judge with
  --config.judge.init=MODEL.
  """
  _held_out(c)
  c.run = 'evaluate'
  c.policy.dtype = 'float32'
  c.judge = ConfigDict(dict(delimiter='###'))  # for steps
  c.rollout.update(dict(top_k=0, top_p=1.0, min_p=0.0))
  c.grading = ConfigDict(dict(grader='math'))
  c.eval.update(
      dict(limit=0, models=('asset:tiny_policy',), wave=64, newly_solved_k=16,
           newly_solved_min=1, policy_statistics=True, behaviors=''))
  c.mesh.rollout_tensor = 0


def policy(c: ConfigDict) -> None:
  """Makes the tiny policy: pre-training on misread worked traces.

  python -m exprl_jax.main --config=configs/tiny.py:policy --workdir=/tmp/p
  cp /tmp/p/model/* exprl_jax/assets/tiny_policy/
  """
  _held_out(c)
  c.run = 'sft'
  c.steps = 3072
  c.policy.random = True
  c.data = ConfigDict(dict(train='tiny:pretraining', batch=64))
  c.optim = ConfigDict(
      dict(lr=5e-3, schedule='cosine', warmup_steps=100, b2=0.98,
           weight_decay=0.01, clip_norm=1.0, micro_rows=64))
  c.eval.problems = 'asset:tiny_problems/validation.jsonl'
  c.checkpoint = ConfigDict(dict(every=500))


def judge(c: ConfigDict) -> None:
  """Makes the tiny judge (exprl_jax/tiny/judge_recipe.py).

  python -m exprl_jax.main --config=configs/tiny.py:judge

  runs the first of five passes; docs/tiny.md has all commands.
  """
  c.run = 'train_judge'
  c.steps = 2400
  c.judge = ConfigDict(
      dict(init='asset:tiny_judge', template='tiny', delimiter='###',
           max_steps=8, min_score_probability=0.0, max_prompt_tokens=96))
  c.data = ConfigDict(dict(batch=32))
  c.rollout.group_size = 8
  c.optim = ConfigDict(
      dict(lr=3e-3, schedule='cosine', warmup_steps=100, b2=0.98,
           micro_rows=32))
  c.judge_training = ConfigDict(
      dict(warmup_steps=600, round_steps=150, adversary_steps=40,
           policy_steps=80, problems=8, hint_weight=1.0, start='/tmp/start'))


RECIPES = {
    '': process,
    'outcome': outcome,
    'grpo': grpo,
    'sft': sft,
    'self_distill': self_distill,
    'stage2': stage2,
    'evaluate': evaluate,
    'policy': policy,
    'judge': judge,
}


def get_config(argument: str = '') -> ConfigDict:
  c = _base()
  RECIPES[argument](c)
  return c
