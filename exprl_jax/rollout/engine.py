"""Sampling: prompts in, rollouts out.

This first engine decodes a whole batch in one jitted `while_loop`: prompts
are prefilled once, each is forked into its group of samples by repeating its
cache, and the loop ends when every row has ended.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax import mesh as mesh_lib
from exprl_jax.models import transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.types import InputError, Rollout


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """How to sample.

  Attributes:
    group_size: samples per prompt, G.
    max_prompt_tokens: width of the prompt part; longer prompts are an error.
    max_new_tokens: budget of a completion, the EOS included.
    temperature: 0 is greedy.
    eos_ids: tokens that end a row; they stay in it.
    pad_id: fills the rest.
  """

  group_size: int
  max_prompt_tokens: int
  max_new_tokens: int
  temperature: float
  eos_ids: tuple[int, ...]
  pad_id: int


def options(config, tokenizer, group_size: int) -> SampleConfig:
  """The sampling options of a run's config."""
  cfg = config.rollout
  return SampleConfig(group_size, cfg.max_prompt_tokens, cfg.max_new_tokens,
                      cfg.temperature, tokenizer.eos_ids, tokenizer.pad_id)


class _State(NamedTuple):
  """The decoding loop's state; column = index into a row."""

  count: jax.Array  # i32[] tokens sampled so far, the same for every row
  logits: jax.Array  # f32[B, V] of each row's next token
  tokens: jax.Array  # i32[B, T]
  logprobs: jax.Array  # f32[B, T]
  cache: transformer.Cache
  length: jax.Array  # i32[B] columns in use
  done: jax.Array  # bool[B] has its EOS


def sample(cfg: ModelConfig, params, prompts: list[list[int]], key: jax.Array,
           opts: SampleConfig, mesh: jax.sharding.Mesh,
           first_id: int = 0) -> Rollout:
  """Samples `group_size` completions of every prompt.

  A sample is a function of (key, its id, the prompt, the parameters): random
  numbers are drawn with fold_in(fold_in(key, id), column), so it does not
  depend on who shares the batch.

  Args:
    cfg: the policy.
    params: its parameters.
    prompts: token ids, each 1..max_prompt_tokens long.
    key: a typed PRNG key.
    opts: how to sample.
    mesh: rows are split over its batch axes.
    first_id: id of the first sample; row i has id first_id + i.

  Returns:
    P * G rows of max_prompt_tokens + max_new_tokens columns.

  Raises:
    InputError: a prompt is empty or too long.
  """
  width = opts.max_prompt_tokens
  for i, prompt in enumerate(prompts):
    if not 0 < len(prompt) <= width:
      raise InputError(f'prompt {i} has {len(prompt)} tokens; '
                       f'rollout.max_prompt_tokens={width}')
  # Whole groups on every device: the last rows are repeats, dropped below.
  parts = mesh_lib.batch_parts(mesh)
  num = -(-len(prompts) // parts) * parts
  tokens = np.full((num, width), opts.pad_id, np.int32)
  lengths = np.ones(num, np.int32)
  for i in range(num):
    prompt = prompts[i % len(prompts)]
    tokens[i, :len(prompt)], lengths[i] = prompt, len(prompt)
  tokens, lengths = mesh_lib.shard_rows((tokens, lengths), mesh)
  with jax.set_mesh(mesh):
    out = _sample(cfg, opts, params, tokens, lengths, key,
                  jnp.int32(first_id))
  if num == len(prompts):
    return out
  return jax.tree.map(lambda x: x[:len(prompts) * opts.group_size], out)


def prepare(cfg: ModelConfig, params, mesh: jax.sharding.Mesh):
  """The policy's parameters for sampling: cast, and sharded for `mesh`.

  Training spreads them over all devices; sampling wants whole copies, or
  tensor parallel ones. Where nothing changes these are the same arrays.
  """
  wanted, convert = _converter(cfg, mesh)
  same = jax.tree.map(lambda x, w: (x.dtype, x.sharding) == (
      w.dtype, w.sharding), params, wanted)
  return params if all(jax.tree.leaves(same)) else convert(params)


@functools.cache
def _converter(cfg, mesh):
  cast = functools.partial(transformer.cast, cfg)
  wanted = jax.eval_shape(cast, transformer.abstract_params(cfg))
  shardings = mesh_lib.shardings(transformer.logical_axes(cfg), wanted, mesh)
  wanted = jax.tree.map(lambda x, s: x.update(sharding=s), wanted, shardings)
  return wanted, jax.jit(cast, out_shardings=shardings)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample(cfg, opts, params, prompts, lengths, key, first_id):
  group = opts.group_size
  rows = prompts.shape[0] * group
  columns = prompts.shape[1] + opts.max_new_tokens
  row, column = jnp.arange(rows), jnp.arange(columns)[None, :]
  ids = first_id + jnp.arange(rows)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)
  state = _prefill(cfg, params, prompts, lengths, group, columns,
                   opts.pad_id)
  prompt_length = state.length

  def step(s: _State) -> _State:
    token, logprob = draw(s.logits, keys, s.length, opts.temperature)
    # Ended rows write behind the last column, which is dropped.
    here = jnp.where(s.done, columns, s.length)
    tokens = s.tokens.at[row, here].set(token, mode='drop')
    logprobs = s.logprobs.at[row, here].set(logprob, mode='drop')
    seen = column[:, None] <= s.length[:, None, None]
    hidden, cache = transformer.forward(
        cfg, params, token[:, None], s.length[:, None], mask=seen,
        cache=s.cache)
    ended = jnp.isin(token, jnp.array(opts.eos_ids))
    return _State(
        s.count + 1, transformer.project(cfg, params, hidden[:, 0]), tokens,
        logprobs, cache, s.length + ~s.done, s.done | ended)

  def running(s: _State) -> jax.Array:
    return (s.count < opts.max_new_tokens) & ~s.done.all()

  s = jax.lax.while_loop(running, step, state)
  valid = column < s.length[:, None]
  return Rollout(s.tokens, valid, valid & (column >= prompt_length[:, None]),
                 s.logprobs, s.done)


