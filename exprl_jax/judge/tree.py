"""The judge: a frozen language model that scores traces from 1 to 5.

It reads the problem, the reference and the trace, and is asked for a score at
the end of every step. What it reads is a tree, and the rollout engine computes
each part of it once: instructions, problem and reference are the root that all
traces of a problem share, a trace is a trunk, and each question is a branch off
the trunk at the end of its step. docs/judge.md counts the tokens.
"""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from exprl_jax import config as config_lib
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.judge import cache as cache_lib
from exprl_jax.judge import prompts
from exprl_jax.judge import readouts as readout
from exprl_jax.judge.readouts import Reading
from exprl_jax.models import config as model_config
from exprl_jax.models import hf
from exprl_jax.models.config import ModelConfig
from exprl_jax.rollout import decode, engine
from exprl_jax.rollout.requests import (
    Fork,
    Request,
    Sample,
    Sampling,
    SharedPrefix,
)
from exprl_jax.types import InputError, Problem

Item = tuple[Problem, Sequence[str]]  # a trace as the texts of its steps

_CUT = '\n[... the middle of the work is left out ...]\n'


class Verdicts(NamedTuple):
  """What the judge says of N traces at up to S steps."""

  score: np.ndarray  # f32[N, S] in [0, 1]
  mass: np.ndarray  # f32[N, S] probability of all legal scores together
  outcome: np.ndarray  # i8[N, S] index into readout.OUTCOMES, -1: no such step
  cut: np.ndarray  # bool[N] the trace was too long and lost its middle
  texts: list[list[str]]  # rationales, by step

  @property
  def exists(self) -> np.ndarray:
    """bool[N, S] steps."""
    return self.outcome >= 0

  @property
  def readable(self) -> np.ndarray:
    """bool[N, S] steps with a score."""
    return ((self.outcome == readout.OK) | (self.outcome == readout.EMPTY))


class _Branch(NamedTuple):
  """A question to the judge."""

  step: int
  fork: Fork  # off its trunk
  weight: float  # among the questions about the same step


class _Trunk(NamedTuple):
  """A root, a trace or a step of one, and the questions about it."""

  tokens: list[int]
  root: int  # tokens of it that are the root
  branches: list[_Branch]


