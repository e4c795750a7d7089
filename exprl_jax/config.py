"""The configuration: what every key means, and its default.

A file in configs/ returns an `ml_collections.ConfigDict` with the keys that
matter to its experiment. `load` lays it over the defaults below, so that each
key can be overridden by a flag (`--config.optim.lr=1e-4`), and `freeze` turns
the result into these frozen, hashable dataclasses. Nothing after that sees a
ConfigDict.
"""

import dataclasses
import difflib
import importlib.util
import pathlib
from typing import Any

from etils import epath
import ml_collections

from exprl_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Model:
  """A model: the policy, which is also the KL reference as it starts out."""

  init: str = ''  # Hugging Face directory, workdir, or asset:NAME
  random: bool = False  # take config.json and tokenizer only, draw weights
  random_std: float = 0.0  # their standard deviation; 0: 1 / sqrt(fan-in)
  dtype: str = 'float32'  # of matrix products; parameters stay float32
  remat: str = 'none'  # none | full | dots | save_attention: layers recomputed
  attention: str = 'auto'  # auto | einsum | dot_product | splash


@dataclasses.dataclass(frozen=True)
class Judge:
  """The frozen language model that scores traces (docs/judge.md)."""

  init: str = ''
  dtype: str = 'float32'
  weights: str = ''  # int8, or '' for dtype
  template: str = 'math'  # a file of exprl_jax/judge/templates, or a path
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
  overlong: str = 'keep'  # reward of rows without EOS: keep | zero


@dataclasses.dataclass(frozen=True)
class Credit:
  """From scores to advantages: advantages.py, docs/method.md."""

  rule: str = 'group'  # group (one score a row) | delta (one a step)
  divide_by_std: bool = True  # group
  first: str = 'final'  # delta, baseline of step 1: final (paper) | zero
  single: str = 'zero'  # delta, rows of one step: zero (paper) | score


@dataclasses.dataclass(frozen=True)
class Loss:
  """losses.policy_gradient."""

  clip_low: float = 0.2
  clip_high: float = 0.28
  dual_clip: float = 3.0  # 0 is off
  kl_coef: float = 1e-3  # k3 KL to the starting policy
  logprob_chunk: int = 512  # columns of the vocabulary projection at a time


@dataclasses.dataclass(frozen=True)
class Optim:
  """AdamW. `updates` optimiser steps per batch, on whole groups."""

  lr: float = 1e-6
  schedule: str = 'constant'  # constant | cosine (to 0)
  warmup_steps: int = 0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.01
  clip_norm: float = 1.0
  updates: int = 1
  micro_batches: int = 1  # per update; the gradient does not depend on it


@dataclasses.dataclass(frozen=True)
class Eval:
  """Held-out problems, and how often they are sampled."""

  problems: str = ''  # JSONL of held-out problems; none: no evaluation
  every: int = 0  # steps; 0: only before and after
  samples: int = 16  # per problem
  ks: tuple[int, ...] = (1, 16)  # of pass@k
  limit: int = 0


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
  reward: str = 'process'  # process | outcome | sparse
  compare: str = ''  # a config, beside this one, to run as well; '' is none
  policy: Model = Model()
  judge: Judge = Judge()
  data: Data = Data()
  rollout: Rollout = Rollout()
  credit: Credit = Credit()
  loss: Loss = Loss()
  optim: Optim = Optim()
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
    'reward': ('process', 'outcome', 'sparse'),
    'credit.rule': ('group', 'delta'),
    'credit.first': ('final', 'zero'),
    'credit.single': ('zero', 'score'),
    'rollout.overlong': ('keep', 'zero'),
    'rollout.kv_dtype': ('', 'int8'),
    'rollout.kernel': ('auto', 'reference', 'ragged'),
    'optim.schedule': ('constant', 'cosine'),
    'policy.dtype': ('float32', 'bfloat16'),
    'policy.remat': ('none', 'full', 'dots', 'save_attention'),
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
    'steps': 0, 'data.batch': 1, 'rollout.group_size': 1,
    'rollout.max_prompt_tokens': 1, 'rollout.max_new_tokens': 1,
    'rollout.temperature': 0, 'judge.max_steps': 1, 'judge.min_step_tokens': 1,
    'judge.rationale_tokens': 1, 'judge.max_prompt_tokens': 1,
    'judge.max_trace_tokens': 0, 'judge.slots': 1, 'judge.page': 1,
    'judge.pages': 0, 'judge.alarm_window': 2,
    'optim.lr': 0, 'optim.updates': 1, 'optim.micro_batches': 1,
    'eval.samples': 1, 'eval.every': 0, 'rollout.slots': 1,
    'rollout.chunk': 1, 'rollout.page': 1, 'rollout.pages': 0,
    'rollout.spare': 0, 'rollout.carry': 0, 'rollout.top_k': 0,
    'rollout.min_new_tokens': 0,
    'checkpoint.every': 0, 'checkpoint.keep': 1, 'loss.logprob_chunk': 1,
    'export.step': 0, 'prepare.max_new_tokens': 1, 'prepare.tries': 1,
    'mesh.rollout_tensor': 0, 'calibration.prefixes': 1,
    'calibration.continuations': 0,
}


