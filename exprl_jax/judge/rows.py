"""Traces laid out to train a judge: one row asks about every prefix of one.

The judge computes this in pages (judge/tree.py); here it is one differentiable
forward pass. A row begins with the trace prefix, which is the prompt with the
whole trace. Behind it comes a fork for each step, the few tokens that ask for
the score, which sees the trace prefix up to the end of its step:

    columns  | prompt, steps 1..S | question | question | ... | padding
    node     | TRACE              | 1        | 2        | ... | PADDING
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax.judge import layout, prompts
from exprl_jax.judge.readouts.base import TracePrefix
from exprl_jax.models import head, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.types import Params, Problem

TRACE, PADDING = 0, -1
_UNLIMITED = 10**9  # tokens of a trace
# Row widths are rounded up to multiples of it, those above 256 to multiples of
# 128, so that few programs compile.
_ROUND = 32


class Rows(NamedTuple):
  """Trace prefixes with their forks, in W columns.

  Arrays are numpy's, or jax's under jit.
  """

  tokens: np.ndarray  # i32[B, W]
  positions: np.ndarray  # i32[B, W]
  node: np.ndarray  # i32[B, W] TRACE, PADDING, or s + 1 in the fork of step s
  limit: np.ndarray  # i32[B, W] columns of the trace prefix that are visible
  read: np.ndarray  # i32[B, S] column whose next token is the score of step s
  exists: np.ndarray  # bool[B, S]
  starts: np.ndarray  # i32[B] first column of the trace


def build_rows(template: prompts.Template, items: Sequence[tuple[Problem,
                                                                 list[str]]],
               max_steps: int) -> Rows:
  """Lays out one row per trace.

  Args:
    template: the judge's prompt.
    items: B pairs (problem, texts of the steps).
    max_steps: S.
  """
  laid_out = layout.lay_out(template, [
      layout.Trace(problem,
                   layout.prefixes(template.tokenizer, steps, _UNLIMITED),
                   prompts.nonce(problem, steps), [[('', 1.0)]] * len(steps))
      for problem, steps in items
  ])
  widest = max(
      len(t.tokens) + sum(len(q.fork.suffix)
                          for q in t.questions)
      for t in laid_out)
  multiple = _ROUND if widest <= 256 else 128
  shape = (len(items), -(-widest // multiple) * multiple)
  scores = (len(items), max_steps)
  rows = Rows(tokens=np.zeros(shape,
                              np.int32), positions=np.zeros(shape, np.int32),
              node=np.full(shape, PADDING,
                           np.int32), limit=np.zeros(shape, np.int32),
              read=np.zeros(scores, np.int32), exists=np.zeros(scores, bool),
              starts=np.array([t.start for t in laid_out], np.int32))
  for i, trace in enumerate(laid_out):
    _fill_row(rows, i, trace)
  return rows


def _fill_row(rows: Rows, i: int, trace: TracePrefix) -> None:
  length = len(trace.tokens)
  rows.tokens[i, :length] = trace.tokens
  rows.positions[i, :length] = np.arange(length)
  rows.node[i, :length] = TRACE
  rows.limit[i, :length] = np.arange(length) + 1
  start = length
  for s, question in enumerate(trace.questions):
    at, suffix = question.fork
    fork = slice(start, start + len(suffix))
    rows.tokens[i, fork] = suffix
    rows.positions[i, fork] = at + np.arange(len(suffix))
    rows.node[i, fork] = s + 1
    rows.limit[i, fork] = at
    rows.read[i, s] = fork.stop - 1
    rows.exists[i, s] = True
    start = fork.stop


def hidden_states(model: ModelConfig, params: Params, rows: Rows) -> jax.Array:
  """Computes final hidden states f32[B, W, D], forks kept apart by a mask."""
  column = jnp.arange(rows.tokens.shape[1])
  key, query = column[None, None, :], column[None, :, None]
  node_of_key, node_of_query = rows.node[:, None, :], rows.node[:, :, None]
  in_prefix = (node_of_key == TRACE) & (key < rows.limit[:, :, None])
  in_fork = (node_of_key == node_of_query) & (key <= query)
  return transformer.forward(model, params, jnp.asarray(rows.tokens),
                             jnp.asarray(rows.positions),
                             mask=in_prefix | in_fork)


def score_logits(model: ModelConfig, params: Params, hidden: jax.Array,
                 read: jax.Array) -> jax.Array:
  """Computes next-token logits f32[B, S, V] where scores are read.

  Args:
    model: the judge.
    params: its parameters.
    hidden: f32[B, W, D].
    read: i32[B, S], columns: Rows.read.
  """
  return head.project(model, params,
                      jnp.take_along_axis(hidden, read[..., None], axis=1))
