"""How long a training step takes at stated shares of the devices' peaks."""

from collections.abc import Callable, Mapping
import math
from typing import NamedTuple

import jax

from exprl_jax.config import Config
from exprl_jax.judge import panel
from exprl_jax.models import attention as attention_lib
from exprl_jax.models import paged
from exprl_jax.models.config import ModelConfig
from exprl_jax.planning.compiled import Weight
from exprl_jax.planning.memory import Models
from exprl_jax.rl import packing
from exprl_jax.rollout.options import Options
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime.chips import Chip

# What good programs reach: of the matrix units, of HBM, of the links.
MATMUL, MEMORY, NETWORK = 0.5, 0.6, 0.7
_FILL = 0.9  # of packed rows
_Add = Callable[[str, float, float, float], None]


class Work(NamedTuple):
  """The lengths and counts of a step, on average.

  Attributes:
    rows: samples.
    prompts: problems.
    prompt: tokens of a prompt.
    completion: tokens of a sample.
    judge_prompt: tokens of the judge's prompt, with the reference.
    answer: tokens that the judge writes, for each trace.
  """

  rows: int
  prompts: int
  prompt: int
  completion: int
  judge_prompt: int
  answer: int


class Share(NamedTuple):
  """One program's part of a step.

  Attributes:
    calls: of the program.
    seconds: of one call: matrix products or HBM, whichever takes longer, and
      the network.
    flops: of one call on each device, with attention.
    memory_bytes: of one call on each device, with keys and values.
  """

  calls: float
  seconds: float
  flops: float
  memory_bytes: float


