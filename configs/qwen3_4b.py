r"""The paper's recipes with Qwen3-4B-Instruct-2507 as policy and judge.

  python -m exprl_jax.main --config=configs/qwen3_4b.py:exprl_process_fast \
    --config.policy.init=Qwen/Qwen3-4B-Instruct-2507 \
    --config.judge.init=Qwen/Qwen3-4B-Instruct-2507 \
    --config.data.train=/data/train.jsonl

Values are those of arXiv 2606.17024 unless a recipe says otherwise. Each
argument names a function below, which sets what its recipe changes. Pass@1
after stage 1, as reported in the paper:

                     AIME25  AIME26  HMMT
  base                46.5    51.5   40.6
  sft                  6.0
  grpo                48.7    51.4   41.7
  self_distill        43.0    53.9   39.9
  exprl_outcome       50.5    57.5   44.2
  exprl_process       51.8    57.5   45.2
"""

from ml_collections import ConfigDict

_MODEL = 'Qwen/Qwen3-4B-Instruct-2507'


def _base() -> ConfigDict:
  """Sets the model, and the limits of prompts and samples."""
  c = ConfigDict()
  c.seed = 1
  c.policy = ConfigDict(dict(init=_MODEL, dtype='bfloat16'))
  c.rollout = ConfigDict(
      dict(group_size=1, max_prompt_tokens=4096, max_new_tokens=16384,
           temperature=0.8, slots=256, overlong='keep'))
  return c


def _boxed(c: ConfigDict) -> None:
  c.rollout.system_prompt = (
      'Please reason step by step, and put your final answer within \\boxed{}.')


def _update(c: ConfigDict) -> None:
  """Sets the batch, AdamW, evaluation and mesh of all training runs."""
  c.policy.remat = 'full'
  c.data = ConfigDict(dict(train='/data/train.jsonl', batch=32))
  c.optim = ConfigDict(
      dict(lr=1e-6, schedule='constant', warmup_steps=0, b1=0.9, b2=0.999,
           eps=1e-8, weight_decay=0.01, clip_norm=1.0, updates=1,
           row_tokens=20480))
  c.eval = ConfigDict(
      dict(problems='aime25=/data/aime25.jsonl,aime26=/data/aime26.jsonl',
           samples=4, ks=(1, 4)))
  c.checkpoint = ConfigDict(dict(keep=2))
  c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1, rollout_tensor=4))


def _train(c: ConfigDict) -> None:
  """Sets up RL with the PPO loss and a KL coefficient of 1e-3."""
  _update(c)
  _boxed(c)
  c.run = 'train'
  c.steps = 230
  c.loss = ConfigDict(
      dict(kind='ppo', clip_low=0.2, clip_high=0.26, dual_clip=3.0,
           kl_coef=1e-3, aggregation='token_mean'))
  c.eval.every = 10


def _exprl(c: ConfigDict) -> None:
  """36 problems x 10 samples per step; truncated traces score 0."""
  _train(c)
  c.judge = ConfigDict(
      dict(init=_MODEL, dtype='bfloat16', template='math',
           rationale_tokens=2048))
  c.data.batch = 36
  c.rollout.update(dict(group_size=10, overlong='zero'))
  c.checkpoint.every = 30


def exprl_outcome(c: ConfigDict) -> None:
  """ExpRL-Outcome (appendix A.1): one score per trace, two updates.

  --config=configs/qwen3_4b.py:exprl_outcome

  The judge reasons for up to 2,048 tokens before its score. Clip 0.2 / 0.28.
  """
  _exprl(c)
  c.reward = 'outcome'
  c.judge.readout = 'generate_expect'
  c.judge.max_prompt_tokens = 16384
  c.credit = ConfigDict(dict(rule='group', divide_by_std=True, min_std=0.05))
  c.loss.clip_high = 0.28
  c.optim.updates = 2


