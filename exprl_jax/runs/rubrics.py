"""run='rubrics': the judge writes a rubric for every training problem."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
from typing import Any

from etils import epath
import jax

from exprl_jax.config import Config
from exprl_jax.data import problems as data
from exprl_jax.data import rubrics as rubrics_lib
from exprl_jax.data.rubrics import Written
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.judge.questions import QuestionPrompt
from exprl_jax.models import hf, references
from exprl_jax.rollout import decode, engine
from exprl_jax.rollout.requests import Request, Sample, Sampling, SharedPrefix
from exprl_jax.runtime import jsonl
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError, Problem, RubricItem, printable

_RETRY_TEMPERATURE = 0.7  # of all tries but the first, which is greedy

Write = Callable[[dict[str, Any]], None]  # appends a row to the file


def rubrics(config: Config) -> None:
  """Writes a rubric for every problem of data.train into rubrics.out.

  Problems with rubric items of their own are left out. A rubric is written as
  soon as the judge has ended it, one JSON object a line: id, digest (of
  question and solution), items; where none of rubrics.tries could be read: id,
  digest, failed. Called again, it writes what is missing, what failed, and what
  belongs to a problem that has changed since. A rubric does not depend on when
  it is written.

  Raises:
    InputError: the problems, the judge or the file are not as they should be.
  """
  mesh = mesh_lib.rollout_mesh(mesh_lib.make_mesh(config.mesh),
                               config.mesh.rollout_tensor)
  folder = references.folder_of(config.judge.init)
  prompt = QuestionPrompt(Tokenizer(folder), 'rubric')
  # 1. The problems that want a rubric, by number.
  without = dataclasses.replace(
      config, data=dataclasses.replace(config.data, rubrics=''))
  problems = {
      i: p
      for i, p in enumerate(data.training_problems(without, ('solution',)))
      if not p.rubric_items
  }
  # 2. Those that have one in the file already.
  out = epath.Path(config.rubrics.out)
  done = _resume(out, problems.values())
  _show(f'{folder}: {len(problems)} problems' +
        (f', {len(done)} of them in {out} already' if done else ''))
  # 3. The others.
  author = Author(config, prompt,
                  {i: p for i, p in problems.items() if p.id not in done})
  with jsonl.Writer(out) as write:
    author.write_all(mesh, write)
  _show(f'{author.written} rubrics, {len(author.failed)} failed, '
        f'{author.tokens} tokens in {author.seconds:.1f} s, '
        f'{author.tokens / max(author.seconds, 1e-9):.0f} tokens/s -> {out}')
  for i in sorted(author.failed)[:3]:
    _show(f'problem {problems[i].id}: {author.failed[i]}')


def _show(text: str) -> None:
  if jax.process_index() == 0:
    print(printable(text), flush=True)


def _resume(out: epath.Path, problems: Iterable[Problem]) -> set[str]:
  """Removes rubrics that are to be written again from the file.

  Returns:
    The ids of the problems with a rubric that stays.

  Raises:
    InputError: the file holds something else.
  """
  digests = {p.id: rubrics_lib.digest(p) for p in problems}

  def keep(row: dict[str, Any]) -> bool:
    written = rubrics_lib.from_row(row)
    return not written.failed and (written.digest == digests.get(
        written.id, written.digest))

  try:
    return {row['id'] for row in jsonl.resume(out, keep)} & digests.keys()
  except ValueError as e:
    raise InputError(f'config.rubrics.out={out} holds something else '
                     f'({e}); name a fresh file') from None


def values(problem: Problem) -> dict[str, str]:
  """Returns the slots of judge/questions/rubric.txt."""
  return {'problem': problem.question, 'solution': problem.solution}


class Author:
  """The judge as the author of rubrics.

  Attributes:
    written: number of rubrics.
    failed: why a problem has none, by its number.
    tokens: sampled so far.
    seconds: of sampling.
  """

  def __init__(self, config: Config, prompt: QuestionPrompt,
               problems: dict[int, Problem]) -> None:
    """Makes the prompts of `problems`, by their numbers."""
    self._config, self._prompt, self._problems = config, prompt, problems
    ids, self._shared = prompt.encode([values(p) for p in problems.values()])
    self._prompts = dict(zip(problems, ids))
    self.written = self.tokens = 0
    self.seconds = 0.0
    self.failed: dict[int, str] = {}

  def write_all(self, mesh: jax.sharding.Mesh, write: Write) -> None:
    """Tries all problems, then those that failed, then writes the failures."""
    limit = self._config.judge.max_prompt_tokens
    todo = [i for i, ids in self._prompts.items() if len(ids) <= limit]
    self.failed = {
        i: f'its prompt has {len(ids)} tokens, judge.max_prompt_tokens={limit}'
        for i, ids in self._prompts.items()
        if len(ids) > limit
    }
    if todo:
      self._try(todo, mesh, write)
    for i in sorted(self.failed):
      write(self._row(i, failed=self.failed[i]))

  def _try(self, todo: list[int], mesh: jax.sharding.Mesh,
           write: Write) -> None:
    """Samples rubrics, and samples those again that cannot be read."""
    cfg = self._config.judge
    model, params = hf.load(references.folder_of(cfg.init), mesh, cfg.dtype,
                            frozen=True, weights=cfg.weights)
    params = decode.prepare(model, params, mesh)
    longest = max(len(self._prompts[i]) for i in todo)
    generator = engine.Engine(
        model, mesh,
        engine.Options(cfg.slots, longest + self._config.rubrics.max_new_tokens,
                       cfg.page, cfg.pages, dtype=model.dtype))
    key = jax.random.key(self._config.seed)

    def on_finish(i: int, sample: Sample) -> None:
      try:
        items = self._read(sample)
      except ValueError as e:
        self.failed[i] = str(e)
        return
      self.failed.pop(i, None)
      self.written += 1
      write(self._row(i, items))

    for attempt in range(self._config.rubrics.tries):
      generator.generate(params, self._requests(todo, attempt),
                         jax.random.fold_in(key, attempt), on_finish)
      self.tokens += generator.stats.tokens
      self.seconds += generator.stats.seconds
      todo = [i for i in todo if i in self.failed]

  def _requests(self, todo: list[int], attempt: int) -> list[Request]:
    sampling = Sampling(self._config.rubrics.max_new_tokens,
                        _RETRY_TEMPERATURE if attempt else 0.0,
                        eos_ids=self._prompt.tokenizer.eos_ids)
    head = SharedPrefix(0, self._shared) if self._shared else None
    return [
        Request(self._prompts[i], i, 1, sampling, shared_prefix=head)
        for i in todo
    ]

  def _read(self, sample: Sample) -> tuple[RubricItem, ...]:
    """Reads a rubric.

    Raises:
      ValueError: it has no end, or is no rubric.
    """
    if sample.finish_reason != 'eos':
      raise ValueError('it has no end within rubrics.max_new_tokens='
                       f'{self._config.rubrics.max_new_tokens}')
    return rubrics_lib.parse(
        self._prompt.tokenizer.decode(sample.tokens[:-1].tolist()))

  def _row(self, i: int, items: Sequence[RubricItem] = (),
           failed: str = '') -> dict[str, Any]:
    problem = self._problems[i]
    return Written(problem.id, rubrics_lib.digest(problem), tuple(items),
                   failed).row()
