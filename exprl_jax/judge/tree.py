"""The judge: a frozen language model that scores traces from 1 to 5.

It reads the problem, the reference and the trace, and is asked for a score at
the end of every step. All of this is a tree of forked sequences, and the
rollout engine computes each part of it once: instructions, problem and
reference are a prefix that all traces of a problem share, a trace continues it,
and each question is forked off the trace at the end of its step. docs/judge.md
counts the tokens.
"""

import abc
from collections.abc import Mapping, Sequence
import copy
import dataclasses
import itertools
from typing import Any, NamedTuple, TypeVar

import jax
from jaxtyping import Bool, Float, Int8
import numpy as np

from exprl_jax import config as config_lib
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.judge import cache as cache_lib
from exprl_jax.judge import groups, layout, prompts, readouts
from exprl_jax.judge.readouts import Judgment
from exprl_jax.judge.readouts.base import TracePrefix
from exprl_jax.models.config import ModelConfig
from exprl_jax.rollout import decode
from exprl_jax.rollout.engine import Engine
from exprl_jax.rollout.options import Options
from exprl_jax.rollout.requests import Request, Sample, Sampling, SharedPrefix
from exprl_jax.types import Params, Problem

_S = TypeVar('_S', bound='Scorer')
Item = tuple[Problem, Sequence[str]]  # a trace as the texts of its steps

# In the cache key: how prompts are made of texts.
_ENCODING = 'whole texts'

# Keys of config.judge that cannot change a judgment, or whose effect is in the
# cache key by itself: texts of steps, digest of the weights, text of the
# template, truncation. Every other key is part of the cache key.
NOT_IN_CACHE_KEY = frozenset({
    'init', 'template', 'templates', 'delimiter', 'max_steps',
    'min_step_tokens', 'group_traces', 'thinking', 'resolution',
    'max_trace_tokens', 'max_invalid_frac', 'max_probe_score', 'min_separation',
    'check_tokens', 'monitor_window', 'monitor_rise', 'cache', 'overlap',
    'slots', 'page', 'pages', 'kernel', 'traces', 'panel', 'combine',
    'endpoint_key', 'endpoint_requests', 'endpoint_timeout', 'endpoint_retries'
})


class Judgments(NamedTuple):
  """What the judge says of N traces at up to S steps."""

  score: Float[np.ndarray, 'N S']  # f32 in [0, 1]
  score_token_probability: Float[np.ndarray, 'N S']  # f32, of all five scores
  status: Int8[np.ndarray, 'N S']  # index into STATUSES; -1: no such step
  truncated: Bool[np.ndarray, ' N']  # too long, judged without its middle
  texts: list[list[str]]  # rationales, by step

  @property
  def exists(self) -> Bool[np.ndarray, 'N S']:
    """Steps that there are."""
    return self.status >= 0

  @property
  def readable(self) -> Bool[np.ndarray, 'N S']:
    """Steps with a score."""
    return (self.status == readouts.OK) | (self.status == readouts.EMPTY)

  def take(self, rows: np.ndarray) -> 'Judgments':
    """Selects traces."""
    return Judgments(score=self.score[rows],
                     score_token_probability=self.score_token_probability[rows],
                     status=self.status[rows], truncated=self.truncated[rows],
                     texts=[self.texts[i] for i in rows])


def unasked(shape: tuple[int, int]) -> Judgments:
  """Makes judgments of N traces without steps, to be filled in."""
  return Judgments(np.zeros(shape, np.float32), np.zeros(shape, np.float32),
                   np.full(shape, -1, np.int8), np.zeros(shape[0], bool), [])


def concatenate(parts: Sequence[Judgments]) -> Judgments:
  """Judgments of several lists of traces, with equal S."""
  return Judgments(
      score=np.concatenate([p.score for p in parts]),
      score_token_probability=np.concatenate([
          p.score_token_probability for p in parts
      ]), status=np.concatenate([p.status for p in parts]),
      truncated=np.concatenate([p.truncated for p in parts]),
      texts=[text for p in parts for text in p.texts])


