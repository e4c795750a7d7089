"""The configuration: what every key means, and its default.

A file in configs/ returns an `ml_collections.ConfigDict` with the keys that
matter to its experiment. `load` lays it over the defaults below, so that each
key can be overridden by a flag (`--config.optim.lr=1e-4`), and `freeze` turns
the result into these frozen, hashable dataclasses. Nothing after that sees a
ConfigDict.
"""

import dataclasses
import difflib
from typing import Any

from etils import epath
import ml_collections

from exprl_jax.config import files
from exprl_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Model:
  """A model: the policy, which is also the KL reference as it starts out."""

  init: str = ''  # Hugging Face directory, workdir, WORKDIR@STEP, asset:NAME
  random: bool = False  # take config.json and tokenizer only, draw weights
  random_std: float = 0.0  # their standard deviation; 0: 1 / sqrt(fan-in)
  dtype: str = 'float32'  # of matrix products; parameters stay float32
  remat: str = 'none'  # none | full | dots | save_attention | offload: layers
  # recomputed
  attention: str = 'auto'  # auto | einsum | dot_product | splash
  lora_rank: int = 0  # train adapters of this rank, not the matrices; 0: these
  lora_alpha: float = 32.0  # their scale is lora_alpha / lora_rank


@dataclasses.dataclass(frozen=True)
class Teacher:
  """reward='teacher': the starting policy, shown the solution (teacher.py)."""

  template: str = ''  # file with {question} and {solution}; '': one in English
  max_prompt_tokens: int = 16384


@dataclasses.dataclass(frozen=True)
class Judge:
  """The frozen language model that scores traces (docs/judge.md)."""

  init: str = ''
  dtype: str = 'float32'
  weights: str = ''  # int8, or '' for dtype
  template: str = 'math'  # a file of exprl_jax/judge/templates, or a path
  templates: tuple[str, ...] = ()  # of some domains: 'code=code'
  reference: str = 'solution'  # what it is shown: solution | rubric | both
  context: str = 'prefix'  # of a step: prefix (the trace so far) | segment
  readout: str = 'direct'  # direct | generate | generate_expect
  verdict: str = 'whole'  # whole | checkpoints (one each, by their points)
  scale: str = 'smooth'  # 1..5 to [0, 1]: smooth | semi_smooth | extreme
  rationale_tokens: int = 512  # of readouts that generate
  delimiter: str = '###'  # ### | blank_line | numbered | every:M (judge/steps)
  max_steps: int = 16  # later steps are merged into the last one
  min_step_tokens: int = 1  # shorter ones are merged into the next
  max_prompt_tokens: int = 4096  # all but the trace; longer: no verdict
  max_trace_tokens: int = 0  # longer traces lose their middle; 0: the policy's
  # budget, or the longest of judge.traces
  min_mass: float = 0.5  # less probability on the scores 1..5: unreadable
  max_invalid_frac: float = 0.5  # more unreadable rows than this: stop
  max_probe_score: float = 0.5  # a judge that gives more to a probe is refused
  alarm_window: int = 60  # steps over which the judge's mean score may climb
  alarm_rise: float = 0.1  # so much while accuracy does not (docs/judge.md)
  cache: bool = True  # keep verdicts in the workdir
  overlap: bool = False  # judge while the last samples decode; set pages
  slots: int = 64  # branches that are read at a time
  page: int = 64  # tokens in a page
  pages: int = 0  # as in rollout
  traces: str = ''  # run='judge': JSONL of traces; '': samples of the policy


@dataclasses.dataclass(frozen=True)
class Data:
  """Problems to train on, and how many at a time."""

  train: str = ''  # JSONL of problems
  rubrics: str = ''  # JSONL that run='prepare' wrote
  batch: int = 8  # problems per step (sft: rows per step)
  limit: int = 0  # use only so many problems; 0 is all


