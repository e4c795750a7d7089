"""Experience: scored trajectories and log-probs as examples for the learner."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from exprl_jax.rl import losses
from exprl_jax.rl.credit import Credit, Logprobs
from exprl_jax.rl.policy import Policy
from exprl_jax.types import Params, Trajectory


class Example(NamedTuple):
  """One sequence to train on, ragged, on the host."""

  tokens: np.ndarray  # i32[n] prompt and completion
  loss_mask: np.ndarray  # bool[n] tokens that train
  rollout_logprobs: np.ndarray  # f32[n] by the sampler; 0 in the prompt
  old_logprobs: np.ndarray  # f32[n] before this batch's updates
  ref_logprobs: np.ndarray  # f32[n] of the frozen KL reference
  advantages: np.ndarray  # f32[n]
  teacher_tokens: np.ndarray | None = None  # i32[m] the same completion behind
  # the teacher's prompt (loss 'exact_kl')


def logprobs(policy: Policy, params: Params, trajectories: Sequence[Trajectory],
             scores_tokens: bool = False) -> Logprobs:
  """Computes the log-probabilities that the config's loss and reward read.

  With a single update per batch the policy before the update is the one in it:
  the learner takes its own, and the sampler's stand in here. Without a KL term
  nothing reads those of the reference.

  Args:
    policy: with its config.
    params: what trains, before the update.
    trajectories: B of them.
    scores_tokens: the reward is per token, a difference to the policy's own.
  """
  config = policy.config
  tokens = [t.tokens for t in trajectories]
  rollout = [with_prompt(t, t.logprobs) for t in trajectories]
  old = ref = rollout
  token_scores = scores_tokens and not losses.kind(config.loss.kind).teacher
  if config.optim.updates > 1 or config.loss.kl_in == 'reward' or token_scores:
    old = ref = policy.logprobs(params, tokens)
  if config.loss.kl_coef:
    ref = policy.reference_logprobs(tokens)
  return Logprobs(rollout, old, ref)


def with_prompt(trajectory: Trajectory, values: np.ndarray) -> np.ndarray:
  """Values of the completion's tokens [T], with zeros for the prompt [P + T].
  """
  prompt = np.zeros(len(trajectory.prompt), values.dtype)
  return np.concatenate([prompt, values])


def examples(trajectories: Sequence[Trajectory], logprobs: Logprobs,
             credit: Credit) -> list[Example]:
  """Makes one example per trajectory."""
  teacher = credit.teacher_tokens
  return [
      Example(
          tokens=t.tokens,
          loss_mask=with_prompt(t, np.full(len(t.completion),
                                           credit.trains[i])),
          rollout_logprobs=logprobs.rollout[i], old_logprobs=logprobs.old[i],
          ref_logprobs=logprobs.ref[i],
          advantages=with_prompt(t, credit.advantages[i]),
          teacher_tokens=teacher[i] if teacher else None)
      for i, t in enumerate(trajectories)
  ]
