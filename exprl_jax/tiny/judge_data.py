"""Labeled traces to train the tiny judge on: synthetic ones, and samples."""

from collections.abc import Sequence
import dataclasses
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax.config import Config, Credit, Optim
from exprl_jax.data import chat
from exprl_jax.data import tiny_world as world
from exprl_jax.data.steps import Segmenter
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.grading.grader import Grader
from exprl_jax.judge.tree import Judge
from exprl_jax.models import hf, references
from exprl_jax.rewards import base
from exprl_jax.rewards.judge import dense
from exprl_jax.rl import credit, experience, learner, optimizer
from exprl_jax.rl.policy import Policy
from exprl_jax.rl.scored import Trace
from exprl_jax.rollout.sampler import Sampler
from exprl_jax.rollout.sources import Synchronous
from exprl_jax.tiny import traces
from exprl_jax.types import Labeled, Params, Problem

_MIX = {'synthetic': 0.40, 'base': 0.15, 'taught': 0.20, 'adversary': 0.25}
_WRONG_REFERENCE = 1 / 12


class Mixture:
  """Draws labeled traces from the mix."""

  def __init__(self, pools: dict[str, list[Labeled]], makers: 'Makers',
               rng: random.Random):
    """Args: `pools` by the names of the mix; they may grow."""
    self._pools, self._makers, self._rng = pools, makers, rng

  def well_formed(self) -> Labeled:
    """Right and wrong statements and a box: what the judge learns first."""
    story = self._makers.new_story(self._rng)
    write = self._rng.choice((traces.mixed, traces.mixed, traces.wrong_box,
                              lambda rng, s: s.worked()))  # yapf: disable
    text = write(self._rng, story)
    return traces.label(story.problem(''), self._makers.cut(text))

  def draw(self) -> Labeled:
    """A trace of any source, now and then with a wrong reference."""
    rng = self._rng
    name = rng.choices(tuple(_MIX), weights=list(_MIX.values()))[0]
    if name == 'synthetic' or not self._pools[name]:
      story = self._makers.new_story(rng)
      steps = self._makers.cut(traces.synthetic(rng, story))
      item = traces.label(story.problem(''), steps)
    else:
      pool = self._pools[name]
      # What fools the judge now matters most; what did before must not again.
      recent = name == 'adversary' and rng.random() < 0.5
      item = rng.choice(pool[-3000:] if recent else pool)
    if rng.random() < _WRONG_REFERENCE:
      other = self._makers.new_story(rng).reference()
      item = traces.label(dataclasses.replace(item.problem, solution=other),
                          item.steps)
    # An empty trace is scored 0 without asking the judge (rewards/judge.py).
    return item if item.steps else self.draw()


