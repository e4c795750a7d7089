"""run='train_judge': how the tiny judge is made.

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
from the month of a step to its '=' the judge predicts the reference's value
for that month, which teaches it to look up; at the end of each step it says 5
if the step raised the label and 1 if not, which teaches it to compare. The
first steps see nothing but well-formed traces; without this warm-up and
without the hints it takes many times longer until the judge begins to count.

Like the paper's, the judge starts as a copy of the base policy, here with one
more layer that at first changes nothing (its output projections are 0); from
random weights it learned to look things up three times slower. Training
problems are drawn at random and never are those of the shipped sets or of the
set that accepts the judge.

The run is not resumable; it takes about a quarter of an hour.
"""

from collections.abc import Mapping
import functools
import random
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax.config import Config, Optim
from exprl_jax.data import tiny_world as world
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.judge.tree import Judge
from exprl_jax.models import config as model_config
from exprl_jax.models import head, hf, references, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.rl import optimizer
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import metrics
from exprl_jax.runtime import workdir as workdir_lib
from exprl_jax.tiny import judge_data, traces
from exprl_jax.tiny import rows as rows_lib
from exprl_jax.tiny.rows import Rows
from exprl_jax.types import Params, TrainState


def train_judge(config: Config, workdir: epath.Path) -> list[metrics.Row]:
  """Trains the judge; writes workdir/judges/STEP after every round, and
  workdir/model.

  Returns:
    The rows of metrics.jsonl.
  """
  # 1. The judge, grown from its start.
  mesh = mesh_lib.make_mesh(config.mesh)
  cfg = config.judge_training
  folder = references.folder_of(config.judge.init)
  tokenizer = Tokenizer(folder)
  makers = judge_data.Makers(config, mesh)
  workdir_lib.claim(workdir, config)
  model = model_config.read_config(folder)
  start = makers.base
  if cfg.start:
    _, start = hf.load(references.folder_of(cfg.start), mesh)
  params = grown(model, start, jax.random.key(config.seed))
  judge = Judge(config.judge, model, params, tokenizer, mesh, 'process',
                config.rollout.max_new_tokens)
  state = optimizer.init_state(params, config.optim, config.steps)
  # 2. The pools that traces are drawn from.
  log = metrics.Log(workdir, config.steps)
  rng = random.Random(f'train_judge-{config.seed}')
  pools = {
      'base': makers.base_samples(), 'taught': makers.taught(), 'adversary': []
  }
  mixture = judge_data.Mixture(pools, makers, rng)

  # 3. Rounds of training, each followed by an adversary.
  for step in range(config.steps):
    draw = mixture.well_formed if step < cfg.warmup_steps else mixture.draw
    batch = [draw() for _ in range(config.data.batch)]
    arrays = mesh_lib.shard_rows(
        labeled_rows(judge, batch, config.judge.max_steps), mesh)
    with jax.set_mesh(mesh):
      state, values = update(model, state, arrays, config.optim, config.steps,
                             judge.template.score_ids, cfg.hint_weight)
    done = step + 1
    log.advance()
    if done % 10 == 0:
      log.write(done, values, line(done, values) if done % 100 == 0 else '')
    if done >= cfg.warmup_steps and done % cfg.round_steps == 0:
      judge.params = state.params
      hf.save(workdir / f'judges/{done:08d}', model, state.params, folder)
      if done < config.steps and cfg.adversary_steps:
        new, shown = makers.adversary(judge, done // cfg.round_steps)
        pools['adversary'] += new
        log.write(
            done, shown, f'step {done:5d}  adversary: judge '
            f'{shown["adversary/judge"]:.3f}  truth '
            f'{shown["adversary/truth"]:.3f}')
  hf.save(workdir / 'model', model, state.params, folder)
  log.close()
  return metrics.read(workdir / 'metrics.jsonl')


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


def labeled_rows(judge: Judge, batch: list[traces.Labeled],
                 max_steps: int) -> tuple[Rows, np.ndarray, np.ndarray]:
  """The judge's rows, labels f32[B, S] and hints i32[B, W].

  A hint is the token that a column of the trace is to predict, -1 for none:
  from the month of a step to its '=' the reference's value for that month, at
  the end of a step the score 5 or 1: has it raised the label?
  """
  tokenizer = judge.tokenizer
  rows = rows_lib.build_rows(judge.template,
                             [(b.problem, b.steps) for b in batch], max_steps)
  labels = np.zeros(rows.exists.shape, np.float32)
  hints = np.full(rows.tokens.shape, -1, np.int32)
  delimiter, equals = (tokenizer.encode(word)[0] for word in ('###', '='))
  score_ids = judge.template.score_ids
  for i, item in enumerate(batch):
    labels[i, :len(item.labels)] = item.labels
    values = {
        tokenizer.encode(month)[0]: tokenizer.encode(value)[0]
        for month, value in world.reference_steps(item.problem.solution)
    }
    trunk = int((rows.node[i] == rows_lib.TRACE).sum())
    value = -1
    for column in range(rows.starts[i], trunk):
      token = int(rows.tokens[i, column])
      value = -1 if token == delimiter else values.get(token, value)
      hints[i, column] = value
      value = -1 if token == equals else value
    rose = np.diff(item.labels, prepend=0.0) > 0
    ends = rows.limit[i, rows.read[i, :len(rose)]] - 1
    hints[i, ends] = np.where(rose, score_ids[-1], score_ids[0])
  return rows, labels, hints


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6), donate_argnums=1)
def update(model: ModelConfig, state: TrainState, arrays: tuple[Rows, jax.Array,
                                                                jax.Array],
           cfg: Optim, total_steps: int, score_ids: tuple[int, ...],
           hint_weight: float) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step on the cross-entropy of the scores plus that of the hints.

  A label between two Likert levels is split between them (two-hot).
  """
  rows, labels, hints = arrays
  exists = rows.exists
  level = labels * 4.0
  target = jax.nn.relu(1.0 -
                       jnp.abs(level[..., None] - jnp.arange(5.0)[None, None]))

  def loss_of(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
    hidden = rows_lib.hidden_states(model, params, rows)
    scores = jax.nn.log_softmax(
        rows_lib.score_logits(model, params, hidden,
                              jnp.asarray(rows.read)))[...,
                                                       jnp.array(score_ids)]
    score_loss = -jnp.sum((target * scores).sum(-1), where=exists)
    score_loss /= exists.sum()
    p = jax.nn.softmax(scores, axis=-1)
    error = jnp.abs(p @ jnp.arange(5.0) / 4.0 - labels)
    logp = jax.nn.log_softmax(head.project(model, params, hidden))
    picked = jnp.take_along_axis(logp, jnp.maximum(hints, 0)[..., None], -1)
    mask = hints >= 0
    hint_loss = -jnp.sum(picked[..., 0], where=mask) / jnp.maximum(
        mask.sum(), 1)
    return score_loss + hint_weight * hint_loss, {
        'judge/score_loss': score_loss, 'judge/hint_loss': hint_loss,
        'judge/abs_error': jnp.sum(error, where=exists) / exists.sum()
    }

  gradient, values = jax.grad(loss_of, has_aux=True)(state.params)
  state, more = optimizer.apply_gradient(state, gradient, cfg, total_steps)
  return state, values | more


def line(step: int, values: Mapping[str, Any]) -> str:
  """The terminal's line about a step."""
  return (f'step {step:5d}  score loss {values["judge/score_loss"]:.3f}  '
          f'error {values["judge/abs_error"]:.3f}  hints '
          f'{values["judge/hint_loss"]:.3f}')
