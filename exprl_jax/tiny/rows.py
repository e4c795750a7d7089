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

from exprl_jax.judge import prompts
from exprl_jax.models import head, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.types import Params, Problem

TRACE, PADDING = 0, -1
_ROUND = 32  # row widths are rounded up to it, so that few programs compile


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


class _Tokens(NamedTuple):
  """A trace in tokens."""

  prefix: list[int]  # prompt and trace
  start: int  # of the trace
  ends: list[int]  # of its steps
  question: list[int]  # asks for a score


def build_rows(template: prompts.Template, items: Sequence[tuple[Problem,
                                                                 list[str]]],
               max_steps: int) -> Rows:
  """Lays out one row per trace.

  Args:
    template: the judge's prompt.
    items: B pairs (problem, texts of the steps).
    max_steps: S.
  """
  traces = [_encode(template, problem, steps) for problem, steps in items]
  widest = max(len(t.prefix) + len(t.ends) * len(t.question) for t in traces)
  shape = (len(items), -(-widest // _ROUND) * _ROUND)
  rows = Rows(tokens=np.zeros(shape,
                              np.int32), positions=np.zeros(shape, np.int32),
              node=np.full(shape, PADDING,
                           np.int32), limit=np.zeros(shape, np.int32),
              read=np.zeros((len(items), max_steps), np.int32), exists=np.zeros(
                  (len(items), max_steps),
                  bool), starts=np.array([t.start for t in traces], np.int32))
  for i, trace in enumerate(traces):
    _fill_row(rows, i, trace)
  return rows


def _encode(template: prompts.Template, problem: Problem,
            steps: list[str]) -> _Tokens:
  nonce = prompts.nonce(problem, steps)
  prefix = template.head(problem) + template.opening(nonce)
  start, ends = len(prefix), []
  for step in steps:
    prefix += template.tokenizer.encode(step)
    ends.append(len(prefix))
  return _Tokens(prefix, start, ends, template.ask(problem, nonce))


def _fill_row(rows: Rows, i: int, trace: _Tokens) -> None:
  length, size = len(trace.prefix), len(trace.question)
  rows.tokens[i, :length] = trace.prefix
  rows.positions[i, :length] = np.arange(length)
  rows.node[i, :length] = TRACE
  rows.limit[i, :length] = np.arange(length) + 1
  for s, end in enumerate(trace.ends):
    fork = slice(length + s * size, length + (s + 1) * size)
    rows.tokens[i, fork] = trace.question
    rows.positions[i, fork] = end + np.arange(size)
    rows.node[i, fork] = s + 1
    rows.limit[i, fork] = end
    rows.read[i, s] = fork.stop - 1
    rows.exists[i, s] = True


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