def load(path: str) -> ml_collections.ConfigDict:
  """Runs `get_config` of a file and lays the result over the defaults.

  Raises:
    InputError: no such file, no get_config in it, or a key that is unknown
      or of another type.
  """
  file = pathlib.Path(path)
  if file.suffix != '.py' or not file.is_file():
    raise InputError(f'--config={path}: no such file; try configs/tiny.py')
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    given = module.get_config()
  except Exception as e:
    raise InputError(f'--config={path}: {type(e).__name__}: {e}') from e
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
  needs = {'policy.init': c.run != 'prepare' and not reads_traces,
           'data.train': c.run in ('train', 'sft', 'prepare', 'judge')
                         and not reads_traces,
           'prepare.rubrics': c.run == 'prepare',
           'eval.problems': c.run == 'evaluate',
           'sample.prompts': c.run == 'sample',
           'sample.out': c.run == 'sample', 'export.out': c.run == 'export',
           'judge.init': c.run == 'train' and c.reward != 'sparse'
           or c.run in ('prepare', 'judge', 'train_judge')}
  for name, needed in needs.items():
    if needed and not _get(c, name):
      raise InputError(f'config.{name} is empty; run={c.run!r} needs it')
  if c.judge.overlap and not c.judge.cache:
    raise InputError('config.judge.overlap=True needs judge.cache=True: early '
                     'verdicts wait there')
  if c.run == 'judge' and c.reward == 'sparse':
    raise InputError("config.reward='sparse' needs no judge; run='judge' wants "
                     "'process' or 'outcome'")
  if reads_traces and c.data.rubrics:
    raise InputError('config.data.rubrics is for data.train; lines of '
                     'judge.traces bring their own `rubric`')
  for name in c.calibration.readouts:
    if name not in CHOICES['judge.readout']:
      raise InputError(f'config.calibration.readouts: {name!r} is none of '
                       f'{", ".join(CHOICES["judge.readout"])}')
  r = c.rollout
  if not (0 < r.top_p <= 1 and 0 <= r.min_p < 1):
    raise InputError(f'config.rollout.top_p={r.top_p}, min_p={r.min_p}: '
                     '0 < top_p <= 1 and 0 <= min_p < 1')
  if c.run == 'train':
    if r.top_k or r.top_p < 1 or r.min_p:
      raise InputError(
          'config.rollout.top_k, top_p and min_p cut the distribution that the '
          "learner computes: run='train' needs them off (0, 1, 0)")
    if c.reward == 'process' and c.credit.rule == 'group':
      raise InputError("config.credit.rule='group' wants one score a row; "
                       "reward='process' gives one a step: use 'delta'")
    if c.reward != 'process' and c.credit.rule == 'delta':
      raise InputError(f"config.credit.rule='delta' wants a score a step; "
                       f"reward={c.reward!r} gives one a row: use 'group'")
    if c.data.batch % c.optim.updates:
      raise InputError(
          f'config.data.batch={c.data.batch} does not divide into '
          f'optim.updates={c.optim.updates}: an update takes whole groups')
    rows = c.data.batch // c.optim.updates * c.rollout.group_size
  else:
    rows = c.data.batch
  if c.run in ('train', 'sft') and rows % c.optim.micro_batches:
    raise InputError(f'{rows} rows an update do not divide into '
                     f'optim.micro_batches={c.optim.micro_batches}')
  if c.eval.problems and max(c.eval.ks) > c.eval.samples:
    raise InputError(f'config.eval.ks={c.eval.ks}: pass@k needs eval.samples '
                     f'>= k, it is {c.eval.samples}')


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


def resolve(path: str) -> epath.Path:
  """asset:NAME is a folder or file that ships with the package.

  A workdir stands for the model that its run has written. A path may be on
  gs://.
  """
  if path.startswith('asset:'):
    return epath.Path(__file__).parent / 'assets' / path[len('asset:'):]
  folder = epath.Path(path)
  model = folder / 'model'
  return model if (model / 'config.json').is_file() else folder
