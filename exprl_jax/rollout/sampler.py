"""The rollouts of a config: groups of samples from the engine."""

from collections.abc import Callable, Sequence
import dataclasses
import itertools

import jax
import numpy as np

from exprl_jax.config import Config
from exprl_jax.models.config import ModelConfig
from exprl_jax.rollout import decode
from exprl_jax.rollout.engine import Engine, Options
from exprl_jax.rollout.requests import NOTHING, Request, Sample, Sampling
from exprl_jax.types import InputError, Rollout


class Sampler:
  """The rollouts of a run's config."""

  def __init__(self, config: Config, model: ModelConfig, tokenizer,
               mesh: jax.sharding.Mesh):
    """An engine for the config's sizes.

    Args:
      config: its `rollout`.
      model: the policy.
      tokenizer: gives the end tokens and the text for stop strings.
      mesh: to sample on.
    """
    cfg = config.rollout
    self.model, self.mesh, self._pad_id = model, mesh, tokenizer.pad_id
    self._width = cfg.max_prompt_tokens
    self.sampling = Sampling(cfg.max_new_tokens, cfg.temperature, cfg.top_k,
                             cfg.top_p, cfg.min_p, cfg.min_new_tokens,
                             tokenizer.eos_ids, stop_strings=cfg.stop)
    self.engine = Engine(
        model, mesh,
        Options(cfg.slots, cfg.max_prompt_tokens + cfg.max_new_tokens, cfg.page,
                cfg.pages, cfg.chunk,
                min(256, -(-cfg.max_prompt_tokens // 16) * 16), cfg.kv_dtype
                or model.dtype, cfg.kernel), tokenizer.decode)

  def generate(
      self, params, prompts: Sequence[Sequence[int]], group_size: int,
      key: jax.Array, begun: Sequence[Sequence[Sample]] = (), spare: int = 0,
      until: int = 0,
      early: Callable[[dict[int, list[Sample]]], None] | None = None
  ) -> list[list[Sample]]:
    """Samples every prompt.

    Args:
      params: in training's sharding or as `decode.prepare` leaves them.
      prompts: token ids, 1..max_prompt_tokens each.
      group_size: G.
      key: a typed PRNG key.
      begun: of the first prompts, what an earlier call has left unfinished.
      spare: samples beside the G; the first G of a group to end are taken.
      until: stop when so many groups are complete; 0: all.
      early: told of groups, by number, as they are complete while the last
        samples still decode.

    Returns:
      The G samples of every group; of one that is not complete, all G + spare
      as they are, to be given as `begun` later.

    Raises:
      InputError: a prompt is empty or too long.
    """
    for i, prompt in enumerate(prompts):
      if not 0 < len(prompt) <= self._width:
        raise InputError(f'prompt {i} has {len(prompt)} tokens; '
                         f'rollout.max_prompt_tokens={self._width}')
    total, ended, told = group_size + spare, {}, set()

    def meanwhile():
      groups = {
          i: complete([
              ended[i * total + k]
              for k in range(total)
              if i * total + k in ended
          ], group_size)
          for i in range(len(prompts))
          if i not in told
      }
      groups = {i: group for i, group in groups.items() if group}
      told.update(groups)
      if groups:
        early(groups)

    samples = iter(
        self.engine.generate(decode.prepare(self.model, params, self.mesh), [
            Request(prompt, i * total, total, self.sampling,
                    num_wanted=group_size,
                    partial=_filled(begun[i], total) if i < len(begun) else ())
            for i, prompt in enumerate(prompts)
        ], key, ended.__setitem__, until, meanwhile if early else None))
    groups = [list(itertools.islice(samples, total)) for _ in prompts]
    return [complete(g, group_size) or g for g in groups]

  def arrays(self, prompts: Sequence[Sequence[int]],
             groups: Sequence[Sequence[Sample]]) -> Rollout:
    """Complete groups as arrays of max_prompt_tokens + max_new_tokens columns.
    """
    rows = [(p, s) for p, group in zip(prompts, groups) for s in group]
    shape = (len(rows), self._width + self.sampling.max_new_tokens)
    tokens = np.full(shape, self._pad_id, np.int32)
    valid, completion = np.zeros(shape, bool), np.zeros(shape, bool)
    logprobs = np.zeros(shape, np.float32)
    for i, (prompt, sample) in enumerate(rows):
      n, end = len(prompt), len(prompt) + len(sample.tokens)
      tokens[i, :n], tokens[i, n:end] = prompt, sample.tokens
      logprobs[i, n:end] = sample.logprobs
      valid[i, :end], completion[i, n:end] = True, True
    finished = np.array([s.finish_reason != 'length' for _, s in rows])
    return Rollout(tokens, valid, completion, logprobs, finished)


def _filled(group: Sequence[Sample], total: int) -> list[Sample]:
  """A complete group has lost its spare samples."""
  dropped = dataclasses.replace(NOTHING, finish_reason='dropped')
  return [*group, *[dropped] * (total - len(group))]


def complete(group: Sequence[Sample], group_size: int) -> list[Sample]:
  """The first G samples of a group that have ended; [] if they are fewer."""
  ended = [s for s in group if s.finish_reason in ('eos', 'stop', 'length')]
  return ended[:group_size] if len(ended) >= group_size else []
