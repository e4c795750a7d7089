"""run='train_judge': how the tiny judge is made.

The judge learns to predict labels that a program gives (world.progress), on
traces from four sources:

  synthetic   right, slightly wrong, degenerate and hostile traces (traces.py)
  base        samples of the base policy at several temperatures
  taught      samples of a policy trained on the labels themselves, so that
              mostly right traces occur
  adversary   samples of policies trained against the judge as it is: after
              every round of its training a policy is trained to please it,
              and what that policy wrote is labelled and joins the data

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

import dataclasses
import functools
import pathlib
import random

import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax.config import Config, Credit, Optim, resolve
from exprl_jax.data import problems as data
from exprl_jax.data.steps import Segmenter
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.grading import grader as grading
from exprl_jax.judge.tree import Judge
from exprl_jax.models import config as model_config
from exprl_jax.models import hf, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.rewards import base as rewards
from exprl_jax.rl import learner
from exprl_jax.rollout import sampler as sampler_lib
from exprl_jax.runs import train
from exprl_jax.runtime import checkpoints as checkpoint
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import metrics
from exprl_jax.tiny import rows as rows_lib
from exprl_jax.tiny import traces, world
from exprl_jax.tiny.rows import Rows
from exprl_jax.types import TrainState

_MIX = {'synthetic': 0.40, 'base': 0.15, 'taught': 0.20, 'adversary': 0.25}
_WRONG_REFERENCE = 1 / 12


def train_judge(config: Config, workdir: pathlib.Path) -> list[metrics.Row]:
  """Trains the judge; writes workdir/model after every round."""
  mesh = mesh_lib.make_mesh(config.mesh)
  cfg = config.judge_training
  folder = resolve(config.judge.init)
  tokenizer = Tokenizer(folder)
  makers = Makers(config, mesh)
  checkpoint.claim(workdir, config)
  model = model_config.read_config(folder)
  start = makers.base
  if cfg.start:
    _, start = hf.load(resolve(cfg.start), mesh)
  params = grown(model, start, jax.random.key(config.seed))
  judge = Judge(config.judge, model, params, tokenizer, mesh, 'process',
                config.rollout.max_new_tokens)
  state = learner.init_state(params, config.optim, config.steps)
  log = metrics.Log(workdir, config.steps)
  rng = random.Random(f'train_judge-{config.seed}')
  pools = {
      'base': makers.base_samples(), 'taught': makers.taught(), 'adversary': []
  }
  source = Source(pools, makers, rng)

  for step in range(config.steps):
    draw = source.well_formed if step < cfg.warmup_steps else source.draw
    batch = [draw() for _ in range(config.data.batch)]
    arrays = mesh_lib.shard_rows(
        labelled_rows(judge, batch, config.judge.max_steps), mesh)
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
        new, told = makers.adversary(judge, done // cfg.round_steps)
        pools['adversary'] += new
        log.write(
            done, told, f'step {done:5d}  adversary: judge '
            f'{told["adversary/judge"]:.3f}  truth '
            f'{told["adversary/truth"]:.3f}')
  hf.save(workdir / 'model', model, state.params, folder)
  log.close()
  return metrics.read(workdir / 'metrics.jsonl')


def grown(model: ModelConfig, params, key: jax.Array):
  """`params` with as many layers as `model`: new ones add nothing at first."""
  fresh = transformer.init(model, key, std=0.02)['layers']
  have = len(params['layers']['q'])

  def append(path, old, new):
    silent = path[-1].key in ('o', 'down')
    return jnp.concatenate([old, new[have:] * (0.0 if silent else 1.0)])

  layers = jax.tree_util.tree_map_with_path(append, params['layers'], fresh)
  return params | {'layers': layers}


class Source:
  """Draws labelled traces from the mix."""

  def __init__(self, pools: dict[str, list[traces.Labeled]], makers: 'Makers',
               rng: random.Random):
    self._pools, self._makers, self._rng = pools, makers, rng

  def well_formed(self) -> traces.Labeled:
    """Right and wrong statements and a box: what the judge learns first."""
    story = self._makers.fresh_story(self._rng)
    text = traces.mixed(self._rng, story)
    return traces.label(story.problem(''), self._makers.cut(text))

  def draw(self) -> traces.Labeled:
    """A trace of any source, now and then with a wrong reference."""
    rng = self._rng
    name = rng.choices(tuple(_MIX), weights=_MIX.values())[0]
    if name == 'synthetic' or not self._pools[name]:
      story = self._makers.fresh_story(rng)
      steps = self._makers.cut(traces.synthetic(rng, story))
      item = traces.label(story.problem(''), steps)
    else:
      pool = self._pools[name]
      # What fools the judge now matters most; what did before must not again.
      recent = name == 'adversary' and rng.random() < 0.5
      item = rng.choice(pool[-3000:] if recent else pool)
    if rng.random() < _WRONG_REFERENCE:
      other = self._makers.fresh_story(rng).reference()
      item = traces.label(dataclasses.replace(item.problem, solution=other),
                          item.steps)
    # An empty trace is scored 0 without asking the judge (rewards.dense).
    return item if item.steps else self.draw()


class Makers:
  """Makes traces: samples of the base policy, and of policies in training."""

  def __init__(self, config: Config, mesh: jax.sharding.Mesh):
    self._config, self._mesh = config, mesh
    folder = resolve(config.policy.init)
    self._tokenizer = Tokenizer(folder)
    self._model, self.base = hf.load(folder, mesh)
    self._segment = Segmenter(self._tokenizer, config.judge.delimiter,
                              config.judge.max_steps)
    self._problems = world.problems('judge_train')
    self._forbidden = {
        p.question for split in world.SPLITS for p in world.problems(split)
    }
    self._policy = self.base  # where the next adversary starts

  def fresh_story(self, rng: random.Random) -> world.Story:
    """Six steps mostly; never a problem of a shipped or accepting set."""
    while True:
      steps = 6 if rng.random() < 0.85 else rng.randint(2, 5)
      story = world.story(rng, steps, rng.choice((0.5, 0.85, 1.0)))
      if story.question() not in self._forbidden:
        return story

  def cut(self, text: str) -> list[str]:
    """A trace as the texts of its steps, as rewards.cut makes them."""
    room = self._config.rollout.max_new_tokens - 1
    return self._segment.texts(self._tokenizer.encode(text)[:room])

  def base_samples(self) -> list[traces.Labeled]:
    """What the base policy writes at several temperatures."""
    return sum((self._sample(self.base, temperature, number)
                for number, temperature in enumerate((0.7, 0.8, 1.0, 1.2))), [])

  def taught(self) -> list[traces.Labeled]:
    """What a policy writes that is trained on the truth (which is not ExpRL,
    but makes good traces), while it learns and after."""
    while_learning, self._taught, _ = self._learn(
        self.base, truth, 'process', 100,
        self._config.judge_training.policy_steps)
    return while_learning + self._sample(self._taught, 1.0, 101)

  def adversary(self, judge: Judge, number: int):
    """A policy trained to please the judge, with process or outcome rewards,
    from the base, from the last adversary or from the taught policy.

    Returns:
      Its traces, labelled, and the judge's and the true mean in the end.
    """
    kind = ('process', 'outcome')[number % 2]
    config = dataclasses.replace(self._config, reward=kind)
    out, self._policy, told = self._learn(
        (self.base, self._policy, self.base, self._taught)[number // 2 % 4],
        lambda traces_: rewards.dense(traces_, judge, config), kind,
        200 + number, self._config.judge_training.adversary_steps)
    return out, told

  def _sample(self, params, temperature: float,
              number: int) -> list[traces.Labeled]:
    """One sample of every problem."""
    config = dataclasses.replace(
        self._config, rollout=dataclasses.replace(self._config.rollout,
                                                  temperature=temperature))
    sampler = sampler_lib.Sampler(config, self._model, self._tokenizer,
                                  self._mesh)
    prompts = data.policy_prompts(self._tokenizer, self._problems, config)
    rollout = sampler.arrays(
        prompts, sampler.generate(params, prompts, 1, self._key(number)))
    return self._label(
        rewards.cut(self._problems, rollout, self._tokenizer,
                    Segmenter(self._tokenizer, '', 1)))

  def _label(self, items: list[rewards.Trace]) -> list[traces.Labeled]:
    out = [traces.label(t.problem, self.cut(t.text)) for t in items]
    return [item for item in out if item.steps]

  def _key(self, number: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(self._config.seed), number)

  def _learn(self, params, scorer: rewards.Scorer, kind: str, number: int,
             steps: int):
    """RL from `params` on a scorer, as the main job does it.

    Returns:
      All traces, labelled; the policy in the end; the mean score and the mean
      truth of the last step.
    """
    config = dataclasses.replace(
        self._config, run='train', reward=kind, steps=steps,
        credit=Credit('delta', first='zero') if kind == 'process' else Credit(),
        optim=Optim(lr=1e-3, updates=2, micro_rows=4))
    step = train.Step(
        config, self._model, self.base, self._tokenizer,
        rewards.from_scorer(config, self._tokenizer, scorer,
                            grading.Grader(config.grading)), self._mesh,
        self._mesh)
    params = jax.tree.map(jnp.copy, params)  # the updates donate them
    state = learner.init_state(params, config.optim,
                               steps * config.optim.updates)
    rng = random.Random(f'{self._config.seed}-{number}')
    out, told = [], {}
    for i in range(steps):
      problems = rng.sample(self._problems, config.judge_training.problems)
      state, taken = step(state, lambda _, p=problems: p,
                          jax.random.fold_in(self._key(number), i))
      new = self._label(taken.rewarded.traces)
      out += new
      told = {
          'adversary/judge': taken.metrics['reward/mean'],
          'adversary/truth': sum(item.labels[-1] for item in new) /
          len(taken.rewarded.traces)
      }
    return out, state.params, told


def truth(items: list[rewards.Trace]):
  """Scores traces by program: teaches policies that make training data."""
  width = max(len(t.steps) for t in items)
  value = np.zeros((len(items), width), np.float32)
  valid = np.zeros(value.shape, bool)
  for i, trace in enumerate(items):
    labels = traces.label(trace.problem, trace.steps).labels
    value[i, :len(labels)], valid[i, :len(labels)] = labels, True
  return value, valid, {}


def labelled_rows(judge: Judge, batch: list[traces.Labeled],
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
    wanted = {
        tokenizer.encode(month)[0]: tokenizer.encode(value)[0]
        for month, value in world.reference_steps(item.problem.solution)
    }
    trunk = int((rows.node[i] == rows_lib.TRACE).sum())
    value = -1
    for column in range(rows.starts[i], trunk):
      token = int(rows.tokens[i, column])
      value = -1 if token == delimiter else wanted.get(token, value)
      hints[i, column] = value
      value = -1 if token == equals else value
    rose = np.diff(item.labels, prepend=0.0) > 0
    ends = rows.limit[i, rows.read[i, :len(rose)]] - 1
    hints[i, ends] = np.where(rose, score_ids[-1], score_ids[0])
  return rows, labels, hints


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6), donate_argnums=1)
def update(model: ModelConfig, state: TrainState, arrays, cfg: Optim,
           total_steps: int, score_ids: tuple[int, ...], hint_weight: float):
  """One step on the cross-entropy of the scores plus that of the hints.

  A label between two Likert levels is split between them (two-hot).
  """
  rows, labels, hints = arrays
  exists = rows.exists
  level = labels * 4.0
  target = jax.nn.relu(1.0 -
                       jnp.abs(level[..., None] - jnp.arange(5.0)[None, None]))

  def loss_of(params):
    hidden = rows_lib.hidden_states(model, params, rows)
    scores = jax.nn.log_softmax(
        rows_lib.score_logits(model, params, hidden,
                              rows.read))[..., jnp.array(score_ids)]
    score_loss = -jnp.sum((target * scores).sum(-1), where=exists)
    score_loss /= exists.sum()
    p = jax.nn.softmax(scores, axis=-1)
    error = jnp.abs(p @ jnp.arange(5.0) / 4.0 - labels)
    logp = jax.nn.log_softmax(transformer.project(model, params, hidden))
    picked = jnp.take_along_axis(logp,
                                 jnp.maximum(hints, 0)[..., None], axis=-1)[...,
                                                                            0]
    mask = hints >= 0
    hint_loss = -jnp.sum(picked, where=mask) / jnp.maximum(mask.sum(), 1)
    return score_loss + hint_weight * hint_loss, {
        'judge/score_loss': score_loss, 'judge/hint_loss': hint_loss,
        'judge/abs_error': jnp.sum(error, where=exists) / exists.sum()
    }

  gradient, values = jax.grad(loss_of, has_aux=True)(state.params)
  state, more = learner.apply_gradient(state, gradient, cfg, total_steps)
  return state, values | more


def line(step: int, values) -> str:
  """What a person reads of a step."""
  return (f'step {step:5d}  score loss {values["judge/score_loss"]:.3f}  '
          f'error {values["judge/abs_error"]:.3f}  hints '
          f'{values["judge/hint_loss"]:.3f}')
