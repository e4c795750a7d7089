"""What training runs start from. All that can fail on input fails here, before
any weights are read; --dry_run is this and a look at the prompts.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import gc
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from exprl_jax import report, rewards
from exprl_jax.config import Config
from exprl_jax.data import chat, verdicts
from exprl_jax.data.batches import batches
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.evals import judge_check
from exprl_jax.evals.held_out import HeldOut
from exprl_jax.grading.grader import Grader
from exprl_jax.judge import factory, hacking
from exprl_jax.models import config as model_config
from exprl_jax.models import hf, references, transformer
from exprl_jax.planning import memory, search
from exprl_jax.rewards import base, teacher
from exprl_jax.rl import credit, curriculum, filters, optimizer
from exprl_jax.rl.policy import Policy
from exprl_jax.rl.scored import ScoredRollouts
from exprl_jax.rollout import sources
from exprl_jax.rollout.sampler import Sampler
from exprl_jax.runs import budgets, notices, progress, traces, validate, warm_up
from exprl_jax.runtime import checkpoints as checkpoints_lib
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import metrics, stopping, trackers
from exprl_jax.runtime import workdir as workdir_lib
from exprl_jax.types import Group, InputError, Params, Problem, TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
  """What run='train' reads besides weights, checked."""

  config: Config
  meshes: mesh_lib.Meshes
  origin: references.Reference  # of the policy
  tokenizer: Tokenizer
  problems: Sequence[Problem]
  reward: base.Reward
  grader: Grader
  held_out: HeldOut


def inputs(config: Config) -> Inputs:
  """Reads and checks everything but weights.

  Raises:
    InputError: something is not as it should be; names it.
  """
  meshes = mesh_lib.meshes(config)
  reward = rewards.lookup(config.reward)
  origin = references.find(config.policy.init)
  tokenizer = Tokenizer(origin.folder, config.rollout.stop_ids)
  grader = Grader(config.grading)
  held_out = HeldOut(config, tokenizer, grader)
  problems = validate.usable(config, reward.needs, grader,
                             budgets.of_models(config))
  if reward.uses_judge:
    factory.check(config, ())
    judge_check.check(config)
  check_frozen(config, origin)
  check_problems(config, problems, reward, tokenizer)
  search.check(config, meshes.devices)
  return Inputs(config, meshes, origin, tokenizer, problems, reward, grader,
                held_out)


def check_problems(config: Config, problems: Sequence[Problem],
                   reward: base.Reward, tokenizer: Tokenizer) -> None:
  """Checks that the teacher's prompts fit and rubrics are there.

  Raises:
    InputError: one does not fit, or has no rubric; names the problem.
  """
  checks: list[verdicts.Check] = []
  key: list[Any] = [config.rollout, tokenizer.digest()]
  if reward.granularity == 'token':
    checks.append(lambda some: teacher.prompts(tokenizer, some, config))
    key += [config.teacher, teacher.template(config.teacher)]
  if reward.uses_judge:
    checks.append(lambda some: factory.check_rubrics(config.judge, some))
    key += [config.judge.reference, config.judge.judgment, config.judge.panel]
  if checks:
    verdicts.check(problems, checks, *key)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """The parts of a training run that are there from start to end."""

  inputs: Inputs
  workdir: epath.Path
  policy: Policy
  sampler: Sampler
  source: sources.Source
  reward: Callable[[Sequence[Group]], ScoredRollouts]
  curriculum: curriculum.Curriculum
  judge: factory.AnyJudge | None  # that the reward asks
  monitor: hacking.Monitor | None  # where a judge gives the reward
  empty_steps: filters.EmptySteps
  checkpoints: checkpoints_lib.Checkpoints
  log: metrics.Log
  traces: traces.Traces
  notices: notices.Notices
  probe_metrics: dict[str, float]  # of the judge, which is frozen

  @property
  def key(self) -> jax.Array:
    """Step i draws from fold_in(key, i)."""
    return jax.random.key(self.inputs.config.seed)

  @property
  def scores_tokens(self) -> bool:
    """Whether the reward is per token (self-distillation)."""
    return self.inputs.reward.granularity == 'token'

  def credit(self, scored: ScoredRollouts,
             logprobs: credit.Logprobs) -> credit.Credit:
    """The advantages of a step's tokens."""
    if self.scores_tokens:
      return teacher.credit(self.policy, self.inputs.tokenizer, scored,
                            logprobs)
    return credit.assign(self.inputs.config, scored, logprobs)

  def enter(self, phase: str) -> None:
    """Begins a phase of a step, which is where a run may stop."""
    stopping.poll(phase)
    self.log.phase(phase)

  def evaluate(self, state: TrainState, step: int) -> None:
    """Samples and grades the held-out problems, and logs how that went."""
    self.source.idle()
    self.log.phase('evaluation')
    self.inputs.held_out(self.sampler,
                         self.policy.sampling_params(state.params), step,
                         self.log, self.probe_metrics)

  def evaluation_is_missing(self, step: int) -> bool:
    """Whether the step that a run starts from has yet to be evaluated: the
    first one, and one whose evaluation was interrupted."""
    if step == 0:
      return True
    rows = metrics.read(self.workdir / 'metrics.jsonl')
    return self.inputs.held_out.due(step, self.inputs.config.steps) and not any(
        row['step'] == step and key.startswith('eval/')
        for row in rows
        for key in row)

  def report(self, step: int, values: dict[str, float],
             scored: ScoredRollouts) -> None:
    """Logs a step, and warns of what is wrong with it."""
    lines = self.notices.of_step(step, scored, values)
    if self.monitor:
      watched, warning = self.monitor.update(values)
      values = values | watched
      lines += [warning] if warning else []
    shown = step % 10 == 0 or step == 1
    self.log.advance(reward=values['reward/mean'],
                     accuracy=values['reward/accuracy'])
    self.log.write(step, values, progress.line(step, values) if shown else '')
    for text in lines:
      self.log.say(text)

  def write_samples(self, step: int, scored: ScoredRollouts,
                    advantage: np.ndarray, dropped: ScoredRollouts) -> None:
    """Keeps a step's traces, and writes those of the first, every tenth and
    the last step as text.

    Args:
      step: as it is logged.
      scored: the rows that train.
      advantage: of their steps, [B, S].
      dropped: the other rows.
    """
    self.traces.write(step, scored, advantage, dropped)
    last = self.inputs.config.steps
    if jax.process_index() == 0 and (step % 10 == 0 or step in (1, last)):
      progress.write_samples(self.workdir / f'samples/{step:08d}.jsonl', scored,
                             advantage)
      trackers.samples(progress.sample_table(step, scored))

  def close(self, state: TrainState) -> None:
    """Waits for checkpoints and writes the model.

    Raises:
      Unfinished: the model could not be written.
    """
    self.checkpoints.close()
    self.log.close()
    self.traces.close()
    self.inputs.grader.close()
    with report.unfinished('model', self.workdir):
      hf.save(self.workdir / 'model', self.policy.model,
              self.policy.merged_params(state.params),
              self.inputs.origin.folder)


