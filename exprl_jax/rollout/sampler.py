"""Groups of samples of a config's policy, by the engine."""

from collections.abc import Callable, Sequence
import dataclasses
import itertools

import jax

from exprl_jax.config import Config
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.models.config import ModelConfig
from exprl_jax.rollout import decode
from exprl_jax.rollout.engine import Engine
from exprl_jax.rollout.options import Options
from exprl_jax.rollout.requests import NOTHING, Request, Sample, Sampling
from exprl_jax.types import InputError, Params

# Told of complete groups, by number, while the last samples still decode.
Early = Callable[[dict[int, list[Sample]]], None]


def engine_options(config: Config, model: ModelConfig) -> Options:
  """The engine's sizes by `config.rollout`."""
  cfg = config.rollout
  return Options(slots=cfg.slots,
                 max_tokens=cfg.max_prompt_tokens + cfg.max_new_tokens,
                 page=cfg.page, pages=cfg.pages, chunk=cfg.chunk,
                 prefill=min(256, -(-cfg.max_prompt_tokens // 16) * 16),
                 dtype=cfg.kv_dtype or model.dtype, kernel=cfg.kernel)


class Sampler:
  """An engine of the sizes of `config.rollout`."""

  def __init__(self, config: Config, model: ModelConfig, tokenizer: Tokenizer,
               mesh: jax.sharding.Mesh, options: Options | None = None):
    """Sizes the engine; no memory is taken before `generate`.

    Args:
      config: its `rollout`.
      model: the policy.
      tokenizer: gives the end tokens and the text for stop strings.
      mesh: to sample on.
      options: the engine's sizes; None: `engine_options`, for a policy that has
        the devices to itself.
    """
    cfg = config.rollout
    ends = tuple(dict.fromkeys((*tokenizer.eos_ids, *cfg.stop_ids)))
    self.model, self.mesh = model, mesh
    self._max_prompt_tokens = cfg.max_prompt_tokens
    self.sampling = Sampling(cfg.max_new_tokens, cfg.temperature, cfg.top_k,
                             cfg.top_p, cfg.min_p, cfg.min_new_tokens, ends,
                             stop_strings=cfg.stop)
    self.engine = Engine(model, mesh, options or engine_options(config, model),
                         tokenizer.decode)

  def prepare(self, params: Params) -> Params:
    """The parameters to sample with: decode.prepare."""
    return decode.prepare(self.model, params, self.mesh)

  def generate(self, params: Params, prompts: Sequence[Sequence[int]],
               group_size: int, key: jax.Array, *,
               partial: Sequence[Sequence[Sample]] = (), oversampling: int = 0,
               num_groups: int = 0,
               early: Early | None = None) -> list[list[Sample]]:
    """Samples every prompt.

    Args:
      params: in training's sharding or as `decode.prepare` leaves them.
      prompts: token ids, 1..max_prompt_tokens each.
      group_size: G.
      key: a typed PRNG key.
      partial: of the first prompts, what an earlier call left unfinished.
      oversampling: samples beyond the G; the first G of a group to end stay.
      num_groups: stop when so many groups are complete; 0: all.
      early: see Early.

    Returns:
      The G samples of every group; of a group that is not complete, all G +
      oversampling as they are, to be given as `partial` later.

    Raises:
      InputError: a prompt is empty or too long.
    """
    for i, prompt in enumerate(prompts):
      if not 0 < len(prompt) <= self._max_prompt_tokens:
        raise InputError(f'prompt {i} has {len(prompt)} tokens; rollout.'
                         f'max_prompt_tokens={self._max_prompt_tokens}')
    total, ended = group_size + oversampling, dict[int, Sample]()
    requests = [
        Request(prompt, i * total, total, self.sampling, num_wanted=group_size,
                partial=_padded(partial[i], total) if i < len(partial) else ())
        for i, prompt in enumerate(prompts)
    ]
    samples = iter(
        self.engine.generate(
            self.prepare(params), requests, key, ended.__setitem__, num_groups,
            _early_groups(early, ended, len(prompts), total, group_size)))
    groups = [list(itertools.islice(samples, total)) for _ in prompts]
    return [complete(g, group_size) or g for g in groups]


def _early_groups(early: Early | None, ended: dict[int, Sample], prompts: int,
                  total: int, group_size: int) -> Callable[[], None] | None:
  """What the engine calls between chunks: passes each complete group on once.
  """
  if early is None:
    return None
  passed_on = set[int]()

  def call() -> None:
    groups = {}
    for i in set(range(prompts)) - passed_on:
      samples = [
          ended[k] for k in range(i * total, (i + 1) * total) if k in ended
      ]
      if group := complete(samples, group_size):
        groups[i] = group
    passed_on.update(groups)
    if groups:
      early(groups)

  return call


def _padded(group: Sequence[Sample], total: int) -> list[Sample]:
  """A complete group has lost the samples of its oversampling."""
  dropped = dataclasses.replace(NOTHING, finish_reason='dropped')
  return [*group, *[dropped] * (total - len(group))]


def complete(group: Sequence[Sample], group_size: int) -> list[Sample]:
  """The first G samples of a group that ended; [] if they are fewer."""
  ended = [s for s in group if s.finish_reason in ('eos', 'stop', 'length')]
  return ended[:group_size] if len(ended) >= group_size else []