def cache_name(cfg: config_lib.Judge) -> list[Any]:
  """The part of the cache key that the config's `judge` makes."""
  return [[field.name, getattr(cfg, field.name)]
          for field in dataclasses.fields(cfg)
          if field.name not in NOT_IN_CACHE_KEY]


def engine_options(cfg: config_lib.Judge, template: prompts.Template,
                   tokenizer: Tokenizer, max_trace_tokens: int,
                   dtype: str) -> Options:
  """The engine's sizes: prompt, trace (with a gap) and answer in a row."""
  read = cfg.max_prompt_tokens + trace_room(cfg, max_trace_tokens)
  answer = readouts.READOUTS[cfg.readout].max_new_tokens(template, cfg)
  return Options(cfg.slots, read + len(tokenizer.encode(layout.GAP)) + answer,
                 cfg.page, cfg.pages, prefill=min(256, -(-read // 32) * 32),
                 widths=(16, 64, 256, 1024), dtype=cfg.kv_dtype or dtype,
                 kernel=cfg.kernel, weights=cfg.weights, config_section='judge')


def trace_room(cfg: config_lib.Judge, max_trace_tokens: int) -> int:
  """Counts the tokens that traces may take in one prompt."""
  if cfg.judgment == 'group':
    return groups.room(max_trace_tokens, cfg.group_traces)
  return max_trace_tokens


class Scorer(abc.ABC):
  """What all judges do: they cut, remember, and lay out what they found."""

  cfg: config_lib.Judge
  tokenizer: Tokenizer
  _cache: cache_lib.Cache | None
  _cache_name: list[Any]
  _max_trace_tokens: int

  def score(self, items: Sequence[Item], max_steps: int) -> Judgments:
    """Scores the trace up to the end of each step (or each step alone).

    Args:
      items: (problem, texts of the steps), 1 to `max_steps` steps each; traces
        of a problem should be neighbors. With judgment='group', those of a
        problem are compared with each other, and have one score, at their end.
      max_steps: S of the result.
    """
    if self.cfg.judgment == 'group':
      return self._score_together(items, max_steps)
    return self._score(items, max_steps)

  def _score_together(self, items: Sequence[Item], max_steps: int) -> Judgments:
    """Scores whole traces, those of a problem in common readings."""
    texts = [self.tokenizer.separator.join(steps) for _, steps in items]
    asked, places = groups.readings([p for p, _ in items], texts,
                                    self.cfg.group_traces)
    found = self._score(asked, self.cfg.group_traces)
    out = unasked((len(items), max_steps))
    for i, (text, place) in enumerate(zip(texts, places)):
      steps = len(items[i][1])
      end = i, steps - 1
      out.status[end] = found.status[place] if place else readouts.EMPTY
      out.texts.append([''] * steps)
      if place:
        out.score[end] = found.score[place]
        out.score_token_probability[end] = found.score_token_probability[place]
        out.truncated[i] = self._is_long([text])
        out.texts[i][-1] = found.texts[place.reading][place.member]
    return out

  def _score(self, items: Sequence[Item], max_steps: int) -> Judgments:
    """Scores traces one by one, or readings with traces in place of steps."""
    keys = [self._key(*item) for item in items]
    cached = self._cache.get(keys) if self._cache else []
    known = {k: x for k, x in zip(keys, cached) if x is not None}
    # Traces that occur twice are judged once.
    missing = {k: item for k, item in zip(keys, items) if k not in known}
    known |= self._judge_missing(missing)
    out = unasked((len(items), max_steps))
    for i, (k, (_, steps)) in enumerate(zip(keys, items)):
      out.truncated[i] = self._is_long(steps)
      out.texts.append([j.text for j in known[k]])
      for s, j in enumerate(known[k]):
        out.score[i, s], out.status[i, s] = j.score, j.status
        out.score_token_probability[i, s] = j.score_token_probability
    return out

  def _key(self, problem: Problem, steps: Sequence[str]) -> bytes:
    return cache_lib.key(*self._cache_name, problem.question, problem.solution,
                         problem.rubric, problem.rubric_items, list(steps),
                         self._is_long(steps) and self._max_trace_tokens)

  @abc.abstractmethod
  def _judge_missing(
      self, items: Mapping[bytes, Item]) -> dict[bytes, list[Judgment]]:
    """Judges traces, by key, and remembers the judgments."""

  def _traces(self, problem: Problem,
              steps: Sequence[str]) -> list[layout.Trace]:
    """The trace, each of its steps as one, or several traces as one."""
    if self.cfg.judgment == 'group':
      return [
          groups.lay_out(self.tokenizer, problem, steps, self._max_trace_tokens)
      ]
    parts: list[Sequence[str]] = [steps]
    if self.cfg.context == 'segment':
      parts = [[step] for step in steps]
    questions = [('', 1.0)]
    if self.cfg.judgment == 'rubric_items':
      questions = [(item.text, item.points) for item in problem.rubric_items]
    return [
        layout.Trace(
            problem,
            layout.prefixes(self.tokenizer, part, self._max_trace_tokens),
            prompts.nonce(problem, list(part)), [questions] * len(part))
        for part in parts
    ]

  def _is_long(self, steps: Sequence[str]) -> bool:
    """Whether a trace, or a part that is read by itself, loses its middle."""
    apart = self.cfg.context == 'segment' or self.cfg.judgment == 'group'
    texts = steps if apart else [self.tokenizer.separator.join(steps)]
    return not all(
        layout.fits(self.tokenizer, text, self._max_trace_tokens)
        for text in texts)

  def with_cache(self: _S, cache: cache_lib.Cache) -> _S:
    """The same judge, on its engine or client, that remembers elsewhere."""
    other = copy.copy(self)
    other._cache = cache
    return other

  def of(self: _S, problem: Problem) -> _S:
    """The judge of a problem: this one."""
    del problem
    return self

  def usage(self) -> dict[str, float]:
    """Metrics of what was asked for since the last call; of most, none."""
    return {}


class Judge(Scorer):
  """A judge on a mesh."""

  def __init__(self, cfg: config_lib.Judge, model: ModelConfig, params: Params,
               tokenizer: Tokenizer, mesh: jax.sharding.Mesh, task: str,
               max_trace_tokens: int, cache: cache_lib.Cache | None = None,
               weights_name: str = '', options: Options | None = None):
    """Renders the template and sizes the engine.

    Args:
      cfg: the config's `judge`.
      model: the decoder.
      params: its parameters, in any sharding.
      tokenizer: the judge's.
      mesh: to judge on.
      task: 'outcome' or 'process'.
      max_trace_tokens: longer traces lose their middle.
      cache: earlier judgments, and where new ones go.
      weights_name: of the parameters, in the cache.
      options: the engine's sizes; None: `engine_options`.

    Raises:
      InputError: the template does not suit the tokenizer.
    """
    self.cfg, self.model, self.params = cfg, model, params
    self.tokenizer, self._mesh, self._task = tokenizer, mesh, task
    self._readout = readouts.READOUTS[cfg.readout]
    self.template = prompts.load(cfg, tokenizer, task, self._readout.generates)
    self._cache, self.weights_name = cache, weights_name
    self._cache_name = [
        _ENCODING, weights_name, task, self.template.text,
        cache_name(cfg)
    ]
    self._max_trace_tokens = max_trace_tokens
    self._gap_tokens = len(tokenizer.encode(layout.GAP))
    self._options = options or engine_options(cfg, self.template, tokenizer,
                                              max_trace_tokens, model.dtype)
    self.engine = Engine(model, mesh, self._options, tokenizer.decode)

  def _judge_missing(
      self, items: Mapping[bytes, Item]) -> dict[bytes, list[Judgment]]:
    out = dict(zip(items, self._judge(list(items.values()))))
    if self._cache:
      self._cache.put(out.items())
    return out

  def _judge(self, items: Sequence[Item]) -> list[list[Judgment]]:
    """Judgments of every step of every item."""
    out = [
        [Judgment(0.0, 0.0, readouts.EMPTY)] * len(steps) for _, steps in items
    ]
    traces: list[layout.Trace] = []
    owners: list[tuple[int, int]] = []  # (item, number of its first step)
    for i, (problem, steps) in enumerate(items):
      if ''.join(steps).strip():
        made = self._traces(problem, steps)
        owners += [(i, step) for step in range(len(made))]
        traces += made
    laid_out = layout.lay_out(self.template, traces)
    overlong = {
        i for (i, _), trace in zip(owners, laid_out) if self._too_long(trace)
    }
    for i in overlong:
      out[i] = [Judgment(0.0, 0.0, readouts.OVERLONG)] * len(out[i])
    asked = [(i, first, trace)
             for (i, first), trace in zip(owners, laid_out)
             if i not in overlong]
    answers = self._readout.read([trace for _, _, trace in asked], self._ask,
                                 self.template, self.cfg)
    for (i, first, trace), judgments in zip(asked, answers):
      by_step = itertools.groupby(zip(trace.questions, judgments),
                                  lambda pair: pair[0].step)
      for step, group in by_step:
        pairs = list(group)
        out[i][first + step] = readouts.weighted([j for _, j in pairs],
                                                 [q.weight for q, _ in pairs])
    return out

  # Laying out.

  @property
  def template_text(self) -> str:
    """The template's file, for probes."""
    return self.template.text

  def _too_long(self, trace: TracePrefix) -> bool:
    """Whether a prompt has no place, with or without its trace."""
    longest = max(q.fork.at + len(q.fork.suffix) for q in trace.questions)
    around = trace.start + max(len(q.fork.suffix) for q in trace.questions)
    limit = self.cfg.max_prompt_tokens
    room = trace_room(self.cfg, self._max_trace_tokens) + self._gap_tokens
    return around > limit or longest > limit + room

  # Asking.

  def _ask(self, traces: Sequence[TracePrefix],
           sampling: Sampling) -> list[list[Sample]]:
    """One sample for every question about every trace."""
    prefixes: dict[tuple[int, ...], SharedPrefix] = {}
    requests, count = [], 0
    for trace in traces:
      prefix = prefixes.setdefault(tuple(trace.tokens[:trace.shared]),
                                   SharedPrefix(len(prefixes), trace.shared))
      requests.append(
          Request(trace.tokens, count, len(trace.questions), sampling,
                  [q.fork for q in trace.questions], shared_prefix=prefix))
      count += len(trace.questions)
    if not requests:
      return []
    params = decode.prepare(self.model, self.params, self._mesh)
    samples = iter(self.engine.generate(params, requests, jax.random.key(0)))
    out = [list(itertools.islice(samples, len(t.questions))) for t in traces]
    self.engine.release()
    return out

  def count_tokens(self, item: Item) -> tuple[int, int]:
    """Counts what judging a trace takes: tokens that all traces of its problem
    share, and its own, written rationales at their longest."""
    laid_out = layout.lay_out(self.template, self._traces(*item))
    answer = self._readout.max_new_tokens(self.template, self.cfg)
    own = sum(
        len(t.tokens) - t.shared +
        sum(len(q.fork.suffix) + answer for q in t.questions) for t in laid_out)
    return max((t.shared for t in laid_out), default=0), own

  def with_readout(self, name: str) -> 'Judge':
    """The same judge with another readout."""
    return Judge(dataclasses.replace(self.cfg, readout=name), self.model,
                 self.params, self.tokenizer, self._mesh, self._task,
                 self._max_trace_tokens, self._cache, self.weights_name)
