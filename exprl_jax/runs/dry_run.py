"""--dry_run: read everything, compute nothing, show what the models see."""

from collections.abc import Sequence

import jax

from exprl_jax.config import Config, resolve
from exprl_jax.data import chat, verdicts
from exprl_jax.data.problems import training_problems
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.evals import judge_traces
from exprl_jax.evals.held_out import HeldOut
from exprl_jax.judge import factory, prompts, readouts
from exprl_jax.models import config as model_config
from exprl_jax.models import references
from exprl_jax.rewards import teacher
from exprl_jax.rl import packing
from exprl_jax.runs import evaluate, recipes, rubrics, setup, sft
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import Problem


def dry_run(config: Config) -> None:
  """Checks config, data, tokenizers and template; prints one prompt of each.

  Raises:
    InputError: whatever the run itself would stumble over at its start.
  """
  if config.run == 'rubrics':
    _show_rubric_prompt(config)
  elif recipes.judges_traces(config):
    tokenizer = Tokenizer(resolve(config.judge.init))
    traces = judge_traces.read_traces(config, tokenizer)
    factory.check(config, [t.problem for t in traces])
    print(f'run judge, {len(traces)} traces')
    _show_judge_prompt(config, traces[0].problem)
  elif config.run == 'train':
    inputs = setup.inputs(config)
    _show_model(config, inputs.mesh)
    _show_training(config, inputs.mesh, inputs.problems)
    if inputs.reward.granularity == 'token':
      (ids,) = teacher.prompts(inputs.tokenizer, inputs.problems[:1],
                               config.teacher)
      print("\n--- teacher's prompt\n" +
            inputs.tokenizer.decode(ids, special=True))
    _show_policy_prompt(config, inputs.tokenizer, inputs.problems)
    if inputs.reward.uses_judge:
      _show_judge_prompt(config, inputs.problems[0])
  else:
    _dry_run_other(config)


def _dry_run_other(config: Config) -> None:
  """sft, evaluate, sample, export, judge on samples, train_judge."""
  mesh = mesh_lib.make_mesh(config.mesh)
  if config.run == 'evaluate':
    evaluate.check(config)
  tokenizer = _show_model(config, mesh)
  HeldOut(config, tokenizer)
  if not (config.data.train or config.data.mixture):
    return
  problems = training_problems(config, ('solution',) if config.run == 'sft' else
                               ('solution', 'answer'))
  if config.run == 'judge':
    factory.check(config, problems)
  if config.run == 'sft':
    sft.check(config, tokenizer, problems)
  else:
    for some in verdicts.chunks(problems):
      chat.policy_prompts(tokenizer, some, config)
  _show_training(config, mesh, problems)
  _show_policy_prompt(config, tokenizer, problems)
  if config.run == 'judge':
    _show_judge_prompt(config, problems[0])


def _show_model(config: Config, mesh: jax.sharding.Mesh) -> Tokenizer:
  folder = references.find(config.policy.init).folder
  model = model_config.read_config(folder)
  print(f'run {config.run}, {config.steps} steps, mesh {dict(mesh.shape)}')
  print(f'policy {folder}: {model}')
  return Tokenizer(folder)


def _show_training(config: Config, mesh: jax.sharding.Mesh,
                   problems: Sequence[Problem]) -> None:
  print(f'{len(problems)} problems; {config.data.batch} x '
        f'{config.rollout.group_size} samples a step, {config.optim.updates} '
        f'updates of them, in micro-batches of '
        f'{packing.micro_rows(config, mesh)} rows')


def _show_policy_prompt(config: Config, tokenizer: Tokenizer,
                        problems: Sequence[Problem]) -> None:
  (ids,) = chat.policy_prompts(tokenizer, problems[:1], config)
  print('\n--- policy prompt\n' + tokenizer.decode(ids, special=True))


def _show_judge_prompt(config: Config, problem: Problem) -> None:
  tokenizer = Tokenizer(resolve(config.judge.init))
  template = prompts.load(config.judge, tokenizer, config.reward,
                          readouts.READOUTS[config.judge.readout].generates)
  nonce = prompts.nonce(problem, [])
  head, opening = template.head(problem), template.opening(nonce)
  item = (problem.rubric_items[0].text
          if config.judge.judgment == 'rubric_items' and problem.rubric_items
          else '')
  ask = template.ask(problem, nonce, item)
  print('\n--- judge prompt\n' + tokenizer.decode(
      [*head, *opening, *tokenizer.encode('<the trace>'), *ask], special=True))
  print(f'--- {len(head)} tokens for all traces of the problem, {len(opening)} '
        f'and the trace, {len(ask)} for every step; score tokens '
        f'{template.score_ids}')


def _show_rubric_prompt(config: Config) -> None:
  tokenizer = Tokenizer(resolve(config.judge.init))
  problems = training_problems(config, ('solution',))
  print(f'run rubrics, {len(problems)} problems\n\n--- prompt for a rubric\n' +
        tokenizer.decode(rubrics.Prompt(tokenizer)(problems[0]), special=True))
