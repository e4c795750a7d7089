"""What goes with what: the checks of a config that concern several keys.

The registries are asked: a reward says how fine its scores are, a credit rule
which it takes, a loss which keys it reads. A key that the recipe does not read
and that was set is a mistake, so it is an error.
"""

import dataclasses

import ml_collections

from exprl_jax import config as config_lib
from exprl_jax import rewards
from exprl_jax.config import Config
from exprl_jax.config.loading import by_domain, get, longest
from exprl_jax.judge import panel, readouts
from exprl_jax.rl import advantages, losses
from exprl_jax.runtime import profiler, trackers
from exprl_jax.runtime.registry import lookup
from exprl_jax.types import InputError


def freeze(values: ml_collections.ConfigDict) -> Config:
  """The checked config of values as `config.load` returns them.

  Raises:
    InputError: a value, or a combination of values, that is not allowed.
  """
  config = config_lib.freeze(values)
  check(config)
  return config


def check(c: Config) -> None:
  """Checks combinations; choices and bounds of single keys are checked before.

  Raises:
    InputError: names the keys and the remedy.
  """
  if c.run == 'plan':  # as the run that is planned
    check(dataclasses.replace(c, run=c.plan.run))
    return
  _check_needed(c)
  if c.run == 'replay':  # as the run whose step it is
    check(dataclasses.replace(c, run='train'))
    return
  check_judge(c)
  for name in ('rollout.system_prompts', 'judge.templates', 'grading.domains'):
    by_domain(c, name)
  trackers.check(c.log.trackers)
  if c.run == 'train':
    _check_recipe(c)
    profiler.parse(c.profile.steps, c.steps)
  elif c.profile.steps and c.run != 'report':
    raise InputError(f'config.profile.steps={c.profile.steps!r} is for '
                     "run='train'")
  if c.run == 'sft':
    _check_batch(c)
  if c.eval.problems and max(c.eval.ks, default=0) > c.eval.samples:
    raise InputError(f'config.eval.ks={c.eval.ks}: pass@k needs eval.samples '
                     f'>= k, it is {c.eval.samples}')


def uses_judge(c: Config) -> bool:
  """Whether a judge gives the reward."""
  return rewards.lookup(c.reward).uses_judge


def judges_traces(c: Config) -> bool:
  """Whether run='judge' reads traces from a file."""
  return c.run == 'judge' and bool(c.judge.traces)


def trains_judge_on_file(c: Config) -> bool:
  """Whether run='train_judge' reads labeled traces from a file."""
  return c.run == 'train_judge' and bool(c.judge_training.traces)


def _check_needed(c: Config) -> None:
  """Keys without which a run mode cannot start."""
  from_file = judges_traces(c) or trains_judge_on_file(c)
  own = bool(panel.local(c.judge))  # a judge that has weights here
  needs = {
      # Its tokenizer cuts steps for an endpoint.
      'policy.init': c.run not in ('rubrics', 'validate')
      and not (from_file and own),
      'data.train': c.run in ('train', 'sft', 'rubrics', 'judge', 'validate')
      and not from_file and not c.data.mixture,
      'rubrics.out': c.run == 'rubrics',
      'eval.problems': c.run == 'evaluate',
      'sample.prompts': c.run == 'sample',
      'sample.out': c.run == 'sample',
      'export.out': c.run == 'export',
      'replay.source': c.run == 'replay',
      'judge.init': own and
      (c.run == 'train' and uses_judge(c) or c.run == 'judge')
      or c.run in ('rubrics', 'train_judge')
  }
  for name, needed in needs.items():
    if needed and not get(c, name):
      raise InputError(f'config.{name} is empty; run={c.run!r} needs it')