def _prefill(cfg, params, prompts, lengths, group, columns, pad_id) -> _State:
  """Runs each prompt once and forks it into `group` rows."""
  num, width = prompts.shape
  valid = jnp.arange(width)[None, :] < lengths[:, None]
  positions = jnp.broadcast_to(jnp.arange(width), (num, width))
  hidden, cache = transformer.forward(
      cfg, params, prompts, positions, segment_ids=valid.astype(jnp.int32))
  last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]

  def fork(x, axis=0):
    return jnp.repeat(x, group, axis=axis)

  room = ((0, 0), (0, 0), (0, columns - width), (0, 0), (0, 0))
  return _State(
      count=jnp.int32(0),
      logits=fork(transformer.project(cfg, params, last)),
      tokens=fork(jnp.pad(prompts, ((0, 0), (0, columns - width)),
                          constant_values=pad_id)),
      logprobs=jnp.zeros((num * group, columns)),
      cache=jax.tree.map(lambda x: fork(jnp.pad(x, room), axis=1), cache),
      length=fork(lengths),
      done=jnp.zeros(num * group, bool))


def draw(logits: jax.Array, keys: jax.Array, columns: jax.Array,
         temperature: float) -> tuple[jax.Array, jax.Array]:
  """Draws a token per row by the Gumbel trick; the argmax at temperature 0.

  Args:
    logits: f32[B, V].
    keys: a key per row.
    columns: i32[B], folded into the keys.
    temperature: divides the logits.

  Returns:
    Tokens i32[B] and their log-probabilities f32[B] under the distribution
    sampled from (under softmax(logits) where it is greedy).
  """
  if temperature == 0:
    token = jnp.argmax(logits, axis=-1)
  else:
    logits = logits / temperature
    noise = jax.vmap(lambda k, c: jax.random.gumbel(
        jax.random.fold_in(k, c), logits.shape[1:]))(keys, columns)
    token = jnp.argmax(logits + noise, axis=-1)
  picked = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
  return token, picked - jax.nn.logsumexp(logits, axis=-1)
