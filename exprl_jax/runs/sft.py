"""Supervised fine-tuning: the reference solutions as targets."""

from collections.abc import Sequence
import dataclasses

from etils import epath
import jax
import numpy as np

from exprl_jax import report
from exprl_jax.config import Config
from exprl_jax.data import chat
from exprl_jax.data.batches import batches
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.evals.held_out import HeldOut
from exprl_jax.models import hf, references
from exprl_jax.planning import memory, search
from exprl_jax.rl import learner, optimizer
from exprl_jax.rl.experience import Example
from exprl_jax.rl.policy import Policy
from exprl_jax.rollout.sampler import Sampler
from exprl_jax.runs import budgets, validate
from exprl_jax.runtime import checkpoints as checkpoints_lib
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import metrics, stopping, trackers
from exprl_jax.runtime import workdir as workdir_lib
from exprl_jax.types import InputError, Problem


def sft(config: Config, workdir: epath.Path) -> list[metrics.Row]:
  """Trains on prompt -> solution + EOS and writes workdir/model.

  Returns:
    The rows of metrics.jsonl.
  """
  # 1. All that can fail on input.
  meshes = mesh_lib.meshes(config)
  folder = references.find(config.policy.init).folder
  tokenizer = Tokenizer(folder, config.rollout.stop_ids)
  problems = usable(config, tokenizer)
  held_out = HeldOut(config, tokenizer)
  search.check(config, meshes.devices)
  # 2. Weights and training state.
  policy, params = _policy(config, meshes.train)
  workdir_lib.claim(workdir, config)
  state = optimizer.init_state(params, config.optim,
                               config.steps * config.optim.updates)
  checkpoints = checkpoints_lib.Checkpoints(workdir, config.checkpoint)
  start, state = checkpoints.restore(state)
  log = metrics.Log(workdir, config.steps, start, jax.process_index() == 0)
  trackers.start(config.log.trackers, workdir,
                 workdir_lib.flat(dataclasses.asdict(config)), start)
  sampler = Sampler(config, policy.model, tokenizer, meshes.sample,
                    memory.models(config, meshes).rollout)
  if start == 0:
    held_out(sampler, policy.sampling_params(state.params), 0, log)

  # 3. Steps.
  batch_of = batches(problems, config.data.batch, config.seed)
  with (checkpoints.rescue() as
        rescue, stopping.training(config.checkpoint.grace_s) as steps):
    for step in range(start, config.steps):
      steps.begin()
      stopping.poll('step')
      examples = [example(tokenizer, p, config) for p in batch_of(step)]
      state, values = learner.update(policy, state, examples, 1)
      done, last = step + 1, step + 1 == config.steps
      log.advance()
      if done % 10 == 0 or last:
        shown = f'step {done:5d}  loss {values["sft/loss"]:.3f}'
        log.write(done, values, shown if done % 100 == 0 or last else '')
      log.flush()
      rescue.take(done, state)
      if held_out.due(done, config.steps):
        held_out(sampler, policy.sampling_params(state.params), done, log)
      log.flush()
      checkpoints.save(done, state, last=last)
      if not last:
        steps.end()

  checkpoints.close()
  log.close()
  with report.unfinished('model', workdir):
    hf.save(workdir / 'model', policy.model, policy.merged_params(state.params),
            folder)
  return metrics.read(workdir / 'metrics.jsonl')


def _policy(config: Config, mesh: jax.sharding.Mesh) -> tuple[Policy, dict]:
  """The policy with the supervised loss, and the parameters that train."""
  model, params, base_params = references.policy(config, mesh)
  return Policy(supervised(config), model, mesh, base_params), params


def supervised(config: Config) -> Config:
  """The config with the supervised loss, of log-probabilities as the model
  gives them: at temperature 1."""
  return dataclasses.replace(
      config, loss=dataclasses.replace(config.loss, kind='nll'),
      rollout=dataclasses.replace(config.rollout, temperature=1.0))


def usable(config: Config, tokenizer: Tokenizer) -> Sequence[Problem]:
  """Reads and checks the problems, as validate.usable does.

  Raises:
    InputError: a problem is bad or does not fit; names it.
  """
  return validate.usable(config, ('solution',), None, [
      budgets.policy_prompt(config, tokenizer),
      budgets.target(config, tokenizer)
  ])


def example(tokenizer: Tokenizer, problem: Problem, config: Config) -> Example:
  """A prompt and its solution as an example.

  Raises:
    InputError: the row does not fit; names the problem.
  """
  (prompt,) = chat.policy_prompts(tokenizer, [problem], config)
  solution = chat.policy_target(tokenizer, problem, config, prompt)
  target = [*solution, tokenizer.eos_ids[0]]
  budget = config.rollout.max_new_tokens
  if len(target) > budget:
    raise InputError(f'problem {problem.id}: its solution has {len(target)} '
                     f'tokens, rollout.max_new_tokens={budget}')
  tokens = np.array([*prompt, *target], np.int32)
  zeros = np.zeros(len(tokens), np.float32)
  return Example(tokens,
                 np.arange(len(tokens)) >= len(prompt), zeros, zeros, zeros,
                 zeros)
