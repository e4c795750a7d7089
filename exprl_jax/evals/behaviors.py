"""What traces do beside going forward: counts by words, or by the judge.

  verification     checks what it has
  backtracking     leaves a line of attack for another
  self_correction  takes back what it has written
  restart          begins the whole again

Counting by words is crude: it sees what a trace says, not what it does ('let
me check' and no check), and English only. The judge reads problem and trace,
never the reference, by the rubric of judge/questions/behaviors.txt.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import pathlib
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from exprl_jax.config import Config, resolve
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.judge import prompts
from exprl_jax.models import config as model_config
from exprl_jax.models import hf
from exprl_jax.rollout import decode, engine
from exprl_jax.rollout.requests import Request, Sample, Sampling, SharedPrefix
from exprl_jax.types import Problem

KINDS = ('verification', 'backtracking', 'self_correction', 'restart')
TEMPLATE = pathlib.Path(prompts.__file__).parent / 'questions/behaviors.txt'
_AGAIN = 0.7  # temperature of all tries but the first, which is greedy
_MOST = 1000  # a higher count is no count
_SLOTS = re.compile('{(problem|nonce|trace)}')

# Phrases that open such a passage. A phrase belongs to one kind; spaces match
# any white space.
WORDS = {
    'verification': ('(?:double|cross)(?:-| )check', 'sanity check',
                     'check (?:that|'
                     'this|it|my|our|the|whether|if)', 'to check',
                     'verify(?:ing)?', 'let me confirm', 'to confirm',
                     'plug(?:ging)? (?:it |this |these |'
                     'them )?back',
                     'substitut(?:e|ing) (?:it |this |these |them )?back'),
    'backtracking': (
        'backtrack(?:ing)?', 'go(?:ing)? back to', 'dead end', 'alternatively',
        '(?:another|a different|an alternative) (?:approach|way|method|idea)',
        '(?:doesn\'t|does not|didn\'t|did not|won\'t|will not) work',
        'instead,? (?:let|i|we) (?:me|us|will|can|could|try)',
        'instead,? (?:let\'s|try)'),
    'self_correction': (
        'wait', 'oops', 'scratch that', 'correction', 'i was wrong',
        '(?:made|make) (?:a|an) (?:\\w+ )?(?:mistake|error)', 'my mistake',
        'that(?:\'s| is| was) (?:wrong|incorrect|not right|a mistake)',
        'no, (?:that|it|this)'),
    'restart': ('start(?:ing)? (?:over|again|afresh)', 'restart(?:ing)?',
                'from scratch', 'begin(?:ning)? again',
                'from the (?:very )?beginning',
                'let me redo (?:this|it|everything|the whole)'),
}
_FIND = {
    kind: re.compile(r'\b(?:' + '|'.join(phrases).replace(' ', r'\s+') + r')\b',
                     re.IGNORECASE) for kind, phrases in WORDS.items()
}


def count_words(text: str) -> dict[str, int]:
  """How often the phrases of each kind occur, by KINDS."""
  text = text.replace('\u2019', "'")
  return {kind: len(find.findall(text)) for kind, find in _FIND.items()}


def parse(text: str) -> dict[str, int]:
  """The counts that a judge has written: its last JSON object.

  What stands before a last '</think>' is passed over.

  Raises:
    ValueError: there is none, or it is not of the four counts.
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
    if type(row[kind]) is not int or not 0 <= row[kind] <= _MOST:
      raise ValueError(f'{kind}={row[kind]!r} is no count')
  return {kind: row[kind] for kind in KINDS}


class Trace(NamedTuple):
  """What is to be read."""

  number: int  # of its request; its draws depend on it
  problem: Problem
  text: str


class Prompt:
  """questions/behaviors.txt in the judge's own chat format, as token ids.

  Problem, nonce and trace are filled in as ids, in one pass and with special
  tokens disarmed. The reference is not among them.
  """

  def __init__(self, tokenizer: Tokenizer):
    self.tokenizer = tokenizer
    sections = re.split(r'^\[(system|user)\]\n', TEMPLATE.read_text(),
                        flags=re.MULTILINE)
    pieces = _SLOTS.split(
        tokenizer.render([{'role': role, 'content': text.strip()}
                          for role, text in zip(sections[1::2], sections[2::2])
                         ]))
    self._slots = pieces[1::2]
    first, *self._texts = [
        tokenizer.encode(text, special=True) for text in pieces[::2]
    ]
    self.head = first  # the same for all traces

  def __call__(self, trace: Trace) -> list[int]:
    """The whole prompt."""
    ids = list(self.head)
    values = {
        'problem': trace.problem.question, 'trace': trace.text,
        'nonce': prompts.nonce(trace.problem, [trace.text])
    }
    for slot, text in zip(self._slots, self._texts):
      ids += self.tokenizer.encode(values[slot]) + text
    return ids


