"""--dry_run: read everything, compute nothing, show what the models see."""

from collections.abc import Sequence
import operator

import jax

from exprl_jax import config as config_lib
from exprl_jax.config import Config, loading, resolve
from exprl_jax.data import chat, mixture, verdicts
from exprl_jax.data.mixture import Mixture
from exprl_jax.data.problems import training_problems
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.evals import judge_traces
from exprl_jax.evals.held_out import HeldOut
from exprl_jax.judge import chats, factory, layout, panel, prompts, readouts
from exprl_jax.judge.questions import QuestionPrompt
from exprl_jax.models import config as model_config
from exprl_jax.models import references
from exprl_jax.rewards import teacher
from exprl_jax.rl import packing
from exprl_jax.runs import (
    evaluate,
    judge,
    recipes,
    rubrics,
    sample,
    setup,
    sft,
    train_judge,
    validate,
)
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import LINES, Problem, printable

_NOT_CHECKED = ("values of weights, which are not read",
                "compilation on devices (run='plan' compiles)",
                'whether the judge can judge (configs/judge.py measures it)',
                'write access to the workdir')


def dry_run(config: Config) -> None:
  """Checks all that a run reads; prints settings and one prompt of each kind.

  Raises:
    InputError: whatever the run itself would stumble over at its start.
  """
  _show_settings(config)
  _check_weights(config)
  _show_inputs(config)
  print(f'\nnot checked: {"; ".join(_NOT_CHECKED)}')


def _show_settings(config: Config) -> None:
  """Prints the keys that differ from their defaults."""
  default = config_lib.Config()
  print('settings (all others have their defaults)')
  for name, _ in loading.hints(config_lib.Config):
    get = operator.attrgetter(name)
    if get(config) != get(default):
      print(f'  {name} = {get(config)!r}')
  print()


def _show_inputs(config: Config) -> None:
  """Checks data, tokenizers and templates, and prints prompts."""
  if config.run == 'rubrics':
    _show_rubric_prompt(config)
  elif config.run == 'validate':
    validate.validate(config)
  elif recipes.judges_traces(config):
    tokenizer = factory.tokenizer_of(config)
    traces = judge_traces.read_traces(config, tokenizer)
    judge.check(config, [t.problem for t in traces])
    print(f'run judge, {len(traces)} traces')
    _show_judge_prompt(config, traces[0].problem)
  elif recipes.trains_judge_on_file(config):
    labeled = train_judge.check(config)
    print(f'run train_judge, {len(labeled)} traces, {config.steps} steps')
    _show_judge_prompt(config, labeled[0].problem)
  elif config.run == 'train':
    inputs = setup.inputs(config)
    _show_model(config, inputs.meshes.train)
    _show_training(config, inputs.meshes.train, inputs.problems)
    if inputs.reward.granularity == 'token':
      (ids,) = teacher.prompts(inputs.tokenizer, inputs.problems[:1], config)
      _show_text("teacher's prompt", inputs.tokenizer.decode(ids, special=True))
    _show_policy_prompt(config, inputs.tokenizer, inputs.problems)
    if inputs.reward.uses_judge:
      _show_judge_prompt(config, inputs.problems[0])
  else:
    _dry_run_other(config)


def _check_weights(config: Config) -> None:
  """Reads the headers of all weights that the run would load."""
  judged = (config.run in ('rubrics', 'judge')
            or config.run == 'train' and recipes.uses_judge(config)
            or recipes.trains_judge_on_file(config)
            or config.run == 'evaluate' and config.eval.behaviors == 'judge')
  sources = [config.judge.init] if judged and config.judge.init else []
  if not (config.run in ('rubrics', 'validate') or recipes.judges_traces(config)
          or recipes.trains_judge_on_file(config) or config.policy.random):
    sources.append(config.policy.init)
  if config.run == 'evaluate':
    sources += config.eval.models
  for source in sources:
    references.check(references.find(source))


def _dry_run_other(config: Config) -> None:
  """sft, evaluate, sample, export, judge on samples, train_judge."""
  # 1. What can be checked anywhere.
  if config.run == 'evaluate':
    evaluate.check(config)
  tokenizer = Tokenizer(
      references.find(config.policy.init).folder, config.rollout.stop_ids)
  HeldOut(config, tokenizer)
  if config.run == 'sample':
    prompts = sample.read_prompts(resolve(config.sample.prompts), tokenizer,
                                  config.rollout.max_prompt_tokens)
    print(f'{len(prompts)} prompts')
  problems = None
  if config.data.train or config.data.mixture:
    if config.run == 'sft':
      problems = sft.usable(config, tokenizer)
    else:
      problems = training_problems(config, ('solution', 'answer'))
      for some in verdicts.chunks(problems):
        chat.policy_prompts(tokenizer, some, config)
    if config.run == 'judge':
      judge.check(config, problems)
  # 2. What needs the devices of the run.
  mesh = mesh_lib.make_mesh(config.mesh)
  _show_model(config, mesh)
  if problems:
    _show_training(config, mesh, problems)
    _show_policy_prompt(config, tokenizer, problems)
    if config.run == 'judge':
      _show_judge_prompt(config, problems[0])


