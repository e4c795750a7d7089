"""The score of truncated rows, by rollout.overlong."""

from collections.abc import Sequence

import numpy as np

from exprl_jax.config import Rollout
from exprl_jax.rl.scored import add_to_last
from exprl_jax.types import Scores, Trajectory


def truncated(scores: Scores, trajectories: Sequence[Trajectory],
              cfg: Rollout) -> Scores:
  """Treats rows that did not end by themselves, by rollout.overlong.

  'keep' leaves them. 'zero' sets all their scores to 0, 'mask' takes them away.
  'soft' is about length alone: a row's score loses up to 1, in proportion to
  how much of the last overlong_buffer tokens of the budget is used (DAPO, arXiv
  2503.14476); it is for rewards of rows.
  """
  finished = np.array([t.finished for t in trajectories])[:, None]
  if cfg.overlong == 'zero':
    return scores._replace(value=scores.value * finished)
  if cfg.overlong == 'mask':
    return scores._replace(valid=scores.valid & finished)
  if cfg.overlong == 'soft':
    buffer_start = cfg.max_new_tokens - cfg.overlong_buffer
    used = np.array([len(t.completion) for t in trajectories]) - buffer_start
    return add_to_last(scores, -np.clip(used / cfg.overlong_buffer, 0.0, 1.0))
  return scores
