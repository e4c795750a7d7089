"""The judge of a config: loading, checking, a template for each domain."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np

from exprl_jax import config as config_lib
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.judge import cache as cache_lib
from exprl_jax.judge import prompts, readouts, tree
from exprl_jax.judge.tree import Item, Judge, Judgments, concatenate
from exprl_jax.models import config as model_config
from exprl_jax.models import hf, references
from exprl_jax.models.config import ModelConfig
from exprl_jax.rollout.options import Options
from exprl_jax.types import InputError, Params, Problem, RunFailure, printable


class ByDomain:
  """A judge with other templates for the problems of some domains.

  Attributes are those of the judge for all the others.
  """

  def __init__(self, default: Judge, domains: dict[str, Judge]):
    self._default, self._domains = default, domains

  def __getattr__(self, name: str) -> Any:
    return getattr(self._default, name)

  def of(self, problem: Problem) -> Judge:
    """The judge of a problem."""
    return self._domains.get(problem.domain, self._default)

  def with_readout(self, name: str) -> 'ByDomain':
    """The same judges with another readout."""
    return ByDomain(
        self._default.with_readout(name),
        {d: judge.with_readout(name) for d, judge in self._domains.items()})

  def count_tokens(self, item: Item) -> tuple[int, int]:
    """As Judge.count_tokens."""
    return self.of(item[0]).count_tokens(item)

  def with_cache(self, cache: cache_lib.Cache) -> 'ByDomain':
    """The same judges, that remember elsewhere."""
    return ByDomain(
        self._default.with_cache(cache),
        {d: judge.with_cache(cache) for d, judge in self._domains.items()})

  def score(self, items: Sequence[Item], max_steps: int) -> Judgments:
    """As Judge.score, each item by the judge of its domain."""
    judges = [self.of(p) for p, _ in items]
    rows: list[int] = []
    parts = []
    for judge in dict.fromkeys(judges):
      own = [i for i, j in enumerate(judges) if j is judge]
      parts.append(judge.score([items[i] for i in own], max_steps))
      rows += own
    return concatenate(parts).take(np.argsort(rows))


AnyJudge = Judge | ByDomain


def by_domain(config: config_lib.Config) -> dict[str, tuple[str, str]]:
  """(template, task) of the domains that have a template or task of their own.
  """
  templates = config_lib.by_domain(config, 'judge.templates')
  task = 'process' if config.reward == 'process' else 'outcome'
  outcome_domains = config.credit.outcome_domains
  return {
      d: (templates.get(d, config.judge.template),
          'outcome' if d in outcome_domains else task)
      for d in {*templates, *outcome_domains}
  }


def load(config: config_lib.Config, mesh: jax.sharding.Mesh,
         workdir: epath.PathLike | None = None,
         shared: tuple[epath.Path, ModelConfig, Params] | None = None,
         max_trace_tokens: int = 0, options: Options | None = None) -> AnyJudge:
  """The judge of a config.

  Args:
    config: its `judge`, and the reward that it is to give.
    mesh: to judge on.
    workdir: for the cache of judgments; None: none is kept.
    shared: (folder, ModelConfig, parameters) of a frozen copy that is loaded
      already: it is the judge, too, if it is the same checkpoint.
    max_trace_tokens: where the config does not say; 0: the policy's budget.
    options: the engine's sizes; None: for a judge that has the devices to
      itself.
  """
  cfg, folder = config.judge, references.folder_of(config.judge.init)
  if shared and (folder, cfg.dtype, cfg.weights) == (shared[0], shared[1].dtype,
                                                     ''):
    _, model, params = shared
  else:
    model, params = hf.load(folder, mesh, cfg.dtype, frozen=True,
                            weights=cfg.weights)
  cache = None
  if workdir and cfg.cache:
    cache = cache_lib.Cache(epath.Path(workdir) / 'judgments')
  name = cache_lib.digest(folder)
  tokenizer = Tokenizer(folder)
  if not tokenizer.has_chat_template:
    logging.warning('judge %s has no chat template: it reads plain text',
                    printable(str(folder)))
  max_tokens = (cfg.max_trace_tokens or max_trace_tokens
                or config.rollout.max_new_tokens)

  def judge(template: str, task: str) -> Judge:
    return Judge(dataclasses.replace(cfg, template=template), model, params,
                 tokenizer, mesh, task, max_tokens, cache, name, options)

  default = judge(cfg.template,
                  'process' if config.reward == 'process' else 'outcome')
  domains = {d: judge(*pair) for d, pair in by_domain(config).items()}
  return ByDomain(default, domains) if domains else default


def engine_options(config: config_lib.Config) -> tuple[ModelConfig, Options]:
  """The judge's model and its engine's sizes, without its weights."""
  cfg, folder = config.judge, references.folder_of(config.judge.init)
  model = dataclasses.replace(model_config.read_config(folder), dtype=cfg.dtype)
  tokenizer = Tokenizer(folder)
  task = 'process' if config.reward == 'process' else 'outcome'
  template = prompts.load(cfg, tokenizer, task,
                          readouts.READOUTS[cfg.readout].generates)
  budget = cfg.max_trace_tokens or config.rollout.max_new_tokens
  return model, tree.engine_options(cfg, template, tokenizer, budget,
                                    model.dtype)


def check(config: config_lib.Config, problems: Sequence[Problem]) -> None:
  """Checks that the config's judge can be asked about the problems; reads no
  weights.

  Raises:
    InputError: no such model or template, they do not suit each other, or a
      problem has no rubric.
  """
  folder = references.folder_of(config.judge.init)
  model_config.read_config(folder)
  tokenizer = Tokenizer(folder)
  task = 'process' if config.reward == 'process' else 'outcome'
  for template, task_ in {(config.judge.template, task),
                          *by_domain(config).values()}:
    prompts.load(dataclasses.replace(config.judge,
                                     template=template), tokenizer, task_,
                 readouts.READOUTS[config.judge.readout].generates)
  check_rubrics(config.judge, problems)


def check_readable(cfg: config_lib.Judge, judgments: Judgments) -> None:
  """Checks that enough traces have judgments.

  Raises:
    RunFailure: more than judge.max_invalid_frac have none; says why.
  """
  bad = (judgments.exists & ~judgments.readable).any(axis=1).mean()
  if bad <= cfg.max_invalid_frac:
    return
  worst = max(
      readouts.REMEDY, key=lambda name:
      (judgments.status == readouts.STATUSES.index(name)).any(axis=1).sum())
  raise RunFailure(
      f'{bad:.0%} of the traces have no judgment, more than '
      f'judge.max_invalid_frac={cfg.max_invalid_frac}; most are {worst}: '
      f'{readouts.REMEDY[worst].format(judge=cfg)}')


def check_rubrics(cfg: config_lib.Judge, problems: Sequence[Problem]) -> None:
  """Checks that all problems have what the judge is to be shown.

  Raises:
    InputError: one has not; names it.
  """
  for p in problems:
    if cfg.reference != 'solution' and not p.rubric:
      raise InputError(f'problem {p.id} has no rubric (judge.reference='
                       f"{cfg.reference!r}); run='rubrics' writes them")
    if cfg.judgment == 'rubric_items' and not p.rubric_items:
      raise InputError(f'problem {p.id} has no rubric of items '
                       "(judge.judgment='rubric_items'); run='rubrics' writes "
                       'them')
