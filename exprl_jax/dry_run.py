"""--dry_run: read everything, compute nothing, show what the models see."""

from exprl_jax import data, evaluate
from exprl_jax import mesh as mesh_lib
from exprl_jax.config import Config, resolve
from exprl_jax.judge import prompts
from exprl_jax.models import config as model_config
from exprl_jax.tokenizer import Tokenizer


def dry_run(config: Config) -> None:
  """Checks config, data, tokenizers and template; prints one prompt of each.

  Raises:
    InputError: whatever the run itself would stumble over at its start.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  folder = resolve(config.policy.init)
  model, tokenizer = model_config.read_config(folder), Tokenizer(folder)
  print(f'run {config.run}, {config.steps} steps, mesh {dict(mesh.shape)}')
  print(f'policy {folder}: {model}')
  evaluate.HeldOut(config, tokenizer)
  if not config.data.train:
    return
  problems = data.read_problems(resolve(config.data.train),
                                data.needs(config), config.data.limit)
  prompt = data.policy_prompts(tokenizer, problems[:1], config)[0]
  print(f'{len(problems)} problems; {config.data.batch} x '
        f'{config.rollout.group_size} rows a step, {config.optim.updates} '
        f'updates of them, each in {config.optim.micro_batches} micro-batches')
  print('\n--- policy prompt\n' + tokenizer.decode(prompt, special=True))
  if config.run == 'train' and config.reward != 'sparse':
    judge = Tokenizer(resolve(config.judge.init))
    template = prompts.load(config.judge.template, judge)
    ids = [*template.head(judge, problems[0]),
           *judge.encode('<the trace>'), *template.ask]
    print('\n--- judge prompt\n' + judge.decode(ids, special=True))
    print(f'--- score tokens {template.score_ids}')
