"""Credit: an advantage for every token, from the scores of rows or steps."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from exprl_jax.config import Config, Loss
from exprl_jax.rl import advantages
from exprl_jax.rl import kl as kl_lib
from exprl_jax.rl.scored import ScoredRollouts, add_to_last
from exprl_jax.types import Scores, Trajectory


class Logprobs(NamedTuple):
  """Log-probabilities f32[n] of each trajectory's tokens, prompt included."""

  rollout: list[np.ndarray]  # by the sampler; 0 in the prompt
  old: list[np.ndarray]  # by the policy before this batch's updates
  ref: list[np.ndarray]  # by the KL reference


class Credit(NamedTuple):
  """Which rows train, and with what advantage."""

  trains: np.ndarray  # bool[B], rows with a valid score
  advantages: list[np.ndarray]  # f32[T] for each completion
  teacher_tokens: list[np.ndarray] | None = None  # experience.Example
  metrics: Mapping[str, float] = {}


def assign(config: Config, scored: ScoredRollouts,
           logprobs: Logprobs) -> Credit:
  """Turns the scores of rows or steps into advantages of tokens.

  Args:
    config: its credit, loss and rollout.
    scored: rows of a group are neighbors.
    logprobs: for loss.kl_in='reward'.
  """
  trajectories = scored.trajectories
  scores = kl_penalty(scored.scores, trajectories, logprobs, config.loss)
  values = of_scores(config, scored, scores)
  return Credit(
      scored.trains,
      advantages.spread(values, np.asarray(scores.valid), trajectories))


def of_scores(config: Config, scored: ScoredRollouts,
              scores: Scores) -> Float[np.ndarray, 'B S']:
  """The advantage of every step, 0 where it has no valid score."""
  cfg = config.rollout
  tokens = advantages.step_tokens(np.asarray(scores.valid), scored.trajectories)
  return np.asarray(
      advantages.assign(
          scores, scored.graded, scored.outcome_rows, tokens, cfg=config.credit,
          group_size=cfg.group_size,
          padded_tokens=cfg.max_prompt_tokens + cfg.max_new_tokens))


def kl_penalty(scores: Scores, trajectories: Sequence[Trajectory],
               logprobs: Logprobs, cfg: Loss) -> Scores:
  """Takes kl_coef times a row's KL to the reference off its last score.

  With loss.kl_in='reward'; otherwise the KL is a term of the loss.
  """
  if cfg.kl_in != 'reward':
    return scores
  kl = []
  for old, ref, t in zip(logprobs.old, logprobs.ref, trajectories):
    completion = slice(len(t.prompt), None)
    kl.append(
        kl_lib.estimate(old[completion], ref[completion], cfg.kl_estimator,
                        cfg.kl_clamp).sum())
  return add_to_last(scores, -cfg.kl_coef * np.array(kl))
