"""A plan as text and as a picture."""

from collections.abc import Iterable, Sequence
import pathlib
from typing import NamedTuple

from exprl_jax.planning import arrangements, timing
from exprl_jax.planning.memory import MARGIN
from exprl_jax.planning.plan import Plan


def text(plan: Plan) -> str:
  """The tables of a plan: programs, memory, pools, time, verdict."""
  return '\n\n'.join([
      _programs(plan),
      _memory(plan),
      _pools(plan),
      _time(plan), *filter(None, [_arrangements(plan)]),
      _verdict(plan)
  ])


class _Unit(NamedTuple):
  """Of sizes and operations, so that a plan reads well at any scale."""

  memory: str
  flops: str
  size: float

  def __call__(self, size: float) -> str:
    return f'{size / self.size:.2f}'


def _unit(plan: Plan) -> _Unit:
  large = plan.account.peak()[0] > 1e9
  return _Unit('GB', 'TFLOP', 1e9) if large else _Unit('MB', 'GFLOP', 1e6)


def _programs(plan: Plan) -> str:
  unit = _unit(plan)
  rows = []
  for name, w in plan.weights.items():
    share, called = plan.shares.get(name), ('', '')
    flops, moved = w.flops, w.memory_bytes
    if share:
      flops, moved = share.flops, share.memory_bytes
      called = f'{share.calls:.3g}', f'{1e3 * share.seconds:.1f}'
    rows.append([
        name, *(unit(x) for x in (w.arguments, w.temporaries, w.peak,
                                  flops / 1e3, moved, w.network_bytes)), *called
    ])
  header = [
      'program', 'arguments', 'temporaries', 'peak', unit.flops, 'HBM',
      'network', 'calls', 'ms'
  ]
  return table(header, rows) + (
      f'\n{unit.memory} and {unit.flops} of one call on each device; ms at '
      f'{timing.MATMUL:.0%} of the matrix units, {timing.MEMORY:.0%} of HBM, '
      f'{timing.NETWORK:.0%} of the links')


def _memory(plan: Plan) -> str:
  unit, phases = _unit(plan), plan.account.phases
  alive = {p: plan.account.alive(p) for p in phases}
  owners = [*dict.fromkeys(o for p in phases for o in alive[p])]
  owners = [o for o in owners if o != 'workspace'] + ['workspace']
  rows = [[o, *(unit(alive[p].get(o, 0.0)) for p in phases)] for o in owners]
  rows.append(['sum', *(unit(sum(alive[p].values())) for p in phases)])
  limit = plan.account.limit
  has = f'; it has {unit(limit)}' if limit else ''
  return (f'memory of each device, {unit.memory}{has}\n' +
          table(['owner', *phases], rows))


def _pools(plan: Plan) -> str:
  lines = []
  work = timing.work(plan.config, plan.models)
  r = plan.config.rollout
  tokens = plan.pool_tokens('policy')
  lines.append(
      f'policy pages: {tokens:,} tokens on all devices, '
      f'{tokens // (r.max_prompt_tokens + r.max_new_tokens):,} samples of '
      f'{r.max_prompt_tokens + r.max_new_tokens:,} tokens or '
      f'{tokens // (work.prompt + work.completion):,} of '
      f'{work.prompt + work.completion:,}; rollout.slots={r.slots}')
  if plan.models.judging:
    tokens = plan.pool_tokens('judge')
    longest = plan.models.judging.max_tokens
    lines.append(
        f'judge pages: {tokens:,} tokens, {tokens // longest:,} traces '
        f'of {longest:,}')
  for owner, options in (('policy', plan.models.rollout),
                         ('judge', plan.models.judging)):
    if options:
      lines.append(f'{owner} attends with {options.layout.kernel.describe()}')
  host = f'host memory: {plan.host_bytes() / 1e9:.2f} GB for each device'
  if plan.chip:
    host += f' of {plan.chip.host_memory / 1e9:.0f}'
  return '\n'.join([*lines, host])


def _time(plan: Plan) -> str:
  work, seconds = timing.work(plan.config, plan.models), plan.seconds()
  if not any(seconds.values()):
    return 'time: the peaks of this device are not known'
  parts = ', '.join(f'{p} {s:.1f}' for p, s in seconds.items())
  return (f'a step of {work.rows} samples of {work.prompt} + {work.completion} '
          f'tokens on average: {plan.step_seconds():.1f} s ({parts})')


def _arrangements(plan: Plan) -> str:
  """Simulated steps with samples of different lengths."""
  rows = [[a.name, *(f'{x:.1f}'
                     for x in (a.rollout, a.rest, a.step))]
          for a in arrangements.compare(plan)]
  if not rows:
    return ''
  return table(['simulated, s', 'rollout', 'rest', 'step'], rows) + (
      '\nlog-normal lengths of that mean, the scheduler as it is')


def _verdict(plan: Plan) -> str:
  if plan.account.limit is None:
    return 'the memory of these devices is not limited'
  size, phase = plan.account.peak()
  short = size - plan.account.limit * (1 - MARGIN)
  if plan.account.fits:
    return (f'fits: the largest sum, {phase}, leaves '
            f'{plan.account.margin:.1%} of a device free')
  return (f'does not fit: {phase} takes {size / 1e9:.2f} GB of '
          f'{plan.account.limit / 1e9:.2f}, {short / 1e9:.2f} too much for a '
          f'margin of {MARGIN:.0%}')


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Aligned columns; the first is text, the others are numbers."""
  lines = [list(header), *map(list, rows)]
  widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
  return '\n'.join('  '.join([
      line[0].ljust(widths[0]), *(x.rjust(w)
                                  for x, w in zip(line[1:], widths[1:]))
  ]).rstrip()
                   for line in lines)


def picture(plan: Plan, path: pathlib.Path) -> None:
  """Draws the memory of a device by phase and owner."""
  import matplotlib
  matplotlib.use('Agg')
  from matplotlib import pyplot as plt
  fig, ax = plt.subplots(figsize=(8, 4))
  alive = {p: plan.account.alive(p) for p in plan.account.phases}
  owners = [*dict.fromkeys(o for p in alive for o in alive[p])]
  bottom = [0.0] * len(alive)
  for i, owner in enumerate(owners):
    sizes = [alive[p].get(owner, 0.0) / 1e9 for p in alive]
    ax.bar(list(alive), sizes, bottom=bottom, label=owner, width=0.6,
           color=plt.get_cmap('tab20')(i))
    bottom = [a + b for a, b in zip(bottom, sizes)]
  if plan.account.limit:
    ax.axhline(plan.account.limit / 1e9, color='black', linewidth=1)
    ax.text(-0.4, plan.account.limit / 1e9, 'limit', va='bottom', fontsize=8)
  ax.set_ylabel('GB on each device')
  ax.legend(fontsize=8, loc='upper left', bbox_to_anchor=(1.0, 1.0))
  fig.tight_layout()
  fig.savefig(path, dpi=120)
  plt.close(fig)