def check_judge(c: Config) -> None:
  """Checks the judge's readout, and that the reward needs a judge.

  Raises:
    InputError: names the keys and the remedy.
  """
  lookup(readouts.READOUTS, c.judge.readout, 'judge.readout')
  panel.check(c.judge)
  for name in c.calibration.readouts:
    lookup(readouts.READOUTS, name, 'calibration.readouts')
    if name != 'generate' and not panel.local(c.judge):
      raise InputError(f'config.calibration.readouts={c.calibration.readouts}: '
                       "judge.endpoint has one readout: ('generate',) or ()")
  if c.run == 'train_judge' and (c.judge.panel or c.judge.endpoint):
    raise InputError("config.judge.panel and endpoint are not for run="
                     "'train_judge', which trains one judge")
  for key, value in (('readout', 'direct'), ('context', 'prefix'), ('judgment',
                                                                    'overall')):
    if c.run == 'train_judge' and getattr(c.judge, key) != value:
      raise InputError(f"config.judge.{key}={getattr(c.judge, key)!r}: run="
                       f"'train_judge' trains scores that are read with "
                       f'{value!r}')
  if c.reward == 'process' and any(
      own.judgment == 'group' for own in panel.members(c.judge)):
    raise InputError("config.judge.judgment='group' compares whole traces: "
                     "reward='outcome', not 'process'")
  if c.judge.overlap and not c.judge.cache:
    raise InputError('config.judge.overlap=True needs judge.cache=True: early '
                     'judgments wait there')
  if c.run == 'judge' and not uses_judge(c):
    raise InputError(f"config.reward={c.reward!r} needs no judge; "
                     "run='judge' wants 'process' or 'outcome'")
  if c.data.train and c.data.mixture:
    raise InputError('config.data.train and data.mixture: set one of them')
  if judges_traces(c) and c.data.rubrics:
    raise InputError('config.data.rubrics is for data.train; lines of '
                     'judge.traces bring their own `rubric`')


def _check_recipe(c: Config) -> None:
  """Whether reward, credit, loss and batch go together."""
  r, reward, loss = c.rollout, rewards.lookup(c.reward), losses.kind(
      c.loss.kind)
  rule = lookup(advantages.RULES, c.credit.rule, 'credit.rule')
  if r.top_k or r.top_p < 1 or r.min_p or r.min_new_tokens:
    raise InputError(
        'config.rollout.top_k, top_p, min_p and min_new_tokens truncate the '
        "distribution that the learner computes: run='train' needs them off "
        '(0, 1, 0, 0)')
  if r.temperature == 0:
    raise InputError('config.rollout.temperature=0 draws the same sample for '
                     "a whole group, which teaches nothing: run='train' needs "
                     'more than 0')
  if reward.granularity not in rule.granularity:
    fitting = [
        name for name, x in advantages.RULES.items()
        if reward.granularity in x.granularity
    ]
    raise InputError(
        f'config.reward={c.reward!r} gives one score a {reward.granularity}, '
        f'credit.rule={c.credit.rule!r} wants others: use '
        f'{" or ".join(fitting)}')
  if c.reference.init and not c.loss.kl_coef:
    raise InputError(f'config.reference.init={c.reference.init}: nothing reads '
                     'it with loss.kl_coef=0')
  if c.teacher.init and c.reward != 'teacher':
    raise InputError(f'config.teacher.init={c.teacher.init} needs reward='
                     f"'teacher', it is {c.reward!r}")
  if c.teacher.init and loss.teacher and c.policy.lora_rank:
    raise InputError("config.teacher.init with loss.kind='exact_kl' needs "
                     'policy.lora_rank=0')
  if loss.teacher and (c.reward != 'teacher' or c.loss.kl_coef):
    raise InputError(f"config.loss.kind={c.loss.kind!r} needs reward='teacher' "
                     'and loss.kl_coef=0')
  if not loss.needs_ratio and c.optim.updates > 1:
    raise InputError(f'config.loss.kind={c.loss.kind!r} has no ratio to an '
                     'older policy: it needs optim.updates=1')
  if c.credit.outcome_domains and reward.granularity != 'step':
    raise InputError("config.credit.outcome_domains needs reward='process'; "
                     'other rewards judge every trace as a whole')
  _check_select(c)
  _check_async(c)
  _check_group(c)
  _check_batch(c)
  _check_inert(c)


def _check_select(c: Config) -> None:
  s, r = c.select, c.rollout
  if bool(r.oversampling) != bool(r.oversampling_rule):
    raise InputError(
        f'config.rollout.oversampling={r.oversampling} goes with rollout.'
        "oversampling_rule='first_to_end', which prefers short traces "
        '(docs/method.md); rollout.partial_rollouts does not wait for long '
        'ones either and keeps them all')
  if s.drop_zero_variance and (c.rollout.partial_rollouts or rewards.lookup(
      c.reward).granularity == 'token'):
    raise InputError('config.select.drop_zero_variance does not go with '
                     "rollout.partial_rollouts or reward='teacher'")


