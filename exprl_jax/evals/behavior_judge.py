"""The judge counts behaviors in traces.

It reads problem and trace, never the reference, by the rubric of
judge/questions/behaviors.txt. evals/behaviors.py defines the kinds.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import hashlib
import json
import re
from typing import Any, NamedTuple

from etils import epath
import jax

from exprl_jax.config import Config
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.evals.behaviors import COUNTED, KINDS
from exprl_jax.evals.held_out import Item
from exprl_jax.judge import prompts
from exprl_jax.judge.questions import QuestionPrompt
from exprl_jax.models import config as model_config
from exprl_jax.models import hf, references
from exprl_jax.models.config import ModelConfig
from exprl_jax.rollout import decode
from exprl_jax.rollout.engine import Engine
from exprl_jax.rollout.options import Options
from exprl_jax.rollout.requests import Request, Sample, Sampling, SharedPrefix
from exprl_jax.runtime import jsonl
from exprl_jax.types import InputError, Params, Problem

_RETRY_TEMPERATURE = 0.7  # the first try is greedy
_MAX_COUNT = 1000  # a higher count is a mistake

Row = dict[str, Any]  # of a sample; docs/evaluation.md lists the fields
# Called as generate(requests, key, done).
Generate = Callable[[list[Request], jax.Array, Callable[[int, Sample], None]],
                    object]


def parse(text: str) -> dict[str, int]:
  """Parses a judge's answer: the last JSON object after any '</think>'.

  Raises:
    ValueError: no such object, or one that has not exactly KINDS, each a count
      or, but for COUNTED, 0 or 1.
  """
  objects = re.findall(r'\{[^{}]*\}', text.rpartition('</think>')[2])
  if not objects:
    raise ValueError('no JSON object in it')
  try:
    row = json.loads(objects[-1])
  except json.JSONDecodeError:
    raise ValueError(f'not JSON: {objects[-1][:60]!r}') from None
  if set(row) != set(KINDS):
    raise ValueError(f'keys {", ".join(sorted(row))}; want {", ".join(KINDS)}')
  for kind in KINDS:
    most = _MAX_COUNT if kind in COUNTED else 1
    if type(row[kind]) is not int or not 0 <= row[kind] <= most:
      raise ValueError(f'{kind}={row[kind]!r} is no number from 0 to {most}')
  return {kind: row[kind] for kind in KINDS}


class Trace(NamedTuple):
  """A trace to count in."""

  number: int  # of its request; its draws depend on it
  problem: Problem
  text: str


class BehaviorJudge:
  """The judge as a counter; loads its weights for the first trace."""

  def __init__(self, config: Config, mesh: jax.sharding.Mesh) -> None:
    """Takes judge.init, its sizes, rubrics.max_new_tokens and rubrics.tries.

    Raises:
      InputError: no such model.
    """
    self._config, self._mesh = config, mesh
    folder = references.folder_of(config.judge.init)
    model_config.read_config(folder)
    self._prompt = QuestionPrompt(Tokenizer(folder), 'behaviors')
    self._model: tuple[ModelConfig, Params] | None = None

  def complete_file(self, path: epath.Path, items: Sequence[Item],
                    rows: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """Counts in samples, and keeps the counts in a JSON Lines file.

    Args:
      path: of the file; counts that it has already are not asked for again.
      items: the P problems.
      rows: samples [P][n].

    Returns:
      Counts [P][n]; {'failed': why} where the judge failed.

    Raises:
      InputError: the file has other content.
    """
    samples = {(r['set'], r['id'], r['sample']): r for rs in rows for r in rs}
    counts = _resume(path, samples)
    keys = list(samples)
    problems = {(item.set, item.problem.id): item.problem for item in items}
    with jsonl.Writer(path) as write:

      def done(i: int, counted: Row) -> None:
        key = set_, id_, sample = keys[i]
        counts[key] = {
            'id': id_, 'set': set_, 'sample': sample,
            **counted, 'digest': _digest(samples[key]['text'])
        }
        write(counts[key])

      self.count([
          Trace(i, problems[key[:2]], samples[key]['text'])
          for i, key in enumerate(keys)
          if key not in counts
      ], done)
    return [[counts[r['set'], r['id'], r['sample']] for r in rs] for rs in rows]

  def count(self, traces: Sequence[Trace], write: Callable[[int, Row],
                                                           None]) -> None:
    """Counts in traces.

    Args:
      traces: with distinct numbers.
      write: called with a trace's number and its counts by KINDS as soon as it
        is done, or with {'failed': why} after the last try.
    """
    judge, cfg = self._config.judge, self._config.rubrics
    # 1. Prompts; those that are too long fail.
    prompts_, shared = self._prompt.encode([{
        'problem': t.problem.question, 'trace': t.text,
        'nonce': prompts.nonce(t.problem, [t.text])
    } for t in traces])
    todo = {t.number: ids for t, ids in zip(traces, prompts_)}
    limit = judge.max_prompt_tokens + (judge.max_trace_tokens
                                       or self._config.rollout.max_new_tokens)
    for i in [i for i, ids in todo.items() if len(ids) > limit]:
      write(
          i, {
              'failed': f'its prompt has {len(todo.pop(i))} tokens; judge.'
              f'max_prompt_tokens and max_trace_tokens allow {limit}'
          })
    if not todo:
      return
    generate = self._generator(
        max(map(len, todo.values())) + cfg.max_new_tokens)
    # 2. Tries, each of the traces that are left.
    failed: dict[int, str] = {}

    def done(i: int, sample: Sample) -> None:
      try:
        counts = self._parse(sample)
      except ValueError as e:
        failed[i] = str(e)
        return
      del todo[i]
      write(i, counts)

    key = jax.random.key(self._config.seed)
    for attempt in range(cfg.tries):
      generate(self._requests(todo, shared, attempt),
               jax.random.fold_in(key, attempt), done)
    for i in todo:
      write(i, {'failed': failed[i]})

  def _generator(self, max_tokens: int) -> Generate:
    judge = self._config.judge
    if self._model is None:
      model, params = hf.load(references.folder_of(judge.init), self._mesh,
                              judge.dtype, frozen=True, weights=judge.weights)
      self._model = model, decode.prepare(model, params, self._mesh)
    model, params = self._model
    options = Options(judge.slots, max_tokens, judge.page, judge.pages,
                      dtype=model.dtype)
    return functools.partial(
        Engine(model, self._mesh, options).generate, params)

  def _requests(self, todo: Mapping[int, list[int]], shared: int,
                attempt: int) -> list[Request]:
    sampling = Sampling(self._config.rubrics.max_new_tokens,
                        _RETRY_TEMPERATURE if attempt else 0.0,
                        eos_ids=self._prompt.tokenizer.eos_ids)
    prefix = SharedPrefix(0, shared) if shared else None
    return [
        Request(ids, i, 1, sampling, shared_prefix=prefix)
        for i, ids in todo.items()
    ]

  def _parse(self, sample: Sample) -> Row:
    if sample.finish_reason != 'eos':
      raise ValueError('it has no end within rubrics.max_new_tokens='
                       f'{self._config.rubrics.max_new_tokens}')
    return parse(self._prompt.tokenizer.decode(sample.tokens[:-1].tolist()))


def _resume(path: epath.Path, samples: Mapping[tuple[str, str, int],
                                               Row]) -> dict[Any, Row]:
  """Returns the file's counts, by sample; drops those of other texts."""
  counts: dict[Any, Row] = {}

  def keep(row: Row) -> bool:
    key = row['set'], row['id'], row['sample']
    if key not in samples or row['digest'] != _digest(samples[key]['text']):
      return False
    counts[key] = row
    return True

  try:
    jsonl.resume(path, keep)
  except (ValueError, KeyError, TypeError) as e:
    raise InputError(f'{path} has other content ({e}); choose a new '
                     '--workdir') from None
  return counts


def _digest(text: str) -> str:
  return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
