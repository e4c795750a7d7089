"""Supervised fine-tuning: the reference solutions as targets."""

import dataclasses
import pathlib

import jax
import numpy as np

from exprl_jax.config import Config, resolve
from exprl_jax.data import problems as data
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.evals import held_out as evaluate
from exprl_jax.models import hf, lora
from exprl_jax.models import references as source
from exprl_jax.rl import learner
from exprl_jax.rollout import sampler as sampler_lib
from exprl_jax.runtime import checkpoints as checkpoint
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import metrics
from exprl_jax.types import Experience, InputError, Problem


def sft(config: Config, workdir: pathlib.Path) -> list[metrics.Row]:
  """Trains on prompt -> solution + EOS and writes workdir/model.

  Returns:
    The rows of metrics.jsonl.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  folder = source.find(config.policy.init).folder
  tokenizer = Tokenizer(folder)
  problems = data.read_problems(resolve(config.data.train), data.needs(config),
                                config.data.limit)
  held_out = evaluate.HeldOut(config, tokenizer)
  batch_of = data.batches(problems, config.data.batch, config.seed)
  if isinstance(problems, list):  # of a file; generated text is made to fit
    for problem in problems:
      encode(tokenizer, problem, config)  # raises if it does not
  model, params, frozen = source.policy(config, mesh)
  whole = lambda params, dtype='': params if frozen is None else lora.merge(
      frozen, params, lora.scale(config.policy), dtype)
  checkpoint.claim(workdir, config)
  state = learner.init_state(params, config.optim,
                             config.steps * config.optim.updates)
  checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint)
  start, state, _ = checkpoints.restore(state)
  log = metrics.Log(workdir, config.steps, start, jax.process_index() == 0)
  sampler = sampler_lib.Sampler(
      config, model, tokenizer,
      mesh_lib.rollout_mesh(mesh, config.mesh.rollout_tensor))
  # Log-probabilities as the model gives them: at temperature 1.
  supervised = dataclasses.replace(
      config, loss=dataclasses.replace(config.loss, kind='nll'),
      rollout=dataclasses.replace(config.rollout, temperature=1.0))
  if start == 0:
    held_out(sampler, whole(state.params), 0, log)

  for step in range(start, config.steps):
    batch = experience([encode(tokenizer, p, config) for p in batch_of(step)])
    state, values = learner.update(supervised, model, state, batch, mesh, 1,
                                   frozen)
    done = step + 1
    log.advance()
    if done % 10 == 0 or done == config.steps:
      loss = float(values['sft/loss'])
      log.write(
          done, values, f'step {done:5d}  loss {loss:.3f}'
          if done % 100 == 0 or done == config.steps else '')
    if held_out.due(done, config.steps):
      held_out(sampler, whole(state.params), done, log)
    checkpoints.save(done, state, last=done == config.steps)

  checkpoints.close()
  log.close()
  hf.save(workdir / 'model', model, whole(state.params, 'float32'), folder)
  return metrics.read(workdir / 'metrics.jsonl')


def encode(tokenizer: Tokenizer, problem: Problem,
           config: Config) -> tuple[list[int], int]:
  """Tokens of prompt, solution and EOS, and the length of the prompt.

  Raises:
    InputError: the row does not fit; names the problem.
  """
  (prompt,) = data.policy_prompts(tokenizer, [problem], config)
  target = tokenizer.encode(problem.solution) + [tokenizer.eos_ids[0]]
  room = config.rollout
  if len(target) > room.max_new_tokens:
    raise InputError(f'problem {problem.id}: its solution has {len(target)} '
                     f'tokens, rollout.max_new_tokens={room.max_new_tokens}')
  return prompt + target, len(prompt)


def experience(rows: list[tuple[list[int], int]]) -> Experience:
  """Prompts and targets as the learner takes them."""
  shape = (len(rows), max(len(ids) for ids, _ in rows))
  tokens, ids_ = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  weight = np.zeros(shape, np.float32)
  for i, (ids, prompt_length) in enumerate(rows):
    tokens[i, :len(ids)], ids_[i, :len(ids)] = ids, 1
    weight[i, prompt_length:len(ids)] = 1.0
  nothing = np.zeros(shape, np.float32)
  return Experience(tokens, ids_, weight, *(nothing,) * 4)
