"""The configuration: what every key means, its default, choices and bounds.

A key is a field of a frozen, hashable dataclass. A choice is a `Literal`, a
bound an `Annotated`; loading.py reads both from the types, so each stands here
alone. Choices that a registry holds (reward, credit.rule, loss.kind,
judge.readout) are strings here: the registry is asked (runs/recipes.py).
"""

import dataclasses
from typing import Annotated, Literal, NamedTuple


class Bound(NamedTuple):
  """The range of a number, its ends included unless `open` names them.

  Every numeric key has one; NaN and infinities are in none.
  """

  low: float
  high: float
  open: str = ''  # 'low', 'high': the end itself is not allowed


_MANY = 2**31 - 1  # of anything that is counted in an int32
Count = Annotated[int, Bound(0, _MANY)]
Positive = Annotated[int, Bound(1, _MANY)]
Axis = Annotated[int, Bound(-1, _MANY)]  # of a mesh; -1: what is left
NonNegative = Annotated[float, Bound(0, 1e9)]
Above0 = Annotated[float, Bound(0, 1e9, 'low')]
Seconds = Above0
Share = Annotated[float, Bound(0, 1)]
ShareAbove0 = Annotated[float, Bound(0, 1, 'low')]
ShareBelow1 = Annotated[float, Bound(0, 1, 'high')]
Dtype = Literal['float32', 'bfloat16']


@dataclasses.dataclass(frozen=True)
class Model:
  """The policy, whose starting point is the KL reference by default."""

  init: str = ''  # model folder, ORG/NAME[@REVISION] of the Hub, adapters of
  # PEFT, workdir, WORKDIR@STEP, asset:NAME
  random: bool = False  # random weights; config.json and tokenizer from `init`
  random_std: NonNegative = 0.0  # their standard deviation; 0: 1 / sqrt(fan-in)
  dtype: Dtype = 'float32'  # of matrix products; parameters stay float32
  # Layers that the backward pass recomputes.
  remat: Literal['none', 'full', 'dots', 'save_attention', 'offload'] = 'none'
  attention: Literal['auto', 'einsum', 'dot_product', 'splash'] = 'auto'
  lora_rank: Count = 0  # train adapters of this rank; 0: train all parameters
  lora_alpha: Above0 = 32.0  # adapters are scaled by lora_alpha / lora_rank


@dataclasses.dataclass(frozen=True)
class Reference:
  """The frozen model that loss.kl_coef keeps the policy close to."""

  init: str = ''  # as policy.init, of the same shape; '': policy.init


@dataclasses.dataclass(frozen=True)
class Teacher:
  """Self-distillation: the starting policy, shown the solution, as teacher."""

  template: str = ''  # file with {question} and {solution}; '': built-in
  max_prompt_tokens: Positive = 16384
  init: str = ''  # as policy.init, of the same shape; '': policy.init


