"""The on-policy loop: sample, judge, credit, update.

One step is a story of data, always forward:

  data -> prompts -> engine.sample -> reward (judge) -> credit -> log-probs
       -> learner.update -> metrics, checkpoint

The random key of step i is fold_in(root, i) and the batch of step i is a
function of i, so a resumed run repeats the same draws.
"""

import functools
import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax.config import Config, judged
from exprl_jax.data import problems as data
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.evals import held_out as evaluate
from exprl_jax.grading import grader as grading
from exprl_jax.judge import hacking as defence
from exprl_jax.judge import tree as judge_lib
from exprl_jax.models import hf, lora, transformer
from exprl_jax.models import references as source
from exprl_jax.models.config import ModelConfig
from exprl_jax.rewards import base as rewards
from exprl_jax.rewards import teacher
from exprl_jax.rl import advantages, learner, losses
from exprl_jax.rl import filters as selection
from exprl_jax.rollout import requests
from exprl_jax.rollout import sampler as sampler_lib
from exprl_jax.runtime import checkpoints as checkpoint
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import metrics
from exprl_jax.types import Experience, Problem, Rollout, Scores, TrainState


def train(config: Config, workdir: pathlib.Path) -> list[metrics.Row]:
  """Runs a config; returns the rows of metrics.jsonl.

  Writes config.json, metrics.jsonl, samples/*.jsonl, checkpoints/ and, at
  the end, model/ (a Hugging Face directory) into `workdir`.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  sampling = mesh_lib.rollout_mesh(mesh, config.mesh.rollout_tensor)
  origin = source.find(config.policy.init)
  tokenizer = Tokenizer(origin.folder)
  problems = data.training_problems(config)
  data.policy_prompts(tokenizer, problems, config)  # all of them fit
  if config.reward == 'teacher':
    teacher.prompts(tokenizer, problems, config.teacher)
  grader = grading.Grader(config.grading)
  grader.check(problems)
  held_out = evaluate.HeldOut(config, tokenizer, grader)
  if judged(config):
    judge_lib.check(config, problems)
  model, params, frozen = source.policy(config, mesh)
  checkpoint.claim(workdir, config)
  reference = frozen
  if frozen is None and (config.loss.kl_coef or judged(config)
                         or config.reward == 'teacher'):
    # The frozen copy must be other arrays: updates donate the policy.
    reference = jax.jit(
        lambda x: jax.tree.map(jnp.copy, transformer.cast(model, x)))(params)
  state = learner.init_state(params, config.optim,
                             config.steps * config.optim.updates)
  judge = None
  if judged(config):
    judge = judge_lib.load(
        config, sampling, workdir,
        None if origin.workdir or config.policy.random else
        (origin.folder, model, reference))
  # After the state: the pool of pages is sized by the memory that is left.
  step_fn = Step(
      config, model, reference, tokenizer,
      rewards.make(config, tokenizer, judge, grader), mesh, sampling,
      rewards.early(config, tokenizer, judge, grader)
      if judge and config.judge.overlap else None)
  checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint)
  start, state, saved = checkpoints.restore(state)
  table = selection.SolveRates(problems, config)
  draw = selection.drawing(problems, config, table)
  if start:
    table.restore(saved['solve_rates'])
    step_fn.carried = thaw(saved['carried'], problems)
  else:
    step_fn.carried = begun(problems, config)
  main = jax.process_index() == 0
  log = metrics.Log(workdir, config.steps, start, main)
  root = jax.random.key(config.seed)
  probed = {}
  if judge:  # it is frozen: what it says of the probes holds to the end
    probed = defence.refuse_fooled(config, judge, problems)
  alarm = defence.Alarm(config, log.before)
  if start == 0:
    held_out(step_fn.sampler, step_fn.whole(state.params), 0, log, probed)

  for step in range(start, config.steps):
    state, taken = step_fn(state, functools.partial(draw, step),
                           jax.random.fold_in(root, step))
    done = step + 1
    table.update(*taken.solved)
    taken.metrics.update(table.metrics())
    warning = alarm(taken.metrics) if judge else ''
    log.advance(reward=f'{taken.metrics["reward/mean"]:.3f}')
    log.write(done, taken.metrics,
              line(done, taken.metrics) if done % 10 == 0 or done == 1 else '')
    if warning:
      log.say(warning)
    if main and (done % 10 == 0 or done in (1, config.steps)):
      write_samples(workdir / f'samples/{done:08d}.jsonl', taken)
    if held_out.due(done, config.steps):
      held_out(step_fn.sampler, step_fn.whole(state.params), done, log, probed)
    checkpoints.save(
        done, state,
        {'solve_rates': table.save(), 'carried': freeze(step_fn.carried)},
        last=done == config.steps)

  checkpoints.close()
  log.close()
  grader.close()
  hf.save(workdir / 'model', model, step_fn.whole(state.params, 'float32'),
          origin.folder)
  return metrics.read(workdir / 'metrics.jsonl')


# Unfinished samples (rollout.carry): (problem, its samples).
Carried = list[tuple[Problem, list[requests.Sample]]]


def begun(problems, config: Config) -> Carried:
  """What is under way at step 0: some problems in advance, no token yet."""
  cfg = config.rollout
  if not cfg.carry:
    return []
  first = data.batches(problems, cfg.carry, config.seed + 1)(0)
  return [(p, [requests.NOTHING] * (cfg.group_size + cfg.spare)) for p in first]


def freeze(carried: Carried) -> list:
  """As a checkpoint keeps it."""
  return [(p.id, [(s.tokens.tolist(), s.logprobs.tolist(), s.finish_reason)
                  for s in samples])
          for p, samples in carried]


def thaw(frozen: list, problems) -> Carried:
  """What `freeze` was given."""
  by_id = {p.id: p for p in problems}
  return [(by_id[id_], [
      requests.Sample(np.array(t, np.int32), np.array(lp, np.float32), ended)
      for t, lp, ended in samples
  ])
          for id_, samples in frozen]


class Taken(NamedTuple):
  """What one step did."""

  rollout: Rollout
  rewarded: rewards.Rewarded
  credit: np.ndarray  # f32[B, S] advantage of each step of the traces
  solved: tuple[list[Problem], np.ndarray]  # all that were tried; f32[P] share
  metrics: dict[str, float]


class Step:
  """One training step of a config: (state, draw, key) -> (state, Taken)."""

  def __init__(self, config: Config, model: ModelConfig, reference,
               tokenizer: Tokenizer, reward: rewards.Reward,
               mesh: jax.sharding.Mesh, sampling: jax.sharding.Mesh,
               early=None):
    """`reference` is the frozen start: the KL reference, the teacher, and what
    is under adapters. `mesh` is what the policy trains on, `sampling` what it
    samples on; `early` is told of (problems, rollout) that are complete before
    the rest.
    """
    self._config, self._model, self._reference = config, model, reference
    self._tokenizer, self._reward = tokenizer, reward
    self._mesh, self._early = mesh, early
    self._scale = lora.scale(config.policy)
    self.sampler = sampler_lib.Sampler(config, model, tokenizer, sampling)
    self.carried: Carried = []
    self._empty = 0  # steps in a row that had nothing to train on

  def whole(self, params, dtype: str = ''):
    """All parameters, to sample from, or (in float32) to save."""
    if not self._scale:
      return params
    return lora.merge(self._reference, params, self._scale, dtype)

  def __call__(self, state: TrainState, draw,
               key: jax.Array) -> tuple[TrainState, Taken]:
    """Samples, scores and updates; donates `state`.

    Args:
      state: of the training.
      draw: attempt -> problems; attempts after 0 replace groups that left.
      key: of the step.

    Raises:
      RuntimeError: nothing to train on in select.max_empty steps in a row.
    """
    config, timer = self._config, metrics.Timer()
    problems, rollout, rewarded, solved = self._gather(state, draw, key, timer)
    values = dict(rewarded.metrics)
    trains = bool(rewarded.scores.valid.any())
    self._empty = 0 if trains else self._empty + 1
    if self._empty >= config.select.max_empty:
      raise RuntimeError(
          f'{self._empty} steps in a row without a row to train on '
          '(select.max_empty): all rewards of a group are equal and leave by '
          'select.drop_zero_spread, or rows have no valid score; reward/*, '
          'length/* and grade/* in metrics.jsonl say which')
    credit = np.zeros(rewarded.scores.value.shape, np.float32)
    if trains:
      with timer('logprob'):
        batch, frozen = self._experience(state, problems, rollout, rewarded,
                                         values)
      credit = np.take_along_axis(batch.advantages,
                                  np.asarray(rewarded.scores.step_end), axis=1)
      with timer('update'):
        state, more = learner.update(config, self._model, state, batch,
                                     self._mesh, config.rollout.group_size,
                                     frozen)
      values |= more | statistics(rollout, rewarded.scores, credit)
    values |= timer.metrics() | self.sampler.engine.metrics()
    return state, Taken(rollout, rewarded, credit, solved, values)

  def _gather(self, state, draw, key, timer):
    """Groups to train on: problems, their rollout and its rewards.

    With select.drop_zero_spread, groups without a signal leave and fresh
    problems are tried in their place, select.tries times; what is missing then
    is missing.
    """
    cfg, group = self._config.select, self._config.rollout.group_size
    want, parts, useful = 0, [], []
    for attempt in range(1 + cfg.tries * cfg.drop_zero_spread):
      problems = draw(attempt)
      want = want or len(problems)
      with timer('rollout'):
        problems, rollout = self._rollout(state, problems,
                                          jax.random.fold_in(key, attempt))
      with timer('judge'):
        rewarded = self._reward(problems, rollout)
      flat = selection.zero_spread(rewarded.scores, group, cfg.tolerance)
      rewarded.metrics['group/zero_spread_frac'] = float(flat.mean())
      parts.append((problems, rollout, rewarded))
      useful += (~flat).tolist()
      if not cfg.drop_zero_spread or sum(useful) >= want:
        break
    problems, rollouts, rewardeds = zip(*parts)
    problems = [p for part in problems for p in part]
    rollout = Rollout(*map(np.concatenate, zip(*rollouts)))
    rewarded = rewards.join(rewardeds) if parts[1:] else rewardeds[0]
    solved = problems, rewarded.correct.reshape(-1, group).mean(axis=1)
    if cfg.drop_zero_spread:
      groups = np.flatnonzero(useful)[:want]
      rows = (groups[:, None] * group + np.arange(group)[None]).ravel()
      problems = [problems[i] for i in groups]
      rollout = Rollout(*(x[rows] for x in rollout))
      rewarded = rewards.take(rewarded, rows)
      rewarded.metrics.update(
          {'data/attempts': len(parts), 'data/groups': len(groups)})
    return problems, rollout, rewarded, solved

  def _rollout(self, state, problems, key):
    """The problems whose groups are complete, and their samples.

    With rollout.carry there are more problems under way than a step takes;
    the others go on in the next step, with the parameters of then. Each token
    keeps the log-probability of the policy that wrote it.
    """
    config, want = self._config.rollout, len(problems)

    def early(complete):
      self._early([problems[i] for i in complete],
                  self.sampler.arrays([prompts[i] for i in complete],
                                      list(complete.values())))

    problems = [*(p for p, _ in self.carried), *problems]
    prompts = data.policy_prompts(self._tokenizer, problems, self._config)
    groups = self.sampler.generate(self.whole(state.params), prompts,
                                   config.group_size, key,
                                   [samples for _, samples in self.carried],
                                   config.spare,
                                   until=want if config.carry else 0,
                                   early=early if self._early else None)
    self.sampler.engine.release()  # the update needs the memory
    ready = [
        i for i, g in enumerate(groups)
        if sampler_lib.complete(g, config.group_size)
    ][:want]
    self.carried = [
        (problems[i], groups[i]) for i in range(len(groups)) if i not in ready
    ]
    return [problems[i] for i in ready
           ], self.sampler.arrays([prompts[i] for i in ready],
                                  [groups[i] for i in ready])

  def _logprobs(self, params, tokens, valid, adapted=False):
    return learner.logprobs(
        self._model, params, tokens, valid, self._config, self._mesh,
        self._reference if adapted and self._scale else None)

  def _experience(self, state, problems, rollout, rewarded, values):
    """What the learner gets, and what stays frozen in it; adds to metrics."""
    cfg, reference = self._config.loss, self._reference
    distils = self._config.reward == 'teacher'
    # With one update the policy before it is the policy in it (learner).
    needs_old = (self._config.optim.updates > 1 or cfg.kl_in == 'reward'
                 or distils and cfg.kind != 'exact_kl')
    old = ref = rollout.logprobs
    if needs_old:
      old = ref = self._logprobs(state.params, rollout.tokens, rollout.valid,
                                 adapted=True)
    if cfg.kl_coef:
      ref = self._logprobs(reference, rollout.tokens, rollout.valid)
    scores, teacher_rows = rewarded.scores, None
    if distils:
      scores, teacher_rows = self._distil(problems, rollout, old, values)
    if cfg.kl_in == 'reward' and cfg.kl_coef:
      kl = np.asarray(losses.kl_estimate(old, ref, cfg.kl, cfg.kl_clamp))
      scores = rewards.to_last(
          scores, -cfg.kl_coef * kl.sum(axis=1, where=rollout.completion))
    advantage = np.asarray(
        advantages.assign(scores, self._config.credit,
                          self._config.rollout.group_size, rollout.completion,
                          rewarded.whole, rewarded.graded))
    trains = rollout.completion & scores.valid.any(axis=1, keepdims=True)
    batch = Experience(rollout.tokens, rollout.valid.astype(np.int32),
                       trains.astype(np.float32), rollout.logprobs, old, ref,
                       advantage)
    if teacher_rows:
      batch = with_teacher(batch, rollout, *teacher_rows)
    frozen = reference if self._scale or teacher_rows else None
    return batch, frozen

  def _distil(self, problems, rollout, old, values):
    """Scores of every token: teacher's minus policy's log-probability.

    For loss 'exact_kl' the learner runs the teacher itself and gets its rows.
    """
    cfg = self._config
    prompts = teacher.prompts(self._tokenizer, problems, cfg.teacher)
    prompts = [p for p in prompts for _ in range(cfg.rollout.group_size)]
    tokens, valid, completion = teacher.aligned(
        rollout, prompts,
        max(cfg.teacher.max_prompt_tokens, cfg.rollout.max_prompt_tokens))
    gap, rows = np.zeros(rollout.tokens.shape, np.float32), None
    if cfg.loss.kind == 'exact_kl':
      rows = tokens, valid, completion
    else:
      found = self._logprobs(self._reference, tokens, valid)
      gap = teacher.moved(found, completion, rollout.completion, gap) - old
      gap = np.where(rollout.completion, gap, 0.0)
      values['teacher/gap'] = -float(gap[rollout.completion].mean())
    columns = np.broadcast_to(
        np.arange(gap.shape[1], dtype=np.int32)[None], gap.shape)
    valid = rollout.completion
    if cfg.rollout.overlong == 'mask':
      valid = valid & rollout.finished[:, None]
    return Scores(gap, columns, valid), rows


def with_teacher(batch: Experience, rollout: Rollout, tokens: np.ndarray,
                 valid: np.ndarray, completion: np.ndarray) -> Experience:
  """The batch with the teacher's rows beside it, all completions in the same
  columns; see teacher.aligned."""
  width = tokens.shape[1] - int(rollout.completion.sum(axis=1).max(initial=0))
  own = [
      row[mask & ~done].tolist() for row, mask, done in zip(
          rollout.tokens, rollout.valid, rollout.completion)
  ]
  mine, there, _ = teacher.aligned(rollout, own, width)
  spread = lambda x: teacher.moved(x, rollout.completion, completion,
                                   np.zeros(tokens.shape))
  return Experience(mine, there.astype(np.int32),
                    *(spread(x) for x in batch[2:7]), tokens,
                    valid.astype(np.int32))


def statistics(rollout: Rollout, scores: Scores,
               credit: np.ndarray) -> dict[str, float]:
  """Lengths of a batch, advantages of its steps."""
  lengths = rollout.completion.sum(axis=1)
  a = credit[scores.valid]
  return {
      'length/response_mean': float(lengths.mean()),
      'length/response_max': float(lengths.max()),
      'advantage/abs_max': float(np.abs(a).max()) if len(a) else 0.0,
      'advantage/mean': metrics.mean(a.tolist())
  }


def line(step: int, values: dict[str, float]) -> str:
  """What a person reads of a step."""
  seconds = sum(v for k, v in values.items() if k.startswith('time/'))
  if 'policy/loss' not in values:
    return f'step {step:5d}  nothing to train on  {seconds:.2f} s'
  kl = ''
  if 'policy/ref_kl' in values:
    kl = f'  kl {values["policy/ref_kl"]:.3f}'
  return (f'step {step:5d}  reward {values["reward/mean"]:.3f}  accuracy '
          f'{values["reward/accuracy"]:.3f}{kl}  entropy '
          f'{values["policy/entropy"]:.3f}  {seconds:.2f} s')


def write_samples(path: pathlib.Path, taken: Taken) -> None:
  """Traces with their step scores and advantages, one JSON object a row.

  The reference solution is not among them: it stays in the problem file.
  """
  path.parent.mkdir(exist_ok=True)
  scores, credit = taken.rewarded.scores, np.asarray(taken.credit)
  with path.open('w') as file:
    for i, trace in enumerate(taken.rewarded.traces):
      n = len(trace.steps)
      file.write(
          json.dumps({
              'id': trace.problem.id, 'question': trace.problem.question,
              'steps': [{
                  'text': text, 'score': round(float(s), 4), 'advantage': round(
                      float(a), 4), 'valid': bool(v)
              } for text, s, a, v in zip(trace.steps, scores.value[
                  i, :n], credit[i, :n], scores.valid[i, :n])], 'correct': bool(
                      taken.rewarded.correct[i]), 'finished': trace.finished
          }) + '\n')