def work(config: Config, found: Models) -> Work:
  """The mean lengths of config.plan, and what follows from the config."""
  cfg, r = config.plan, config.rollout
  rows = config.data.batch * (r.group_size + r.oversampling)
  prompt = cfg.prompt_tokens or max(1, r.max_prompt_tokens // 8)
  answer = 0
  if found.judging:  # half of the budget of a readout that writes
    read = config.judge.max_prompt_tokens + (config.judge.max_trace_tokens
                                             or r.max_new_tokens)
    answer = max(1, (found.judging.max_tokens - read) // 2)
  return Work(rows, config.data.batch, prompt, cfg.new_tokens
              or max(1, r.max_new_tokens // 3),
              min(config.judge.max_prompt_tokens, 4 * prompt), answer)


def shares(config: Config, found: Models, meshes: mesh_lib.Meshes,
           weights: Mapping[str,
                            Weight], chip: Chip | None) -> dict[str, Share]:
  """Each program's part of a step; those that run now and then are left out.

  Args:
    config: of the run.
    found: models and engines, resolved.
    meshes: which devices do what.
    weights: of the compiled programs.
    chip: None: not known, seconds are 0.
  """
  w = work(config, found)
  mesh, sampling, judging = meshes
  out: dict[str, Share] = {}

  def add(name: str, calls: float, flops: float = 0.0,
          read: float = 0.0) -> None:
    if name in weights and calls:
      x = weights[name]
      flops, read = flops + x.flops, read + x.memory_bytes
      out[name] = Share(calls,
                        seconds(x, flops, read, chip) if chip else 0.0, flops,
                        read)

  # 1. The rollout: prompts once, then chunks of all live slots.
  add('policy/sampling_copy', 1)
  _engine(add, 'policy', found.policy, found.rollout, sampling, weights,
          passes=w.prompts * w.prompt, rows=w.rows, context=w.prompt,
          tokens=w.completion)
  # 2. The judge reads each trace once, and writes; so does each of a panel.
  if found.judge and found.judging:
    add('judge/sampling_copy', 1)
    count = len(panel.local(config.judge))
    _engine(add, 'judge', found.judge, found.judging, judging, weights,
            passes=count * (w.rows * w.completion + w.prompts * w.judge_prompt),
            rows=count * w.rows, context=w.judge_prompt + w.completion,
            tokens=w.answer)
  # 3. The update, on packed rows.
  length = w.prompt + w.completion
  cells = packing.micro_rows(config, mesh) * packing.row_tokens(config)
  micro = math.ceil(w.rows * length / (_FILL * cells))
  attention = (2 * found.policy.num_layers * found.policy.num_heads *
               found.policy.head_dim * length * _FILL * cells / mesh.size)
  updates = config.optim.updates
  forward = _runs_logprobs(config)
  platform = mesh.devices.flat[0].platform
  if attention_lib.for_platform(found.policy, platform).attention != 'splash':
    attention = 0.0  # these products are in the program
  add('policy/logprobs', micro * forward, attention)
  add('reference/logprobs', micro * bool(config.loss.kl_coef), attention)
  # Forward, forward again where layers are recomputed, backward: 2.5 times.
  again = 3.5 + (config.policy.remat in ('full', 'offload'))
  add('learner/gradient', updates, again * attention)
  add('learner/add_gradient', max(0, micro - updates), again * attention)
  add('learner/apply_gradient', updates)
  return out


def seconds(weight: Weight, flops: float, read: float, chip: Chip) -> float:
  """Seconds of a call: matrix products or HBM, and the network.

  Args:
    weight: of the program, for the network.
    flops: of the call on each device.
    read: bytes of HBM.
    chip: of the devices.
  """
  return (max(flops / (MATMUL * chip.flops), read / (MEMORY * chip.bandwidth)) +
          weight.network_bytes / (NETWORK * chip.links))


def _runs_logprobs(config: Config) -> bool:
  """Whether the policy's log-probabilities are computed before the update."""
  return config.optim.updates > 1 or config.loss.kl_in == 'reward'


def live_rows(options: Options, mesh: jax.sharding.Mesh, rows: int,
              length: int) -> int:
  """Rows that decode at a time: as slots and pages allow."""
  parts = mesh_lib.batch_parts(mesh)
  each = options.pages_for(length) + 1
  return max(1, min(options.slots, rows, parts * ((options.pages - 2) // each)))


def _engine(add: _Add, owner: str, model: ModelConfig, options: Options,
            mesh: jax.sharding.Mesh, weights: Mapping[str, Weight], *,
            passes: int, rows: int, context: int, tokens: int) -> None:
  """Adds the prefill passes and chunks of an engine.

  Args:
    add: takes a program's calls, attention operations and bytes.
    owner: of the engine.
    model: the decoder.
    options: resolved.
    mesh: to sample on.
    weights: of the compiled programs.
    passes: tokens that prefill passes compute.
    rows: that decode.
    context: tokens before those that are decoded.
    tokens: that each row decodes.
  """
  width = 4 * model.num_layers * model.num_heads * model.head_dim  # q k, p v
  each = paged.token_bytes_per_device(model, options.dtype,
                                      options.layout.kernel)
  # 1. Passes of the largest shape.
  shapes = [
      tuple(map(int,
                name.rpartition('_')[2].split('x')))
      for name in weights
      if name.startswith(f'{owner}/prefill_')
  ]
  if not shapes:
    return
  shape = max(shapes, key=lambda s: (s[0] * s[1], s[1]))
  cells = shape[0] * shape[1]
  mean = context / 2
  add(f'{owner}/prefill_{shape[0]}x{shape[1]}', math.ceil(passes / cells),
      width * cells * mean / mesh.size,
      shape[0] / mesh_lib.batch_parts(mesh) * mean * each)
  # 2. Chunks, the live rows at the middle of their completions.
  live = live_rows(options, mesh, rows, context + tokens)
  steps = rows * tokens / live
  seen = (context + tokens / 2) * live / mesh_lib.batch_parts(mesh)
  add(f'{owner}/decode', steps / options.chunk,
      width * options.chunk * seen / mesh.shape['tensor'],
      options.chunk * seen * each)