@dataclasses.dataclass(frozen=True)
class Judge:
  """The frozen language model that scores traces (docs/judge.md)."""

  init: str = ''  # model folder, ORG/NAME[@REVISION] of the Hub, asset:NAME
  dtype: Dtype = 'float32'
  weights: Literal['', 'int8'] = ''  # '': in `dtype`
  template: str = 'math'  # a file of exprl_jax/judge/templates, or a path
  templates: tuple[str, ...] = ()  # for domains: 'code=code'
  chat_template_options: tuple[str, ...] = ()  # as of rollout, of the judge's
  reference: Literal['solution', 'rubric', 'both'] = 'solution'  # it is shown
  context: Literal['prefix', 'segment'] = 'prefix'  # trace so far | step alone
  readout: str = 'direct'  # judge/readouts: direct | generate | generate_expect
  # One score; one for each rubric item, weighted by its points; or the traces
  # of a problem, up to group_traces of them, in one reading (reward='outcome').
  judgment: Literal['overall', 'rubric_items', 'group'] = 'overall'
  group_traces: Annotated[int, Bound(2, 99)] = 8
  scale: Literal['smooth', 'semi_smooth',
                 'extreme'] = 'smooth'  # 1..5 to [0, 1]
  resolution: Share = 0.0  # scores are rounded to multiples: 0.25 has the
  # levels of a written digit; 0: not
  rationale_tokens: Positive = 512  # budget of readouts that generate
  # What opens a step: auto (the first of the next four that finds two) |
  # headings | numbered | blank_line | spans | every:M | a token such as ### |
  # authors
  delimiter: str = 'auto'
  max_steps: Positive = 16  # more are merged into as many of equal length
  min_step_tokens: Positive = 1  # shorter steps are merged into the next one
  # Between <think> and </think>: cut like the rest, a step, or not shown.
  thinking: Literal['cut', 'one_step', 'hidden'] = 'one_step'
  max_prompt_tokens: Positive = 4096  # without the trace; longer: no judgment
  max_trace_tokens: Count = 0  # longer traces lose their middle; 0: the
  # policy's budget, or the longest trace of judge.traces
  min_score_probability: Share = 0.5  # of the tokens 1..5 together; less:
  # unreadable
  max_invalid_frac: Share = 0.5  # stop where more rows have no judgment
  check_tokens: Count = 32768  # that it is examined with before a run; 0: not
  max_probe_score: Share = 0.5  # refuse a judge that gives a probe more
  min_separation: Share = 0.6  # refuse one that ranks fewer right traces above
  # wrong ones; 0.5 is chance
  monitor_window: Annotated[
      int, Bound(2, _MANY)] = 60  # reward-hacking monitor: over
  # so many steps
  monitor_rise: Share = 0.1  # the mean score may rise so much without accuracy
  cache: bool = True  # keep judgments in the workdir
  overlap: bool = False  # judge while the last samples decode; set `pages`
  slots: Positive = 64  # sequences that are read at a time
  page: Positive = 64  # tokens in a page
  pages: Count = 0  # as rollout.pages
  kv_dtype: Literal['', 'fp8', 'int8'] = ''  # as rollout.kv_dtype
  kernel: Literal['auto', 'reference', 'ragged'] = 'auto'  # as rollout.kernel
  # Several judges in place of one (docs/judge.md): the keys in which each
  # differs, as ('template=math', 'template=math_paper,readout=generate'); also
  # context, reference, judgment, endpoint, endpoint_model and endpoint_key.
  panel: tuple[str, ...] = ()
  combine: Literal['mean', 'min'] = 'mean'  # of the scores of a panel
  endpoint: str = ''  # an OpenAI-compatible service in place of `init`, such as
  # http://HOST:8000/v1; it is asked with readout='generate'
  endpoint_model: str = ''  # the name that it has there
  endpoint_key: str = ''  # environment variable that holds its key; '': no key
  endpoint_requests: Positive = 16  # that wait for an answer at a time
  endpoint_timeout: Seconds = 120.0  # for an answer
  endpoint_retries: Count = 6  # after a failure, each after a longer time
  traces: str = ''  # JSONL of traces: judged by run='judge', which samples the
  # policy without; elsewhere the judge is examined with them before training


