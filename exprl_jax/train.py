"""The on-policy loop: sample, judge, credit, update.

One step is a story of data, always forward:

  data -> prompts -> engine.sample -> reward (judge) -> credit -> log-probs
       -> learner.update -> metrics, checkpoint

The random key of step i is fold_in(root, i) and the batch of step i is a
function of i, so a resumed run repeats the same draws.
"""

import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax import (
  advantages,
  checkpoint,
  data,
  evaluate,
  learner,
  metrics,
  rewards,
)
from exprl_jax import mesh as mesh_lib
from exprl_jax.config import Config, Credit, resolve
from exprl_jax.judge import defence
from exprl_jax.judge import judge as judge_lib
from exprl_jax.models import hf, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.rollout import engine
from exprl_jax.tokenizer import Tokenizer
from exprl_jax.types import (
  Experience,
  InputError,
  Problem,
  Rollout,
  Scores,
  TrainState,
)


def train(config: Config, workdir: pathlib.Path) -> list[metrics.Row]:
  """Runs a config; returns the rows of metrics.jsonl.

  Writes config.json, metrics.jsonl, samples/*.jsonl, checkpoints/ and, at
  the end, model/ (a Hugging Face directory) into `workdir`.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  sampling = mesh_lib.rollout_mesh(mesh, config.mesh.rollout_tensor)
  folder = resolve(config.policy.init)
  tokenizer = Tokenizer(folder)
  problems = data.training_problems(config)
  data.policy_prompts(tokenizer, problems, config)  # all of them fit
  held_out = evaluate.HeldOut(config, tokenizer)
  if config.reward != 'sparse':
    judge_lib.check(config, problems)
  batch_of = data.batches(problems, config.data.batch, config.seed)
  model, params = hf.load(folder, mesh, config.policy.dtype,
                          remat=config.policy.remat,
                          attention=config.policy.attention)
  checkpoint.claim(workdir, config)
  # The frozen copy must be other arrays: updates donate the policy.
  reference = jax.jit(lambda x: jax.tree.map(jnp.copy, transformer.cast(
      model, x)))(params)
  state = learner.init_state(params, config.optim,
                             config.steps * config.optim.updates)
  judge = None
  if config.reward != 'sparse':
    judge = judge_lib.load(config, sampling, workdir,
                           (folder, model, reference))
  # After the state: the pool of pages is sized by the memory that is left.
  step_fn = Step(config, model, reference, tokenizer,
                 rewards.make(config, tokenizer, judge), mesh, sampling,
                 rewards.early(config, tokenizer, judge)
                 if judge and config.judge.overlap else None)
  checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint)
  start, state = checkpoints.restore(state)
  carry = Carry(workdir, problems, config)
  step_fn.carried = carry.load(start)
  main = jax.process_index() == 0
  log = metrics.Log(workdir, config.steps, start, main)
  root = jax.random.key(config.seed)
  probed = {}
  if judge:  # it is frozen: what it says of the probes holds to the end
    probed = defence.refuse_fooled(config, judge, problems)
  alarm = defence.Alarm(config, log.before)
  if start == 0:
    held_out(step_fn.sampler, state.params, 0, log, probed)

  for step in range(start, config.steps):
    state, taken = step_fn(state, batch_of(step),
                           jax.random.fold_in(root, step))
    done = step + 1
    warning = alarm(taken.metrics) if judge else ''
    log.advance(reward=f'{taken.metrics["reward/mean"]:.3f}')
    log.write(done, taken.metrics, line(done, taken.metrics)
              if done % 10 == 0 or done == 1 else '')
    if warning:
      log.say(warning)
    if main and (done % 10 == 0 or done in (1, config.steps)):
      write_samples(workdir / f'samples/{done:08d}.jsonl', taken)
    if held_out.due(done, config.steps):
      held_out(step_fn.sampler, state.params, done, log, probed)
    if checkpoints.save(done, state, last=done == config.steps) and main:
      carry.save(done, step_fn.carried)

  checkpoints.close()
  log.close()
  hf.save(workdir / 'model', model, state.params, folder)
  return metrics.read(workdir / 'metrics.jsonl')


class Carry:
  """Unfinished samples beside the checkpoints (rollout.carry)."""

  def __init__(self, workdir: pathlib.Path, problems, config: Config):
    self._folder, self._config = workdir / 'carried', config
    self._problems = problems

  def load(self, step: int) -> list[tuple[Problem, list[engine.Sample]]]:
    """What was under way at a step; at step 0 some problems in advance.

    Raises:
      InputError: the file is not there.
    """
    n = self._config.rollout.carry
    if not n:
      return []
    if step == 0:
      first = data.batches(self._problems, n, self._config.seed + 1)(0)
      size = self._config.rollout.group_size + self._config.rollout.spare
      return [(p, [engine.NOTHING] * size) for p in first]
    path = self._folder / f'{step:08d}.json'
    if not path.exists():
      raise InputError(f'{path} is missing: the samples that were under way')
    by_id = {p.id: p for p in self._problems}
    return [(by_id[id_], [engine.Sample(
        np.array(t, np.int32), np.array(lp, np.float32), ended)
        for t, lp, ended in samples])
        for id_, samples in json.loads(path.read_text())]

  def save(self, step: int, carried) -> None:
    """Writes what is under way."""
    if self._config.rollout.carry:
      self._folder.mkdir(exist_ok=True)
      (self._folder / f'{step:08d}.json').write_text(json.dumps([
          (p.id, [(s.tokens.tolist(), s.logprobs.tolist(), s.ended)
                  for s in samples]) for p, samples in carried]))


class Taken(NamedTuple):
  """What one step did."""

  rollout: Rollout
  rewarded: rewards.Rewarded
  credit: np.ndarray  # f32[B, S] advantage of each step of the traces
  metrics: dict[str, float]


class Step:
  """One training step of a config: (state, problems, key) -> (state, Taken)."""

  def __init__(self, config: Config, model: ModelConfig, reference,
               tokenizer: Tokenizer, reward: rewards.Reward,
               mesh: jax.sharding.Mesh, sampling: jax.sharding.Mesh,
               early=None):
    """`mesh` is what the policy trains on, `sampling` what it samples on;
    `early` is told of (problems, rollout) that are complete before the rest.
    """
    self._config, self._model, self._reference = config, model, reference
    self._tokenizer, self._reward = tokenizer, reward
    self._mesh, self._early = mesh, early
    self.sampler = engine.Sampler(config, model, tokenizer, sampling)
    self.carried: list[tuple[Problem, list[engine.Sample]]] = []
    self.total_updates = config.steps * config.optim.updates

  def __call__(self, state: TrainState, problems, key: jax.Array
               ) -> tuple[TrainState, Taken]:
    """Samples, scores and updates; donates `state`."""
    config, timer = self._config, metrics.Timer()
    with timer('rollout'):
      problems, rollout = self._rollout(state, problems, key)
    with timer('judge'):
      rewarded = self._reward(problems, rollout)
    with timer('logprob'):
      credit = np.asarray(assign(rewarded.scores, config.credit,
                                 config.rollout.group_size))
      batch = jax.block_until_ready(
          self._experience(state, rollout, rewarded.scores, credit))
    with timer('update'), jax.set_mesh(self._mesh):
      state, values = learner.update(
          self._model, state, batch, config.loss, config.optim,
          config.rollout.temperature or 1.0, config.rollout.group_size,
          self.total_updates)
      values = {k: float(v) for k, v in values.items()}
    values |= (rewarded.metrics | timer.metrics()
               | statistics(rollout, rewarded.scores, credit)
               | self.sampler.engine.metrics())
    values['group/zero_spread_frac'] = zero_spread(
        rewarded.scores, config.rollout.group_size)
    return state, Taken(rollout, rewarded, credit, values)

  def _rollout(self, state, problems, key):
    """The problems whose groups are complete, and their samples.

    With rollout.carry there are more problems under way than a step takes;
    the others go on in the next step, with the parameters of then. Each token
    keeps the log-probability of the policy that wrote it.
    """
    config, want = self._config.rollout, len(problems)

    def early(complete):
      self._early([problems[i] for i in complete], self.sampler.arrays(
          [prompts[i] for i in complete], list(complete.values())))

    problems = [*(p for p, _ in self.carried), *problems]
    prompts = data.policy_prompts(self._tokenizer, problems, self._config)
    groups = self.sampler.generate(
        state.params, prompts, config.group_size, key,
        [samples for _, samples in self.carried], config.spare,
        until=want if config.carry else 0,
        early=early if self._early else None)
    self.sampler.engine.release()  # the update needs the memory
    ready = [i for i, g in enumerate(groups)
             if engine.complete(g, config.group_size)][:want]
    self.carried = [(problems[i], groups[i]) for i in range(len(groups))
                    if i not in ready]
    return [problems[i] for i in ready], self.sampler.arrays(
        [prompts[i] for i in ready], [groups[i] for i in ready])

  def _experience(self, state, rollout, scores, credit) -> Experience:
    config = self._config
    trains = scores.valid.any(axis=1, keepdims=True)
    advantage = np.asarray(advantages.spread(credit, scores,
                                             rollout.completion))
    tokens, valid, mask, sampled, advantage = mesh_lib.shard_rows(
        (rollout.tokens, rollout.valid, rollout.completion & trains,
         rollout.logprobs, advantage), self._mesh)

    def logprobs(params):
      with jax.set_mesh(self._mesh):
        return learner.logprobs(
            self._model, params, tokens, valid,
            config.rollout.temperature or 1.0, config.loss.logprob_chunk,
            config.optim.micro_batches)

    # With one update the policy before it is the policy in it (learner).
    old = logprobs(state.params) if config.optim.updates > 1 else sampled
    ref = logprobs(self._reference) if config.loss.kl_coef else old
    return Experience(tokens, valid, mask, sampled, old, ref, advantage)


def assign(scores: Scores, cfg: Credit, group_size: int) -> jax.Array:
  """The advantage f32[B, S] of every step, by the config's rule."""
  if cfg.rule == 'group':
    return advantages.group(scores, group_size, cfg.divide_by_std)
  return advantages.delta(scores, cfg.first, cfg.single)


