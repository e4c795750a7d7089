"""What the host does in a step of the 4B recipe while the devices wait.

  python benchmarks/host_work.py --model=FOLDER

FOLDER has a tokenizer and a chat template; its weights are not read. 36
problems with 10 traces of about 5,000 tokens each, as long as those of the
recipe, are prompted, cut into steps, graded, laid out for the judge, packed and
written, and each part is timed. Seconds of wall time, medians.
"""

import pathlib
import random
import statistics
import tempfile
import time

from absl import app, flags
import jax
import numpy as np

from exprl_jax import config as config_lib
from exprl_jax.data import chat
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.grading import grader as grading
from exprl_jax.judge import layout, prompts
from exprl_jax.rewards import base
from exprl_jax.rl import credit, experience, learner
from exprl_jax.rl.scored import ScoredRollouts
from exprl_jax.runs import progress, recipes, traces
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import Group, Problem, Scores, Trajectory

_MODEL = flags.DEFINE_string('model', None, 'Folder.', required=True)
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Of each part.')
_TOKENS = flags.DEFINE_integer('tokens', 5000, 'Of a trace, about.')
_WORDS = ('we let the number of pairs be such that sum over all terms gives '
          'a value which is at most and hence by symmetry it follows for every '
          'integer that equation holds with equality only when').split()


def write_trace(rng, tokenizer, count):
  """Paragraphs with formulas, about `count` tokens in all, and an answer."""
  out, size = [], 0
  while size < count:
    words = [rng.choice(_WORDS) for _ in range(60)]
    for _ in range(8):
      words.insert(
          rng.randrange(len(words)),
          f'$x_{{{rng.randint(1, 9)}}}^{rng.randint(2, 9)} = '
          f'\\frac{{{rng.randint(1, 999)}}}{{{rng.randint(2, 99)}}}$')
    out.append(' '.join(words) + '.')
    size += len(tokenizer.encode(out[-1]))
  return '\n\n'.join(out) + f'\n\n\\boxed{{{rng.randint(0, 99)}}}'


def make_groups(config, tokenizer):
  """The groups of a step."""
  rng, groups = random.Random(0), []
  for i in range(config.data.batch):
    problem = Problem(str(i), f'Problem {i}: ' + ' '.join(_WORDS * 3),
                      write_trace(rng, tokenizer, 800), '7')
    prompt = np.array(chat.policy_prompts(tokenizer, [problem], config)[0])
    members = []
    for _ in range(config.rollout.group_size):
      text = write_trace(rng, tokenizer, _TOKENS.value * rng.uniform(0.5, 1.5))
      ids = np.array([*tokenizer.encode(text), tokenizer.eos_ids[0]], np.int32)
      members.append(
          Trajectory(prompt, ids, np.zeros(len(ids), np.float32), 'eos'))
    groups.append(Group(problem, members))
  return groups


def lay_out(config, template, cut):
  """The judge's prompts and questions."""
  made = [
      layout.Trace(
          t.problem,
          layout.prefixes(template.tokenizer, t.steps,
                          config.rollout.max_new_tokens), 'nonce',
          [[('', 1.0)]] * len(t.steps)) for t in cut
  ]
  return layout.lay_out(template, made)


def encode_whole(template, cut):
  """The questions alone, each as the whole text that it is."""
  return template.tokenizer.encode_pieces([
      template.question(t.problem, 'nonce', text)
      for t in cut
      for text in layout.prefixes(template.tokenizer, t.steps, 10**9)
  ])


def pack(config, scored, mesh):
  """The examples of an update, and all of their micro-batches."""
  flat = [experience.with_prompt(t, t.logprobs) for t in scored.trajectories]
  value = [np.ones(len(t.completion), np.float32) for t in scored.trajectories]
  examples = experience.examples(
      scored.trajectories, credit.Logprobs(flat, flat, flat),
      credit.Credit(np.ones(len(value), bool), value))
  _, batches = learner.pack(examples, config, mesh)
  jax.block_until_ready(list(batches))


def main(_):
  """Times the parts and prints a table."""
  values = config_lib.load('configs/qwen3_4b.py:exprl_process_fast')
  values.policy.init = values.judge.init = _MODEL.value
  config, tokenizer = recipes.freeze(values), Tokenizer(_MODEL.value)
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=1, fsdp=1), jax.devices()[:1])
  groups = make_groups(config, tokenizer)
  grader = grading.Grader(config.grading)
  cutter = base.cutter(config, tokenizer, grader, 'step')
  template = prompts.load(config.judge, tokenizer, 'process', False)
  cut = cutter(groups)
  steps = max(len(t.steps) for t in cut)
  value = np.full((len(cut), steps), 0.5, np.float32)
  valid = np.array([[i < len(t.steps) for i in range(steps)] for t in cut])
  scored = ScoredRollouts(cut, Scores(value, valid), Scores(value, valid),
                          np.zeros(len(cut), bool), {})
  none = ScoredRollouts([], scored.scores, scored.graded, scored.outcome_rows,
                        {})
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    store = traces.Traces(path, config.traces)
    parts = {
        'prompts of the policy': lambda: chat.policy_prompts(
            tokenizer, [g.problem for g in groups], config),
        'steps and grades': lambda: cutter(groups),
        'prompts of the judge': lambda: lay_out(config, template, cut),
        'its questions, without forks': lambda: encode_whole(template, cut),
        'packing': lambda: pack(config, scored, mesh),
        'traces': lambda: store.write(1, scored, value, none),
        'samples, every tenth step': lambda: progress.write_samples(
            path / 'samples', scored, value)
    }
    print(f'{len(cut)} traces, {sum(len(t.trajectory.completion) for t in cut)}'
          f' tokens, {sum(len(t.steps) for t in cut)} steps\n')
    print('| | seconds |\n|---|---|')
    for name, part in parts.items():
      seconds = []
      for _ in range(_REPEATS.value):
        start = time.perf_counter()
        part()
        seconds.append(time.perf_counter() - start)
      print(f'| {name} | {statistics.median(seconds):.2f} |', flush=True)
  grader.close()


if __name__ == '__main__':
  app.run(main)