@dataclasses.dataclass(frozen=True)
class Data:
  """Problems to train on, and how many per step (docs/data.md)."""

  train: str = ''  # files of problems: a path, glob or folder, several with
  # commas; hf:ORG/NAME:CONFIG:SPLIT
  mixture: tuple[str, ...] = ()  # in place of train: 'NAME=WEIGHT,FILES', the
  # name being the domain of rows that have none
  fields: tuple[str, ...] = ()  # of rows with other names: 'question=problem',
  # 'solution=solutions.0.text'; 'SET:FIELD=PATH' for one set of the mixture
  answer_from: Literal['', 'boxed', 'hash'] = ''  # the answer is in the
  # solution: its last box, or a line '#### 42'
  convert: str = ''  # rows go through a function before: a name of
  # data/converters, FILE.py:FUNCTION or MODULE:FUNCTION
  converts: tuple[str, ...] = ()  # for sets of the mixture: 'SET=CONVERTER'
  rubrics: str = ''  # JSONL written by run='rubrics'
  batch: Positive = 8  # problems per step (sft: rows per step)
  limit: Count = 0  # use only the first so many problems (of each set); 0: all
  max_bad: Count = 0  # so many training rows with errors are left out; with
  # more, the run does not start (docs/validation.md)
  rejects: str = ''  # JSONL of their errors, to write; '': none
  # Of the training problems that eval.problems hold: off (not looked for), warn
  # of them; exact: equal questions are errors; ngrams: similar ones, too.
  contamination: Literal['off', 'warn', 'exact', 'ngrams'] = 'exact'
  contamination_overlap: ShareAbove0 = 0.5  # similar: 13-grams in common


@dataclasses.dataclass(frozen=True)
class Rollout:
  """How the policy is prompted and sampled."""

  group_size: Positive = 8  # samples per problem, G
  max_prompt_tokens: Positive = 1024
  max_new_tokens: Positive = 1024
  temperature: Annotated[float, Bound(0, 100)] = 1.0
  top_k: Count = 0  # 0: off; truncation is for run='sample' and 'evaluate'
  top_p: ShareAbove0 = 1.0
  min_p: ShareBelow1 = 0.0
  min_new_tokens: Count = 0
  stop: tuple[str, ...] = ()  # strings that end a completion
  stop_ids: tuple[Count, ...] = ()  # tokens that end one, besides the model's
  oversampling: Count = 0  # extra samples per problem, so that none waits for
  # the longest
  # Which G stay. No choice of finished samples is without bias, so it has to be
  # named: those that end first are short (docs/method.md).
  oversampling_rule: Literal['', 'first_to_end'] = ''
  partial_rollouts: Count = 0  # problems started ahead of the batch; what is
  # unfinished at the end of a step goes on in the next one
  # async: the next step's samples are drawn during this step's update, one
  # step off policy, on devices of their own: mesh.sampling_devices.
  source: Literal['sync', 'async'] = 'sync'
  slots: Positive = 64  # sequences that decode at a time
  chunk: Positive = 32  # tokens decoded between two scheduling decisions
  page: Positive = 128  # tokens in a page of keys and values
  pages: Count = 0  # per device; 0: enough for all slots, or what fits
  # Of keys and values in pages; '': policy.dtype. TPUs: fp8, not int8.
  kv_dtype: Literal['', 'fp8', 'int8'] = ''
  kernel: Literal['auto', 'reference', 'ragged'] = 'auto'  # paged attention
  system_prompt: str = ''
  system_prompts: tuple[str, ...] = ()  # for domains: 'code=TEXT'
  # Variables of the policy's chat template: ('enable_thinking=true',).
  chat_template_options: tuple[str, ...] = ()
  # In place of a chat template, for base models: 'Problem: {question}\nProof:'
  prompt_template: str = ''
  # Reward of rows without EOS: unchanged, zero, none (they do not train), or a
  # penalty that grows to 1 over the last tokens.
  overlong: Literal['keep', 'zero', 'mask', 'soft'] = 'keep'
  overlong_buffer: Positive = 4096  # 'soft': these last tokens


@dataclasses.dataclass(frozen=True)
class Select:
  """Which problems and groups a step trains on (rl/filters.py)."""

  drop_zero_variance: bool = False  # dynamic sampling: drop groups that get no
  # credit, as their rewards are equal, and refill the batch
  tolerance: NonNegative = 1e-6  # less credit than this, in units of the reward
  # (before division by the deviation), is none
  max_refills: Count = 3  # further rollouts to refill a batch
  max_empty_steps: Positive = 10  # stop after so many steps without any credit
  curriculum: bool = False  # draw problems of medium solve rate more often
  curriculum_floor: ShareAbove0 = 0.1  # weight of those always or never solved
  curriculum_memory: ShareAbove0 = 0.5  # how much a new rate moves the old one


