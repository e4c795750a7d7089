"""run='train_judge': supervised training of a judge on labeled traces.

The judge is asked about every step of a trace as it is asked in a run
(judge/rows.py), and learns the label of the trace up to there: cross-entropy of
the five scores, a label between two of them split in two. Traces come from
judge_training.traces (evals/labeled_traces.py), or from the tiny world
(tiny/judge_recipe.py). docs/judge.md has the recipe.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, Protocol

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax import report
from exprl_jax.config import Config, Optim
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.evals import judge_calibration, judge_traces, labeled_traces
from exprl_jax.judge import calibration_report, factory
from exprl_jax.judge import rows as rows_lib
from exprl_jax.judge.rows import Rows
from exprl_jax.judge.tree import Judge
from exprl_jax.models import config as model_config
from exprl_jax.models import head, hf, references
from exprl_jax.models.config import ModelConfig
from exprl_jax.rl import optimizer
from exprl_jax.runs import budgets
from exprl_jax.runtime import checkpoints as checkpoints_lib
from exprl_jax.runtime import files, metrics, stopping
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import workdir as workdir_lib
from exprl_jax.tiny import judge_recipe
from exprl_jax.types import LINES, Labeled, Params, TrainState, printable


class Source(Protocol):
  """Where labeled traces come from."""

  resumable: bool  # whether a batch depends on nothing but its step

  def start(self, model: ModelConfig) -> Params:
    """The parameters to start from, which updates donate."""

  def draw(self, step: int) -> list[Labeled]:
    """The batch of a step."""

  def hints(self, judge: Judge, rows: Rows,
            batch: Sequence[Labeled]) -> np.ndarray | None:
    """i32[B, W]: tokens that columns are to predict, -1 for none; or None."""

  def after_round(self, judge: Judge, number: int) -> dict[str, float]:
    """Sees the judge after judge_training.round_steps steps; metrics."""


class File:
  """The traces of judge_training.traces, every epoch in another order."""

  resumable = True

  def __init__(self, config: Config, mesh: jax.sharding.Mesh):
    """Reads the traces; errors as `check`."""
    self._config, self._mesh = config, mesh
    self._folder = references.folder_of(config.judge.init)
    self.draw = labeled_traces.batches(check(config), config)

  def start(self, model: ModelConfig) -> Params:
    """Loads the judge."""
    del model
    return hf.load(self._folder, self._mesh, self._config.judge.dtype)[1]

  def hints(self, judge: Judge, rows: Rows, batch: Sequence[Labeled]) -> None:
    """There are none."""

  def after_round(self, judge: Judge, number: int) -> dict[str, float]:
    """Nothing is added."""
    del judge, number
    return {}


def check(config: Config) -> list[Labeled]:
  """Reads judge_training.traces, and checks that their references fit.

  Raises:
    InputError: no such file, a bad line, or a reference that is too long.
  """
  traces = labeled_traces.read(config, factory.tokenizer_of(config))
  budgets.check_judge_prompts(config, [t.problem for t in traces])
  return traces


def train_judge(config: Config, workdir: epath.Path) -> list[metrics.Row]:
  """Trains the judge; writes workdir/judges/STEP after every round,
  workdir/model, and with judge_training.held_out its report card.

  Returns:
    The rows of metrics.jsonl.
  """
  # 1. All that can fail on input, and the judge.
  mesh = mesh_lib.make_mesh(config.mesh)
  cfg, folder = config.judge_training, references.folder_of(config.judge.init)
  card = _card_config(config)
  held_out = judge_traces.read_traces(card, Tokenizer(folder)) if card else []
  source: Source = (File if cfg.traces else judge_recipe.TinyWorld)(config,
                                                                    mesh)
  judge = _judge(config, source, mesh)
  state = optimizer.init_state(judge.params, config.optim, config.steps)
  workdir_lib.claim(workdir, config)
  # 2. What a resumed run restores.
  checkpoints = checkpoints_lib.Checkpoints(workdir, config.checkpoint)
  start = 0
  if source.resumable:
    start, state = checkpoints.restore(state)
  log = metrics.Log(workdir, config.steps, start, jax.process_index() == 0)

  # 3. Steps; the source sees the judge after every round of them.
  with (checkpoints.rescue() as
        rescue, stopping.training(config.checkpoint.grace_s) as steps):
    for step in range(start, config.steps):
      steps.begin()
      stopping.poll('step')
      state, values = _step(config, judge, state, source, source.draw(step),
                            mesh)
      done, last = step + 1, step + 1 == config.steps
      log.advance()
      if done % 10 == 0 or last:
        log.write(done, values, _line(done, values) if done % 100 == 0 else '')
      if done >= cfg.warmup_steps and done % cfg.round_steps == 0:
        judge.params = state.params
        hf.save(workdir / f'judges/{done:08d}', judge.model, state.params,
                folder)
        if not last and cfg.adversary_steps:
          _log_round(log, done,
                     source.after_round(judge, done // cfg.round_steps))
      log.flush()
      if source.resumable:
        rescue.take(done, state)
        checkpoints.save(done, state, last=last)
      if not last:
        steps.end()

  # 4. The trained judge.
  checkpoints.close()
  log.close()
  with report.unfinished('model', workdir):
    hf.save(workdir / 'model', judge.model, state.params, folder)
  if card:
    judge.params = state.params
    _write_card(card, judge, held_out, workdir)
  return metrics.read(workdir / 'metrics.jsonl')


def _judge(config: Config, source: Source, mesh: jax.sharding.Mesh) -> Judge:
  """The judge at its start, of parameters that the first update donates."""
  folder = references.folder_of(config.judge.init)
  model = dataclasses.replace(model_config.read_config(folder),
                              dtype=config.judge.dtype,
                              remat=config.policy.remat)
  longest = config.judge.max_trace_tokens or config.rollout.max_new_tokens
  return Judge(config.judge, model, source.start(model), Tokenizer(folder),
               mesh, 'process', longest)


def _step(config: Config, judge: Judge, state: TrainState, source: Source,
          batch: Sequence[Labeled],
          mesh: jax.sharding.Mesh) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update on a batch, its gradient summed over micro-batches."""
  # 1. Rows; scores and hints count as parts of those of the whole batch.
  rows, labels = labeled_rows(judge, batch, config.judge.max_steps)
  hints = source.hints(judge, rows, batch)
  known = int((~np.isnan(labels)).sum())
  total = max(known, 1), 1 if hints is None else max(int((hints >= 0).sum()), 1)
  # 2. The gradient.
  size = min(len(batch), config.optim.micro_rows * mesh.devices.size)
  summed: Any = None
  with jax.set_mesh(mesh):
    for at in range(0, len(batch), size):
      part = jax.tree.map(functools.partial(_rows_of, at, at + size),
                          (rows, labels, hints))
      new = gradient_of(judge.model, state.params,
                        mesh_lib.shard_rows(part, mesh), total,
                        judge.template.score_ids,
                        config.judge_training.hint_weight)
      summed = new if summed is None else _sum(summed, new)
    gradient, values = summed
    # 3. The update.
    state, more = update(state, gradient, config.optim, config.steps)
  return state, values | more


