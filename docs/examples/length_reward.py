"""A reward of your own: traces of short steps score higher.

  python -m exprl_jax.main --config=configs/tiny.py:grpo \\
    --config.reward=docs/examples/length_reward.py:short_steps \\
    --config.credit.rule=delta

A reward takes a list of `exprl_jax.rl.scored.Trace` (problem, trajectory, text,
steps, grade) and returns values f32[B, S], a mask bool[B, S] of those that
exist, and metrics. `granularity` says whether traces are cut into steps.
"""

import numpy as np


def short_steps(traces):
  """Scores each step by 1 / (1 + its words / 7)."""
  value = np.zeros((len(traces), max(len(t.steps) for t in traces)), np.float32)
  valid = np.zeros(value.shape, bool)
  for row, mask, trace in zip(value, valid, traces):
    for s, step in enumerate(trace.steps):
      row[s], mask[s] = 1 / (1 + len(step.split()) / 7), True
  return value, valid, {
      'reward/words_mean': float(np.mean([len(t.text.split()) for t in traces]))
  }


short_steps.granularity = 'step'  # 'row' by default
