"""run='judge': judgments on traces, and how far they can be trusted."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import random
import time
from typing import NamedTuple

from etils import epath
import jax
import numpy as np

from exprl_jax.config import Config, resolve
from exprl_jax.data import chat, validation
from exprl_jax.data import problems as data
from exprl_jax.data import steps as steps_lib
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.grading import grader as grading
from exprl_jax.judge import calibration, factory, hacking, readouts
from exprl_jax.judge.factory import AnyJudge
from exprl_jax.judge.tree import Item, Judgments, concatenate
from exprl_jax.models import references as source
from exprl_jax.rollout import sampler as sampler_lib
from exprl_jax.rollout.requests import Fork, Request
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import workdir as workdir_lib
from exprl_jax.types import InputError, Problem

_NEEDS = ('solution', 'answer')
_WAVE = 256  # traces between two writes
_NO_REFERENCE = '(not given: judge the work by itself)'


class Trace(NamedTuple):
  """What is to be judged."""

  id: str
  problem: Problem
  steps: list[str]
  correct: bool | None  # the final answer; None: not known
  # Of a trace that the policy has written, else empty:
  prompt: Sequence[int] = ()
  tokens: Sequence[int] = ()
  ends: Sequence[int] = ()  # of the steps, in `tokens`


def judge(config: Config, workdir: pathlib.Path) -> list:
  """Judges the traces of judge.traces, or samples of the policy.

  Writes judgments.jsonl into `workdir`; where it is known which traces are
  right, calibration.json and calibration.png as well. Judgments are kept in
  the workdir, so an interrupted run goes on where it was.

  Raises:
    InputError: a line of judge.traces is not as it should be.
  """
  mesh = mesh_lib.rollout_mesh(mesh_lib.make_mesh(config.mesh),
                               config.mesh.rollout_tensor)
  main = jax.process_index() == 0
  tokenizer, policy = Tokenizer(resolve(config.judge.init)), None
  if config.judge.traces:
    found = read_traces(config, tokenizer)
    factory.check(config, [t.problem for t in found])
  else:
    factory.check(config, data.training_problems(config, _NEEDS))
    policy = Policy(config, mesh)
    found = policy.traces()
  longest = max(
      sum(len(tokenizer.encode(step)) for step in t.steps) for t in found)
  workdir_lib.claim(workdir, config)
  judge_ = factory.load(config, mesh, workdir,
                        max_trace_tokens=longest if config.judge.traces else 0)
  start = time.perf_counter()
  judgments = _in_waves(judge_, found,
                        workdir / 'judgments.jsonl' if main else None)
  seconds = time.perf_counter() - start
  factory.check_readable(config.judge, judgments)
  if main:
    print(f'{len(found)} traces, {int(judgments.exists.sum())} judgments in '
          f'{seconds:.1f} s -> {workdir}/judgments.jsonl\nmean score '
          f'{judgments.score[judgments.readable].mean():.3f}, without a score '
          f'{(~judgments.readable[judgments.exists]).mean():.1%}, truncated '
          f'{judgments.truncated.mean():.1%}')
  if all(t.correct is not None for t in found):
    report = calibrate(config, judge_, found, judgments, policy)
    if main:
      (workdir / 'calibration.json').write_text(json.dumps(report, indent=1))
      calibration.plots(report, workdir / 'calibration.png')
      print(calibration.table(report))
      probes = sorted(report['probes'].items(), key=lambda x: -x[1])[:3]
      print(f'of {len(report["probes"])} probes the best-liked: ' +
            ', '.join(f'{name} {score:.2f}' for name, score in probes))
      print(f'report {workdir}/calibration.json, calibration.png')
  return []


def read_traces(config: Config, tokenizer: Tokenizer,
                grader: grading.Grader | None = None) -> list[Trace]:
  """Reads judge.traces: `id`, `question`, `solution`, `trace` a line, and
  perhaps `correct`, or the `answer` by which it is graded, and `rubric`.

  Raises:
    InputError: no such file, or a bad line; names file and line.
  """
  path = resolve(config.judge.traces)
  if not path.is_file():
    raise InputError(f'config.judge.traces={path}: no such file')
  segment = steps_lib.segmenter(config.judge, tokenizer,
                                config.reward == 'process')
  grader = grader or grading.Grader(config.grading)
  out, ungraded = [], []
  for number, line in enumerate(
      epath.Path(path).read_text(encoding='utf-8').split('\n'), 1):
    if not line.strip():
      continue
    where = f'{path}:{number}'
    problem = validation.parse_row(line, where, number, ('solution',))
    row = json.loads(line)
    text, correct = row.get('trace'), row.get('correct')
    if not isinstance(text, str):
      raise InputError(f'{where}: row has no trace, a text')
    if correct not in (None, True, False):
      raise InputError(f'{where}: correct={correct!r} should be true or false')
    if correct is None and problem.answer:
      ungraded.append((len(out), text))
    out.append(Trace(problem.id, problem, segment.split(text), correct))
  if not out:
    raise InputError(f'{path}: no traces in it')
  grades = grader([(text, out[i].problem) for i, text in ungraded])
  for (i, _), grade in zip(ungraded, grades):
    out[i] = out[i]._replace(correct=grade.correct)
  return out


class Policy:
  """The policy of a config, for traces and for what may become of them."""

  def __init__(self, config: Config, mesh: jax.sharding.Mesh):
    """Loads it, and reads the problems of data.train."""
    cfg, origin = config.rollout, source.find(config.policy.init)
    self._grader = grading.Grader(config.grading)
    self._config, self._tokenizer = config, Tokenizer(origin.folder)
    self._problems = data.training_problems(config, _NEEDS)
    self._prompts = chat.policy_prompts(self._tokenizer, self._problems, config)
    _, model, self._params = source.load(origin, mesh, config.policy.dtype,
                                         frozen=True)
    # Room for a trace and what may follow it.
    self._sampler = sampler_lib.Sampler(
        dataclasses.replace(
            config, rollout=dataclasses.replace(
                cfg,
                max_prompt_tokens=cfg.max_prompt_tokens + cfg.max_new_tokens)),
        model, self._tokenizer, mesh)

  def traces(self) -> list[Trace]:
    """rollout.group_size samples of every problem."""
    n, out = self._config.rollout.group_size, []
    groups = self._sampler.generate(self._params, self._prompts, n,
                                    self._key(0))
    self._sampler.engine.release()  # the judge needs the memory
    segment = steps_lib.segmenter(self._config.judge, self._tokenizer,
                                  self._config.reward == 'process')
    for problem, prompt, group in zip(self._problems, self._prompts, groups):
      for i, sample in enumerate(group):
        ids = sample.tokens.tolist()
        ids = ids[:-1] if sample.finish_reason == 'eos' else ids
        out.append(
            Trace(f'{problem.id}/{i}', problem,
                  segment.texts(ids) or [''], None, prompt, ids, segment(ids)))
    grades = self._grader([
        (self._tokenizer.decode(t.tokens), t.problem) for t in out
    ])
    return [t._replace(correct=g.correct) for t, g in zip(out, grades)]

  def success(self, prefixes: Sequence[tuple[Trace, int]],
              count: int) -> np.ndarray:
    """How often the policy is right in the end.

    Args:
      prefixes: a trace and one of its steps, after which the policy goes on.
      count: continuations of each.

    Returns:
      f64[len(prefixes)] shares of right answers.
    """
    sampling = self._sampler.sampling
    requests = [
        Request([*t.prompt, *t.tokens], i * count, count, sampling,
                [Fork(len(t.prompt) + t.ends[step], [])] * count)
        for i, (t, step) in enumerate(prefixes)
    ]
    samples = self._sampler.engine.generate(self._params, requests,
                                            self._key(1))
    self._sampler.engine.release()
    grades = self._grader([(self._tokenizer.decode(
        [*t.tokens[:t.ends[step]], *samples[i * count + k].tokens]), t.problem)
                           for i, (t, step) in enumerate(prefixes)
                           for k in range(count)])
    return np.reshape([g.correct for g in grades], (-1, count)).mean(axis=1)

  def _key(self, number: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(self._config.seed), number)


def _in_waves(judge_: AnyJudge, found: list[Trace],
              path: pathlib.Path | None) -> Judgments:
  """Judgments of all traces, written to `path` wave by wave."""
  width, parts = max(len(t.steps) for t in found), []
  file = path and path.open('w')
  # Traces of a problem are neighbours, so that they share their root.
  order = sorted(range(len(found)), key=lambda i:
                 (found[i].problem.question, i))
  for start in range(0, len(found), _WAVE):
    part = [found[i] for i in order[start:start + _WAVE]]
    judgments = judge_.score(_items(part), width)
    parts.append(judgments)
    if file:
      for i, trace in enumerate(part):
        file.write(json.dumps(_line(trace, judgments, i)) + '\n')
      file.flush()
  if file:
    file.close()
  return concatenate(parts).take(np.argsort(order))


def _items(found: Sequence[Trace]) -> list[Item]:
  return [(t.problem, t.steps) for t in found]


def _line(trace: Trace, v: Judgments, i: int) -> dict:
  n = len(trace.steps)
  names = [readouts.STATUSES[o] for o in v.status[i, :n]]
  out = {
      'id': trace.id, 'steps': trace.steps,
      'scores': [round(float(s), 5) for s in v.score[i, :n]],
      'score_token_probability': [
          round(float(m), 5) if m == m else None
          for m in v.score_token_probability[i, :n]
      ], 'valid': bool(v.readable[i, :n].all()), 'status': names,
      'truncated': bool(v.truncated[i]), 'correct': trace.correct
  }
  if any(v.texts[i]):
    out['rationales'] = v.texts[i]
  return out


def calibrate(config: Config, judge_: AnyJudge, found: list[Trace],
              judgments: Judgments, policy: Policy | None) -> dict:
  """The report of judge/calibration.py, and what the probes got.

  The whole traces are judged with their own, with no and with another
  problem's reference; prefixes are compared with what the policy makes of them
  (calibration.continuations), and readouts with each other.
  """
  cfg, whole = config.calibration, [''.join(t.steps).strip() for t in found]
  chosen = [i for i, text in enumerate(whole) if text]
  traces_ = [found[i] for i in chosen]
  ids = [t.problem.question for t in traces_]
  last = [len(t.steps) - 1 for t in traces_]
  truth = np.array([t.correct for t in traces_])

  def condition(score, readable):
    use = readable[np.arange(len(last)), last]
    return calibration.outcome(score[np.arange(len(last)),
                                     last][use], truth[use],
                               [x for x, u in zip(ids, use) if u], config.seed)

  report = {
      'conditions': {
          'own': condition(judgments.score[chosen], judgments.readable[chosen])
      }
  }
  others = {'none': _without, 'wrong': _with_another}
  if config.judge.judgment == 'rubric_items':
    del others['none']  # there would be nothing to ask about
  if len(set(ids)) < 2:
    del others['wrong']
  for name, other in others.items():
    problems = other([t.problem for t in traces_])
    v = _in_waves(judge_,
                  [t._replace(problem=p) for t, p in zip(traces_, problems)],
                  None)
    report['conditions'][name] = condition(v.score, v.readable)
  if policy and cfg.continuations and config.reward == 'process':
    report['progress'] = _progress(config, found, judgments, policy)
  if cfg.readouts:
    report['agreement'] = _agreement(judge_, traces_[:_WAVE], cfg.readouts)
  problems = list({t.problem.question: t.problem for t in found}.values())
  report['probes'] = (hacking.probe(config, judge_, problems)
                      if len(problems) > 1 else {})
  return report


def _without(problems: list[Problem]) -> list[Problem]:
  return [
      dataclasses.replace(p, solution=_NO_REFERENCE, rubric='')
      for p in problems
  ]


def _with_another(problems: list[Problem]) -> list[Problem]:
  """Each with the reference of the next problem in a shuffled order."""
  by_question = {p.question: p for p in problems}
  order = sorted(by_question)
  random.Random(0).shuffle(order)
  following = dict(zip(order, order[1:] + order[:1]))
  others = [by_question[following[p.question]] for p in problems]
  return [
      dataclasses.replace(p, solution=o.solution, rubric=o.rubric,
                          rubric_items=o.rubric_items)
      for p, o in zip(problems, others)
  ]


def _progress(config: Config, found, judgments, policy: Policy) -> dict:
  """Scores of prefixes against what the policy makes of them."""
  cfg = config.calibration
  prefixes = [(i, s)
              for i, t in enumerate(found)
              for s in range(len(t.ends) - 1)
              if judgments.readable[i, s]]
  random.Random(config.seed).shuffle(prefixes)
  prefixes = sorted(prefixes[:cfg.prefixes])
  success = policy.success([(found[i], s) for i, s in prefixes],
                           cfg.continuations)
  return calibration.progress(
      np.array([judgments.score[i, s] for i, s in prefixes]), success,
      [found[i].problem.question for i, _ in prefixes], config.seed)


def _agreement(judge_: AnyJudge, found, readouts: Sequence[str]) -> dict:
  """The scores of whole traces, read in several ways."""
  width = max(len(t.steps) for t in found)
  last = np.array([len(t.steps) - 1 for t in found])
  scores, use = {}, np.ones(len(found), bool)
  for name in readouts:
    v = judge_.with_readout(name).score(_items(found), width)
    scores[name] = v.score[np.arange(len(found)), last]
    use &= v.readable[np.arange(len(found)), last]
  return calibration.agreement({k: v[use] for k, v in scores.items()})