def statistics(rollout: Rollout, scores: Scores, credit: np.ndarray
               ) -> dict[str, float]:
  """Lengths of a batch, advantages of its steps."""
  lengths = rollout.completion.sum(axis=1)
  a = credit[scores.valid]
  return {'length/response_mean': float(lengths.mean()),
          'length/response_max': float(lengths.max()),
          'advantage/abs_max': float(np.abs(a).max()) if len(a) else 0.0,
          'advantage/mean': metrics.mean(a.tolist())}


def zero_spread(scores: Scores, group_size: int, tolerance: float = 1e-6
                ) -> float:
  """Share of groups whose last scores are all equal: no group signal."""
  last = np.where(scores.valid, scores.value, -np.inf)
  index = scores.valid.shape[1] - 1 - np.argmax(scores.valid[:, ::-1], axis=1)
  groups = last[np.arange(len(last)), index].reshape(-1, group_size)
  return float((np.ptp(groups, axis=1) <= tolerance).mean())


def line(step: int, values: dict[str, float]) -> str:
  """What a person reads of a step."""
  seconds = sum(v for k, v in values.items() if k.startswith('time/'))
  return (f'step {step:5d}  reward {values["reward/mean"]:.3f}  accuracy '
          f'{values["reward/accuracy"]:.3f}  kl {values["policy/ref_kl"]:.3f}'
          f'  entropy {values["policy/entropy"]:.3f}  {seconds:.2f} s')


def write_samples(path: pathlib.Path, taken: Taken) -> None:
  """Traces with their step scores and advantages, one JSON object a row.

  The reference solution is not among them: it stays in the problem file.
  """
  path.parent.mkdir(exist_ok=True)
  scores, credit = taken.rewarded.scores, np.asarray(taken.credit)
  with path.open('w') as file:
    for i, trace in enumerate(taken.rewarded.traces):
      n = len(trace.steps)
      file.write(json.dumps({
          'id': trace.problem.id, 'question': trace.problem.question,
          'steps': [{'text': text, 'score': round(float(s), 4),
                     'advantage': round(float(a), 4), 'valid': bool(v)}
                    for text, s, a, v in zip(
                        trace.steps, scores.value[i, :n], credit[i, :n],
                        scores.valid[i, :n])],
          'correct': bool(taken.rewarded.correct[i]),
          'finished': trace.finished}) + '\n')