def exprl_process(c: ConfigDict) -> None:
  """ExpRL-Process as in the paper: judges every prefix, one update.

  --config=configs/qwen3_4b.py:exprl_process

  For each prefix the judge reasons for up to 2,048 tokens, says how promising
  the prefix is, and its written score counts. DeltaNorm with the final score as
  the first baseline; a one-step trace has advantage 0. exprl_process_fast costs
  a small part of it. The authors ran exprl_process_authors instead.
  """
  _exprl(c)
  c.reward = 'process'
  c.judge.update(
      dict(template='math_paper', delimiter='auto', max_steps=16,
           readout='generate', max_prompt_tokens=16384))
  c.credit = ConfigDict(dict(rule='delta', first='final', single='zero'))


def exprl_process_fast(c: ConfigDict) -> None:
  """ExpRL-Process with all steps of a trace judged in one pass: start here.

  --config=configs/qwen3_4b.py:exprl_process_fast

  The judge writes no reasons; its score is the expectation over the five score
  tokens at the end of every step. It is asked how far the trace has come, so
  credit is the progress that a step makes: A_1 = s_1, A_t = s_t - s_{t-1}.
  """
  exprl_process(c)
  c.judge.update(dict(template='math', readout='direct',
                      max_prompt_tokens=8192))
  c.credit = ConfigDict(dict(rule='delta', first='zero'))


def exprl_process_authors(c: ConfigDict) -> None:
  """ExpRL-Process as in the authors' code, which differs from the paper.

  --config=configs/qwen3_4b.py:exprl_process_authors

  16 samples per problem. The token '###' closes a step, anywhere. The judge
  reasons about each step alone, without the previous ones. A one-step trace
  gets its score as advantage (docs/method.md says what this rewards).
  """
  exprl_process(c)
  c.rollout.group_size = 16
  c.judge.update(
      dict(template='math', delimiter='authors', thinking='cut', max_steps=64,
           context='segment'))
  c.credit.single = 'score'


def exprl_process_end(c: ConfigDict) -> None:
  """ExpRL-Process with EndNorm (Eq. 4), an ablation of the paper.

  --config=configs/qwen3_4b.py:exprl_process_end

  16 samples per problem, as the authors' scripts of the ablation.
  """
  exprl_process(c)
  c.rollout.group_size = 16
  c.credit = ConfigDict(dict(rule='end', last='score'))


def exprl_process_group(c: ConfigDict) -> None:
  """ExpRL-Process with GroupNorm (Eq. 6), an ablation of the paper.

  --config=configs/qwen3_4b.py:exprl_process_group

  16 samples per problem, as the authors' scripts of the ablation.
  """
  exprl_process(c)
  c.rollout.group_size = 16
  c.credit = ConfigDict(dict(rule='group_process', baseline='steps'))


def grpo(c: ConfigDict) -> None:
  """Sparse GRPO: the baseline without a judge.

  --config=configs/qwen3_4b.py:grpo

  32 problems x 16 samples per step, two updates, clip 0.2 / 0.26.
  """
  _train(c)
  c.reward = 'sparse'
  c.rollout.group_size = 16
  c.credit = ConfigDict(dict(rule='group', divide_by_std=True))
  c.optim.updates = 2
  c.checkpoint.every = 20


def self_distill(c: ConfigDict) -> None:
  """On-policy self-distillation: the teacher is the base with the solution.

  --config=configs/qwen3_4b.py:self_distill

  As the authors ran it: 32 problems x 16 samples per step, one update, lr 1e-7.
  The advantage of a sampled token is the log-ratio of teacher and policy.
  --config.loss.kind=exact_kl uses the exact reverse KL over the vocabulary
  instead.
  """
  _train(c)
  c.reward = 'teacher'
  c.teacher = ConfigDict(dict(max_prompt_tokens=16384))
  c.rollout.group_size = 16
  c.credit = ConfigDict(dict(rule='token'))
  c.loss = ConfigDict(
      dict(kind='reinforce', kl_coef=0.0, aggregation='seq_mean_token_mean'))
  c.optim.update(dict(lr=1e-7, row_tokens=36864))
  c.checkpoint.every = 30