@dataclasses.dataclass(frozen=True)
class Rollout:
  """What the policy is given and how it is sampled."""

  group_size: int = 8  # samples per problem, G
  max_prompt_tokens: int = 1024
  max_new_tokens: int = 1024
  temperature: float = 1.0
  top_k: int = 0  # 0 is off; truncation is for run='sample' and 'evaluate'
  top_p: float = 1.0
  min_p: float = 0.0
  min_new_tokens: int = 0
  stop: tuple[str, ...] = ()  # strings that end a completion
  spare: int = 0  # samples a problem beside the group; the first to end stay
  carry: int = 0  # problems begun ahead: unfinished ones go on next step
  slots: int = 64  # rows that decode at a time
  chunk: int = 32  # tokens they decode between two looks of the host
  page: int = 128  # tokens in a page of keys and values
  pages: int = 0  # on each device; 0: enough for all slots, or what fits
  kv_dtype: str = ''  # int8, or '' for the policy's
  kernel: str = 'auto'  # attention over pages: auto | reference | ragged
  system_prompt: str = ''
  system_prompts: tuple[str, ...] = ()  # of some domains: 'code=TEXT'
  overlong: str = 'keep'  # reward of rows without EOS: keep | zero | mask (they
  # do not train) | soft (a penalty that grows to 1 in the last tokens)
  overlong_buffer: int = 4096  # of 'soft': these last tokens


@dataclasses.dataclass(frozen=True)
class Select:
  """Which problems and groups a step trains on (selection.py)."""

  drop_zero_spread: bool = False  # groups whose rewards are all equal leave
  tolerance: float = 1e-6  # rewards of a group that differ less are equal
  tries: int = 3  # to refill a batch that has lost groups, with others
  max_empty: int = 10  # steps in a row without any group left: stop
  curriculum: bool = False  # draw problems of middling solve rate more often
  floor: float = 0.1  # curriculum: weight of problems always or never solved
  memory: float = 0.5  # curriculum: how much a new solve rate moves the old one


@dataclasses.dataclass(frozen=True)
class Credit:
  """From scores to advantages: advantages.py, docs/method.md."""

  rule: str = 'group'  # one score a row: group | rloo | batch | raw; a step:
  # delta | end | group_process | batch | raw; a token: token
  divide_by_std: bool = True  # group
  min_std: float = 0.0  # group: a smaller standard deviation counts as this
  first: str = 'final'  # delta, baseline of step 1: final (paper) | zero
  single: str = 'zero'  # delta, rows of one step: zero (paper) | score (the
  # authors) | group_centred
  last: str = 'score'  # end, the last step: score (paper) | zero (the authors)
  baseline: str = 'steps'  # group_process: steps (Eq. 6) | tokens | padded (the
  # authors)
  outcome_domains: tuple[str, ...] = ()  # reward='process': their problems are
  # judged as a whole, rule 'group'
  sparse_weight: float = 0.0  # of the graded answer's group advantage, added


@dataclasses.dataclass(frozen=True)
class Loss:
  """losses.policy_loss; docs/method.md has the equations."""

  kind: str = 'ppo'  # ppo | reinforce | gspo | cispo | exact_kl (to a teacher)
  clip_low: float = 0.2
  clip_high: float = 0.28
  dual_clip: float = 3.0  # ppo; 0 is off
  aggregation: str = 'token_mean'  # token_mean | seq_mean_token_mean |
  # seq_mean_token_sum | fixed_length
  kl_coef: float = 1e-3  # KL to the starting policy
  kl: str = 'k3'  # k3 | k1
  kl_in: str = 'loss'  # loss | reward
  kl_clamp: float = 10.0  # of a token's estimate
  entropy_coef: float = 0.0  # bonus
  tis_cap: float = 2.0  # truncated importance sampling between sampler and
  # learner; 0 is off
  logprob_chunk: int = 512  # tokens of a row whose vocabulary is projected at a
  # time


