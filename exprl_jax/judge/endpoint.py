"""A judge behind an OpenAI-compatible endpoint: asked in words, over HTTP."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax

from exprl_jax import config as config_lib
from exprl_jax.data import chat as chat_lib
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.judge import cache as cache_lib
from exprl_jax.judge import chats, readouts
from exprl_jax.judge.client import Asking, Client, Question
from exprl_jax.judge.readouts import Judgment
from exprl_jax.judge.tree import Item, Scorer, cache_name
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import stopping
from exprl_jax.types import InputError, Problem, StartAgain

_POLL = 5.0  # seconds between two looks at whether the run has to stop


class _Asked(NamedTuple):
  """A question about a step of a trace."""

  key: bytes  # of the trace
  step: int
  weight: float
  question: Question


class EndpointJudge(Scorer):
  """A judge without weights: a service reads the prompts and writes scores.

  Process 0 asks and tells the others. Every question is a whole prompt: whether
  parts that questions share are computed once is up to the service.
  """

  params: tuple[()] = ()
  model = engine = None
  weights_name = ''  # what a service's model is may change: see judge_check

  def __init__(self, cfg: config_lib.Judge, client: Client,
               tokenizer: Tokenizer, task: str, max_trace_tokens: int,
               cache: cache_lib.Cache | None = None):
    """Reads the template.

    Args:
      cfg: the config's `judge`.
      client: to ask.
      tokenizer: that steps are cut and prompts are counted with.
      task: 'outcome' or 'process'.
      max_trace_tokens: longer traces lose their middle.
      cache: earlier judgments, and where new ones go.

    Raises:
      InputError: the template is not as it should be.
    """
    self.cfg, self.tokenizer, self._client = cfg, tokenizer, client
    self.template = chats.load(cfg, task)
    self._cache, self._max_trace_tokens = cache, max_trace_tokens
    self._cache_name = [
        'endpoint', task, self.template.text,
        tokenizer.digest(),
        cache_name(cfg)
    ]

  def _judge_missing(
      self, items: Mapping[bytes, Item]) -> dict[bytes, list[Judgment]]:
    """Asks about traces; judgments whose questions have answers are kept."""
    # 1. Questions; some traces need none.
    out: dict[bytes, list[Judgment]] = {}
    asked: list[_Asked] = []
    for key, (problem, steps) in items.items():
      own = self._questions(key, problem, steps)
      status = readouts.OVERLONG if own is None else readouts.EMPTY
      out[key] = [Judgment(0.0, 0.0, status)] * len(steps)
      asked += own or []
    # 2. Answers, and what they say.
    answers: dict[int, str | None] = {}
    try:
      self._ask([a.question for a in asked], answers)
    finally:  # what is known stays known, whatever ends the run
      open_ = {a.key for i, a in enumerate(asked) if answers.get(i) is None}
      for key, judgments in self._read(asked, answers).items():
        out[key] = judgments
      if self._cache:
        self._cache.put((k, j) for k, j in out.items() if k not in open_)
    return out

  def _questions(self, key: bytes, problem: Problem,
                 steps: Sequence[str]) -> list[_Asked] | None:
    """The questions about a trace; None: it is too long."""
    out: list[_Asked] = []
    if not ''.join(steps).strip():
      return out
    for first, trace in enumerate(self._traces(problem, steps)):
      for step, (text, asked) in enumerate(zip(trace.texts, trace.questions)):
        for item, weight in asked:
          around = self.template.count(self.tokenizer, problem, trace.nonce, '',
                                       item)
          if around > self.cfg.max_prompt_tokens:
            return None
          messages = functools.partial(self.template.messages, problem,
                                       trace.nonce, text, item)
          out.append(_Asked(key, first + step, weight, messages))
    return out

  def _read(self, asked: Sequence[_Asked],
            answers: Mapping[int, str | None]) -> dict[bytes, list[Judgment]]:
    """Judgments of the traces that were asked about, by step."""
    found: dict[bytes, dict[int, list[tuple[Judgment, float]]]] = {}
    for i, a in enumerate(asked):
      text = answers.get(i)
      judgment = (Judgment(0.0, float('nan'), readouts.UNREADABLE) if text
                  is None else self.template.judgment(text, self.cfg.scale))
      found.setdefault(a.key, {}).setdefault(a.step, []).append(
          (judgment, a.weight))
    return {
        key: [readouts.weighted(*zip(*steps[s]))
              for s in sorted(steps)]
        for key, steps in found.items()
    }

  def _ask(self, questions: Sequence[Question],
           answers: dict[int, str | None]) -> None:
    """Asks, in process 0, and tells the others.

    Args:
      questions: the same in all processes.
      answers: takes the answers by number.

    Raises:
      InputError: the service does not let us in.
      StartAgain: it is down, or the run was asked to stop.
    """
    if not questions:
      return
    asking = None
    if jax.process_index() == 0:
      asking = Asking(self._client, questions, self._body())
    try:
      while mesh_lib.broadcast(bool(asking and asking.wait(_POLL))):
        stopping.poll('judging')
    finally:
      if asking:
        asking.stop()
        answers.update(asking.answers)
    # All processes go on, or end, alike.
    error = asking.error if asking else None
    if error and not isinstance(error, (InputError, StartAgain)):
      raise error
    kind, said, found = mesh_lib.broadcast(
        [type(error).__name__ if error else '', str(error),
         list(answers.items())])  # yapf: disable
    answers.update(found)
    if kind:
      raise (InputError if kind == 'InputError' else StartAgain)(said)

  @property
  def template_text(self) -> str:
    """As Judge.template_text."""
    return self.template.text

  def _body(self) -> dict[str, Any]:
    """Fields of a request beside model and messages."""
    options = chat_lib.template_options(self.cfg.chat_template_options)
    # vLLM and SGLang take variables of the chat template by this name.
    more = {'chat_template_kwargs': options} if options else {}
    return {'max_tokens': self.template.max_tokens} | more

  def count_tokens(self, item: Item) -> tuple[int, int]:
    """As Judge.count_tokens; nothing is shared."""
    problem, steps = item
    own = sum(
        self.template.count(self.tokenizer, problem, trace.nonce, text, about) +
        self.template.max_tokens
        for trace in self._traces(problem, steps)
        for text, asked in zip(trace.texts, trace.questions)
        for about, _ in asked)
    return 0, own

  def usage(self) -> dict[str, float]:
    """Metrics of what was asked for since the last call."""
    return self._client.usage()

  def with_readout(self, name: str) -> 'EndpointJudge':
    """The same judge, which has one readout.

    Raises:
      InputError: another one is asked for.
    """
    if name != 'generate':
      raise InputError(f'judge.endpoint={self.cfg.endpoint} answers in words: '
                       f"readout 'generate', not {name!r}")
    return self
