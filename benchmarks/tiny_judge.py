"""The tiny judge against the truth, on what given policies write.

  python benchmarks/tiny_judge.py --policies=asset:tiny_policy,WORKDIR,...

Problems are those of the set that neither made the judge nor trains policies
(tiny:judge_accept). Prints one JSON object a policy:

  judge, truth        mean score of whole traces
  r_outcome           correlation of the scores of whole traces
  r_steps             the same over all steps of all traces
  abs_error           mean |judge - truth| over all steps
  right               mean score of fully right traces
  right_wrong_ref     the same, judged with another problem's reference
"""

import json

from absl import app, flags
import jax
import numpy as np

from exprl_jax import config as config_lib
from exprl_jax import data, rewards
from exprl_jax import mesh as mesh_lib
from exprl_jax.judge.judge import Judge
from exprl_jax.judge.steps import delimiter_ids
from exprl_jax.models import hf
from exprl_jax.rollout import engine
from exprl_jax.tiny import traces, world
from exprl_jax.tokenizer import Tokenizer

_JUDGE = flags.DEFINE_string('judge', 'asset:tiny_judge', 'Model folder.')
_POLICIES = flags.DEFINE_list('policies', ['asset:tiny_policy'],
                              'Model folders or workdirs.')
_SAMPLES = flags.DEFINE_integer('samples', 4, 'Per problem.')

MAX_STEPS = 8


def main(_):
  """Prints the measurements of every policy."""
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=-1, fsdp=1))
  folder = config_lib.resolve(_JUDGE.value)
  judge = Judge(*hf.load(folder, mesh), Tokenizer(folder), 'tiny', 64, mesh)
  for policy in _POLICIES.value:
    print(json.dumps({'policy': policy} | measure(
        judge, config_lib.resolve(policy), mesh)), flush=True)


def measure(judge, folder, mesh) -> dict[str, float]:
  """The measurements of one policy, named as above."""
  problems = world.problems('judge_accept')
  items = sample(problems, folder, mesh)
  labels = [traces.label(t.problem, t.steps).labels for t in items]
  score = scores(judge, [(t.problem, t.steps) for t in items])
  last = np.array([s[-1] for s in score])
  truth = np.array([t[-1] for t in labels])
  out = {
      'judge': last.mean(), 'truth': truth.mean(),
      'r_outcome': np.corrcoef(last, truth)[0, 1],
      'r_steps': np.corrcoef(sum(score, []), sum(labels, []))[0, 1],
      'abs_error': np.abs(np.subtract(sum(score, []), sum(labels, []))).mean()}
  right = [t for t, y in zip(items, truth) if y == 1.0]
  if right:
    other = dict(zip(problems, problems[1:] + problems[:1]))
    wrong = scores(judge, [(other[t.problem], t.steps) for t in right])
    out |= {'right': last[truth == 1.0].mean(), 'right_count': len(right),
            'right_wrong_ref': np.mean([s[-1] for s in wrong])}
  return {k: round(float(v), 4) for k, v in out.items()}


def sample(problems, folder, mesh) -> list[rewards.Trace]:
  """Traces of a policy, empty ones left out; temperature 0.8, key 99."""
  tokenizer = Tokenizer(folder)
  model, params = hf.load(folder, mesh)
  config = config_lib.Config(rollout=config_lib.Rollout(
      max_prompt_tokens=48, max_new_tokens=48, temperature=0.8))
  sampler = engine.Sampler(config, model, tokenizer, mesh)
  prompts = [data.policy_prompt(tokenizer, p.question) for p in problems]
  rollout = sampler.arrays(prompts, sampler.generate(
      params, prompts, _SAMPLES.value, jax.random.key(99)))
  items = rewards.cut(problems, rollout, tokenizer,
                      delimiter_ids(tokenizer, '###'), MAX_STEPS)
  return [t for t in items if t.text.strip()]


def scores(judge, items) -> list[list[float]]:
  """The score of every step of every trace."""
  verdicts = judge.score(items, MAX_STEPS)
  return [s[e].tolist() for s, e in zip(verdicts.score, verdicts.exists)]


if __name__ == '__main__':
  app.run(main)