@dataclasses.dataclass(frozen=True)
class Optim:
  """AdamW. `updates` optimiser steps per batch, on whole groups."""

  lr: float = 1e-6
  schedule: str = 'constant'  # constant | linear | cosine (to 0)
  warmup_steps: int = 0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.01
  decay: str = 'all'  # parameters that decay: all | matrices
  clip_norm: float = 1.0
  moments: str = 'float32'  # of the first moment: float32 | bfloat16
  offload: bool = False  # moments rest in host memory between updates
  max_skipped: int = 10  # updates in a row that are not finite: stop
  updates: int = 1
  row_tokens: int = 0  # sequences are packed into rows of so many tokens; 0: as
  # long as one can be
  micro_rows: int = 1  # rows that a device computes at a time; the gradient
  # depends neither on this nor on row_tokens


@dataclasses.dataclass(frozen=True)
class Grading:
  """How final answers are graded, everywhere (docs/grading.md)."""

  grader: str = 'math'  # math | choice | text | FILE.py:FUNCTION |
  # MODULE:FUNCTION
  domains: tuple[str, ...] = ()  # others: 'code=FILE.py:FUNCTION'
  workers: int = 2  # processes; they start when the first answer needs them
  timeout: float = 5.0  # seconds an answer; then its worker is killed
  memory_mb: int = 1024  # a worker may take


