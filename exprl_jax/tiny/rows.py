"""Traces laid out to train a judge: a whole tree of prefixes in one row.

What the engine computes in pages (judge/judge.py) is here one differentiable
forward pass: the prompt with the whole trace is the trunk, and each step adds a
short branch (the question for the score) that sees the trunk up to its end.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax.judge import prompts
from exprl_jax.models import transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.types import Problem

TRUNK, PADDING = 0, -1
_ROUND = 32  # row widths are rounded up to it, so that few programs compile


class Rows(NamedTuple):
  """Trunks with their branches, W columns."""

  tokens: np.ndarray  # i32[B, W]
  positions: np.ndarray  # i32[B, W]
  node: np.ndarray  # i32[B, W] TRUNK, PADDING, or s + 1 on the branch of step s
  limit: np.ndarray  # i32[B, W] columns of the trunk that are visible
  read: np.ndarray  # i32[B, S] where the score of step s is the next token
  exists: np.ndarray  # bool[B, S]
  starts: np.ndarray  # i32[B] first column of the trace


def build_rows(template: prompts.Template,
               items: list[tuple[Problem, list[str]]], max_steps: int) -> Rows:
  """Lays out one row per trace.

  Args:
    template: the judge's prompt.
    items: (problem, texts of the steps).
    max_steps: S.
  """
  trunks, ends, starts, asks = [], [], [], []
  for problem, steps in items:
    fence, end = prompts.fence(problem, steps), []
    trunk = template.head(problem) + template.opening(fence)
    starts.append(len(trunk))
    for step in steps:
      trunk += template.tokenizer.encode(step)
      end.append(len(trunk))
    trunks.append(trunk)
    ends.append(end)
    asks.append(np.array(template.ask(problem, fence)))
  widest = max(len(t) + len(e) * len(a) for t, e, a in zip(trunks, ends, asks))
  shape = (len(items), -(-widest // _ROUND) * _ROUND)
  rows = Rows(*(np.zeros(shape, np.int32) for _ in range(2)),
              np.full(shape, PADDING, np.int32), np.zeros(shape, np.int32),
              np.zeros((len(items), max_steps), np.int32),
              np.zeros((len(items), max_steps), bool),
              np.array(starts, np.int32))
  for i, (trunk, end, ask) in enumerate(zip(trunks, ends, asks)):
    n = len(trunk)
    rows.tokens[i, :n] = trunk
    rows.positions[i, :n] = np.arange(n)
    rows.node[i, :n] = TRUNK
    rows.limit[i, :n] = np.arange(n) + 1
    for s, fork in enumerate(end):
      columns = slice(n + s * len(ask), n + (s + 1) * len(ask))
      rows.tokens[i, columns] = ask
      rows.positions[i, columns] = fork + np.arange(len(ask))
      rows.node[i, columns] = s + 1
      rows.limit[i, columns] = fork
      rows.read[i, s] = columns.stop - 1
      rows.exists[i, s] = True
  return rows


def hidden_states(model: ModelConfig, params, rows: Rows) -> jax.Array:
  """Final hidden states [B, W, D] under the tree's attention mask."""
  column = jnp.arange(rows.tokens.shape[1])
  k, q = column[None, None, :], column[None, :, None]
  node_k, node_q = rows.node[:, None, :], rows.node[:, :, None]
  trunk = (node_k == TRUNK) & (k < rows.limit[:, :, None])
  own = (node_k == node_q) & (k <= q)
  return transformer.forward(model, params, rows.tokens, rows.positions,
                             mask=trunk | own)


def score_logits(model: ModelConfig, params, hidden: jax.Array,
                 read: jax.Array) -> jax.Array:
  """Next-token logits f32[B, S, V] where the scores are read."""
  return transformer.project(
      model, params, jnp.take_along_axis(hidden, read[..., None], axis=1))
