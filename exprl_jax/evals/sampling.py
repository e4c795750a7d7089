"""Samples of the compared models, in files that an interrupted run resumes.

A sample is a function of the model, the seed, the problem's place and its own
number. Each row carries a digest of these, and rows of another run are dropped.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import hashlib
import json
import time
from typing import Any, NamedTuple

from etils import epath
import jax
import numpy as np

from exprl_jax.config import Config
from exprl_jax.data.steps import Segmenter
from exprl_jax.evals import estimators, held_out, policy_statistics
from exprl_jax.evals.candidates import Candidate, Loader
from exprl_jax.evals.estimators import GradedSamples
from exprl_jax.evals.held_out import Item
from exprl_jax.grading.grader import Grader
from exprl_jax.rollout.requests import Request, Sampling
from exprl_jax.runtime import jsonl
from exprl_jax.types import InputError

Row = dict[str, Any]  # of a sample, as written; docs/evaluation.md lists it
Key = tuple[int, int]  # (number of the problem, number of the sample)


class CandidateSamples(NamedTuple):
  """The samples of a candidate.

  Attributes:
    rows: [P][n].
    independent: [P][newly_solved_k], none for problems that are not
      base-unsolved; [] without eval.newly_solved_k.
    seconds: spent on them by this process.
  """

  rows: list[list[Row]]
  independent: list[list[Row]]
  seconds: float


def sample_all(config: Config, folder: epath.Path, items: Sequence[Item],
               candidates: Sequence[Candidate], mesh: jax.sharding.Mesh,
               grader: Grader) -> list[CandidateSamples]:
  """Samples every candidate, or completes its files.

  Raises:
    InputError: one of the files has other content.
  """
  cfg, loader = config.eval, Loader(config, candidates, mesh)
  out: list[CandidateSamples] = []
  for i, candidate in enumerate(candidates):
    start = time.perf_counter()
    wanted = Wanted(i, folder / f'samples/{candidate.name}.jsonl',
                    range(len(items)), cfg.samples, cfg.samples,
                    statistics=cfg.policy_statistics)
    found = SampleFile(config, items, candidate, wanted, loader,
                       grader).complete()
    rows = [found[p] for p in range(len(items))]
    independent: list[list[Row]] = []
    if cfg.newly_solved_k and len(candidates) > 1:
      base = graded(out[0].rows if out else rows)
      unsolved = estimators.base_unsolved(base.correct, cfg.newly_solved_k)
      wanted = Wanted(i, folder / f'newly_solved/{candidate.name}.jsonl',
                      np.flatnonzero(unsolved).tolist(), cfg.newly_solved_k,
                      cfg.samples, stream=1)
      found = SampleFile(config, items, candidate, wanted, loader,
                         grader).complete()
      independent = [found.get(p, []) for p in range(len(items))]
    out.append(CandidateSamples(rows, independent, time.perf_counter() - start))
  return out


def graded(rows: Sequence[Sequence[Row]]) -> GradedSamples:
  """Returns the grades of rows [P][n]."""
  return estimators.graded_samples(
      [(r['status'], r['answer'], r['tokens'], r['finish_reason'])
       for samples in rows
       for r in samples], len(rows[0]))


@dataclasses.dataclass(frozen=True)
class Wanted:
  """The samples that a file should have.

  Attributes:
    candidate: its number.
    path: the file.
    problems: their numbers.
    samples: of each problem.
    stride: sample ids of a problem start at its number times this.
    stream: of random numbers, see `held_out.root_key`.
    statistics: whether rows have `policy_statistics.FIELDS`.
  """

  candidate: int
  path: epath.Path
  problems: Sequence[int]
  samples: int
  stride: int
  stream: int = 0
  statistics: bool = False


class SampleFile:
  """A candidate's samples in a JSON Lines file."""

  def __init__(self, config: Config, items: Sequence[Item],
               candidate: Candidate, wanted: Wanted, loader: Loader,
               grader: Grader) -> None:
    self._config, self._items, self._candidate = config, items, candidate
    self._wanted, self._loader, self._grader = wanted, loader, grader

  @functools.cached_property
  def _segmenter(self) -> Segmenter:
    return policy_statistics.segmenter(self._config, self._candidate.tokenizer)

  def complete(self) -> dict[int, list[Row]]:
    """Samples the missing rows; returns all, by problem and sample.

    Raises:
      InputError: the file has other content.
    """
    # 1. Rows that the file has.
    rows, wanted = self._resume(), self._wanted
    missing = {
        p: [s
            for s in range(wanted.samples)
            if (p, s) not in rows]
        for p in wanted.problems
    }
    if jax.process_index() == 0:
      self._announce(sum(map(len, missing.values())))
    # 2. The others, wave by wave.
    todo = [p for p, samples in missing.items() if samples]
    wave = self._config.eval.wave
    with jsonl.Writer(wanted.path) as write:
      for start in range(0, len(todo), wave):
        for key, row in self._sample_wave(
            {p: missing[p] for p in todo[start:start + wave]}):
          rows[key] = row
          write(row)
    return {
        p: [rows[p, s] for s in range(wanted.samples)] for p in wanted.problems
    }

  def _announce(self, num_missing: int) -> None:
    wanted = self._wanted
    total = len(wanted.problems) * wanted.samples
    done = total - num_missing
    print(
        f'{wanted.path.stem}: {len(wanted.problems)} problems, {wanted.samples}'
        f' {"independent " if wanted.stream else ""}samples each' +
        (f', {done} of {total} already done' if done else ''), flush=True)

  def _resume(self) -> dict[Key, Row]:
    """Returns the file's rows; drops those of another run."""
    numbers = {
        (item.set, item.problem.id): p for p, item in enumerate(self._items)
    }
    rows: dict[Key, Row] = {}

    def keep(row: Row) -> bool:
      p, s = numbers.get((row['set'], row['id'])), row['sample']
      if p is None or (p, s) in rows or row['digest'] != self._digest(p, s):
        return False
      if self._wanted.statistics and not (set(policy_statistics.FIELDS)
                                          <= set(row)):
        return False
      rows[p, s] = row
      return True

    try:
      jsonl.resume(self._wanted.path, keep)
    except (ValueError, KeyError, TypeError) as e:
      raise InputError(f'{self._wanted.path} has other content ({e}); choose '
                       'a new --workdir') from None
    return rows

  def _digest(self, p: int, s: int) -> str:
    """Hashes the inputs of a sample that config.json does not name."""
    candidate, problem = self._candidate, self._items[p].problem
    text = json.dumps([
        candidate.source, candidate.reference.step, candidate.prompts[p],
        problem.answer, problem.domain, p * self._wanted.stride + s,
        self._wanted.stream
    ])
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

  def _sample_wave(self, missing: dict[int,
                                       list[int]]) -> Iterator[tuple[Key, Row]]:
    """Samples and grades: problem -> numbers of its samples."""
    wanted, prompts = self._wanted, self._candidate.prompts
    keys = [(p, s) for p, numbers in missing.items() for s in numbers]
    # 1. Samples.
    sampler = self._loader.sampler(wanted.candidate)
    model, params = self._loader.weights(wanted.candidate)
    samples = sampler.engine.generate(
        params, self._requests(missing, sampler.sampling),
        held_out.root_key(self._config.seed, wanted.stream))
    # 2. Grades.
    texts = [self._candidate.tokenizer.decode(s.tokens) for s in samples]
    grades = self._grader([
        (text, self._items[p].problem) for (p, _), text in zip(keys, texts)
    ])
    # 3. Policy statistics, with the memory of the page pool.
    statistics: list[Row] = [{}] * len(keys)
    if wanted.statistics:
      sampler.engine.release()
      statistics = policy_statistics.of_samples(
          self._config, (model, params), self._loader.weights(0),
          self._loader.mesh, self._segmenter,
          [(prompts[p], s) for (p, _), s in zip(keys, samples)])
    for (p, s), sample, text, grade, values in zip(keys, samples, texts, grades,
                                                   statistics):
      item = self._items[p]
      yield (p, s), {
          'id': item.problem.id, 'set': item.set, 'sample': s, 'text': text,
          'tokens': len(sample.tokens), 'status': grade.status,
          'answer': grade.answer, 'correct': grade.correct,
          'finish_reason': sample.finish_reason,
          **values, 'digest': self._digest(p, s)
      }

  def _requests(self, missing: dict[int, list[int]],
                sampling: Sampling) -> list[Request]:
    """Returns one request a problem; one a sample where some are done."""
    wanted, prompts = self._wanted, self._candidate.prompts
    requests: list[Request] = []
    for p, numbers in missing.items():
      first = p * wanted.stride
      if len(numbers) == wanted.samples:  # they share the prompt's prefill
        requests.append(Request(prompts[p], first, wanted.samples, sampling))
      else:
        requests += [
            Request(prompts[p], first + s, 1, sampling) for s in numbers
        ]
    return requests