class Reader:
  """The judge, counting. Its weights are read when the first trace needs it."""

  def __init__(self, config: Config, mesh: jax.sharding.Mesh):
    """Takes judge.init, its sizes, rubrics.max_new_tokens and rubrics.tries.

    Raises:
      InputError: there is no such model.
    """
    self._config, self._mesh = config, mesh
    folder = resolve(config.judge.init)
    model_config.read_config(folder)
    self._prompt = Prompt(Tokenizer(folder))
    self._model = None

  def read(self, traces: Sequence[Trace], write: Callable[[int, dict[str, Any]],
                                                          None]) -> None:
    """Counts in all traces.

    Args:
      traces: their numbers are distinct.
      write: told of each as soon as it is read, by its number: the counts by
        KINDS, or {'failed': why} when none of the tries could be read.
    """
    judge, room = self._config.judge, self._config.rubrics.max_new_tokens
    todo = {t.number: self._prompt(t) for t in traces}
    most = judge.max_prompt_tokens + (judge.max_trace_tokens
                                      or self._config.rollout.max_new_tokens)
    for i in [i for i, ids in todo.items() if len(ids) > most]:
      write(
          i, {
              'failed': f'its prompt has {len(todo.pop(i))} tokens; judge.'
              f'max_prompt_tokens and max_trace_tokens allow {most}'
          })
    if not todo:
      return
    generate = self._engine(max(map(len, todo.values())) + room)
    failed = {}

    def done(i: int, sample: Sample) -> None:
      try:
        counts = self._read(sample)
      except ValueError as e:
        failed[i] = str(e)
        return
      del todo[i]
      write(i, counts)

    key = jax.random.key(self._config.seed)
    for attempt in range(self._config.rubrics.tries):
      generate(self._requests(todo, attempt), jax.random.fold_in(key, attempt),
               done)
    for i in todo:
      write(i, {'failed': failed[i]})

  def _engine(self, longest: int):
    judge = self._config.judge
    if self._model is None:
      model, params = hf.load(resolve(judge.init), self._mesh, judge.dtype,
                              frozen=True, weights=judge.weights)
      self._model = model, decode.prepare(model, params, self._mesh)
    model, params = self._model
    reader = engine.Engine(
        model, self._mesh,
        engine.Options(judge.slots, longest, judge.page, judge.pages,
                       dtype=model.dtype))
    return lambda *args: reader.generate(params, *args)

  def _requests(self, todo: Mapping[int, list[int]],
                attempt: int) -> list[Request]:
    sampling = Sampling(self._config.rubrics.max_new_tokens,
                        _AGAIN if attempt else 0.0,
                        eos_ids=self._prompt.tokenizer.eos_ids)
    root = SharedPrefix(0, len(self._prompt.head))
    return [
        Request(ids, i, 1, sampling, shared_prefix=root)
        for i, ids in todo.items()
    ]

  def _read(self, sample: Sample) -> dict[str, int]:
    if sample.finish_reason != 'eos':
      raise ValueError('it has no end within rubrics.max_new_tokens='
                       f'{self._config.rubrics.max_new_tokens}')
    return parse(self._prompt.tokenizer.decode(sample.tokens[:-1]))


def means(rows: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, np.ndarray]:
  """Mean counts f64[P] by kind, over the samples of each problem.

  Samples that could not be read are left out; nan where that is all of them.
  """
  read = [[row for row in samples if 'failed' not in row] for samples in rows]
  return {
      kind: np.array([
          np.mean([row[kind]
                   for row in samples]) if samples else np.nan
          for samples in read
      ])
      for kind in KINDS
  }


def compare(
    rows: Sequence[Sequence[Mapping[str, Any]]],
    first: Sequence[Sequence[Mapping[str,
                                     Any]]]) -> dict[str, dict[str, float]]:
  """By kind: `mean` a trace; `gain` and `loss`, the number of problems whose
  mean is above or below that of the first model, and `net` = gain - loss."""
  mine, theirs, out = means(rows), means(first), {}
  for kind in KINDS:
    counts = [
        row[kind] for samples in rows for row in samples if 'failed' not in row
    ]
    gain = int((mine[kind] > theirs[kind]).sum())
    loss = int((mine[kind] < theirs[kind]).sum())
    out[kind] = {
        'mean': float(np.mean(counts)) if counts else float('nan'),
        'gain': gain, 'loss': loss, 'net': gain - loss
    }
  return out