def _rows_of(start: int, end: int, x: np.ndarray) -> np.ndarray:
  return x[start:end]


@functools.partial(jax.jit, donate_argnums=0)
def _sum(a: Any, b: Any) -> Any:
  return jax.tree.map(jnp.add, a, b)


def labeled_rows(judge: Judge, batch: Sequence[Labeled],
                 max_steps: int) -> tuple[Rows, np.ndarray]:
  """Lays out B traces and their labels f32[B, S], nan where there is none."""
  rows = rows_lib.build_rows(judge.template,
                             [(b.problem, b.steps) for b in batch], max_steps)
  labels = np.full(rows.exists.shape, np.nan, np.float32)
  for i, item in enumerate(batch):
    labels[i, :len(item.labels)] = item.labels
  return rows, labels


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def gradient_of(model: ModelConfig, params: Params,
                arrays: tuple[Rows, jax.Array, jax.Array | None],
                total: tuple[int, int], score_ids: tuple[int, ...],
                hint_weight: float) -> tuple[Params, dict[str, jax.Array]]:
  """Differentiates the cross-entropy of the scores plus that of the hints.

  A label between two Likert levels is split between them (two-hot).

  Args:
    model: the judge.
    params: its parameters.
    arrays: rows, labels f32[B, S] and hints i32[B, W] or None, of a
      micro-batch.
    total: labels and hints of the whole batch, which the losses are divided by.
    score_ids: tokens of the scores 1 to 5.
    hint_weight: of the loss on hints.

  Returns:
    The gradient, and the losses and the mean error of the score: parts of the
    whole batch's, which is their sum.
  """
  rows, labels, hints = arrays
  known = ~jnp.isnan(labels)
  truth = jnp.where(known, labels, 0.0)
  target = jax.nn.relu(1.0 - jnp.abs(truth[..., None] * 4.0 -
                                     jnp.arange(5.0)[None, None]))

  def loss_of(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
    hidden = rows_lib.hidden_states(model, params, rows)
    logits = rows_lib.score_logits(model, params, hidden,
                                   jnp.asarray(rows.read))
    scores = jax.nn.log_softmax(logits)[..., jnp.array(score_ids)]
    loss = -jnp.sum((target * scores).sum(-1), where=known) / total[0]
    mean = jax.nn.softmax(scores, axis=-1) @ jnp.arange(5.0) / 4.0
    values = {
        'judge/score_loss': loss,
        'judge/abs_error': jnp.sum(jnp.abs(mean - truth), where=known) /
        total[0]
    }
    if hints is None:
      return loss, values
    logp = jax.nn.log_softmax(head.project(model, params, hidden))
    picked = jnp.take_along_axis(logp, jnp.maximum(hints, 0)[..., None], -1)
    hint_loss = -jnp.sum(picked[..., 0], where=hints >= 0) / total[1]
    return loss + hint_weight * hint_loss, values | {
        'judge/hint_loss': hint_loss
    }

  return jax.grad(loss_of, has_aux=True)(params)


@functools.partial(jax.jit, static_argnums=(2, 3), donate_argnums=0)
def update(state: TrainState, gradient: Params, cfg: Optim,
           total_steps: int) -> tuple[TrainState, dict[str, jax.Array]]:
  """One optimizer step."""
  return optimizer.apply_gradient(state, gradient, cfg, total_steps)


def _line(step: int, values: Mapping[str, Any]) -> str:
  """The terminal's line about a step."""
  hints = (f'  hints {values["judge/hint_loss"]:.3f}'
           if 'judge/hint_loss' in values else '')
  return (f'step {step:5d}  score loss {values["judge/score_loss"]:.3f}  '
          f'error {values["judge/abs_error"]:.3f}{hints}')


def _log_round(log: metrics.Log, step: int, shown: dict[str, float]) -> None:
  if shown:
    log.write(
        step, shown, f'step {step:5d}  adversary: judge '
        f'{shown["adversary/judge"]:.3f}  truth {shown["adversary/truth"]:.3f}')


def _card_config(config: Config) -> Config | None:
  """The config under which the trained judge is examined; None: it is not."""
  held_out = config.judge_training.held_out
  if not held_out:
    return None
  return dataclasses.replace(
      config, reward='process',
      judge=dataclasses.replace(config.judge, traces=held_out))


def _write_card(config: Config, judge: Judge,
                traces: Sequence[judge_traces.Trace],
                workdir: epath.Path) -> None:
  """Judges the held-out traces, and writes and prints the report card."""
  judgments = judge_traces.score(judge, traces)
  card = judge_calibration.calibrate(config, judge, traces, judgments, None)
  if jax.process_index():
    return
  files.write_json(workdir / 'calibration.json', card, indent=1)
  print(printable(calibration_report.table(card), keep=LINES))
  print(f'judge {card["fit"]["why"]}')