@dataclasses.dataclass(frozen=True)
class Credit:
  """From scores to advantages: rl/advantages.py, docs/method.md."""

  rule: str = 'group'  # one score per row: group | rloo | batch | raw; per
  # step: delta | end | group_process | batch | raw; per token: token
  divide_by_std: bool = True  # group
  min_std: Share = 0.0  # group: a smaller standard deviation counts as
  # it; 0.05, a fifth of a judge's level, leaves written digits as they are
  # delta: baseline of the first step; the paper's final score, or zero.
  first: Literal['final', 'zero'] = 'final'
  # delta: rows of one step; zero (paper), their score (the authors' code).
  single: Literal['zero', 'score', 'group_centered'] = 'zero'
  # end: the last step; its score (paper), or zero (the authors' code).
  last: Literal['score', 'zero'] = 'score'
  # group_process: the mean step (Eq. 6), or token; padded (the authors' code).
  baseline: Literal['steps', 'tokens', 'padded'] = 'steps'
  outcome_domains: tuple[str, ...] = ()  # reward='process': domains with one
  # score for the whole trace, rule 'group'
  sparse_weight: NonNegative = 0.0  # of the graded answer's advantage, added


@dataclasses.dataclass(frozen=True)
class Loss:
  """rl/losses.py; docs/method.md has the equations."""

  kind: str = 'ppo'  # ppo | reinforce | gspo | cispo | exact_kl (to a teacher)
  clip_low: NonNegative = 0.2
  clip_high: NonNegative = 0.28
  dual_clip: NonNegative = 3.0  # ppo; 0: off
  aggregation: Literal['token_mean', 'seq_mean_token_mean',
                       'seq_mean_token_sum', 'fixed_length'] = 'token_mean'
  kl_coef: NonNegative = 1e-3  # KL to the starting policy
  kl_estimator: Literal['k3', 'k1', 'k2', 'k3+'] = 'k3'
  kl_in: Literal['loss', 'reward'] = 'loss'
  kl_clamp: Above0 = 10.0  # of a token's estimate
  entropy_coef: Annotated[float, Bound(-1e3, 1e3)] = 0.0  # bonus
  tis_cap: NonNegative = 2.0  # importance sampling between sampler and
  # learner: the largest ratio; 0: off
  # Ratios of tokens or of whole traces; larger ones become the cap, or 0.
  tis_mode: Literal['token_truncate', 'token_mask', 'sequence_truncate',
                    'sequence_mask'] = 'token_truncate'
  logprob_chunk: Positive = 512  # tokens per projection to the vocabulary


@dataclasses.dataclass(frozen=True)
class Optim:
  """AdamW; `updates` optimizer steps per batch, on whole groups."""

  lr: Annotated[float, Bound(0, 10)] = 1e-6
  schedule: Literal['constant', 'linear', 'cosine'] = 'constant'  # cosine to 0
  warmup_steps: Count = 0
  b1: ShareBelow1 = 0.9
  b2: ShareBelow1 = 0.999
  eps: NonNegative = 1e-8
  weight_decay: NonNegative = 0.01
  decay: Literal['all', 'matrices'] = 'all'  # parameters that decay
  clip_norm: Above0 = 1.0
  mu_dtype: Dtype = 'float32'  # of the first moment
  offload: bool = False  # moments in host memory between updates
  max_skipped: Positive = 10  # stop after so many updates that were not finite
  updates: Positive = 1
  row_tokens: Count = 0  # sequences are packed into rows of this length; 0: as
  # long as one can be
  micro_rows: Positive = 1  # rows per device and micro-batch; the gradient
  # depends neither on this nor on row_tokens


