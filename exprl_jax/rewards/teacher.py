"""Self-distillation: a frozen model, shown the solution, as a teacher.

It gives the policy's own tokens log-probabilities behind another prompt
(on-policy self-distillation; Huebotter et al., arXiv 2601.20802).
"""

from collections.abc import Callable, Sequence

import numpy as np

from exprl_jax.config import Config, Teacher, resolve
from exprl_jax.data import chat
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.rewards.base import Reward, Scored
from exprl_jax.rl import losses
from exprl_jax.rl.credit import Credit, Logprobs
from exprl_jax.rl.policy import Policy
from exprl_jax.rl.scored import ScoredRollouts, Trace
from exprl_jax.types import InputError, Problem, Trajectory

_TEMPLATE = '''Here is a problem, and below it a solution known to be right.

Problem:
{question}

Known solution:
{solution}

Read the solution until you understand why it works. Then put it aside and \
solve the problem yourself, step by step, in your own words. Write your final \
answer as \\boxed{}.'''


def prompts(tokenizer: Tokenizer, problems: Sequence[Problem],
            config: Config) -> list[list[int]]:
  """The teacher's prompts: question and solution in one user message.

  Raises:
    InputError: no such template, or a prompt that is too long; names the
      problem.
  """
  cfg, message = config.teacher, template(config.teacher)
  options = chat.template_options(config.rollout.chat_template_options)
  texts = [
      chat.fill(tokenizer, [{'role': 'user', 'content': message}],
                {'{question}': p.question, '{solution}': p.solution}, options)
      for p in problems
  ]
  out = tokenizer.encode_pieces(texts)
  for problem, ids in zip(problems, out):
    if len(ids) > cfg.max_prompt_tokens:
      raise InputError(f"problem {problem.id}: the teacher's prompt has "
                       f'{len(ids)} tokens, teacher.max_prompt_tokens='
                       f'{cfg.max_prompt_tokens}')
  return out


def template(cfg: Teacher) -> str:
  """The message of the teacher's prompt.

  Raises:
    InputError: no such file, or it does not hold each slot once.
  """
  text = _TEMPLATE
  if cfg.template:
    path = resolve(cfg.template)
    if not path.is_file():
      raise InputError(f'config.teacher.template={cfg.template}: no such file')
    text = path.read_text().strip()
  for slot in ('{question}', '{solution}'):
    if text.count(slot) != 1:
      raise InputError(f'config.teacher.template={cfg.template}: it should '
                       f'hold {slot} once')
  return text


def token_scores(teacher_logprobs: Callable[[Sequence[np.ndarray]],
                                            list[np.ndarray]],
                 teacher_tokens: Sequence[np.ndarray],
                 trajectories: Sequence[Trajectory],
                 old: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Scores every token: the teacher's log-probability minus the policy's.

  Args:
    teacher_logprobs: sequences -> their log-probs under the teacher.
    teacher_tokens: each completion behind the teacher's prompt.
    trajectories: B of them.
    old: the policy's log-probs f32[P + T] of each trajectory.

  Returns:
    f32[T] for each.
  """
  out = []
  for teacher, policy, t in zip(teacher_logprobs(teacher_tokens), old,
                                trajectories):
    n = len(t.completion)
    out.append(teacher[len(teacher) - n:] - policy[len(policy) - n:])
  return out


def sequences(tokenizer: Tokenizer, traces: Sequence[Trace],
              config: Config) -> list[np.ndarray]:
  """Each completion behind the teacher's prompt, i32[m]."""
  problems = {t.problem.id: t.problem for t in traces}
  by_id = dict(
      zip(problems, prompts(tokenizer, list(problems.values()), config)))
  return [
      np.array([*by_id[t.problem.id], *t.trajectory.completion], np.int32)
      for t in traces
  ]


def credit(policy: Policy, tokenizer: Tokenizer, scored: ScoredRollouts,
           logprobs: Logprobs) -> Credit:
  """Self-distillation: a token's advantage is its score.

  With the loss 'exact_kl' the learner runs the teacher itself, on its tokens.
  """
  config, trajectories = policy.config, scored.trajectories
  finished = np.array([t.finished for t in trajectories])
  trains = finished | (config.rollout.overlong != 'mask')
  tokens = sequences(tokenizer, scored.traces, config)
  if losses.kind(config.loss.kind).teacher:
    zeros = [np.zeros(len(t.completion), np.float32) for t in trajectories]
    return Credit(trains, zeros, tokens)
  gaps = token_scores(policy.teacher_logprobs, tokens, trajectories,
                      logprobs.old)
  return Credit(trains, [gap * ok for gap, ok in zip(gaps, trains)],
                metrics={'teacher/gap': -float(np.concatenate(gaps).mean())})


def correctness(traces: list[Trace]) -> Scored:
  """Scores rows 1 if right, else 0, for logs only: what trains are the scores
  of tokens, so that rows without a gold answer train, too.
  """
  value = np.array([[t.correct] for t in traces], np.float32)
  return value, np.ones(value.shape, bool), {}


REWARDS = {
    'teacher': Reward('token', lambda config, judge: correctness,
                      needs=('solution',), uses_reference=True),
}