def start(inputs: Inputs, workdir: epath.Path) -> tuple[Run, int, TrainState]:
  """Claims the workdir, loads weights, restores the newest checkpoint.

  Returns:
    The run, the steps done, and the training state.
  """
  config, meshes = inputs.config, inputs.meshes
  # CPUs have no limit of memory to check, and compile just what they meet.
  if meshes.devices[0].platform != 'cpu':
    warm_up.warm_up(config, meshes.devices)
  policy, params = load_policy(config, meshes.train, inputs.origin)
  workdir_lib.claim(workdir, config)
  state = optimizer.init_state(params, config.optim,
                               config.steps * config.optim.updates)
  # 1. The judge, which may be the frozen copy of the policy.
  models = memory.models(config, meshes)
  judge = None
  if inputs.reward.uses_judge:
    shared = None
    if models.shared:
      shared = inputs.origin.folder, policy.model, policy.reference
    judge = factory.load(config, meshes.judge, workdir, shared,
                         options=models.judging)
  policy = dataclasses.replace(policy, resident=judge.params if judge else ())
  scorer = inputs.reward.make(config, judge)
  # 2. The sampler; pools are sized by all that will be alive.
  sampler = Sampler(config, policy.model, inputs.tokenizer, meshes.sample,
                    models.rollout)
  if not jax.process_index():
    print(f'completions end with {inputs.tokenizer.describe_ends()}')
  _show_kernels(inputs, sampler, judge)
  table = curriculum.Curriculum(inputs.problems, config)
  source = _source(inputs, sampler, table, _early(inputs, judge))
  monitor = hacking.Monitor(config) if judge else None
  empty_steps = filters.EmptySteps(config.select.max_empty_steps)
  # 3. What a resumed run restores.
  host: dict[str, checkpoints_lib.HasState] = {
      'curriculum': table, 'source': source, 'empty_steps': empty_steps
  }
  if monitor:
    host['hacking_monitor'] = monitor
  checkpoints = checkpoints_lib.Checkpoints(workdir, config.checkpoint, host)
  done, state = checkpoints.restore(state)
  gc.collect()  # loading leaves arrays in cycles, which take device memory
  probes = judge_check.before_training(config, judge,
                                       inputs.problems) if judge else {}
  # From here on the progress bar is shown: what prints goes through the log.
  log = metrics.Log(workdir, config.steps, done, jax.process_index() == 0)
  trackers.start(config.log.trackers, workdir,
                 workdir_lib.flat(dataclasses.asdict(config)), done)
  reward = base.scoring(config, inputs.tokenizer, inputs.grader, scorer,
                        inputs.reward.granularity)
  return Run(
      inputs, workdir, policy, sampler, source, reward, table, judge, monitor,
      empty_steps, checkpoints, log, traces.Traces(workdir, config.traces),
      notices.Notices(inputs.tokenizer,
                      inputs.reward.granularity == 'step'), probes), done, state