def _show_model(config: Config, mesh: jax.sharding.Mesh) -> None:
  folder = references.find(config.policy.init).folder
  model = model_config.read_config(folder)
  print(f'run {config.run}, {config.steps} steps, mesh {dict(mesh.shape)}')
  print(f'policy {folder}: {model}')
  tokenizer = Tokenizer(folder, config.rollout.stop_ids)
  print(f'completions end with {tokenizer.describe_ends()}')


def _show_training(config: Config, mesh: jax.sharding.Mesh,
                   problems: Sequence[Problem]) -> None:
  if isinstance(problems, Mixture):
    sets = mixture.parse(config.data.mixture)
    for s, part in zip(sets, problems.parts):
      print(f'  {s.name}: {len(part)} problems, weight {s.weight:g}')
  print(f'{len(problems)} problems; {config.data.batch} x '
        f'{config.rollout.group_size} samples a step, {config.optim.updates} '
        f'updates of them, in micro-batches of '
        f'{packing.micro_rows(config, mesh)} rows')


def _show_policy_prompt(config: Config, tokenizer: Tokenizer,
                        problems: Sequence[Problem]) -> None:
  (ids,) = chat.policy_prompts(tokenizer, problems[:1], config)
  _show_text('policy prompt', tokenizer.decode(ids, special=True))
  print(f'--- {len(ids)} tokens, rollout.max_prompt_tokens='
        f'{config.rollout.max_prompt_tokens}')


def _show_judge_prompt(config: Config, problem: Problem) -> None:
  """Shows the prompt of the judge, or of each judge of a panel."""
  tokenizer, judges = factory.tokenizer_of(config), panel.members(config.judge)
  for i, cfg in enumerate(judges):
    title = 'judge prompt' + f' {i + 1}' * (len(judges) > 1)
    (item, *_) = prompts.items(cfg, problem) or ['']
    if cfg.endpoint:
      _show_chat(title, cfg, config.reward, problem, item)
    else:
      _show_tree(title, cfg, tokenizer, config.reward, problem, item)


def _show_chat(title: str, cfg: config_lib.Judge, task: str, problem: Problem,
               item: str) -> None:
  """Shows what an endpoint is asked."""
  chat = chats.load(cfg, task)
  messages = chat.messages(problem, prompts.nonce(problem, []), '<the trace>',
                           item)
  text = '\n'.join(f'[{m["role"]}]\n{m["content"]}' for m in messages)
  _show_text(title, text)
  print(f'--- for {cfg.endpoint_model} at {cfg.endpoint}, for every step; '
        f'{chat.max_tokens} tokens for an answer')


def _show_tree(title: str, cfg: config_lib.Judge, tokenizer: Tokenizer,
               task: str, problem: Problem, item: str) -> None:
  """Shows what a judge on our own devices reads."""
  template = prompts.load(cfg, tokenizer, task,
                          readouts.READOUTS[cfg.readout].generates)
  (trace,) = layout.lay_out(template, [
      layout.Trace(problem, ['<the trace>'], prompts.nonce(problem, []),
                   [[(item, 1.0)]])
  ])
  fork = trace.questions[0].fork
  _show_text(
      title,
      tokenizer.decode([*trace.tokens[:fork.at], *fork.suffix], special=True))
  print(f'--- {trace.shared} tokens for all traces of the problem, '
        f'{trace.start - trace.shared} and the trace, {len(fork.suffix)} for '
        f'every step; score tokens {template.score_ids}')


def _show_rubric_prompt(config: Config) -> None:
  tokenizer = Tokenizer(references.folder_of(config.judge.init))
  problems = training_problems(config, ('solution',))
  ids, _ = QuestionPrompt(tokenizer,
                          'rubric').encode([rubrics.values(problems[0])])
  print(f'run rubrics, {len(problems)} problems')
  _show_text('prompt for a rubric', tokenizer.decode(ids[0], special=True))


def _show_text(title: str, text: str) -> None:
  """Prints a text that data is part of."""
  print(f'\n--- {title}\n{printable(text, keep=LINES)}')
