"""Prefill passes and page copies: what new rows need before they decode."""

import collections
from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from exprl_jax.rollout.options import Options
from exprl_jax.rollout.runner import Runner
from exprl_jax.rollout.stats import Stats

# A prefill pass costs about as much as so many more tokens in it.
_PASS_COST = 128


class Job(NamedTuple):
  """Tokens to prefill; those before `start` are in the pages already."""

  device: int
  tokens: Sequence[int]
  start: int
  stop: int
  pages: list[int]

  @property
  def length(self) -> int:
    """Tokens to compute; not positive if there are none."""
    return self.stop - self.start


class Copy(NamedTuple):
  """A page to copy, on one device."""

  device: int
  source: int
  target: int


@dataclasses.dataclass
class Plan:
  """What a round of slot filling has to run, in this order.

  Attributes:
    shared_prefixes: the tokens that several requests share.
    prefix_copies: the page in which a prompt leaves its shared prefix.
    prompts: the rest of each prompt prefix.
    row_copies: the page in which a row leaves its prompt prefix.
    suffixes: what each row has behind that, up to the token it decodes first.
  """

  shared_prefixes: list[Job] = dataclasses.field(default_factory=list)
  prefix_copies: list[Copy] = dataclasses.field(default_factory=list)
  prompts: list[Job] = dataclasses.field(default_factory=list)
  row_copies: list[Copy] = dataclasses.field(default_factory=list)
  suffixes: list[Job] = dataclasses.field(default_factory=list)


class Prefiller:
  """Runs plans, in as few and as full passes as it can."""

  def __init__(self, runner: Runner, options: Options, stats: Stats) -> None:
    """Prepares to run plans.

    Args:
      runner: runs the passes.
      options: resolved.
      stats: `prefilled` is counted there.
    """
    self._runner, self._options, self._stats = runner, options, stats

  def run(self, plan: Plan) -> None:
    """Launches the passes and copies of a plan."""
    self._prefill(plan.shared_prefixes)
    self._copy(plan.prefix_copies)
    self._prefill(plan.prompts)
    self._copy(plan.row_copies)
    self._prefill(plan.suffixes)

  def _prefill(self, jobs: Sequence[Job]) -> None:
    """Runs jobs of about the same length together."""
    groups: dict[int, list[list[Job]]] = collections.defaultdict(
        lambda: [[] for _ in range(self._runner.devices)])
    widths = self._options.prefill_widths()
    for job in jobs:
      if job.length > 0:
        width = next((w for w in widths if job.length <= w), widths[-1])
        groups[width][job.device].append(job)
    for by_device in groups.values():
      rows, width = self._cheapest_shape(by_device)
      for first in range(0, max(map(len, by_device)), rows):
        self._run_passes([jobs[first:first + rows] for jobs in by_device], rows,
                         width)

  def _cheapest_shape(self, by_device: list[list[Job]]) -> tuple[int, int]:
    """Rows on each device and tokens a row of passes that waste least."""
    longest = max(job.length for jobs in by_device for job in jobs)
    most = max(map(len, by_device))
    _, rows, width = min(
        (-(-longest // width) * -(-most // rows) * (rows * width + _PASS_COST),
         rows, width)
        for width in self._options.prefill_widths()
        for rows in self._options.prefill_rows(width, self._runner.devices))
    return rows, width

  def _run_passes(self, by_device: list[list[Job]], rows: int,
                  width: int) -> None:
    """Runs up to `rows` jobs on each device, `width` tokens of each a pass."""
    longest = max(job.length for jobs in by_device for job in jobs)
    shape = (len(by_device) * rows, width)
    for offset in range(0, longest, width):
      tokens, positions = np.zeros(shape,
                                   np.int32), np.full(shape, -1, np.int32)
      table = np.zeros((shape[0], self._options.columns), np.int32)
      for device, jobs in enumerate(by_device):
        for row, job in enumerate(jobs, start=device * rows):
          first = job.start + offset
          piece = job.tokens[first:min(first + width, job.stop)]
          tokens[row, :len(piece)] = piece
          positions[row, :len(piece)] = first + np.arange(len(piece))
          table[row, :len(job.pages)] = job.pages
          self._stats.prefilled += len(piece)
      self._runner.prefill(tokens, positions, table)

  def _copy(self, copies: Sequence[Copy]) -> None:
    """Copies pages; the rest of the program's width copies the dummy."""
    if not copies:
      return
    devices = self._runner.devices
    shape = (devices, self._options.slots // devices)
    source, target = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    count = [0] * devices
    for copy in copies:
      column = count[copy.device]
      source[copy.device, column] = copy.source
      target[copy.device, column] = copy.target
      count[copy.device] += 1
    self._runner.copy(source, target)