class Makers:
  """Makes traces: samples of the base policy, and of policies in training."""

  def __init__(self, config: Config, mesh: jax.sharding.Mesh):
    """Loads the base policy."""
    self._config, self._mesh = config, mesh
    folder = references.folder_of(config.policy.init)
    self._tokenizer = Tokenizer(folder)
    self._model, self.base = hf.load(folder, mesh)
    self._segment = Segmenter(self._tokenizer, config.judge.delimiter,
                              config.judge.max_steps)
    self._problems = world.problems('judge_train')[:config.data.limit or None]
    self._forbidden = {
        p.question for split in world.SPLITS for p in world.problems(split)
    }
    self._policy = self.base  # where the next adversary starts
    self._taught = self.base

  def new_story(self, rng: random.Random) -> world.Story:
    """Six steps mostly; never a problem of a shipped or accepting set."""
    while True:
      steps = 6 if rng.random() < 0.85 else rng.randint(2, 5)
      story = world.story(rng, steps, rng.choice((0.5, 0.85, 1.0)))
      if story.question() not in self._forbidden:
        return story

  def cut(self, text: str) -> list[str]:
    """A trace as the texts of its steps, as a run cuts it."""
    budget = self._config.rollout.max_new_tokens - 1
    return self._segment.texts(self._tokenizer.encode(text)[:budget])

  def base_samples(self) -> list[Labeled]:
    """What the base policy writes at several temperatures."""
    return [
        item for number, temperature in enumerate((0.7, 0.8, 1.0, 1.2))
        for item in self._sample(self.base, temperature, number)
    ]

  def taught(self) -> list[Labeled]:
    """What a policy writes that is trained on the truth (which is not ExpRL,
    but makes good traces), while it learns and after."""
    while_learning, self._taught, _ = self._learn(
        self.base, truth, 'process', 100,
        self._config.judge_training.policy_steps)
    return while_learning + self._sample(self._taught, 1.0, 101)

  def adversary(self, judge: Judge,
                number: int) -> tuple[list[Labeled], dict[str, float]]:
    """A policy trained to please the judge, with process or outcome rewards,
    from the base, from the last adversary or from the taught policy.

    Returns:
      Its traces, labeled, and the judge's and the true mean in the end.
    """
    kind = ('process', 'outcome')[number % 2]
    scorer = functools.partial(
        dense, judge=judge, config=self._config,
        max_steps=self._config.judge.max_steps if kind == 'process' else 1)
    start = (self.base, self._policy, self.base, self._taught)[number // 2 % 4]
    out, self._policy, shown = self._learn(
        start, scorer, kind, 200 + number,
        self._config.judge_training.adversary_steps)
    return out, shown

  def _sample(self, params: Params, temperature: float,
              number: int) -> list[Labeled]:
    """One sample of every problem."""
    config = dataclasses.replace(
        self._config, rollout=dataclasses.replace(self._config.rollout,
                                                  temperature=temperature))
    sampler = Sampler(config, self._model, self._tokenizer, self._mesh)
    prompts = chat.policy_prompts(self._tokenizer, self._problems, config)
    groups = sampler.generate(params, prompts, 1, self._key(number))
    texts = []
    for (sample,) in groups:
      ids = sample.tokens.tolist()
      ended = ids[-1] in self._tokenizer.eos_ids
      texts.append(self._tokenizer.decode(ids[:-1] if ended else ids))
    return self._label(self._problems, texts)

  def _label(self, problems: Sequence[Problem],
             texts: Sequence[str]) -> list[Labeled]:
    out = [traces.label(p, self.cut(text)) for p, text in zip(problems, texts)]
    return [item for item in out if item.steps]

  def _key(self, number: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(self._config.seed), number)

  def _learn(self, params: Params, scorer: base.Scorer, kind: str, number: int,
             steps: int) -> tuple[list[Labeled], Params, dict[str, float]]:
    """RL from `params` on a scorer, as the main job does it.

    Returns:
      All traces, labeled; the policy in the end; the mean score and the mean
      truth of the last step.
    """
    process = kind == 'process'
    config = dataclasses.replace(
        self._config, run='train', reward=kind, steps=steps,
        credit=Credit('delta', first='zero') if process else Credit(),
        optim=Optim(lr=1e-3, updates=2, micro_rows=4))
    policy = Policy(config, self._model, self._mesh, self.base)
    reward = base.scoring(config, self._tokenizer, Grader(config.grading),
                          scorer, 'step' if process else 'row')
    rng = random.Random(f'{config.seed}-{number}')
    source = Synchronous(
        config, Sampler(config, self._model, self._tokenizer,
                        self._mesh), lambda step, attempt: rng.sample(
                            self._problems, config.judge_training.problems),
        lambda problems: chat.policy_prompts(self._tokenizer, problems, config))
    state = optimizer.init_state(  # the updates donate their parameters
        jax.tree.map(jnp.copy, params), config.optim,
        steps * config.optim.updates)
    out: list[Labeled] = []
    shown: dict[str, float] = {}
    for i in range(steps):
      scored = reward(
          source.next(i, 0, state.params,
                      jax.random.fold_in(self._key(number), i)))
      logprobs = experience.logprobs(policy, state.params, scored.trajectories)
      state, _ = learner.update(
          policy, state,
          experience.examples(scored.trajectories, logprobs,
                              credit.assign(config, scored, logprobs)),
          config.rollout.group_size)
      new = self._label([t.problem for t in scored.traces],
                        [t.text for t in scored.traces])
      out += new
      shown = {
          'adversary/judge': scored.metrics['reward/mean'],
          'adversary/truth': sum(item.labels[-1] for item in new) /
          len(scored.traces)
      }
    return out, state.params, shown


def truth(items: list[Trace]) -> base.Scored:
  """Scores traces by program: teaches policies that make training data."""
  width = max(len(t.steps) for t in items)
  value = np.zeros((len(items), width), np.float32)
  valid = np.zeros(value.shape, bool)
  for i, trace in enumerate(items):
    labels = traces.label(trace.problem, trace.steps).labels
    value[i, :len(labels)], valid[i, :len(labels)] = labels, True
  return value, valid, {}


truth.granularity = 'step'  # type: ignore[attr-defined]  # as a reward
