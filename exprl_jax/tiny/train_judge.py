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
reaches of that. Besides the scores there is an auxiliary look-up loss: at the
'=' of a step the judge predicts the reference's value for that step, which
teaches it to compare. Training problems are drawn at random and never are
those of the shipped sets or of the set that accepts the judge.

The run is not resumable; it takes about a quarter of an hour.
"""

import dataclasses
import functools
import pathlib
import random

import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax import checkpoint
from exprl_jax import learner
from exprl_jax import mesh as mesh_lib
from exprl_jax import metrics
from exprl_jax import rewards
from exprl_jax import train
from exprl_jax.config import Config, Credit, Optim, resolve
from exprl_jax.judge import judge as judge_lib
from exprl_jax.judge import steps as steps_lib
from exprl_jax.judge.judge import Judge, Rows
from exprl_jax.models import hf
from exprl_jax.models import transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.tiny import traces
from exprl_jax.tiny import world
from exprl_jax.tokenizer import Tokenizer
from exprl_jax.types import Problem, TrainState

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
  model, params = hf.load(folder, mesh, random_key=jax.random.key(config.seed))
  judge = Judge(model, params, tokenizer, config.judge.template,
                config.judge.rows, mesh)
  state = learner.init_state(params, config.optim, config.steps)
  log = metrics.Log(workdir, config.steps)
  rng = random.Random(f'train_judge-{config.seed}')
  pools = {'base': makers.base_samples(), 'taught': makers.taught(),
           'adversary': []}
  source = Source(pools, makers, rng)
  per_round = config.steps // cfg.rounds

  for step in range(config.steps):
    batch = [source.draw() for _ in range(config.data.batch)]
    rows, targets, lookup = labelled_rows(judge, batch, config.judge.max_steps)
    arrays = mesh_lib.shard_rows((rows, targets, lookup), mesh)
    with jax.set_mesh(mesh):
      state, values = update(model, state, arrays, config.optim, config.steps,
                             judge.template.score_ids, cfg.lookup_weight)
    done = step + 1
    log.advance()
    if done % 10 == 0:
      log.write(done, values, line(done, values) if done % 100 == 0 else '')
    if done % per_round == 0:
      judge.params = state.params
      hf.save(workdir / 'model', model, state.params, folder)
      if done < config.steps:
        new, told = makers.adversary(judge, done // per_round)
        pools['adversary'] += new
        log.write(done, told, f'step {done:5d}  adversary: judge '
                  f'{told["adversary/judge"]:.3f}  truth '
                  f'{told["adversary/truth"]:.3f}')
  log.close()
  return metrics.read(workdir / 'metrics.jsonl')


class Source:
  """Draws labelled traces from the mix."""

  def __init__(self, pools: dict[str, list[traces.Labelled]],
               makers: 'Makers', rng: random.Random):
    self._pools, self._makers, self._rng = pools, makers, rng

  def draw(self) -> traces.Labelled:
    rng = self._rng
    name = rng.choices(tuple(_MIX), weights=_MIX.values())[0]
    if name == 'synthetic' or not self._pools[name]:
      story = self._makers.fresh_story(rng)
      steps = self._makers.cut(traces.synthetic(rng, story))
      item = traces.label(story.problem(''), steps)
    else:
      item = rng.choice(self._pools[name])
    if rng.random() < _WRONG_REFERENCE:
      other = self._makers.fresh_story(rng).reference()
      item = traces.label(
          dataclasses.replace(item.problem, solution=other), item.steps)
    # An empty trace is scored 0 without asking the judge (rewards.dense).
    return item if item.steps else self.draw()


class Makers:
  """Makes traces: samples of the base policy, and of policies in training."""

  def __init__(self, config: Config, mesh: jax.sharding.Mesh):
    self._config, self._mesh = config, mesh
    folder = resolve(config.policy.init)
    self._tokenizer = Tokenizer(folder)
    self._model, self._base = hf.load(folder, mesh)
    self._delimiters = steps_lib.delimiter_ids(self._tokenizer,
                                               config.judge.delimiter)
    self._problems = world.problems('judge_train')
    self._forbidden = {p.question for split in world.SPLITS
                       for p in world.problems(split)}
    self._policy = self._base  # where the next adversary starts

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
    ids = self._tokenizer.encode(text)[:room]
    ends = steps_lib.step_ends(ids, self._delimiters,
                               self._config.judge.max_steps)
    return [self._tokenizer.decode(ids[a:b]) for a, b in zip([0, *ends], ends)]

  def base_samples(self) -> list[traces.Labelled]:
    """What the base policy writes at several temperatures."""
    return sum((self._run(self._base, truth, 'process', steps=10, learn=False,
                          number=i, temperature=t)[0]
                for i, t in enumerate((0.7, 0.8, 1.0, 1.2))), [])

  def taught(self) -> list[traces.Labelled]:
    """What a policy writes that is trained on the truth (which is not ExpRL,
    but makes good traces), while it learns and after."""
    steps = self._config.judge_training.policy_steps
    while_learning, self._taught, _ = self._run(
        self._base, truth, 'process', steps=steps, number=100)
    after, _, _ = self._run(self._taught, truth, 'process', steps=steps // 2,
                            number=101, learn=False, temperature=1.0)
    return while_learning + after

  def adversary(self, judge: Judge, number: int):
    """A policy trained to please the judge, with process or outcome rewards,
    from the base, from the last adversary or from the taught policy.

    Returns:
      Its traces, labelled, and the judge's and the true mean in the end.
    """
    kind = 'process' if number % 3 else 'outcome'
    config = dataclasses.replace(self._config, reward=kind)
    out, self._policy, told = self._run(
        (self._base, self._policy, self._policy, self._taught)[number % 4],
        lambda traces_: rewards.dense(traces_, judge, config), kind,
        steps=self._config.judge_training.adversary_steps, number=200 + number)
    return out, told

  def _run(self, params, scorer: rewards.Scorer, kind: str, steps: int,
           number: int, learn: bool = True, temperature: float = 0.8):
    """Samples for `steps` batches, learning from `params` on or not.

    Returns:
      All traces, labelled; the policy in the end; the last step's judge score
      and truth.
    """
    config = dataclasses.replace(
        self._config, run='train', reward=kind, steps=steps,
        rollout=dataclasses.replace(
            self._config.rollout, temperature=temperature),
        credit=Credit('delta', first='zero') if kind == 'process' else Credit(),
        optim=Optim(lr=1e-3 if learn else 0.0, updates=2))
    reward = rewards.from_scorer(config, self._tokenizer, scorer)
    step = train.Step(config, self._model, self._base, self._tokenizer, reward,
                      self._mesh)
    state = learner.init_state(params, config.optim, step.total_updates)
    rng = random.Random(f'{self._config.seed}-{number}')
    root = jax.random.fold_in(jax.random.key(self._config.seed), number)
    out, told = [], {}
    for i in range(steps):
      state, taken = step(state, rng.sample(self._problems, config.data.batch),
                          jax.random.fold_in(root, i))
      new = [traces.label(t.problem, self.cut(''.join(t.steps)))
             for t in taken.rewarded.traces]
      out += [item for item in new if item.steps]
      told = {'adversary/judge': taken.metrics['reward/mean'],
              'adversary/truth': metrics.mean(
                  item.labels[-1] if item.steps else 0.0 for item in new)}
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


def labelled_rows(judge: Judge, batch: list[traces.Labelled], max_steps: int
                  ) -> tuple[Rows, np.ndarray, np.ndarray]:
  """The judge's rows, labels f32[B, S] and look-up targets i32[B, W].

  The look-up target stands at the '=' of each step: the token of the value
  that the reference gives for the step's month; -1 elsewhere.
  """
  tokenizer = judge.tokenizer
  rows = judge_lib.build_rows(
      judge.template, tokenizer, [(b.problem, b.steps) for b in batch],
      max_steps)
  labels = np.zeros(rows.exists.shape, np.float32)
  lookup = np.full(rows.tokens.shape, -1, np.int32)
  (equals,) = tokenizer.encode('=')
  for i, item in enumerate(batch):
    labels[i, :len(item.labels)] = item.labels
    wanted = {tokenizer.encode(month)[0]: tokenizer.encode(value)[0]
              for month, value in world.reference_steps(item.problem.solution)}
    column, month = len(judge.template.head(tokenizer, item.problem)), None
    while rows.node[i, column] == judge_lib.TRUNK:
      token = int(rows.tokens[i, column])
      month = token if token in wanted else month
      if token == equals and month is not None:
        lookup[i, column] = wanted[month]
      column += 1
  return rows, labels, lookup


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6), donate_argnums=1)
def update(model: ModelConfig, state: TrainState, arrays, cfg: Optim,
           total_steps: int, score_ids: tuple[int, ...], lookup_weight: float):
  """One step on the cross-entropy of the scores plus the look-up loss.

  A label between two Likert levels is split between them (two-hot).
  """
  rows, labels, lookup = arrays
  exists = rows.exists
  level = labels * 4.0
  target = jax.nn.relu(1.0 - jnp.abs(level[..., None] - jnp.arange(5.0)))

  def loss_of(params):
    hidden = judge_lib.hidden_states(model, params, rows)
    logp = jax.nn.log_softmax(
        judge_lib.score_logits(model, params, hidden, rows.read))
    scores = logp[..., jnp.array(score_ids)]
    score_loss = -jnp.sum((target * scores).sum(-1), where=exists)
    score_loss /= exists.sum()
    p = jax.nn.softmax(scores, axis=-1)
    error = jnp.abs((p * jnp.arange(5.0)).sum(-1) / 4.0 - labels)
    looked = jax.nn.log_softmax(transformer.project(model, params, hidden))
    picked = jnp.take_along_axis(
        looked, jnp.maximum(lookup, 0)[..., None], axis=-1)[..., 0]
    mask = lookup >= 0
    lookup_loss = -jnp.sum(picked, where=mask) / jnp.maximum(mask.sum(), 1)
    return score_loss + lookup_weight * lookup_loss, {
        'judge/score_loss': score_loss, 'judge/lookup_loss': lookup_loss,
        'judge/abs_error': jnp.sum(error, where=exists) / exists.sum()}

  gradient, values = jax.grad(loss_of, has_aux=True)(state.params)
  state, more = learner.apply_gradient(state, gradient, cfg, total_steps)
  return state, values | more


def line(step: int, values) -> str:
  return (f'step {step:5d}  score loss {values["judge/score_loss"]:.3f}  '
          f'error {values["judge/abs_error"]:.3f}  look-up '
          f'{values["judge/lookup_loss"]:.3f}')
