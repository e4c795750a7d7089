"""Compiles the programs of a run for devices, here or not, and weighs them."""

from collections.abc import Sequence
import dataclasses
import hashlib
import re
import time
from typing import Any

import jax

from exprl_jax.models import paged
from exprl_jax.runtime import hlo, jaxpr_flops
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime.programs import Program
from exprl_jax.types import InputError

# The first part of a program's name, or the whole -> the phase that it is in.
_PHASES = {
    'learner/gradient': 'gradient', 'learner/add_gradient': 'gradient',
    'learner/apply_gradient': 'optimizer', 'policy/logprobs': 'logprob',
    'reference/logprobs': 'logprob', 'policy/sampling_copy': 'copy',
    'judge/sampling_copy': 'copy', 'policy': 'rollout', 'judge': 'judge'
}


@dataclasses.dataclass(frozen=True)
class Weight:
  """What one call of a program takes, on each device.

  Attributes:
    arguments: bytes.
    temporaries: bytes that the compiler allocates.
    peak: bytes alive at a time, with arguments and results.
    workspace: bytes of the peak that no owner accounts for (memory.Account).
    flops: of matrix products; not of Pallas kernels.
    memory_bytes: read and written; not by Pallas kernels.
    network_bytes: sent to other devices.
  """

  arguments: float
  temporaries: float
  peak: float
  workspace: float
  flops: float
  memory_bytes: float
  network_bytes: float

  def extrapolated(self, other: 'Weight', times: float) -> 'Weight':
    """self + times * (other - self)."""
    return Weight(*(
        a + times * (b - a)
        for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))


def phase(program: str) -> str:
  """The phase of a training step that a program is in."""
  return _PHASES.get(program) or _PHASES[program.split('/')[0]]


class Compiler:
  """Compiles each program once, also over several plans of a search."""

  def __init__(self, options: dict[str, str] | None = None) -> None:
    """Args: options: of XLA."""
    self._options = options
    self._known: dict[str, Weight] = {}
    self.seconds = 0.0

  def weigh(self, program: Program, owned: float, trips: float) -> Weight:
    """Compiles a program.

    Args:
      program: of the list.
      owned: bytes of its arguments on each device that have an owner.
      trips: how often loops run that end by their data: a chunk.

    Returns:
      What it takes; the peak alone where the compiler says that it does not
      fit on the device by itself.
    """
    with jax.set_mesh(program.mesh):
      traced = program.function.trace(*program.args, **program.kwargs)
    lowered = traced.lower()
    key = hashlib.sha256(
        f'{program.mesh}{owned}{lowered.as_text()}'.encode()).hexdigest()
    if key not in self._known:
      flops = jaxpr_flops.count(traced.jaxpr, trips) / program.mesh.size
      start = time.perf_counter()
      try:
        compiled = lowered.compile(compiler_options=self._options or None)
        weight = _weight(compiled, owned, flops, trips, program.mesh)
      except jax.errors.JaxRuntimeError as e:
        peak = _required(str(e))
        weight = Weight(owned, peak - owned, peak, peak - owned, flops, 0.0,
                        0.0)
      self.seconds += time.perf_counter() - start
      self._known[key] = weight
    return self._known[key]


def _required(error: str) -> float:
  """Bytes that a program would need, from the compiler's error."""
  found = re.search(r'Used ([\d.]+)([KMG]) of|\(([\d.]+)([KMG])\) exceeds',
                    error)
  if 'RESOURCE_EXHAUSTED' not in error or not found:
    raise InputError('the compiler refuses a program: '
                     f'{error.splitlines()[0]}')
  size, unit = found[1] or found[3], found[2] or found[4]
  return float(size) * 2**{'K': 10, 'M': 20, 'G': 30}[unit]


def _weight(compiled: jax.stages.Compiled, owned: float, flops: float,
            trips: float, mesh: jax.sharding.Mesh) -> Weight:
  memory: Any = compiled.memory_analysis()
  peak = memory.peak_memory_in_bytes
  if mesh.devices.flat[0].platform != 'tpu':  # temporaries are not in it
    peak = (memory.argument_size_in_bytes + memory.output_size_in_bytes +
            memory.temp_size_in_bytes - memory.alias_size_in_bytes)
  moved = hlo.traffic(compiled.as_text() or '', trips)
  return Weight(float(memory.argument_size_in_bytes),
                float(memory.temp_size_in_bytes), float(peak),
                max(0.0, peak - owned), flops, moved.memory_bytes,
                moved.network_bytes)


def owned_bytes(program: Program) -> int:
  """Bytes on each device of the arguments and results that have an owner."""
  args, kwargs = program.args, program.kwargs
  size = mesh_lib.device_bytes
  match program.name.split('/')[1]:
    case 'gradient' | 'add_gradient':  # and the gradient, as the parameters
      return size((args[1], args[1], kwargs['base_params'], kwargs['resident']))
    case 'apply_gradient':
      return size((args[0], args[1]))
    case 'logprobs':
      return size((args[1], args[4]))
    case 'sampling_copy':
      return size((args[0], program.results()))
    case 'empty':
      model, layout, mesh = args
      return size(paged.abstract_pool(model, layout, mesh))
  return size(
      [x for x in args if isinstance(x, dict) or isinstance(x, paged.Pool)])


def workspaces(weights: Sequence[tuple[str, Weight]]) -> dict[str, float]:
  """The largest workspace of each phase."""
  out: dict[str, float] = {}
  for name, weight in weights:
    out[phase(name)] = max(out.get(phase(name), 0.0), weight.workspace)
  return out
