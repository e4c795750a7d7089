"""The judge of a config: loading, checking, a template for each domain."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np

from exprl_jax import config as config_lib
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.judge import cache as cache_lib
from exprl_jax.judge import chats, layout, panel, prompts, readouts, tree
from exprl_jax.judge import client as client_lib
from exprl_jax.judge.endpoint import EndpointJudge
from exprl_jax.judge.panel import Panel
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

  def __init__(self, default: Judge | EndpointJudge | Panel,
               domains: dict[str, Judge | EndpointJudge | Panel]):
    self._default, self._domains = default, domains

  def __getattr__(self, name: str) -> Any:
    return getattr(self._default, name)

  def of(self, problem: Problem) -> Judge | EndpointJudge | Panel:
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


AnyJudge = Judge | EndpointJudge | Panel | ByDomain


def by_domain(config: config_lib.Config) -> dict[str, tuple[str, str]]:
  """(template, task) of the domains that have a template or task of their own.
  """
  templates = config_lib.by_domain(config, 'judge.templates')
  task = task_of(config)
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
  cfg, room = config.judge, max_trace_tokens or config.rollout.max_new_tokens
  tokenizer, cache, make = tokenizer_of(config), None, None
  if workdir and cfg.cache:
    cache = cache_lib.Cache(epath.Path(workdir) / 'judgments')
  if panel.local(cfg):
    make = _weighed(config, mesh, tokenizer, shared, options)
  clients: dict[tuple[str, ...], client_lib.Client] = {}

  def member(own: config_lib.Judge, task: str) -> Judge | EndpointJudge:
    tokens = own.max_trace_tokens or room
    if make and not own.endpoint:
      return make(own, task, tokens, cache)
    name = own.endpoint, own.endpoint_model, own.endpoint_key
    client = clients.setdefault(name, client_lib.Client(own))
    return EndpointJudge(own, client, tokenizer, task, tokens, cache)

  def judge(template: str, task: str) -> Judge | EndpointJudge | Panel:
    judges = [
        member(own, task)
        for own in panel.members(dataclasses.replace(cfg, template=template))
    ]
    return Panel(judges, cfg.combine) if cfg.panel else judges[0]

  default = judge(cfg.template, task_of(config))
  domains = {d: judge(*pair) for d, pair in by_domain(config).items()}
  return ByDomain(default, domains) if domains else default


def _weighed(config: config_lib.Config, mesh: jax.sharding.Mesh,
             tokenizer: Tokenizer,
             shared: tuple[epath.Path, ModelConfig, Params] | None,
             options: Options | None) -> Callable[..., Judge]:
  """Loads the weights; returns what makes a judge of them."""
  cfg, folder = config.judge, references.folder_of(config.judge.init)
  if shared and (folder, cfg.dtype, cfg.weights) == (shared[0], shared[1].dtype,
                                                     ''):
    _, model, params = shared
  else:
    model, params = hf.load(folder, mesh, cfg.dtype, frozen=True,
                            weights=cfg.weights)
  name = cache_lib.digest(folder)

  def make(own: config_lib.Judge, task: str, max_trace_tokens: int,
           cache: cache_lib.Cache | None) -> Judge:
    return Judge(own, model, params, tokenizer, mesh, task, max_trace_tokens,
                 cache, name, options)

  if not tokenizer.has_chat_template:
    logging.warning('judge %s has no chat template: it reads plain text',
                    printable(str(folder)))
  return make


def task_of(config: config_lib.Config) -> str:
  """What a judge of all domains is asked for."""
  return 'process' if config.reward == 'process' else 'outcome'


def is_named(config: config_lib.Config) -> bool:
  """Whether the config says which judge to ask, and has its tokenizer."""
  return bool(
      config.judge.init if panel.local(config.judge) else config.policy.init)


def name_of(cfg: config_lib.Judge) -> str:
  """The judges as errors name them."""
  return ' + '.join(
      dict.fromkeys(m.endpoint_model if m.endpoint else m.init
                    for m in panel.members(cfg)))


def tokenizer_of(config: config_lib.Config) -> Tokenizer:
  """The judge's tokenizer, or, of one without weights here, the policy's."""
  if panel.local(config.judge):
    return Tokenizer(references.folder_of(config.judge.init))
  return Tokenizer(references.find(config.policy.init).folder)


def engine_options(config: config_lib.Config) -> tuple[ModelConfig, Options]:
  """The judge's model and its engine's sizes, without its weights.

  Of a panel, those of the member with the longest answers: members are asked
  one after the other, and none keeps its pages.
  """
  cfg, folder = config.judge, references.folder_of(config.judge.init)
  model = dataclasses.replace(model_config.read_config(folder), dtype=cfg.dtype)
  tokenizer = Tokenizer(folder)
  budget = cfg.max_trace_tokens or config.rollout.max_new_tokens
  sizes = [
      tree.engine_options(own, _load(own, tokenizer, task_of(config)),
                          tokenizer, budget, model.dtype)
      for own in panel.local(cfg)
  ]
  return model, max(sizes, key=lambda options: options.max_tokens)


def _load(cfg: config_lib.Judge, tokenizer: Tokenizer,
          task: str) -> prompts.Template:
  return prompts.load(cfg, tokenizer, task,
                      readouts.READOUTS[cfg.readout].generates)


def prompt_tokens(cfg: config_lib.Judge, tokenizer: Tokenizer,
                  task: str) -> Callable[[Problem], int]:
  """Returns what counts the tokens of a problem's prompts without a trace.

  Args:
    cfg: of a single judge.
    tokenizer: of it, or what an endpoint's prompts are counted with.
    task: 'outcome' or 'process'.

  Raises:
    InputError: there is no such template, or it does not suit the tokenizer.
  """
  if cfg.endpoint:
    chat = chats.load(cfg, task)
    return lambda p: max((chat.count(tokenizer, p, prompts.nonce(p, []), '', x)
                          for x in prompts.items(cfg, p)), default=0)
  template = _load(cfg, tokenizer, task)

  def count(p: Problem) -> int:
    (trace,) = layout.lay_out(template, [
        layout.Trace(p, [''], prompts.nonce(p, []),
                     [[(x, 1.0) for x in prompts.items(cfg, p)]])
    ])
    return max((q.fork.at + len(q.fork.suffix) for q in trace.questions),
               default=0)

  return count


def check(config: config_lib.Config, problems: Sequence[Problem]) -> None:
  """Checks that the config's judge can be asked about the problems; reads no
  weights.

  Raises:
    InputError: no such model or template, they do not suit each other, there is
      no key for an endpoint, or a problem has no rubric.
  """
  cfg = config.judge
  if panel.local(cfg):
    model_config.read_config(references.folder_of(cfg.init))
  tokenizer = tokenizer_of(config)
  for template, task in {(cfg.template, task_of(config)),
                         *by_domain(config).values()}:
    for own in panel.members(dataclasses.replace(cfg, template=template)):
      if own.endpoint:
        chats.load(own, task)
        client_lib.key_of(own)
      else:
        _load(own, tokenizer, task)
  check_rubrics(cfg, problems)


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
      f'{readouts.REMEDY[worst].format(judge=cfg, name=name_of(cfg))}')


def check_rubrics(cfg: config_lib.Judge, problems: Sequence[Problem]) -> None:
  """Checks that all problems have what the judge is to be shown.

  Raises:
    InputError: one has not; names it.
  """
  members = panel.members(cfg)
  shown = {own.reference for own in members} - {'solution'}
  by_item = any(own.judgment == 'rubric_items' for own in members)
  for p in problems:
    if shown and not p.rubric:
      raise InputError(f'problem {p.id} has no rubric (judge.reference='
                       f"{min(shown)!r}); run='rubrics' writes them")
    if by_item and not p.rubric_items:
      raise InputError(f'problem {p.id} has no rubric of items '
                       "(judge.judgment='rubric_items'); run='rubrics' writes "
                       'them')
