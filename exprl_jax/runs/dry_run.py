"""--dry_run: read everything, compute nothing, show what the models see."""

from exprl_jax.config import Config, judged, resolve
from exprl_jax.data import problems as data
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.evals import held_out as evaluate
from exprl_jax.judge import prompts
from exprl_jax.judge import tree as judge_lib
from exprl_jax.models import config as model_config
from exprl_jax.models import references as source
from exprl_jax.rewards import teacher
from exprl_jax.rl import learner
from exprl_jax.runs import evaluate as compare
from exprl_jax.runs import judge as judging
from exprl_jax.runs import rubrics as prepare
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import Problem


def dry_run(config: Config) -> None:
  """Checks config, data, tokenizers and template; prints one prompt of each.

  Raises:
    InputError: whatever the run itself would stumble over at its start.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  if config.run == 'prepare':
    _show_rubric_prompt(config)
    return
  if config.run == 'judge' and config.judge.traces:
    found = judging.read_traces(config, Tokenizer(resolve(config.judge.init)))
    judge_lib.check(config, [t.problem for t in found])
    print(f'run judge, {len(found)} traces')
    _show_judge_prompt(config, found[0].problem)
    return
  if config.run == 'evaluate':
    compare.check(config)
  folder = source.find(config.policy.init).folder
  model, tokenizer = model_config.read_config(folder), Tokenizer(folder)
  print(f'run {config.run}, {config.steps} steps, mesh {dict(mesh.shape)}')
  print(f'policy {folder}: {model}')
  evaluate.HeldOut(config, tokenizer)
  if not config.data.train:
    return
  problems = data.training_problems(config)
  if config.run in ('train', 'judge') and judged(config):
    judge_lib.check(config, problems)
  prompt = data.policy_prompts(tokenizer, problems, config)[0]
  print(f'{len(problems)} problems; {config.data.batch} x '
        f'{config.rollout.group_size} samples a step, {config.optim.updates} '
        f'updates of them, in micro-batches of '
        f'{learner.micro_rows(config.optim, mesh)} rows')
  if config.reward == 'teacher' and config.run == 'train':
    (ids,) = teacher.prompts(tokenizer, problems[:1], config.teacher)
    print("\n--- teacher's prompt\n" + tokenizer.decode(ids, special=True))
  print('\n--- policy prompt\n' + tokenizer.decode(prompt, special=True))
  if config.run in ('train', 'judge') and judged(config):
    _show_judge_prompt(config, problems[0])


def _show_judge_prompt(config: Config, problem: Problem) -> None:
  tokenizer = Tokenizer(resolve(config.judge.init))
  template = prompts.load(config.judge, tokenizer, config.reward)
  fence = prompts.fence(problem, [])
  head, opening = template.head(problem), template.opening(fence)
  checkpoint = (problem.checkpoints[0].text
                if config.judge.verdict == 'checkpoints' and problem.checkpoints
                else '')
  ask = template.ask(problem, fence, checkpoint)
  print('\n--- judge prompt\n' + tokenizer.decode(
      [*head, *opening, *tokenizer.encode('<the trace>'), *ask], special=True))
  print(f'--- {len(head)} tokens for all traces of the problem, {len(opening)} '
        f'and the trace, {len(ask)} for every step; score tokens '
        f'{template.score_ids}')


def _show_rubric_prompt(config: Config) -> None:
  tokenizer = Tokenizer(resolve(config.judge.init))
  problems = data.training_problems(config)
  print(f'run prepare, {len(problems)} problems\n\n--- prompt for a rubric\n' +
        tokenizer.decode(prepare.Prompt(tokenizer)(problems[0]), special=True))