@dataclasses.dataclass(frozen=True)
class Eval:
  """Held-out problems, and how often they are sampled (docs/evaluation.md)."""

  problems: str = ''  # JSONL of held-out problems, or several sets:
  # 'aime25=FILE,hmmt=FILE'; none: no evaluation
  every: int = 0  # steps; 0: only before and after
  samples: int = 16  # per problem
  ks: tuple[int, ...] = (1, 16)  # of pass@k and, from 3 on, maj@k
  limit: int = 0  # problems of each set; 0 is all
  models: tuple[str, ...] = ()  # run='evaluate': compared with policy.init;
  # folders, workdirs, WORKDIR@STEP
  wave: int = 64  # run='evaluate': problems sampled between two writes
  unlocked_k: int = 0  # samples of "unlocked" prompts (run='evaluate'); 0: none
  unlocked_min: int = 1  # so many of them right: unlocked
  diagnose: bool = False  # run='evaluate': entropy and KL to policy.init
  behaviours: str = ''  # run='evaluate': counted by words | judge; '': not


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """How often the training state is saved, and how many are kept."""

  every: int = 0  # steps; 0: only at the end
  keep: int = 2


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Sizes of the device mesh; -1 takes what is left."""

  data: int = 1
  fsdp: int = -1
  expert: int = 1  # of a mixture of experts: whole experts on each device
  tensor: int = 1
  rollout_tensor: int = 0  # tensor axis while sampling, the rest is data; 0:
  # sample as it trains


@dataclasses.dataclass(frozen=True)
class Sample:
  """run='sample': JSONL in and out (generate.py)."""

  prompts: str = ''
  out: str = ''


@dataclasses.dataclass(frozen=True)
class Prepare:
  """run='prepare': the judge writes rubrics for data.train (prepare.py)."""

  rubrics: str = ''  # JSONL to write
  max_new_tokens: int = 1024
  tries: int = 3  # of a rubric that cannot be read


@dataclasses.dataclass(frozen=True)
class Export:
  """run='export': policy.init, a model or a workdir, as a model folder."""

  out: str = ''  # folder or gs://bucket/folder, fresh
  step: int = 0  # of the workdir's checkpoints; 0: the newest
  dtype: str = 'bfloat16'  # of the stored tensors; bfloat16 | float32


@dataclasses.dataclass(frozen=True)
class Calibration:
  """run='judge' where it is known which traces are right (judging.py)."""

  prefixes: int = 256  # that are compared with what the policy makes of them
  continuations: int = 16  # of each; 0: no such comparison
  readouts: tuple[str, ...] = ()  # to be compared with each other


@dataclasses.dataclass(frozen=True)
class JudgeTraining:
  """run='train_judge': how the tiny judge is made (tiny/train_judge.py)."""

  warmup_steps: int = 600  # on well-formed traces only
  round_steps: int = 150  # after each so many steps, an adversary
  adversary_steps: int = 40  # RL steps against the judge as it is
  policy_steps: int = 80  # RL steps on the programmatic truth
  problems: int = 8  # per RL step
  hint_weight: float = 1.0  # of the loss on hints inside the trace
  start: str = ''  # the judge starts as a copy of this model; '': the policy


@dataclasses.dataclass(frozen=True)
class Config:
  """One run."""

  run: str = 'train'  # train | sft | evaluate | judge | sample | prepare |
  # export | train_judge
  seed: int = 0
  steps: int = 100
  reward: str = 'process'  # process | outcome | sparse | teacher
  compare: str = ''  # a config, beside this one, to run as well; '' is none
  policy: Model = Model()
  judge: Judge = Judge()
  teacher: Teacher = Teacher()
  data: Data = Data()
  rollout: Rollout = Rollout()
  credit: Credit = Credit()
  select: Select = Select()
  loss: Loss = Loss()
  optim: Optim = Optim()
  grading: Grading = Grading()
  eval: Eval = Eval()
  checkpoint: Checkpoint = Checkpoint()
  mesh: Mesh = Mesh()
  sample: Sample = Sample()
  prepare: Prepare = Prepare()
  export: Export = Export()
  calibration: Calibration = Calibration()
  judge_training: JudgeTraining = JudgeTraining()


CHOICES = {
    'run': ('train', 'sft', 'evaluate', 'judge', 'sample', 'prepare', 'export',
            'train_judge'),
    'reward': ('process', 'outcome', 'sparse', 'teacher'),
    'credit.rule': ('group', 'rloo', 'delta', 'end', 'group_process', 'batch',
                    'raw', 'token'),
    'credit.first': ('final', 'zero'),
    'credit.single': ('zero', 'score', 'group_centred'),
    'credit.last': ('score', 'zero'),
    'credit.baseline': ('steps', 'tokens', 'padded'),
    'loss.kind': ('ppo', 'reinforce', 'gspo', 'cispo', 'exact_kl'),
    'loss.aggregation': ('token_mean', 'seq_mean_token_mean',
                         'seq_mean_token_sum', 'fixed_length'),
    'loss.kl': ('k3', 'k1'),
    'loss.kl_in': ('loss', 'reward'),
    'optim.decay': ('all', 'matrices'),
    'optim.moments': ('float32', 'bfloat16'),
    'rollout.overlong': ('keep', 'zero', 'mask', 'soft'),
    'eval.behaviours': ('', 'words', 'judge'),
    'rollout.kv_dtype': ('', 'int8'),
    'rollout.kernel': ('auto', 'reference', 'ragged'),
    'optim.schedule': ('constant', 'linear', 'cosine'),
    'policy.dtype': ('float32', 'bfloat16'),
    'policy.remat': ('none', 'full', 'dots', 'save_attention', 'offload'),
    'policy.attention': ('auto', 'einsum', 'dot_product', 'splash'),
    'judge.dtype': ('float32', 'bfloat16'),
    'judge.weights': ('', 'int8'),
    'judge.reference': ('solution', 'rubric', 'both'),
    'judge.context': ('prefix', 'segment'),
    'judge.readout': ('direct', 'generate', 'generate_expect'),
    'judge.verdict': ('whole', 'checkpoints'),
    'judge.scale': ('smooth', 'semi_smooth', 'extreme'),
    'export.dtype': ('float32', 'bfloat16'),
}

# At least this; everything else is checked where it is read.
MINIMUM = {
    'steps': 0,
    'data.batch': 1,
    'rollout.group_size': 1,
    'rollout.max_prompt_tokens': 1,
    'rollout.max_new_tokens': 1,
    'rollout.temperature': 0,
    'judge.max_steps': 1,
    'judge.min_step_tokens': 1,
    'judge.rationale_tokens': 1,
    'judge.max_prompt_tokens': 1,
    'judge.max_trace_tokens': 0,
    'judge.slots': 1,
    'judge.page': 1,
    'judge.pages': 0,
    'judge.alarm_window': 2,
    'optim.lr': 0,
    'optim.updates': 1,
    'optim.micro_rows': 1,
    'optim.row_tokens': 0,
    'optim.max_skipped': 1,
    'policy.lora_rank': 0,
    'teacher.max_prompt_tokens': 1,
    'rollout.overlong_buffer': 1,
    'select.tolerance': 0,
    'select.tries': 0,
    'select.max_empty': 1,
    'loss.kl_coef': 0,
    'loss.tis_cap': 0,
    'credit.min_std': 0,
    'grading.workers': 1,
    'eval.unlocked_k': 0,
    'eval.unlocked_min': 1,
    'eval.wave': 1,
    'eval.samples': 1,
    'eval.every': 0,
    'rollout.slots': 1,
    'rollout.chunk': 1,
    'rollout.page': 1,
    'rollout.pages': 0,
    'rollout.spare': 0,
    'rollout.carry': 0,
    'rollout.top_k': 0,
    'rollout.min_new_tokens': 0,
    'checkpoint.every': 0,
    'checkpoint.keep': 1,
    'loss.logprob_chunk': 1,
    'export.step': 0,
    'prepare.max_new_tokens': 1,
    'prepare.tries': 1,
    'mesh.rollout_tensor': 0,
    'calibration.prefixes': 1,
    'calibration.continuations': 0,
}


def load(path: str) -> ml_collections.ConfigDict:
  """Lays what a config file returns over the defaults.

  Args:
    path: FILE.py or FILE.py:ARGUMENT.

  Raises:
    InputError: the file cannot be read (files.read), or a key is unknown or of
      another type.
  """
  given = files.read(path)
  full = ml_collections.ConfigDict(dataclasses.asdict(Config()))
  _overlay(full, given, '', path)
  return full


def _overlay(full, given, prefix, path) -> None:
  for key, value in given.items():
    name = prefix + key
    if key not in full:
      close = difflib.get_close_matches(key, full.keys(), 1, 0.5)
      hint = f'; did you mean {prefix}{close[0]}?' if close else ''
      raise InputError(f'{path}: unknown key {name}{hint}')
    if isinstance(full[key], ml_collections.ConfigDict):
      if not isinstance(value, (dict, ml_collections.ConfigDict)):
        raise InputError(f'{path}: {name}={value!r} should be a group of keys')
      _overlay(full[key], value, name + '.', path)
      continue
    try:
      full[key] = value
    except (TypeError, ValueError):
      raise InputError(f'{path}: {name}={value!r} should be '
                       f'{type(full[key]).__name__}') from None


def freeze(config: ml_collections.ConfigDict) -> Config:
  """Checks the values and returns the dataclasses.

  Raises:
    InputError: a value that is not allowed; the message names the key.
  """
  frozen = _freeze(Config, config)
  for name, choices in CHOICES.items():
    if (value := _get(frozen, name)) not in choices:
      close = difflib.get_close_matches(str(value), choices, 1)
      hint = f' (did you mean {close[0]!r}?)' if close else ''
      raise InputError(f'config.{name}={value!r}{hint}: one of '
                       f'{", ".join(map(repr, choices))}')
  for name, least in MINIMUM.items():
    if (value := _get(frozen, name)) < least:
      raise InputError(f'config.{name}={value}: at least {least}')
  _check_combinations(frozen)
  return frozen


def _check_combinations(c: Config) -> None:
  reads_traces = c.run == 'judge' and bool(c.judge.traces)
  needs = {
      'policy.init': c.run != 'prepare' and not reads_traces,
      'data.train': c.run in ('train', 'sft', 'prepare', 'judge')
      and not reads_traces, 'prepare.rubrics': c.run == 'prepare',
      'eval.problems': c.run == 'evaluate', 'sample.prompts': c.run == 'sample',
      'sample.out': c.run == 'sample', 'export.out': c.run == 'export',
      'judge.init': c.run == 'train' and judged(c)
      or c.run in ('prepare', 'judge', 'train_judge')
  }
  for name, needed in needs.items():
    if needed and not _get(c, name):
      raise InputError(f'config.{name} is empty; run={c.run!r} needs it')
  if c.judge.overlap and not c.judge.cache:
    raise InputError('config.judge.overlap=True needs judge.cache=True: early '
                     'verdicts wait there')
  if c.run == 'judge' and not judged(c):
    raise InputError(f"config.reward={c.reward!r} needs no judge; "
                     "run='judge' wants 'process' or 'outcome'")
  if reads_traces and c.data.rubrics:
    raise InputError('config.data.rubrics is for data.train; lines of '
                     'judge.traces bring their own `rubric`')
  for name in c.calibration.readouts:
    if name not in CHOICES['judge.readout']:
      raise InputError(f'config.calibration.readouts: {name!r} is none of '
                       f'{", ".join(CHOICES["judge.readout"])}')
  for name in ('rollout.system_prompts', 'judge.templates', 'grading.domains'):
    by_domain(c, name)
  r = c.rollout
  if not (0 < r.top_p <= 1 and 0 <= r.min_p < 1):
    raise InputError(f'config.rollout.top_p={r.top_p}, min_p={r.min_p}: '
                     '0 < top_p <= 1 and 0 <= min_p < 1')
  if c.run == 'train':
    if r.top_k or r.top_p < 1 or r.min_p or r.min_new_tokens:
      raise InputError(
          'config.rollout.top_k, top_p, min_p and min_new_tokens cut the '
          "distribution that the learner computes: run='train' needs them off "
          '(0, 1, 0, 0)')
    _check_recipe(c)
  if c.run == 'sft':
    _check_batch(c)
  if c.eval.problems and max(c.eval.ks) > c.eval.samples:
    raise InputError(f'config.eval.ks={c.eval.ks}: pass@k needs eval.samples '
                     f'>= k, it is {c.eval.samples}')


# Of the scores that a reward gives: one a row, one a step, one a token.
_RULES = {
    'row': ('group', 'rloo', 'batch', 'raw'),
    'step': ('delta', 'end', 'group_process', 'batch', 'raw'),
    'token': ('token',)
}


def _check_recipe(c: Config) -> None:
  """Whether reward, credit, loss and batch go together."""
  per = {'process': 'step', 'teacher': 'token'}.get(c.reward, 'row')
  if c.credit.rule not in _RULES[per]:
    raise InputError(
        f'config.reward={c.reward!r} gives one score a {per}, credit.rule='
        f'{c.credit.rule!r} wants others: use {" or ".join(_RULES[per])}')
  if c.loss.kind == 'exact_kl' and (c.reward != 'teacher' or c.loss.kl_coef):
    raise InputError("config.loss.kind='exact_kl' needs reward='teacher' and "
                     'loss.kl_coef=0')
  if c.loss.kind in ('exact_kl', 'reinforce') and c.optim.updates > 1:
    raise InputError(f'config.loss.kind={c.loss.kind!r} knows no ratio to an '
                     'older policy: it needs optim.updates=1')
  if c.credit.outcome_domains and c.reward != 'process':
    raise InputError("config.credit.outcome_domains needs reward='process'; "
                     'other rewards judge every trace as a whole')
  if not (0 < c.select.floor <= 1 and 0 < c.select.memory <= 1):
    raise InputError(f'config.select.floor={c.select.floor}, memory='
                     f'{c.select.memory}: more than 0, at most 1')
  if c.select.drop_zero_spread and (c.rollout.carry or c.reward == 'teacher'):
    raise InputError('config.select.drop_zero_spread does not go with '
                     "rollout.carry or reward='teacher'")
  _check_batch(c)
  _check_inert(c)


def _check_batch(c: Config) -> None:
  """Whether sequences and groups fit: for run='train' and 'sft'."""
  if c.data.batch % c.optim.updates:
    raise InputError(
        f'config.data.batch={c.data.batch} does not divide into '
        f'optim.updates={c.optim.updates}: an update takes whole groups')
  if 0 < c.optim.row_tokens < longest(c):
    raise InputError(f'config.optim.row_tokens={c.optim.row_tokens}: a row has '
                     f'to hold the longest sequence, {longest(c)} tokens')
  if c.optim.clip_norm <= 0:
    raise InputError(f'config.optim.clip_norm={c.optim.clip_norm}: more than 0')


def longest(c: Config) -> int:
  """Tokens of the longest sequence that the learner may meet."""
  teacher = c.run == 'train' and c.reward == 'teacher'
  return c.rollout.max_new_tokens + max(
      c.rollout.max_prompt_tokens,
      c.teacher.max_prompt_tokens if teacher else 0)


def _check_inert(c: Config) -> None:
  """Keys that were set and that the recipe does not read are mistakes."""
  rule, rows = c.credit.rule, c.reward in ('outcome', 'sparse')
  grouped = rule == 'group' or c.credit.outcome_domains or (
      c.credit.sparse_weight)
  read = {
      'credit.first': rule == 'delta', 'credit.last': rule == 'end',
      'credit.single': rule == 'delta' and c.credit.first == 'final',
      'credit.baseline': rule == 'group_process',
      'credit.divide_by_std': grouped, 'credit.min_std': grouped,
      'credit.sparse_weight': c.reward != 'sparse' and rule != 'token',
      'loss.entropy_coef': c.loss.kind != 'exact_kl',
      'loss.kl': bool(c.loss.kl_coef)
  }
  for name, is_read in read.items():
    if not is_read and _get(c, name) != _get(Config(), name):
      raise InputError(f'config.{name}={_get(c, name)!r} is not read with '
                       f'reward={c.reward!r}, credit.rule={rule!r}, loss.kind='
                       f'{c.loss.kind!r}, loss.kl_coef={c.loss.kl_coef}')
  if c.loss.kl_in == 'reward' and not (rows and c.loss.kl_coef):
    raise InputError("config.loss.kl_in='reward' takes the KL off the score of "
                     "a row: it needs reward='outcome' or 'sparse', and "
                     'loss.kl_coef')
  soft = c.rollout.overlong == 'soft'
  if soft and not rows or c.rollout.overlong == 'zero' and rule == 'token':
    raise InputError(f'config.rollout.overlong={c.rollout.overlong!r} is not '
                     f'for reward={c.reward!r}: keep or mask' +
                     ('' if rule == 'token' else ' or zero'))
  if soft and c.rollout.overlong_buffer >= c.rollout.max_new_tokens:
    raise InputError(
        f'config.rollout.overlong_buffer={c.rollout.overlong_buffer} should be '
        f'a part of rollout.max_new_tokens={c.rollout.max_new_tokens}')


def _freeze(cls, values) -> Any:
  out = {}
  for field in dataclasses.fields(cls):
    value = values[field.name]
    if dataclasses.is_dataclass(field.type):
      value = _freeze(field.type, value)
    elif isinstance(value, (list, tuple)):
      value = tuple(value)
    out[field.name] = value
  return cls(**out)


def _get(config: Config, dotted: str):
  for part in dotted.split('.'):
    config = getattr(config, part)
  return config


def by_domain(config: Config, name: str) -> dict[str, str]:
  """The entries 'DOMAIN=VALUE' of a key.

  Raises:
    InputError: an entry is none.
  """
  out = {}
  for entry in _get(config, name):
    domain, equals, value = entry.partition('=')
    if not (domain and equals and value):
      raise InputError(f"config.{name}: {entry!r} should be 'DOMAIN=VALUE'")
    out[domain] = value
  return out


def judged(config: Config) -> bool:
  """Does a judge give the reward?"""
  return config.reward in ('process', 'outcome')


def resolve(path: str) -> epath.Path:
  """asset:NAME is a folder or file that ships with the package.

  A workdir stands for the model that its run has written. A path may be on
  gs://.
  """
  if path.startswith('asset:'):
    return epath.Path(__file__).parents[1] / 'assets' / path[len('asset:'):]
  folder = epath.Path(path)
  model = folder / 'model'
  return model if (model / 'config.json').is_file() else folder