def _check_async(c: Config) -> None:
  """Whether a recipe can be one step off policy, where rollout.source is."""
  if c.rollout.source != 'async':
    if c.mesh.sampling_devices:
      raise InputError(f'config.mesh.sampling_devices={c.mesh.sampling_devices}'
                       " needs rollout.source='async'")
    return
  wanted = {
      'rollout.partial_rollouts=0': not c.rollout.partial_rollouts,
      'select.drop_zero_variance=False': not c.select.drop_zero_variance,
      'judge.overlap=False': not c.judge.overlap,
      'loss.tis_cap above 0, as samples are one step off policy': c.loss.tis_cap
      > 0
  }
  for key, given in wanted.items():
    if not given:
      raise InputError(f"config.rollout.source='async' needs {key}")


def _check_group(c: Config) -> None:
  """Whether credit that compares the samples of a problem has some to compare.
  """
  credit, alone = c.credit, c.rollout.group_size == 1
  compares = {
      f'credit.rule={credit.rule!r}': credit.rule in ('group', 'rloo'),
      'credit.outcome_domains': bool(credit.outcome_domains),
      'credit.sparse_weight': bool(credit.sparse_weight)
  }
  for key, needed in compares.items():
    if alone and needed:
      raise InputError(f'config.rollout.group_size=1: {key} compares the '
                       'samples of a problem; alone, one has no credit')


def _check_batch(c: Config) -> None:
  """Whether sequences and groups fit: for run='train' and 'sft'."""
  if c.data.batch % c.optim.updates:
    raise InputError(
        f'config.data.batch={c.data.batch} does not divide into '
        f'optim.updates={c.optim.updates}: an update takes whole groups')
  if 0 < c.optim.row_tokens < longest(c):
    raise InputError(f'config.optim.row_tokens={c.optim.row_tokens}: a row has '
                     f'to hold the longest sequence, {longest(c)} tokens')


def _check_inert(c: Config) -> None:
  """Keys that were set and that the recipe does not read are mistakes."""
  reward, rule = rewards.lookup(c.reward), advantages.RULES[c.credit.rule]
  rows = reward.granularity == 'row'
  read = {f'credit.{key}' for key in rule.keys}
  if c.credit.outcome_domains or c.credit.sparse_weight:
    read |= {f'credit.{key}' for key in advantages.RULES['group'].keys}
  if c.credit.first != 'final':
    read.discard('credit.single')
  if c.reward != 'sparse' and reward.granularity != 'token':
    read.add('credit.sparse_weight')
  read |= {f'loss.{key}' for key in losses.kind(c.loss.kind).keys}
  if c.loss.kl_coef:
    read.add('loss.kl_estimator')
  owned = {f'credit.{key}' for x in advantages.RULES.values() for key in x.keys}
  owned |= {f'loss.{key}' for x in losses.LOSSES.values() for key in x.keys}
  for name in sorted(owned | {'credit.sparse_weight', 'loss.kl_estimator'}):
    if name not in read and get(c, name) != get(Config(), name):
      raise InputError(
          f'config.{name}={get(c, name)!r} is not read with reward='
          f'{c.reward!r}, credit.rule={c.credit.rule!r}, loss.kind='
          f'{c.loss.kind!r}, loss.kl_coef={c.loss.kl_coef}')
  if not c.loss.tis_cap and c.loss.tis_mode != Config().loss.tis_mode:
    raise InputError(
        f'config.loss.tis_mode={c.loss.tis_mode!r} is not read with '
        'loss.tis_cap=0')
  if c.loss.kl_in == 'reward' and not (rows and c.loss.kl_coef):
    raise InputError("config.loss.kl_in='reward' takes the KL off the score of "
                     "a row: it needs reward='outcome' or 'sparse', and "
                     'loss.kl_coef')
  _check_overlong(c, reward.granularity)


def _check_overlong(c: Config, granularity: str) -> None:
  r, soft = c.rollout, c.rollout.overlong == 'soft'
  tokens = granularity == 'token'
  if soft and granularity != 'row' or r.overlong == 'zero' and tokens:
    raise InputError(f'config.rollout.overlong={r.overlong!r} is not for '
                     f'reward={c.reward!r}: keep or mask' +
                     ('' if tokens else ' or zero'))
  if soft and r.overlong_buffer >= r.max_new_tokens:
    raise InputError(
        f'config.rollout.overlong_buffer={r.overlong_buffer} should be '
        f'a part of rollout.max_new_tokens={r.max_new_tokens}')