@dataclasses.dataclass(frozen=True)
class Grading:
  """How final answers are graded, everywhere (docs/grading.md)."""

  grader: str = 'math'  # math | choice | text | FILE.py:FUNCTION |
  # MODULE:FUNCTION
  domains: tuple[str, ...] = ()  # other graders: 'code=FILE.py:FUNCTION'
  workers: Positive = 2  # processes, started when an answer needs one
  timeout: Seconds = 5.0  # per answer; then its worker is killed
  memory_mb: Positive = 1024  # per worker
  environment: tuple[str, ...] = ()  # names of variables that plug-ins see
  require_sandbox: bool = False  # refuse a machine where programs are not
  # contained, as docs/grading.md says, instead of warning


@dataclasses.dataclass(frozen=True)
class Eval:
  """Held-out problems, and how often they are sampled (docs/evaluation.md)."""

  problems: str = ''  # held-out problems: files as data.train, or several
  # sets: 'aime25=FILE,hmmt=FILE'; '': no evaluation
  fields: tuple[str, ...] = ()  # these four as in data, SET being one of these
  answer_from: Literal['', 'boxed', 'hash'] = ''
  convert: str = ''
  converts: tuple[str, ...] = ()
  every: Count = 0  # steps; 0: only before and after
  samples: Positive = 16  # per problem
  ks: tuple[Positive, ...] = (1, 16)  # of pass@k and, from 3 on, maj@k
  limit: Count = 0  # problems of each set; 0: all
  models: tuple[str, ...] = ()  # run='evaluate': compared with policy.init;
  # sources like policy.init
  wave: Positive = 64  # run='evaluate': problems sampled between two writes
  newly_solved_k: Count = 0  # run='evaluate': samples of newly solved problems;
  # 0: none
  newly_solved_min: Positive = 1  # right samples that make a problem solved
  policy_statistics: bool = False  # run='evaluate': entropy, KL to policy.init
  behaviors: Literal['', 'words', 'judge'] = ''  # run='evaluate': counted by


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """How often the training state is saved, and how many are kept."""

  every: Count = 0  # steps; 0: only at the end
  keep: Positive = 2  # the newest ones
  keep_every: Count = 0  # and those of every so many steps; 0: no others
  grace_s: NonNegative = 30.0  # seconds between SIGTERM and SIGKILL