def sft(c: ConfigDict) -> None:
  """Supervised fine-tuning on the reference solutions.

  --config=configs/qwen3_4b.py:sft

  The authors' values: 32 solutions per step, 94 steps (two epochs of 1,516
  problems), warm-up over a tenth of the steps and cosine decay, beta2 0.95, no
  system prompt in training. SFT hurts here: references are not written the way
  the model reasons.
  """
  _update(c)
  c.run = 'sft'
  c.steps = 94
  c.optim.update(dict(schedule='cosine', warmup_steps=9, b2=0.95))
  c.checkpoint.every = 47


def stage2(c: ConfigDict) -> None:
  r"""Stage 2 as in the paper: sparse RL from a stage-1 checkpoint.

  --config=configs/qwen3_4b.py:stage2 --config.policy.init=/runs/exprl_process

  policy.init is the workdir of stage 1 (or WORKDIR@STEP, or any model folder).
  500 steps of 32 problems x 32 samples, GRPO with division by the standard
  deviation, one update, no KL. The authors ran stage2_authors instead. The
  paper's AIME25 pass@1 after stage 2: from the base with GRPO 56.0, from
  ExpRL-Outcome 59.1, from ExpRL-Process 58.1.
  """
  grpo(c)
  c.steps = 500
  c.policy.init = '/runs/exprl_process'
  c.rollout.group_size = 32
  c.loss.kl_coef = 0.0
  c.optim.updates = 1
  c.checkpoint.every = 50


def stage2_authors(c: ConfigDict) -> None:
  """Stage 2 as in the authors' code, which differs from the paper.

  --config=configs/qwen3_4b.py:stage2_authors

  16 problems x 32 samples; advantages are not divided by the standard
  deviation; the clip is so wide (epsilon 4) that only ratios above 5 are
  clipped; the loss is summed over a trace's tokens, so long traces weigh more;
  entropy bonus 1e-4; gradients clipped at 0.3. Their run is asynchronous; here
  every step samples from the current policy.
  """
  stage2(c)
  c.data.batch = 16
  c.credit.divide_by_std = False
  c.loss.update(
      dict(clip_low=4.0, clip_high=4.0, dual_clip=0.0, entropy_coef=1e-4,
           tis_cap=5.0, aggregation='seq_mean_token_sum'))
  c.optim.clip_norm = 0.3
  c.eval.every = 12


def passk(c: ConfigDict) -> None:
  r"""Evaluation as in the paper: 128 samples per problem, pass@1 to pass@128.

  --config=configs/qwen3_4b.py:passk \
    --config.eval.models="('/runs/exprl_process', '/runs/grpo@230')"

  Compares the models with policy.init (paired bootstrap over problems). Keeps
  all samples, so that an interrupted run can resume (docs/evaluation.md).
  """
  _boxed(c)
  c.run = 'evaluate'
  c.steps = 0
  c.eval = ConfigDict(
      dict(
          problems=('aime25=/data/aime25.jsonl,aime26=/data/aime26.jsonl,'
                    'hmmt=/data/hmmt.jsonl,imo=/data/imo_answerbench.jsonl'),
          samples=128, ks=(1, 4, 16, 64, 128), newly_solved_k=16,
          policy_statistics=True))
  c.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=4))


RECIPES = {
    recipe.__name__: recipe
    for recipe in (exprl_outcome, exprl_process, exprl_process_fast,
                   exprl_process_authors, exprl_process_end,
                   exprl_process_group, grpo, self_distill, sft, stage2,
                   stage2_authors, passk)
}


def get_config(argument: str) -> ConfigDict:
  c = _base()
  RECIPES[argument](c)
  return c
