"""Limits of tokens that problems have to keep."""

from collections.abc import Callable, Sequence
import dataclasses
import functools

from exprl_jax import rewards
from exprl_jax.config import Config
from exprl_jax.data import chat
from exprl_jax.data.checks import Budget
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.judge import factory, panel
from exprl_jax.models import references
from exprl_jax.types import InputError, Problem

POLICY_KEY = 'rollout.max_prompt_tokens'


def of_models(config: Config) -> list[Budget]:
  """Makes the limits of the models that the config names; reads no weights.

  Raises:
    InputError: there is no such model or template.
  """
  out = []
  if config.policy.init:
    tokenizer = Tokenizer(references.find(config.policy.init).folder)
    out.append(policy_prompt(config, tokenizer))
  if factory.is_named(config) and rewards.lookup(config.reward).uses_judge:
    out.append(judge_prompt(config))
  return out


def policy_prompt(config: Config, tokenizer: Tokenizer) -> Budget:
  """Limits the policy's prompts to rollout.max_prompt_tokens."""

  def count(p: Problem) -> int:
    return len(chat.prompt_ids(tokenizer, [p], config)[0])

  return Budget('question', 'its prompt', POLICY_KEY,
                config.rollout.max_prompt_tokens, count, tokenizer.digest())


def target(config: Config, tokenizer: Tokenizer) -> Budget:
  """Limits the targets of SFT to rollout.max_new_tokens."""

  def count(p: Problem) -> int:
    (prompt,) = chat.prompt_ids(tokenizer, [p], config)
    return len(chat.policy_target(tokenizer, p, config, prompt)) + 1  # and EOS

  return Budget('solution', 'its solution', 'rollout.max_new_tokens',
                config.rollout.max_new_tokens, count, tokenizer.digest())


def judge_prompt(config: Config) -> Budget:
  """Limits the judge's prompts to judge.max_prompt_tokens, as the judge does.

  Raises:
    InputError: there is no such judge or template.
  """
  cfg, task = config.judge, factory.task_of(config)
  tokenizer = factory.tokenizer_of(config)
  domains = factory.by_domain(config)

  @functools.cache
  def counters(domain: str) -> list[Callable[[Problem], int]]:
    name, its_task = domains.get(domain, (cfg.template, task))
    return [
        factory.prompt_tokens(own, tokenizer, its_task)
        for own in panel.members(dataclasses.replace(cfg, template=name))
    ]

  def count(p: Problem) -> int:
    own = counters(p.domain if p.domain in domains else '')
    return max(tokens(p) for tokens in own)

  for domain in ('', *domains):
    counters(domain)
  return Budget('solution', "the judge's prompt", 'judge.max_prompt_tokens',
                cfg.max_prompt_tokens, count, tokenizer.digest())


def check_judge_prompts(config: Config, problems: Sequence[Problem]) -> None:
  """Checks that the judge can read all problems with their references.

  Raises:
    InputError: some are too long; names the longest, and the limit for it.
  """
  budget = judge_prompt(config)
  distinct = {(p.question, p.solution): p for p in problems}
  counts = [(budget.tokens(p), p.id) for p in distinct.values()]
  long = [count for count in counts if count[0] > budget.limit]
  if long:
    tokens, name = max(long)
    raise InputError(
        f'{len(long)} of {len(counts)} problems do not fit {budget.key}='
        f'{budget.limit} with their references: the longest, of {name}, needs '
        f'{tokens} tokens. Raise the limit or leave them out')