class Judge:
  """A judge on a mesh."""

  def __init__(self, cfg: config_lib.Judge, model: ModelConfig, params,
               tokenizer: Tokenizer, mesh: jax.sharding.Mesh, task: str,
               max_trace_tokens: int, cache: cache_lib.Cache | None = None,
               name: str = ''):
    """Renders the template and plans the engine.

    Args:
      cfg: the config's `judge`.
      model: the decoder.
      params: its parameters, in any sharding.
      tokenizer: the judge's.
      mesh: to judge on.
      task: 'outcome' or 'process'.
      max_trace_tokens: longer traces lose their middle.
      cache: verdicts that are known, and where new ones go.
      name: of the weights, in the cache.

    Raises:
      InputError: the template does not suit the tokenizer.
    """
    self.cfg, self.model, self.params = cfg, model, params
    self.tokenizer = tokenizer
    self.template = prompts.load(cfg, tokenizer, task)
    self._mesh, self._cache, self._task = mesh, cache, task
    self._name = [
        name, task, self.template.text,
        *(getattr(cfg, k) for k in ('dtype', 'weights', 'reference', 'context',
                                    'readout', 'verdict', 'scale', 'min_mass',
                                    'rationale_tokens', 'max_prompt_tokens'))
    ]
    self._max_trace_tokens = max_trace_tokens
    self._cut = tokenizer.encode(_CUT)
    # Without [reason] in the template an answer is the score alone.
    self._answer_tokens = cfg.rationale_tokens if self.template.force else 1
    new = 1
    if cfg.readout != 'direct':
      new = self._answer_tokens + len(self.template.force) + 1
    room = cfg.max_prompt_tokens + max_trace_tokens + len(self._cut)
    self.engine = engine.Engine(
        model, mesh,
        engine.Options(
            cfg.slots, room + new, cfg.page, cfg.pages, prefill=min(
                256, -(-(cfg.max_prompt_tokens + max_trace_tokens) // 32) * 32),
            widths=(16, 64, 256, 1024), dtype=model.dtype,
            config_section='judge'), tokenizer.decode)

  def score(self, items: Sequence[Item], max_steps: int) -> Verdicts:
    """Scores the trace up to the end of each step (or each step alone).

    Args:
      items: (problem, texts of the steps), 1 to `max_steps` steps each; traces
        of a problem should be neighbours.
      max_steps: S of the result.
    """
    keys = [self._key(*item) for item in items]
    known = dict(
        zip(keys,
            self._cache.get(keys) if self._cache else [None] * len(keys)))
    # Traces that occur twice are judged once.
    missing = {k: item for k, item in zip(keys, items) if known[k] is None}
    known |= zip(missing, self._judge(list(missing.values())))
    if self._cache:
      self._cache.put((k, known[k]) for k in missing)
    shape = (len(items), max_steps)
    out = Verdicts(np.zeros(shape, np.float32), np.zeros(shape, np.float32),
                   np.full(shape, -1, np.int8), np.zeros(len(items), bool), [])
    for i, (k, (_, steps)) in enumerate(zip(keys, items)):
      out.cut[i] = self._is_long(steps)
      out.texts.append([r.text for r in known[k]])
      for s, reading in enumerate(known[k]):
        out.score[i, s], out.mass[i, s], out.outcome[i, s] = reading[:3]
    return out

  def _key(self, problem: Problem, steps) -> bytes:
    return cache_lib.key(*self._name, problem.question, problem.solution,
                         problem.rubric, problem.checkpoints, list(steps),
                         self._is_long(steps) and self._max_trace_tokens)

  def _judge(self, items: Sequence[Item]) -> list[list[Reading]]:
    """Readings of every step of every item."""
    out = [[Reading(0.0, 0.0, readout.EMPTY)] * len(steps) for _, steps in items
          ]
    trunks, owners = [], []
    for i, (problem, steps) in enumerate(items):
      if not ''.join(steps).strip():
        continue
      made = self._trunks(problem, steps)
      if made is None:
        out[i] = [Reading(0.0, 0.0, readout.OVERLONG)] * len(steps)
        continue
      trunks += made
      owners += [i] * len(made)
    for owner, trunk, readings in zip(owners, trunks, self._ask(trunks)):
      of_step = itertools.groupby(zip(trunk.branches, readings),
                                  lambda pair: pair[0].step)
      for step, group in of_step:
        branches, parts = zip(*group)
        out[owner][step] = readout.weighted(list(parts),
                                            [b.weight for b in branches])
    return out

  # Laying out.

  def _trunks(self, problem: Problem, steps) -> list[_Trunk] | None:
    """The tree of a trace; None if the prompt itself is too long."""
    groups = [steps]
    if self.cfg.context == 'segment':
      groups = [[step] for step in steps]
    head, out, number = self._head(problem), [], itertools.count()
    for group in groups:
      fence = prompts.fence(problem, list(group))
      opening = self.template.opening(fence)
      asks = [(self.template.ask(problem, fence, text), points)
              for text, points in self._questions(problem)]
      longest = max(len(ask) for ask, _ in asks)
      if len(head) + len(opening) + longest > self.cfg.max_prompt_tokens:
        return None
      ids, ends = self._trace(group)
      start = len(head) + len(opening)
      out.append(
          _Trunk([*head, *opening, *ids], len(head), [
              _Branch(step, Fork(start + end, ask), points)
              for end, step in zip(ends, number)
              for ask, points in asks
          ]))
    return out

  @functools.lru_cache(maxsize=4096)  # noqa: B019 (a judge lives for the run)
  def _head(self, problem: Problem) -> list[int]:
    return self.template.head(problem)

  def _questions(self, problem: Problem) -> list[tuple[str, float]]:
    if self.cfg.verdict == 'checkpoints':
      return [(c.text, c.points) for c in problem.checkpoints]
    return [('', 1.0)]

  def _trace(self, steps) -> tuple[list[int], list[int]]:
    """Token ids and where the steps end; a long trace lacks its middle.

    Steps that end in there are asked about behind the gap. Text is encoded
    step by step, so that steps end where tokens end, and with special tokens
    disarmed.
    """
    ids, ends = [], []
    for step in steps:
      ids += self.tokenizer.encode(step)
      ends.append(len(ids))
    over = len(ids) - self._max_trace_tokens
    if over <= 0:
      return ids, ends
    first = self._max_trace_tokens // 2
    last = self._max_trace_tokens - first
    kept = [*ids[:first], *self._cut, *ids[len(ids) - last:]]
    behind = first + len(self._cut)
    return kept, [
        end if end <= first else max(behind, end - over + len(self._cut))
        for end in ends
    ]

  def _is_long(self, steps) -> bool:
    room = self._max_trace_tokens  # no tokenizer needs more than the bytes
    parts = ([[step] for step in steps]
             if self.cfg.context == 'segment' else [steps])
    return any(
        sum(len(step.encode())
            for step in part) > room and sum(
                len(self.tokenizer.encode(step))
                for step in part) > room
        for part in parts)

  # Asking.

  def _ask(self, trunks: list[_Trunk]) -> list[list[Reading]]:
    """Readings of all branches of all trunks."""
    cfg, ids = self.cfg, self.template.score_ids
    expect = functools.partial(readout.expectation, scale=cfg.scale,
                               min_mass=cfg.min_mass)
    if cfg.readout == 'direct' or (cfg.readout == 'generate_expect'
                                   and not self.template.force):
      samples = self._run(trunks, Sampling(1, 0.0, read_ids=ids))
      return [[expect(s.read_logprobs) for s in row] for row in samples]
    stops = (f'\n{self.template.score}',) * (cfg.readout == 'generate_expect')
    samples = self._run(
        trunks,
        Sampling(self._answer_tokens, 0.0, eos_ids=self.tokenizer.eos_ids,
                 stop_strings=stops))
    said = [[self._rationale(s, stops) for s in row] for row in samples]
    if cfg.readout == 'generate':
      return [[
          readout.written(f'{self.template.begun} {text}', cfg.scale)
          for _, text in row
      ]
              for row in said]
    asked = [
        trunk._replace(branches=[
            b._replace(fork=Fork(
                b.fork.at, [*b.fork.suffix, *tokens, *self.template.force]))
            for b, (tokens, _) in zip(trunk.branches, row)
        ])
        for trunk, row in zip(trunks, said)
    ]
    samples = self._run(asked, Sampling(1, 0.0, read_ids=ids))
    return [[expect(s.read_logprobs, text=text)
             for s, (_, text) in zip(a, b)]
            for a, b in zip(samples, said)]

  def _rationale(self, sample: Sample, stops) -> tuple[list[int], str]:
    """Tokens and text before the end token or the stop string."""
    tokens = sample.tokens.tolist()
    if sample.finish_reason == 'eos':
      tokens.pop()
    text = self.tokenizer.decode(tokens)
    while stops and stops[0] in text:
      tokens.pop()
      text = self.tokenizer.decode(tokens)
    return tokens, text

  def _run(self, trunks: list[_Trunk],
           sampling: Sampling) -> list[list[Sample]]:
    """One sample for every branch of every trunk."""
    roots, requests, count = {}, [], 0
    for trunk in trunks:
      head = tuple(trunk.tokens[:trunk.root])
      root = roots.setdefault(head, SharedPrefix(len(roots), trunk.root))
      requests.append(
          Request(trunk.tokens, count, len(trunk.branches), sampling,
                  [b.fork for b in trunk.branches], shared_prefix=root))
      count += len(trunk.branches)
    if not requests:
      return []
    params = decode.prepare(self.model, self.params, self._mesh)
    samples = iter(self.engine.generate(params, requests, jax.random.key(0)))
    out = [list(itertools.islice(samples, len(t.branches))) for t in trunks]
    self.engine.release()
    return out

  def of(self, problem: Problem) -> 'Judge':
    """The judge of a problem: this one."""
    del problem
    return self

  def with_readout(self, name: str) -> 'Judge':
    """The same judge, read in another way."""
    return Judge(dataclasses.replace(self.cfg, readout=name), self.model,
                 self.params, self.tokenizer, self._mesh, self._task,
                 self._max_trace_tokens, self._cache, self._name[0])


class ByDomain:
  """A judge with other templates for the problems of some domains.

  Attributes are those of the judge for all the others.
  """

  def __init__(self, default: Judge, domains: dict[str, Judge]):
    self._default, self._domains = default, domains

  def __getattr__(self, name: str):
    return getattr(self._default, name)

  def of(self, problem: Problem) -> Judge:
    """The judge of a problem."""
    return self._domains.get(problem.domain, self._default)

  def with_readout(self, name: str) -> 'ByDomain':
    """The same judges, read in another way."""
    return ByDomain(
        self._default.with_readout(name),
        {d: judge.with_readout(name) for d, judge in self._domains.items()})

  def score(self, items: Sequence[Item], max_steps: int) -> Verdicts:
    """As Judge.score, each item by its domain's judge."""
    judges = [self.of(p) for p, _ in items]
    rows, parts = [], []
    for judge in dict.fromkeys(judges):
      own = [i for i, j in enumerate(judges) if j is judge]
      parts.append(judge.score([items[i] for i in own], max_steps))
      rows += own
    back = np.argsort(rows)
    texts = sum((p.texts for p in parts), [])
    return Verdicts(
        *(np.concatenate([p[k] for p in parts])[back] for k in range(4)),
        [texts[i] for i in back])


def by_domain(config: config_lib.Config) -> dict[str, tuple[str, str]]:
  """(template, task) of the domains that have their own."""
  templates = config_lib.by_domain(config, 'judge.templates')
  task = 'process' if config.reward == 'process' else 'outcome'
  whole = config.credit.outcome_domains
  return {
      d: (templates.get(d, config.judge.template),
          'outcome' if d in whole else task) for d in {*templates, *whole}
  }


def load(config: config_lib.Config, mesh: jax.sharding.Mesh,
         workdir: pathlib.Path | None = None, shared=None,
         max_trace_tokens: int = 0) -> Judge | ByDomain:
  """The judge of a config.

  Args:
    config: its `judge`, and the reward that it is to give.
    mesh: to judge on.
    workdir: for the cache of verdicts; None: none is kept.
    shared: (folder, ModelConfig, parameters) of a frozen copy that is loaded
      already: it is the judge, too, if it is the same checkpoint.
    max_trace_tokens: where the config does not say; 0: the policy's budget.
  """
  cfg, folder = config.judge, config_lib.resolve(config.judge.init)
  if shared and (folder, cfg.dtype, cfg.weights) == (shared[0], shared[1].dtype,
                                                     ''):
    _, model, params = shared
  else:
    model, params = hf.load(folder, mesh, cfg.dtype, frozen=True,
                            weights=cfg.weights)
  cache = None
  if workdir and cfg.cache:
    cache = cache_lib.Cache(workdir / 'verdicts.sqlite')
  name = cache_lib.digest(folder) if cache else ''
  tokenizer = Tokenizer(folder)
  room = (cfg.max_trace_tokens or max_trace_tokens
          or config.rollout.max_new_tokens)

  def judge(template, task):
    return Judge(dataclasses.replace(cfg, template=template), model, params,
                 tokenizer, mesh, task, room, cache, name)

  default = judge(cfg.template,
                  'process' if config.reward == 'process' else 'outcome')
  domains = {d: judge(*pair) for d, pair in by_domain(config).items()}
  return ByDomain(default, domains) if domains else default


def check(config: config_lib.Config, problems: Sequence[Problem]) -> None:
  """Whether the config's judge can be asked about the problems; no weights
  are read.

  Raises:
    InputError: no such model or template, they do not suit each other, or a
      problem has no rubric.
  """
  folder = config_lib.resolve(config.judge.init)
  model_config.read_config(folder)
  tokenizer = Tokenizer(folder)
  task = 'process' if config.reward == 'process' else 'outcome'
  for template, task_ in {(config.judge.template, task),
                          *by_domain(config).values()}:
    prompts.load(dataclasses.replace(config.judge, template=template),
                 tokenizer, task_)
  check_rubrics(config.judge, problems)


def check_readable(cfg: config_lib.Judge, verdicts: Verdicts) -> None:
  """Whether enough traces have verdicts.

  Raises:
    RuntimeError: more than judge.max_invalid_frac have none; says why.
  """
  bad = (verdicts.exists & ~verdicts.readable).any(axis=1).mean()
  if bad <= cfg.max_invalid_frac:
    return
  worst = max(
      readout.REMEDY, key=lambda name:
      (verdicts.outcome == readout.OUTCOMES.index(name)).any(axis=1).sum())
  raise RuntimeError(
      f'{bad:.0%} of the traces have no verdict, more than '
      f'judge.max_invalid_frac={cfg.max_invalid_frac}; most are {worst}: '
      f'{readout.REMEDY[worst].format(judge=cfg)}')


def check_rubrics(cfg: config_lib.Judge, problems: Sequence[Problem]) -> None:
  """Whether all problems have what the config's judge is to be shown.

  Raises:
    InputError: one has not; names it.
  """
  for p in problems:
    if cfg.reference != 'solution' and not p.rubric:
      raise InputError(f'problem {p.id} has no rubric (judge.reference='
                       f"{cfg.reference!r}); run='prepare' writes them")
    if cfg.verdict == 'checkpoints' and not p.checkpoints:
      raise InputError(f'problem {p.id} has no rubric of checkpoints '
                       "(judge.verdict='checkpoints'); run='prepare' writes "
                       'them')