def _show_kernels(inputs: Inputs, sampler: Sampler,
                  judge: factory.AnyJudge | None) -> None:
  """Prints what attends over pages; on CPUs that is always the reference."""
  if jax.process_index() or inputs.meshes.devices[0].platform == 'cpu':
    return
  print(f'policy: {sampler.engine.options.layout.kernel.describe()}')
  if judge and judge.engine:
    print(f'judge: {judge.engine.options.layout.kernel.describe()}')


def load_policy(config: Config, mesh: jax.sharding.Mesh,
                origin: references.Reference) -> tuple[Policy, Params]:
  """The policy, and the parameters that train."""
  model, params, base_params = references.policy(config, mesh)
  reference = base_params
  if reference is None and memory.keeps_reference(config, origin):
    # The frozen copy must be other arrays: updates donate the policy.
    reference = jax.jit(
        lambda x: jax.tree.map(jnp.copy, transformer.cast(model, x)))(params)
  others = [
      references.load(source, mesh, config.policy.dtype, frozen=True)[2]
      if source else None
      for source in (config.reference.init, config.teacher.init)
  ]
  return Policy(config, model, mesh, reference, *others), params


def check_frozen(config: Config, origin: references.Reference) -> None:
  """Checks that reference.init and teacher.init have the policy's shape.

  Raises:
    InputError: there is no such model, or it is another one.
  """

  def shape(folder: epath.Path) -> Any:
    model = model_config.read_config(folder)
    return Tokenizer(folder).vocab_size, jax.tree.map(
        lambda x: x.shape, transformer.abstract_params(model))

  for key in ('reference', 'teacher'):
    source = getattr(config, key).init
    if source and shape(references.find(source).folder) != shape(origin.folder):
      raise InputError(f'config.{key}.init={source}: another model than '
                       f'policy.init={config.policy.init}; their '
                       'log-probabilities cannot be compared')


def _source(inputs: Inputs, sampler: Sampler, table: curriculum.Curriculum,
            early: Callable[[Sequence[Group]], None] | None) -> sources.Source:
  """By rollout.source and rollout.partial_rollouts."""
  config, ahead = inputs.config, inputs.config.rollout.partial_rollouts
  prompts = functools.partial(_prompts, inputs)
  if config.rollout.source == 'async':
    return sources.Async(config, sampler, table.draw, prompts, inputs.problems)
  if not ahead:
    return sources.Synchronous(config, sampler, table.draw, prompts, early)
  first = batches(inputs.problems, ahead, config.seed + 1)(0)
  return sources.Partial(config, sampler, table.draw, prompts, inputs.problems,
                         first, early)


def _prompts(inputs: Inputs, problems: Sequence[Problem]) -> list[list[int]]:
  return chat.policy_prompts(inputs.tokenizer, problems, inputs.config)


def _early(
    inputs: Inputs,
    judge: factory.AnyJudge | None) -> Callable[[Sequence[Group]], None] | None:
  """With judge.overlap, judges groups while others decode: the judgments wait
  in the judge's cache."""
  config = inputs.config
  if not (judge and config.judge.overlap):
    return None
  cut = base.cutter(config, inputs.tokenizer, inputs.grader,
                    inputs.reward.granularity)

  def ask(groups: Sequence[Group]) -> None:
    judge.score([(t.problem, t.steps) for t in cut(groups)],
                config.judge.max_steps)

  return ask