@dataclasses.dataclass(frozen=True)
class Profile:
  """Traces of run='train' by jax.profiler (docs/performance.md)."""

  steps: str = ''  # FIRST:LAST, traced into WORKDIR/profile; '': none


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Sizes of the device mesh; -1 takes the remaining devices."""

  data: Axis = 1
  fsdp: Axis = -1
  expert: Axis = 1  # mixture of experts: each device holds some experts
  tensor: Axis = 1
  rollout_tensor: Count = 0  # tensor axis while sampling, the others are data;
  # 0: sample on the training mesh
  sampling_devices: Count = 0  # rollout.source='async': so many sample, the
  # others judge and train; 0: half of them


@dataclasses.dataclass(frozen=True)
class Log:
  """Where metrics go besides metrics.jsonl (docs/metrics.md)."""

  trackers: tuple[str, ...] = ()  # tensorboard, wandb, mlflow: each an extra


@dataclasses.dataclass(frozen=True)
class Traces:
  """Every sampled trace of a training run, in WORKDIR/traces."""

  keep_gb: NonNegative = 1.0  # 1e9 bytes, compressed; the oldest steps go
  # first; 0: no traces are kept


@dataclasses.dataclass(frozen=True)
class Replay:
  """run='replay': credit and update of a step again, from its kept traces."""

  source: str = ''  # workdir of the run
  step: Positive = 1
  out: str = ''  # JSONL to write: advantages as they were and as they are; '':
  # none


@dataclasses.dataclass(frozen=True)
class Sample:
  """run='sample': JSONL in and out."""

  prompts: str = ''
  out: str = ''


@dataclasses.dataclass(frozen=True)
class Rubrics:
  """run='rubrics': the judge writes rubrics for data.train."""

  out: str = ''  # JSONL to write
  max_new_tokens: Positive = 1024
  tries: Positive = 3  # per rubric that cannot be read


@dataclasses.dataclass(frozen=True)
class Export:
  """run='export': policy.init, a model or a workdir, as a model folder."""

  out: str = ''  # empty folder or gs://bucket/folder
  step: Count = 0  # of the workdir's checkpoints; 0: the newest
  # Of the stored tensors. auto: float32 where adapters were added to the
  # matrices, whose change bfloat16 loses, else bfloat16.
  dtype: Literal['auto', 'float32', 'bfloat16'] = 'auto'
  format: Literal['model', 'peft'] = 'model'  # peft: the adapters alone


@dataclasses.dataclass(frozen=True)
class Calibration:
  """run='judge' on traces whose correctness is known."""

  prefixes: Positive = 256  # compared with what the policy makes of them
  continuations: Count = 16  # per prefix; 0: no such comparison
  readouts: tuple[str, ...] = ()  # to be compared with each other
  pairs: Count = 64  # problems whose references are judged beside flawed traces


@dataclasses.dataclass(frozen=True)
class Plan:
  """run='plan': memory and time of a training run, without it (docs/tpu.md)."""

  run: Literal['train', 'sft'] = 'train'  # the run mode that is planned
  topology: str = ''  # GENERATION:SHAPE[*SLICES] such as v5e:8x8; '': the
  # devices that are here
  layers: Count = 0  # compile models of so many layers and twice as many, and
  # extrapolate; 0: all layers
  prompt_tokens: Count = 0  # mean; 0: an eighth of rollout.max_prompt_tokens
  new_tokens: Count = 0  # mean; 0: a third of rollout.max_new_tokens
  search: bool = False  # change what does not fit until it does, and write the
  # config


@dataclasses.dataclass(frozen=True)
class JudgeTraining:
  """run='train_judge': a judge on labeled traces (docs/judge.md)."""

  traces: str = ''  # JSONL of labeled traces; '': those of the tiny world, for
  # which the other keys are, but for held_out and round_steps
  held_out: str = ''  # labeled traces for the report card at the end; '': none
  warmup_steps: Count = 600  # on well-formed traces only
  round_steps: Positive = 150  # keep the judge after each so many steps, and
  # train an adversary
  adversary_steps: Positive = 40  # RL steps against the judge as it is
  policy_steps: Positive = 80  # RL steps on the programmatic truth
  problems: Positive = 8  # per RL step
  hint_weight: NonNegative = 1.0  # of the loss on hints inside the trace
  start: str = ''  # the judge starts as a copy of this model; '': the policy


@dataclasses.dataclass(frozen=True)
class Config:
  """One run."""

  run: Literal['train', 'sft', 'evaluate', 'judge', 'sample', 'rubrics',
               'export', 'train_judge', 'validate', 'plan', 'replay', 'report',
               'watch'] = 'train'  # runs/RUN.py
  seed: Annotated[int, Bound(0, 2**32 - 1)] = 0
  steps: Count = 100
  reward: str = 'process'  # rewards/: process | outcome | sparse | teacher |
  # FILE.py:FUNCTION | MODULE:FUNCTION
  compare: str = ''  # a config, beside this one, to run as well; '': none
  compile_cache: str = 'auto'  # folder or gs:// of compiled programs; auto:
  # ~/.cache/exprl_jax/xla; '': none
  watchdog_minutes: NonNegative = 30.0  # without progress until the run exits,
  # to be started again; 0: never
  policy: Model = Model()
  judge: Judge = Judge()
  reference: Reference = Reference()
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
  profile: Profile = Profile()
  mesh: Mesh = Mesh()
  log: Log = Log()
  traces: Traces = Traces()
  replay: Replay = Replay()
  sample: Sample = Sample()
  rubrics: Rubrics = Rubrics()
  export: Export = Export()
  calibration: Calibration = Calibration()
  plan: Plan = Plan()
  judge_training: JudgeTraining = JudgeTraining()
