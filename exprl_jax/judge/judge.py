"""The judge: a frozen language model that scores traces from 1 to 5.

It reads the problem, the reference solution and the trace, and its score is
the expectation over the five score tokens of its next-token distribution,
mapped to [0, 1]. All prefixes of a trace are scored in one forward pass: the
prompt with the whole trace is the trunk, and each step adds a short branch
(the question for the score) that sees the trunk up to the end of that step.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax import mesh as mesh_lib
from exprl_jax.judge import prompts
from exprl_jax.models import transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.tokenizer import Tokenizer
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


class Verdicts(NamedTuple):
  """The judge's scores of N traces at S steps."""

  score: np.ndarray  # f32[N, S] in [0, 1]
  mass: np.ndarray  # f32[N, S] probability of all legal scores together
  exists: np.ndarray  # bool[N, S]


def build_rows(template: prompts.Template, tokenizer: Tokenizer,
               items: list[tuple[Problem, list[str]]], max_steps: int) -> Rows:
  """Lays out one row per trace.

  Args:
    template: the judge's prompt.
    tokenizer: the judge's.
    items: (problem, texts of the steps); text is encoded step by step, with
      special tokens disarmed, so that steps end where tokens end.
    max_steps: S.
  """
  trunks, ends = [], []
  for problem, steps in items:
    trunk, end = template.head(tokenizer, problem), []
    for step in steps:
      trunk += tokenizer.encode(step)
      end.append(len(trunk))
    trunks.append(trunk)
    ends.append(end)
  ask = np.array(template.ask)
  widest = max(len(t) + len(e) * len(ask) for t, e in zip(trunks, ends))
  shape = (len(items), -(-widest // _ROUND) * _ROUND)
  rows = Rows(*(np.zeros(shape, np.int32) for _ in range(2)),
              np.full(shape, PADDING, np.int32), np.zeros(shape, np.int32),
              np.zeros((len(items), max_steps), np.int32),
              np.zeros((len(items), max_steps), bool))
  for i, (trunk, end) in enumerate(zip(trunks, ends)):
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


@functools.partial(jax.jit, static_argnums=(0, 3))
def _read(model, params, rows, score_ids):
  hidden = hidden_states(model, params, rows)
  logits = score_logits(model, params, hidden, rows.read)
  p = jax.nn.softmax(logits, axis=-1)[..., jnp.array(score_ids)]
  mass = p.sum(axis=-1)
  likert = p @ jnp.arange(1.0, 6.0)
  return (likert / jnp.maximum(mass, 1e-30) - 1.0) / 4.0, mass


class Judge:
  """A judge on a mesh."""

  def __init__(self, model: ModelConfig, params, tokenizer: Tokenizer,
               template: str, rows: int, mesh: jax.sharding.Mesh):
    """Renders the template.

    Raises:
      InputError: the template does not suit the tokenizer.
    """
    self.model, self.params, self.tokenizer = model, params, tokenizer
    self.template = prompts.load(template, tokenizer)
    self._rows, self._mesh = rows, mesh

  def score(self, items: list[tuple[Problem, list[str]]], max_steps: int
            ) -> Verdicts:
    """Scores every prefix that ends with a step.

    Args:
      items: (problem, texts of the steps), 1 to `max_steps` steps each.
      max_steps: S of the result.
    """
    score, mass, exists = [], [], []
    for i in range(0, len(items), self._rows):
      part = items[i:i + self._rows]
      # Fill up, so that the last batch does not compile anew.
      rows = build_rows(self.template, self.tokenizer,
                        part + part[:1] * (self._rows - len(part)), max_steps)
      with jax.set_mesh(self._mesh):
        out = _read(self.model, self.params,
                    mesh_lib.shard_rows(rows, self._mesh),
                    self.template.score_ids)
      s, m = (x[:len(part)] for x in mesh_lib.fetch(out))
      score.append(s)
      mass.append(m)
      exists.append(rows.exists[:len(part)])
    if not items:
      empty = np.zeros((0, max_steps), np.float32)
      return Verdicts(empty, empty, empty.astype(bool))
    return Verdicts(*(np.concatenate(x) for x in (score, mass, exists)))
