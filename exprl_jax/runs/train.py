"""ExpRL: sample, judge, credit, update.

The policy samples traces from the question alone. A judge that alone sees the
reference solution scores each trace (ExpRL-Outcome) or each of its steps
(ExpRL-Process); the scores become advantages, and a policy gradient raises the
probability of what scored well (arXiv 2606.17024). Sparse GRPO, stage 2 and
self-distillation are the same loop with another reward.

The random key of step i is fold_in(key, i) and its problems are a function of i
and of state that a checkpoint holds, so a resumed run repeats the same draws.
"""

import contextlib

from etils import epath
import jax
import numpy as np

from exprl_jax.config import Config
from exprl_jax.rl import advantages, experience, filters, learner, signal
from exprl_jax.runs import progress, setup, telemetry
from exprl_jax.runtime import checkpoints, metrics, stopping
from exprl_jax.types import TrainState


def train(config: Config, workdir: epath.Path) -> list[metrics.Row]:
  """Runs a config; returns the rows of metrics.jsonl.

  Writes config.json, metrics.jsonl, samples/*.jsonl, traces/*.jsonl.gz,
  checkpoints/ and, at the end, model/ (a Hugging Face directory) into
  `workdir`.

  Raises:
    StartAgain: the run was asked to stop; its last step is saved.
    RunFailure: it cannot go on; its last step is saved.
  """
  run, start, state = setup.start(setup.inputs(config), workdir)
  devices = telemetry.Telemetry(run)
  with (contextlib.closing(run.source), run.checkpoints.rescue() as
        rescue, stopping.training(config.checkpoint.grace_s) as steps):
    rescue.take(start, state)
    if run.evaluation_is_missing(start):
      run.evaluate(state, start)
    for step in range(start, config.steps):
      steps.begin()
      state = _step(run, step, state, devices, rescue)
      run.log.flush()
      run.checkpoints.save(step + 1, state, last=step + 1 == config.steps)
      if step + 1 < config.steps:
        steps.end()
  devices.close()
  run.close(state)
  return metrics.read(workdir / 'metrics.jsonl')


def _step(run: setup.Run, step: int, state: TrainState,
          devices: telemetry.Telemetry,
          rescue: checkpoints.Rescue) -> TrainState:
  """One step, from problems to logged metrics."""
  config = run.inputs.config
  key, timer = jax.random.fold_in(run.key, step), metrics.Timer()
  devices.begin(step + 1)
  # 1. Roll out, 2. score; 3. drop groups without a gradient and refill.
  batch = filters.Batch(config)
  while not batch.complete:
    run.enter('rollout')
    with timer('rollout'):
      groups = run.source.next(step, batch.attempts,
                               run.policy.sampling_params(state.params), key)
    run.enter('judging')
    with timer('judge'):
      batch.add(run.reward(groups))
  scored, solved = batch.result()
  values = scored.metrics | run.curriculum.update(solved)
  advantage = np.zeros(scored.scores.value.shape, np.float32)
  if not scored.trains.any():
    run.empty_steps.count(False)
  else:
    run.enter('log-probabilities')
    with timer('logprob'):
      # 4. Log-probabilities before the update and under the reference.
      logprobs = experience.logprobs(run.policy, state.params,
                                     scored.trajectories, run.scores_tokens)
      # 5. Credit: an advantage for every token.
      credit = run.credit(scored, logprobs)
      examples = experience.examples(scored.trajectories, logprobs, credit)
      advantage = advantages.at_step_ends(credit.advantages, scored)
      values |= signal.metrics(config, scored, credit)
      run.empty_steps.count(values.get('credit/zero_frac', 0.0) < 1)
    # 6. Update.
    run.enter('update')
    with timer('update'):
      state, stats = learner.update(run.policy, state, examples,
                                    config.rollout.group_size)
    if 'perf/packing_fill' in stats:  # else nothing had credit
      values |= telemetry.utilization(run.policy, examples,
                                      timer.seconds['update'])
    values |= credit.metrics
    values |= stats | progress.statistics(scored, advantage)
  # 7. Log, and watch the judge being hacked.
  values |= timer.metrics() | run.source.metrics()
  values |= devices.end(step + 1, state, values)
  run.report(step + 1, values, scored)
  # 8. Samples, evaluation.
  run.write_samples(step + 1, scored, advantage, batch.dropped())
  run.log.flush()  # a resumed run does not write these rows again
  rescue.take(step + 1, state)
  if run.inputs.held_out.due(step + 1, config.steps):
    run.evaluate(state, step + 1)
    run.log.flush()
  return state
