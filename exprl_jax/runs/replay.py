"""run='replay': credit and the update of a step again, from its kept traces.

Nothing is sampled and no judge is asked, so a change of credit or loss shows
what it does to a real step within seconds. With the config of the run, all
numbers are those of the run.
"""

from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any

from etils import epath
import jax
from jaxtyping import Float
import numpy as np

from exprl_jax import rewards
from exprl_jax.config import Config
from exprl_jax.data import chat
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.grading.grader import Grade
from exprl_jax.models import references
from exprl_jax.rewards import shaping, teacher
from exprl_jax.rl import advantages, experience, learner, optimizer
from exprl_jax.rl import credit as credit_lib
from exprl_jax.rl.policy import Policy
from exprl_jax.rl.scored import ScoredRollouts, Trace
from exprl_jax.runs import progress, setup, traces
from exprl_jax.runtime import checkpoints, files
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError, Problem, Scores, TrainState


def replay(config: Config) -> tuple[TrainState, dict[str, float]]:
  """Replays a step.

  Args:
    config: of the run, with the changes to look at; `replay` says which step.

  Returns:
    The state after the update, and the step's metrics.

  Raises:
    InputError: the step has no traces, or the one before it no checkpoint.
  """
  workdir, step = epath.Path(config.replay.source), config.replay.step
  # 1. What was sampled and judged.
  rows = traces.trained(workdir, step)
  origin = references.find(config.policy.init)
  tokenizer = Tokenizer(origin.folder, config.rollout.stop_ids)
  scored = rollouts(rows, config, tokenizer)
  # 2. The training state before the step.
  config = dataclasses.replace(config, run='train')
  policy, state = _state(config, workdir, step, origin)
  # 3. Credit and update, as runs/train.py has them.
  by_token = rewards.lookup(config.reward).granularity == 'token'
  logprobs = experience.logprobs(policy, state.params, scored.trajectories,
                                 by_token)
  credit = (teacher.credit(policy, tokenizer, scored, logprobs)
            if by_token else credit_lib.assign(config, scored, logprobs))
  advantage = advantages.at_step_ends(credit.advantages, scored)
  state, values = learner.update(
      policy, state, experience.examples(scored.trajectories, logprobs, credit),
      config.rollout.group_size)
  values = {
      **credit.metrics, **values, **progress.statistics(scored, advantage)
  }
  _show(config, rows, advantage, values)
  return state, values


def _state(config: Config, workdir: epath.Path, step: int,
           origin: references.Reference) -> tuple[Policy, TrainState]:
  """The policy, and its state before a step."""
  mesh = mesh_lib.make_mesh(config.mesh)
  policy, params = setup.load_policy(config, mesh, origin)
  state = optimizer.init_state(params, config.optim,
                               config.steps * config.optim.updates)
  if step > 1:
    state = checkpoints.restore_step(workdir, step - 1, state)
  return policy, state


def rollouts(rows: Sequence[dict[str, Any]], config: Config,
             tokenizer: Tokenizer) -> ScoredRollouts:
  """Makes of kept traces what the reward made of them.

  Args:
    rows: `traces.trained`.
    config: its rollout and credit.
    tokenizer: of the policy, for prompts, which are not kept.

  Raises:
    InputError: they are no groups of rollout.group_size.
  """
  size = config.rollout.group_size
  for name, same in itertools.groupby(rows, lambda row: row['id']):
    if extra := sum(1 for _ in same) % size:
      raise InputError(f'problem {name}: {extra} traces beside whole groups; '
                       f'is config.rollout.group_size={size} that of the run?')
  problems = [_problem(row) for row in rows]
  prompts = chat.policy_prompts(tokenizer, problems, config)
  found = [
      Trace(problem, traces.trajectory(row, prompt),
            row['text'], [s['text']
                          for s in row['steps']],
            Grade(row['status'], row['answer']), row['correct'] is not None)
      for problem, prompt, row in zip(problems, prompts, rows)
  ]
  graded = Scores(np.array([[t.correct] for t in found], np.float32),
                  np.array([[t.gradable] for t in found]))
  if config.rollout.overlong in ('zero', 'mask'):
    graded = shaping.truncated(graded, [t.trajectory for t in found],
                               config.rollout)
  outcome = [p.domain in config.credit.outcome_domains for p in problems]
  return ScoredRollouts(found, _scores(rows), graded, np.array(outcome), {})


def _problem(row: dict[str, Any]) -> Problem:
  reference = row['reference']
  return Problem(row['id'], row['question'], reference['solution'],
                 reference['answer'], row['domain'], reference['rubric'])


def _scores(rows: Sequence[dict[str, Any]]) -> Scores:
  """Scores as credit took them, with rollout.overlong applied."""
  shape = len(rows), max(len(row['steps']) for row in rows)
  out = Scores(np.zeros(shape, np.float32), np.zeros(shape, bool))
  for row, value, valid in zip(rows, *out):
    value[:len(row['steps'])] = [s['score'] for s in row['steps']]
    valid[:len(row['steps'])] = [s['valid'] for s in row['steps']]
  return out


def _show(config: Config, rows: Sequence[dict[str, Any]],
          advantage: Float[np.ndarray, 'B S'], values: dict[str,
                                                            float]) -> None:
  """Writes replay.out, and prints the metrics and what changed."""
  if jax.process_index():
    return
  lines, changed = [], 0
  for row, new in zip(rows, advantage):
    was = [s['advantage'] for s in row['steps']]
    now = [traces.exact(x) for x in new[:len(was)]]
    changed += was != now
    lines.append({
        'id': row['id'], 'scores': [s['score'] for s in row['steps']],
        'advantages_kept': was, 'advantages': now
    })
  if config.replay.out:
    files.write(epath.Path(config.replay.out),
                ''.join(files.dumps(line) + '\n' for line in lines).encode())
  for name, value in sorted(values.items()):
    print(f'{name:32} {value:.6g}')
  print(f'step {config.replay.step}: {len(rows)} traces, the advantages of '
        f'{changed} differ from those kept')
