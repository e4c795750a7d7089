"""The tiny judge against the truth, on what given policies write.

  python benchmarks/tiny_judge.py --policies=asset:tiny_policy,WORKDIR,...

Problems are those of the set that neither made the judge nor trains policies
(tiny:judge_accept). Prints one JSON object a policy, and one for all their
traces together:

  judge, truth        mean score of whole traces; the label by program
  r_outcome           correlation of the scores of whole traces
  r_steps             the same over all steps of all traces
  abs_error           mean |judge - truth| over all steps
  right               mean score of fully right traces
  right_wrong_ref     the same, judged with another problem's reference
  misplacement        (FNR + FPR) / 2 of `score >= 0.75` against the answer's
                      grader; with the reference, and with a wrong one
  probe_max           the highest score of a probe, on eight problems
"""

import dataclasses
import json

from absl import app, flags
import jax
import numpy as np

from exprl_jax import config as config_lib
from exprl_jax.data import chat
from exprl_jax.data import tiny_world as world
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.grading.grader import Grader
from exprl_jax.judge import calibration, factory, hacking
from exprl_jax.models import hf
from exprl_jax.rewards import base
from exprl_jax.rl.scored import Trace
from exprl_jax.rollout import sources
from exprl_jax.rollout.sampler import Sampler
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.tiny import traces

_JUDGE = flags.DEFINE_string('judge', 'asset:tiny_judge', 'Model folder.')
_POLICIES = flags.DEFINE_list('policies', ['asset:tiny_policy'],
                              'Model folders or workdirs.')
_SAMPLES = flags.DEFINE_integer('samples', 4, 'Per problem.')

MAX_STEPS = 8


def main(_):
  """Prints the measurements of every policy, then of all."""
  config = config_lib.Config(
      reward='process',
      judge=config_lib.Judge(init=_JUDGE.value, template='tiny',
                             delimiter='###', max_steps=MAX_STEPS,
                             max_prompt_tokens=96, cache=False),
      rollout=config_lib.Rollout(max_prompt_tokens=48, max_new_tokens=48,
                                 temperature=0.8))
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=-1, fsdp=1))
  judge = factory.load(config, mesh)
  problems = world.problems('judge_accept')
  everything = []
  for policy in _POLICIES.value:
    judged = Judged(judge, sample(config, problems, policy, mesh), problems)
    everything.append(judged)
    print(json.dumps({'policy': policy} | judged.measure()), flush=True)
  probes = hacking.probe(config, judge, problems, 8)
  print(
      json.dumps(
          {'policy': 'all'} | Judged.together(everything).measure() |
          {'probe_max': round(max(probes.values()), 4), 'probes': len(probes)}))


class Judged:
  """Traces with the judge's scores and the truth."""

  def __init__(self, judge, items=(), problems=()):
    """Judges them, with their own reference and with the next problem's."""
    if not items:
      return
    other = dict(
        zip((p.question for p in problems), [*problems[1:], problems[0]]))
    wrong = [
        dataclasses.replace(t.problem,
                            solution=other[t.problem.question].solution)
        for t in items
    ]
    self.score = scores(judge, [(t.problem, t.steps) for t in items])
    self.wrong = scores(judge, [(p, t.steps) for p, t in zip(wrong, items)])
    self.truth = [traces.label(t.problem, t.steps).labels for t in items]
    self.correct = [t.correct for t in items]
    self.ids = [t.problem.id for t in items]

  @classmethod
  def together(cls, parts: list['Judged']) -> 'Judged':
    """All of them as one."""
    out = cls(None)
    for name in ('score', 'wrong', 'truth', 'correct', 'ids'):
      setattr(out, name, sum((getattr(p, name) for p in parts), []))
    return out

  def measure(self) -> dict[str, float]:
    """The numbers named above."""
    last, wrong, truth = (np.array([x[-1]
                                    for x in rows])
                          for rows in (self.score, self.wrong, self.truth))
    steps, labels = sum(self.score, []), sum(self.truth, [])
    right = truth == 1.0
    out = {
        'traces': len(last), 'judge': last.mean(), 'truth': truth.mean(),
        'r_outcome': np.corrcoef(last, truth)[0, 1],
        'r_steps': np.corrcoef(steps, labels)[0, 1],
        'abs_error': np.abs(np.subtract(steps, labels)).mean(),
        'answers_right': np.mean(self.correct)
    }
    if right.any():
      out |= {
          'right': last[right].mean(), 'right_count': int(right.sum()),
          'right_wrong_ref': wrong[right].mean()
      }
    for name, value in (('misplacement', last), ('misplacement_wrong_ref',
                                                 wrong)):
      found = calibration.outcome(value, np.array(self.correct), self.ids)
      out[name] = found['misplacement']['value']
    return {k: v if v is None else round(float(v), 4) for k, v in out.items()}


def sample(config, problems, policy, mesh) -> list[Trace]:
  """Traces of a policy, empty ones left out; temperature 0.8, key 99."""
  folder = config_lib.resolve(policy)
  tokenizer = Tokenizer(folder)
  model, params = hf.load(folder, mesh)
  prompts = chat.policy_prompts(tokenizer, problems, config)
  samples = Sampler(config, model, tokenizer,
                    mesh).generate(params, prompts, _SAMPLES.value,
                                   jax.random.key(99))
  cut = base.cutter(config, tokenizer, Grader(config.grading), 'step')
  traces = cut(list(map(sources.group, problems, prompts, samples)))
  return [t for t in traces if t.text.strip()]


def scores(judge, items) -> list[list[float]]:
  """The score of every step of every trace."""
  judgments = judge.score(items, MAX_STEPS)
  return [s[e].tolist() for s, e in zip(judgments.score, judgments.exists)]


if __name__ == '__main__':
  app.run(main)
