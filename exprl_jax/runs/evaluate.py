"""run='evaluate': models on held-out problems, compared with the first.

Every model's samples go into a file of JSON lines, wave by wave, and all that
is reported is computed from these files. A run that is called again samples
what is missing; a sample is a function of the model, the seed, the problem's
place and its own number. docs/evaluation.md has formulas and files.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
import time
from typing import Any

from etils import epath
import jax
import numpy as np

from exprl_jax.config import Config
from exprl_jax.data import chat
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.evals import behaviors as behaviours
from exprl_jax.evals import held_out
from exprl_jax.evals import policy_statistics as diagnose
from exprl_jax.evals.held_out import Item, Marks
from exprl_jax.grading import grader as grading
from exprl_jax.models import references as source_lib
from exprl_jax.rollout import decode
from exprl_jax.rollout import sampler as sampler_lib
from exprl_jax.rollout.requests import Request
from exprl_jax.runtime import jsonl, metrics, report
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import workdir as workdir_lib
from exprl_jax.types import InputError

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """One of the models that are compared.

  Attributes:
    name: of its files and in tables.
    source: as the config names it.
    found: what that is.
    tokenizer: its own.
    prompts: token ids of all problems.
  """

  name: str
  source: str
  found: source_lib.Reference
  tokenizer: Tokenizer
  prompts: list[list[int]]


def evaluate(config: Config, workdir: pathlib.Path) -> list[metrics.Row]:
  """Scores policy.init and eval.models on eval.problems.

  Writes samples/NAME.jsonl, comparison.json and metrics.jsonl (a row for each
  model, its `step` the model's place) into `workdir`; with eval.newly_solved_k
  also fresh/NAME.jsonl, with eval.behaviors='judge' behaviours/NAME.jsonl.

  Returns:
    The rows of metrics.jsonl.

  Raises:
    InputError: a key, a problem, a model or a file is not as it should be.
  """
  mesh = mesh_lib.rollout_mesh(mesh_lib.make_mesh(config.mesh),
                               config.mesh.rollout_tensor)
  items, models = check(config)
  reader = (behaviours.Reader(config, mesh)
            if config.eval.behaviors == 'judge' else None)
  folder, grader = epath.Path(workdir), grading.Grader(config.grading)
  try:
    grader.check([item.problem for item in items])
    workdir_lib.claim(workdir, config)
    seconds, rows, fresh = _sample(config, folder, items, models, mesh, grader)
  finally:
    grader.close()
  counts = _behaviours(config, folder, items, models, rows, reader)
  results = [
      Result(config, items, model,
             [x and (x[i], x[0])
              for x in (rows, fresh, counts)])
      for i, model in enumerate(models)
  ]
  main = jax.process_index() == 0
  log = metrics.Log(workdir, 0, main=main)
  for i, result in enumerate(results):
    log.write(i, result.metrics() | {'time/eval': seconds[i]})
  log.close()
  if main:
    (folder / 'comparison.json').write_text(
        json.dumps(
            {
                'problems': len(items), 'samples': config.eval.samples,
                'seed': config.seed,
                'models': [_no_nan(r.json()) for r in results]
            }, indent=1))
    print(tables(config, results), flush=True)
    print(f'comparison {workdir}/comparison.json')
  return metrics.read(workdir / 'metrics.jsonl')


def check(config: Config) -> tuple[list[Item], list[Model]]:
  """Reads the problems and looks for the models; no weights are read.

  Raises:
    InputError: a key, a problem or a model is not as it should be.
  """
  cfg = config.eval
  if cfg.behaviors == 'judge' and not config.judge.init:
    raise InputError("config.judge.init is empty; eval.behaviors='judge' "
                     'needs it')
  if cfg.newly_solved_k > cfg.samples:
    raise InputError(
        f'config.eval.newly_solved_k={cfg.newly_solved_k}: at most eval.'
        f'samples={cfg.samples}')
  if cfg.newly_solved_k and cfg.newly_solved_min > cfg.newly_solved_k:
    raise InputError(
        f'config.eval.newly_solved_min={cfg.newly_solved_min}: at most '
        f'eval.newly_solved_k={cfg.newly_solved_k}')
  items = held_out.read_items(cfg)
  problems = [item.problem for item in items]
  models = []
  for source in (config.policy.init, *cfg.models):
    found = source_lib.find(source)
    tokenizer = Tokenizer(found.folder)
    name = _name(source, {m.name for m in models})
    models.append(
        Model(name, source, found, tokenizer,
              chat.policy_prompts(tokenizer, problems, config)))
  if cfg.policy_statistics:
    diagnose.check(config, [(m.name, m.tokenizer, m.prompts) for m in models])
  return items, models


def _name(source: str, taken: set[str]) -> str:
  """A name for files: the last part of the path, made plain and unique."""
  path = [p for p in source.removeprefix('asset:').split('/') if p]
  if path[-1:] == ['model']:  # of a workdir
    path.pop()
  name = re.sub(r'[^\w.@-]', '_', path[-1]) if path else 'model'
  for i in itertools.count(2):
    if name not in taken:
      return name
    name = re.sub(r'(-\d+)?$', f'-{i}', name, count=1)


# Sampling.


class Loader:
  """The models' weights: one model at a time, and the first one beside it
  where KL to it is wanted."""

  def __init__(self, config: Config, models: Sequence[Model],
               mesh: jax.sharding.Mesh):
    self._config, self._models, self.mesh = config, models, mesh
    self._held: dict[int, tuple] = {}
    self._sampler: tuple[int, sampler_lib.Sampler] | None = None

  def weights(self, i: int) -> tuple:
    """(ModelConfig, parameters) of model i, as it is sampled from."""
    if i not in self._held:
      self._forget(i)
      model, policy = self._models[i], self._config.policy
      _, cfg, params = source_lib.load(model.found, self.mesh, policy.dtype,
                                       frozen=True, attention=policy.attention)
      self._held[i] = cfg, decode.prepare(cfg, params, self.mesh)
    return self._held[i]

  def sampler(self, i: int) -> sampler_lib.Sampler:
    """The rollouts of model i."""
    if self._config.eval.policy_statistics:
      self.weights(0)  # first: the pool of pages takes the memory that is left
    model, _ = self.weights(i)
    if self._sampler is None or self._sampler[0] != i:
      self._sampler = i, sampler_lib.Sampler(self._config, model,
                                             self._models[i].tokenizer,
                                             self.mesh)
    return self._sampler[1]

  def _forget(self, i: int) -> None:
    """Makes room for model i."""
    kept = self._config.eval.policy_statistics
    self._held = {j: x for j, x in self._held.items() if kept and 0 in (i, j)}
    self._sampler = None


@dataclasses.dataclass(frozen=True)
class Draw:
  """Samples that are to be had.

  Attributes:
    model: its number.
    path: the file they are kept in.
    wanted: numbers of the problems.
    samples: of each.
    stride: ids of a problem's samples begin at its number times this.
    key: 0, or 1 for other draws.
    diagnose: whether they are to be diagnosed.
  """

  model: int
  path: epath.Path
  wanted: Sequence[int]
  samples: int
  stride: int
  key: int = 0
  diagnose: bool = False


def _sample(config, folder, items, models, mesh, grader):
  """(seconds, rows, fresh) of every model.

  Rows are [P][n]. Fresh ones, of other draws, are [P][newly_solved_k] with none
  where a problem is not locked; there are none without eval.newly_solved_k.
  """
  cfg, loader = config.eval, Loader(config, models, mesh)
  seconds, rows, fresh = [], [], []
  for i, model in enumerate(models):
    start = time.perf_counter()
    draw = Draw(i, folder / f'samples/{model.name}.jsonl', range(len(items)),
                cfg.samples, cfg.samples, diagnose=cfg.policy_statistics)
    found = Samples(config, items, model, draw, loader, grader)()
    rows.append([found[p] for p in range(len(items))])
    if cfg.newly_solved_k and len(models) > 1:
      shut = np.flatnonzero(locked(_marks(rows[0]).correct, cfg.newly_solved_k))
      draw = Draw(i, folder / f'fresh/{model.name}.jsonl', shut.tolist(),
                  cfg.newly_solved_k, cfg.samples, key=1)
      found = Samples(config, items, model, draw, loader, grader)()
      fresh.append([found.get(p, []) for p in range(len(items))])
    seconds.append(time.perf_counter() - start)
  return seconds, rows, fresh


class Samples:
  """The samples of one model, in a file that can be gone on with."""

  def __init__(self, config: Config, items: Sequence[Item], model: Model,
               draw: Draw, loader: Loader, grader: grading.Grader):
    self._config, self._items, self._model = config, items, model
    self._draw, self._loader, self._grader = draw, loader, grader
    self._segmenter = (diagnose.segmenter(config, model.tokenizer)
                       if draw.diagnose else None)

  def __call__(self) -> dict[int, list[Row]]:
    """The rows of the problems that are wanted, by problem and sample.

    Raises:
      InputError: the file holds something else.
    """
    there, draw = self._already(), self._draw
    missing = {
        p: [s
            for s in range(draw.samples)
            if (p, s) not in there]
        for p in draw.wanted
    }
    todo = [p for p, samples in missing.items() if samples]
    count = len(draw.wanted) * draw.samples
    have = count - sum(map(len, missing.values()))
    if jax.process_index() == 0:
      print(
          f'{draw.path.stem}: {len(draw.wanted)} problems, {draw.samples} '
          f'{"fresh " if draw.key else ""}samples each' +
          (f', {have} of {count} there already' if have else ''), flush=True)
    with jsonl.Writer(draw.path) as write:
      for wave in _chunks(todo, self._config.eval.wave):
        for key, row in self._wave({p: missing[p] for p in wave}):
          there[key] = row
          write(row)
    return {p: [there[p, s] for s in range(draw.samples)] for p in draw.wanted}

  def _already(self) -> dict[tuple[int, int], Row]:
    """The rows that the file has, but for those of another run."""
    numbers = {
        (item.set, item.problem.id): p for p, item in enumerate(self._items)
    }
    there = {}

    def keep(row) -> bool:
      p, s = numbers.get((row['set'], row['id'])), row['sample']
      if p is None or (p, s) in there or row['of'] != self._digest(
          p, s) or (self._draw.diagnose
                    and not set(diagnose.FIELDS) <= set(row)):
        return False
      there[p, s] = row
      return True

    try:
      jsonl.resume(self._draw.path, keep)
    except (ValueError, KeyError, TypeError) as e:
      raise InputError(f'{self._draw.path} holds something else ({e}); choose '
                       'a fresh --workdir') from None
    return there

  def _digest(self, p: int, s: int) -> str:
    """A name for what a sample depends on, beside what config.json says."""
    problem = self._items[p].problem
    text = json.dumps([
        self._model.source, self._model.found.step, self._model.prompts[p],
        problem.answer, problem.domain, p * self._draw.stride + s,
        self._draw.key
    ])
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

  def _wave(
      self, wanted: dict[int,
                         list[int]]) -> Iterator[tuple[tuple[int, int], Row]]:
    """Samples, grades and diagnoses: some samples of some problems."""
    draw, prompts = self._draw, self._model.prompts
    sampler = self._loader.sampler(draw.model)
    _, params = self._loader.weights(draw.model)
    keys = [(p, s) for p, samples in wanted.items() for s in samples]
    requests = []
    for p, samples in wanted.items():
      first = p * draw.stride
      if len(samples) == draw.samples:  # they share their prompt
        requests.append(
            Request(prompts[p], first, draw.samples, sampler.sampling))
      else:
        requests += [
            Request(prompts[p], first + s, 1, sampler.sampling) for s in samples
        ]
    samples = sampler.engine.generate(
        params, requests, held_out.root_key(self._config.seed, draw.key))
    texts = [self._model.tokenizer.decode(s.tokens) for s in samples]
    grades = self._grader([
        (text, self._items[p].problem) for (p, _), text in zip(keys, texts)
    ])
    more = [{}] * len(keys)
    if draw.diagnose:
      sampler.engine.release()  # its memory is needed
      more = diagnose.diagnose(
          self._config, self._loader.weights(draw.model),
          self._loader.weights(0), self._loader.mesh, self._segmenter,
          [(prompts[p], s) for (p, _), s in zip(keys, samples)])
    for (p, s), sample, text, grade, extra in zip(keys, samples, texts, grades,
                                                  more):
      item = self._items[p]
      yield (p, s), {
          'id': item.problem.id, 'set': item.set, 'sample': s, 'text': text,
          'tokens': len(sample.tokens), 'status': grade.status,
          'answer': grade.answer, 'correct': grade.correct,
          'ended': sample.finish_reason, **extra, 'of': self._digest(p, s)
      }


def _chunks(values: Sequence, size: int) -> list[Sequence]:
  return [values[i:i + size] for i in range(0, len(values), size)]


# Behaviours.


def _behaviours(config, folder, items, models, rows, reader):
  """Counts [model][P][n]; None without eval.behaviors."""
  if not config.eval.behaviors:
    return None
  if reader is None:
    return [[[behaviours.count_words(row['text'])
              for row in samples]
             for samples in own]
            for own in rows]
  return [
      _read(folder / f'behaviours/{model.name}.jsonl', items, own, reader)
      for model, own in zip(models, rows)
  ]


def _read(path, items, rows, reader) -> list[list[Row]]:
  """What the judge counts, kept in a file of its own."""
  names = {(row['set'], row['id'], row['sample']): row
           for samples in rows
           for row in samples}
  there = {}

  def keep(row) -> bool:
    key = row['set'], row['id'], row['sample']
    if key not in names or row['of'] != _text_digest(names[key]['text']):
      return False
    there[key] = row
    return True

  try:
    jsonl.resume(path, keep)
  except (ValueError, KeyError, TypeError) as e:
    raise InputError(f'{path} holds something else ({e}); choose a fresh '
                     '--workdir') from None
  keys = list(names)
  problems = {(item.set, item.problem.id): item.problem for item in items}
  with jsonl.Writer(path) as write:

    def done(i: int, counts: Row) -> None:
      key = set_, id_, sample = keys[i]
      there[key] = {
          'id': id_, 'set': set_, 'sample': sample,
          **counts, 'of': _text_digest(names[key]['text'])
      }
      write(there[key])

    reader.read([
        behaviours.Trace(i, problems[key[:2]], names[key]['text'])
        for i, key in enumerate(keys)
        if key not in there
    ], done)
  return [[there[row['set'], row['id'], row['sample']]
           for row in samples]
          for samples in rows]


def _text_digest(text: str) -> str:
  return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


# What is made of the samples.


def locked(first: np.ndarray, k: int) -> np.ndarray:
  """bool[P]: the first model has none of its first k samples right."""
  return ~first[:, :k].any(axis=1)


def unlocked(first: np.ndarray, fresh: np.ndarray, k: int,
             least: int) -> np.ndarray:
  """bool[P]: locked, and at least `least` of k fresh samples are right.

  Args:
    first: bool[P, >= k] samples of the first model, which say what is locked.
    fresh: bool[P, >= k] others, of a model; of the first model it is the null.
    k: how many samples count.
    least: how many of them are enough.
  """
  return locked(first, k) & (fresh[:, :k].sum(axis=1) >= least)


class Result:
  """All that is reported of a model."""

  def __init__(self, config: Config, items: Sequence[Item], model: Model,
               found):
    """Args: `found` are the samples, the fresh samples and the counts of
    behaviours; each of them the model's and the first model's, or empty."""
    cfg, ((rows, first), fresh, counts) = config.eval, found
    self.model, self.is_first = model, rows is first
    marks, base = _marks(rows), _marks(first)
    self.eval = held_out.all_metrics(marks, items, cfg.ks)
    self.difference, self.unlocked = {}, {}
    if not self.is_first:
      self.difference = differences(marks, base, items, cfg.ks)
      self.same = float(
          np.mean([
              a['text'] == b['text']
              for x, y in zip(rows, first)
              for a, b in zip(x, y)
          ]))
    if fresh and not self.is_first:
      self.unlocked = _unlocked(base.correct, *fresh, cfg)
    self.diagnosis = diagnose.summary([r for samples in rows for r in samples
                                      ]) if cfg.policy_statistics else {}
    self.behaviours = behaviours.compare(*counts) if counts else {}
    self.unread = float(
        np.mean(['failed' in row for samples in counts[0] for row in samples
                ])) if counts else 0.0

  def metrics(self) -> dict[str, float]:
    """'area/name' -> value; nan is left out of metrics.jsonl."""
    out = dict(self.eval)
    for name, values in self.difference.items():
      out |= {
          f'compare/{name}_diff': values['mean'],
          f'compare/{name}_diff_low': values['low'],
          f'compare/{name}_diff_high': values['high']
      }
    if not self.is_first:
      out['compare/same_text_frac'] = self.same
    out |= {f'unlocked/{k}': v for k, v in self.unlocked.items()}
    out |= {
        f'diagnose/{k}': v
        for k, v in self.diagnosis.items()
        if k != 'steps_histogram'
    }
    for kind, values in self.behaviours.items():
      out[f'behaviours/{kind}_mean'] = values['mean']
      if not self.is_first:
        out |= {
            f'behaviours/{kind}_{k}': values[k] for k in ('gain', 'loss', 'net')
        }
    if self.behaviours:
      out['behaviours/failed_frac'] = self.unread
    return out

  def json(self) -> dict[str, Any]:
    """What comparison.json says of it."""
    out = {
        'name': self.model.name, 'source': self.model.source,
        'step': self.model.found.step, 'metrics': self.eval
    }
    if not self.is_first:
      out |= {'difference': self.difference, 'same_text_frac': self.same}
    for name in ('unlocked', 'diagnosis', 'behaviours'):
      if value := getattr(self, name):
        out[name] = value
    return out


def _no_nan(tree):
  """JSON has no nan: null."""
  if isinstance(tree, dict):
    return {k: _no_nan(v) for k, v in tree.items()}
  return None if tree != tree else tree


def _marks(rows: Sequence[Sequence[Row]]) -> Marks:
  return held_out.marks_of([(r['status'], r['answer'], r['tokens'], r['ended'])
                            for samples in rows
                            for r in samples], len(rows[0]))


def differences(marks: Marks, first: Marks, items: Sequence[Item],
                ks: Sequence[int]) -> dict[str, dict[str, float]]:
  """Of pass@k and maj@k from the first model's, with the 95 % interval of the
  paired bootstrap; in all, and by set and domain: 'SET/pass@k'."""
  mine, theirs = held_out.measures(marks, ks), held_out.measures(first, ks)
  out = {}
  for part, rows in held_out.parts(items).items():
    for name in mine:
      each = (mine[name] - theirs[name])[rows]
      low, high = held_out.bootstrap(each)
      out[part + name] = {'mean': float(each.mean()), 'low': low, 'high': high}
  return out


def _unlocked(first, fresh, null, cfg) -> dict[str, float]:
  """Counts of problems, and the excess over the null with its interval."""
  k, shut = cfg.newly_solved_k, locked(first, cfg.newly_solved_k)
  mine, chance = (unlocked(
      first,
      np.array([[row['correct']
                 for row in samples] or [False] * k
                for samples in rows]), k, cfg.newly_solved_min)
                  for rows in (fresh, null))
  out = {
      'locked': int(shut.sum()), 'count': int(mine.sum()),
      'null': int(chance.sum()), 'excess': int(mine.sum() - chance.sum())
  }
  if shut.any():
    each = (mine.astype(float) - chance)[shut]
    low, high = held_out.bootstrap(each)
    out |= {'excess_low': low * len(each), 'excess_high': high * len(each)}
  return out


# What a person reads.


def tables(config: Config, results: Sequence[Result]) -> str:
  """All that was found, as text."""
  cfg, first, others = config.eval, results[0], results[1:]
  makers: list[Callable[[], tuple[str, list[list[str]]]]] = [
      lambda: _scores(results, cfg.ks)
  ]
  if others:
    makers.append(lambda: _differences(others, first, cfg.ks))
  if cfg.newly_solved_k and others:
    makers.append(lambda: _unlocked_table(others, first, cfg))
  if cfg.policy_statistics:
    makers.append(lambda: _diagnoses(results))
  if cfg.behaviors:
    makers.append(lambda: _behaviour_table(results, cfg.behaviors))
  return '\n\n'.join(f'{title}\n{report.as_text(rows)}'
                     for title, rows in (make() for make in makers))


def _scores(results, ks):
  names = [n for n in results[0].eval if n.count('/') == 1]
  majority = [k for k in ks if f'eval/maj@{k}' in names]
  rows = [[
      '', *(f'pass@{k} [95 %]' for k in ks), *(f'maj@{k}' for k in majority),
      'truncated', 'no answer', 'tokens'
  ]]
  for r in results:
    get = lambda name, r=r: r.eval[f'eval/{name}']
    rows.append([
        r.model.name, *(f'{get(f"pass@{k}"):.3f} [{get(f"pass@{k}_low"):.3f}, '
                        f'{get(f"pass@{k}_high"):.3f}]' for k in ks),
        *(f'{get(f"maj@{k}"):.3f}' for k in majority),
        f'{get("truncated_frac"):.1%}', f'{get("no_answer_frac"):.1%}',
        f'{get("length_mean"):.1f}'
    ])
  return '\nheld-out problems', rows


def _differences(others, first, ks):
  names = [n for n in others[0].difference if '/' not in n]
  rows = [['', *names, 'same texts']]
  for r in others:
    rows.append([
        r.model.name,
        *('{mean:+.3f} [{low:+.3f}, {high:+.3f}]'.format(**r.difference[n])
          for n in names), f'{r.same:.0%}'
    ])
  return (f'difference from {first.model.name} [95 %, paired bootstrap over '
          'problems]', rows)


def _unlocked_table(others, first, cfg):
  k = cfg.newly_solved_k
  rows = [['', 'unlocked', f'null: {first.model.name} again', 'excess [95 %]']]
  for r in others:
    u = r.unlocked
    rows.append([
        r.model.name,
        str(u['count']),
        str(u['null']), f'{u["excess"]:+d}' +
        (f' [{u["excess_low"]:+.0f}, {u["excess_high"]:+.0f}]'
         if 'excess_low' in u else '')
    ])
  return (f'unlocked: of {others[0].unlocked["locked"]} problems of which '
          f'{first.model.name} has 0 of {k} right, those with at least '
          f'{cfg.newly_solved_min} of {k} fresh ones', rows)


def _diagnoses(results):
  rows = [[
      '', 'entropy', 'KL (k1)', 'KL (k3)', 'tokens, right', 'wrong', 'steps',
      *diagnose.BUCKETS
  ]]
  for r in results:
    d = r.diagnosis
    rows.append([
        r.model.name, *(f'{d[k]:.4f}' for k in ('entropy', 'kl_k1', 'kl_k3')),
        *(f'{d[k]:.1f}'
          for k in ('length_correct', 'length_wrong', 'steps_mean')),
        *(f'{d["steps_histogram"][b]:.0%}' for b in diagnose.BUCKETS)
    ])
  return ('on its own samples: nats a token; share of traces by number of '
          'steps', rows)


def _behaviour_table(results, how):
  rows = [['', *behaviours.KINDS, 'not read']]
  for r in results:
    rows.append([
        r.model.name,
        *(f'{b["mean"]:.3f}' + ('' if r.is_first else
                                f' (+{b["gain"]} -{b["loss"]} = {b["net"]:+d})')
          for b in r.behaviours.values()), f'{r.unread:.1%}'
    ])
  return (f'behaviours by {how}, mean a trace (problems with more, with fewer, '
          'net)', rows)
