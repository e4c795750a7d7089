"""Supervised fine-tuning: the reference solutions as targets."""

import functools
import pathlib

import jax
import numpy as np

from exprl_jax import checkpoint, data, evaluate, learner, losses, metrics
from exprl_jax import mesh as mesh_lib
from exprl_jax.config import Config, Optim, resolve
from exprl_jax.models import hf
from exprl_jax.models.config import ModelConfig
from exprl_jax.rollout import engine
from exprl_jax.tokenizer import Tokenizer
from exprl_jax.types import InputError, Problem, TrainState


def sft(config: Config, workdir: pathlib.Path) -> list[metrics.Row]:
  """Trains on prompt -> solution + EOS and writes workdir/model.

  Returns:
    The rows of metrics.jsonl.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  folder = resolve(config.policy.init)
  tokenizer = Tokenizer(folder)
  problems = data.read_problems(resolve(config.data.train), data.needs(config),
                                config.data.limit)
  held_out = evaluate.HeldOut(config, tokenizer)
  batch_of = data.batches(problems, config.data.batch, config.seed)
  model, params = hf.load(
      folder, mesh, config.policy.dtype, remat=config.policy.remat,
      attention=config.policy.attention,
      random_key=(jax.random.key(config.seed) if config.policy.random
                  else None), random_std=config.policy.random_std)
  checkpoint.claim(workdir, config)
  state = learner.init_state(params, config.optim, config.steps)
  checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint)
  start, state = checkpoints.restore(state)
  log = metrics.Log(workdir, config.steps, start, jax.process_index() == 0)
  sampler = engine.Sampler(config, model, tokenizer, mesh_lib.rollout_mesh(
      mesh, config.mesh.rollout_tensor))
  if start == 0:
    held_out(sampler, state.params, 0, log)

  for step in range(start, config.steps):
    rows = [encode(tokenizer, p, config) for p in batch_of(step)]
    batch = mesh_lib.shard_rows(pad(rows, config, tokenizer.pad_id), mesh)
    with jax.set_mesh(mesh):
      state, values = update(model, state, batch, config.optim, config.steps,
                             config.loss.logprob_chunk)
    done = step + 1
    log.advance()
    if done % 10 == 0 or done == config.steps:
      loss = float(values['sft/loss'])
      log.write(done, values, f'step {done:5d}  loss {loss:.3f}'
                if done % 100 == 0 or done == config.steps else '')
    if held_out.due(done, config.steps):
      held_out(sampler, state.params, done, log)
    checkpoints.save(done, state, last=done == config.steps)

  checkpoints.close()
  log.close()
  hf.save(workdir / 'model', model, state.params, folder)
  return metrics.read(workdir / 'metrics.jsonl')


def encode(tokenizer: Tokenizer, problem: Problem, config: Config
           ) -> tuple[list[int], int]:
  """Tokens of prompt, solution and EOS, and the length of the prompt.

  Raises:
    InputError: the row does not fit; names the problem.
  """
  prompt = data.policy_prompt(tokenizer, problem.question,
                              config.rollout.system_prompt)
  target = tokenizer.encode(problem.solution) + [tokenizer.eos_ids[0]]
  room = config.rollout
  if len(prompt) > room.max_prompt_tokens or len(target) > room.max_new_tokens:
    raise InputError(
        f'problem {problem.id}: prompt of {len(prompt)} and target of '
        f'{len(target)} tokens; rollout.max_prompt_tokens='
        f'{room.max_prompt_tokens}, max_new_tokens={room.max_new_tokens}')
  return prompt + target, len(prompt)


def pad(rows: list[tuple[list[int], int]], config: Config, pad_id: int):
  """(tokens i32[B, T], valid bool[B, T], target bool[B, T])."""
  room = config.rollout
  shape = (len(rows), room.max_prompt_tokens + room.max_new_tokens)
  tokens = np.full(shape, pad_id, np.int32)
  valid, target = np.zeros(shape, bool), np.zeros(shape, bool)
  for i, (ids, prompt_length) in enumerate(rows):
    tokens[i, :len(ids)] = ids
    valid[i, :len(ids)] = True
    target[i, prompt_length:len(ids)] = True
  return tokens, valid, target


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5), donate_argnums=(1,))
def update(model: ModelConfig, state: TrainState, batch, cfg: Optim,
           total_steps: int, chunk: int):
  """One optimiser step on the token mean of the negative log-likelihood."""
  def loss_of(params, rows, num_tokens):
    tokens, valid, target = rows
    logprobs, _ = losses.token_logprobs(model, params, tokens, valid,
                                        chunk=chunk)
    return losses.nll(logprobs, target, num_tokens)

  num_tokens = batch[2].sum()
  grad = jax.value_and_grad(loss_of)
  parts = learner.strided(batch, cfg.micro_batches)
  loss, gradient = learner.accumulate(
      lambda part: grad(state.params, part, num_tokens), parts)
  state, values = learner.apply_gradient(state, gradient, cfg, total_steps)
  return state, values | {'sft/loss': loss}
