"""How the tiny judge is made: run='train_judge' without judge_training.traces.

The judge learns to predict labels that a program gives (world.progress), on
traces from four sources:

  synthetic   right, slightly wrong, degenerate and hostile traces (traces.py)
  base        samples of the base policy at several temperatures
  taught      samples of a policy trained on the labels themselves, so that
              mostly right traces occur
  adversary   samples of policies trained against the judge as it is: after
              every round of its training a policy is trained to please it,
              and what that policy wrote is labeled and joins the data

One row in twelve comes with another problem's reference and scores what it
reaches of that. Besides the scores there is a loss on hints inside the trace:
from the month of a step to its '=' the judge predicts the reference's value for
that month, and at the opening of a box its answer, which teaches it to look up;
at the end of each step it says 5 if the step raised the label and 1 if not, and
at the number in a box the same, which teaches it to compare. The first steps
see nothing but well-formed traces; without this warm-up and without the hints
it takes many times longer until the judge begins to count.

Like the paper's, the judge starts as a copy of the base policy, here with one
more layer that at first changes nothing (its output projections are 0); from
random weights it learned to look things up three times slower. Training
problems are drawn at random and never are those of the shipped sets or of the
set that accepts the judge.
"""

from collections.abc import Sequence
import random

import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax.config import Config
from exprl_jax.data import tiny_world as world
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.judge import rows as rows_lib
from exprl_jax.judge.rows import Rows
from exprl_jax.judge.tree import Judge
from exprl_jax.models import hf, references, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.tiny import judge_data
from exprl_jax.types import Labeled, Params


class TinyWorld:
  """The labeled traces of the tiny world, as train_judge.Source."""

  resumable = False  # the adversaries are in memory only

  def __init__(self, config: Config, mesh: jax.sharding.Mesh):
    """Loads the base policy and samples it.

    Args:
      config: its `judge`, `judge_training`, `policy` and `rollout`.
      mesh: to sample on.
    """
    self._config, self._mesh = config, mesh
    self._tokenizer = Tokenizer(references.folder_of(config.judge.init))
    self._makers = judge_data.Makers(config, mesh)
    self._pools: dict[str, list[Labeled]] = {}
    self._mixture = judge_data.Mixture(
        self._pools, self._makers, random.Random(f'train_judge-{config.seed}'))

  def start(self, model: ModelConfig) -> Params:
    """Makes the judge of its start, grown by a layer."""
    start = self._makers.base
    if self._config.judge_training.start:
      folder = references.folder_of(self._config.judge_training.start)
      _, start = hf.load(folder, self._mesh)
    return grown(model, start, jax.random.key(self._config.seed))

  def draw(self, step: int) -> list[Labeled]:
    """Draws the batch of a step; the first call samples policies."""
    if not self._pools:
      self._pools |= {
          'base': self._makers.base_samples(), 'taught': self._makers.taught(),
          'adversary': []
      }
    warm = step >= self._config.judge_training.warmup_steps
    draw = self._mixture.draw if warm else self._mixture.well_formed
    return [draw() for _ in range(self._config.data.batch)]

  def hints(self, judge: Judge, rows: Rows,
            batch: Sequence[Labeled]) -> np.ndarray:
    """Makes i32[B, W], the token that a column is to predict; -1: none."""
    hints = np.full(rows.tokens.shape, -1, np.int32)
    for i, item in enumerate(batch):
      scores = judge.template.score_ids
      self._lookups(rows, i, item, hints, (scores[0], scores[-1]))
      rose = np.diff(item.labels, prepend=0.0) > 0
      ends = rows.limit[i, rows.read[i, :len(rose)]] - 1
      hints[i, ends] = np.where(rose, scores[-1], scores[0])
    return hints

  def _lookups(self, rows: Rows, i: int, item: Labeled, hints: np.ndarray,
               wrong_right: tuple[int, int]) -> None:
    """Writes what the reference has, where a trace is about to say it, and
    behind a box's number whether it is right."""
    token = lambda word: self._tokenizer.encode(word)[0]
    delimiter, equals, box = map(token, ('###', '=', '\\boxed{'))
    solution = item.problem.solution
    values = {token(m): token(v) for m, v in world.reference_steps(solution)}
    values[box] = token(world.answer_of(solution))
    value, before = -1, -1
    for column in range(rows.starts[i], (rows.node[i] == rows_lib.TRACE).sum()):
      read = int(rows.tokens[i, column])
      value = -1 if read == delimiter else values.get(read, value)
      hints[i, column] = value
      if before == box:
        hints[i, column] = wrong_right[read == values[box]]
      value = -1 if read in (equals, box) else value
      before = read

  def after_round(self, judge: Judge, number: int) -> dict[str, float]:
    """Trains an adversary against the judge; its traces join the data."""
    new, shown = self._makers.adversary(judge, number)
    self._pools['adversary'] += new
    return shown


def grown(model: ModelConfig, params: Params, key: jax.Array) -> Params:
  """`params` with as many layers as `model`: new ones add nothing at first."""
  new_layers = transformer.init(model, key, std=0.02)['layers']
  have = len(params['layers']['q'])

  def append(path: tuple, old: jax.Array, new: jax.Array) -> jax.Array:
    silent = path[-1].key in ('o', 'down')
    return jnp.concatenate([old, new[have:] * (0.0 if silent else 1.0)])

  layers = jax.tree_util.tree_map_with_path(append, params['layers'],
                                            new_layers)
  # A copy: updates donate it, and the policy that it starts from lives on.
  return jax.tree.map(jnp.copy, params) | {'layers': layers}
