"""The paper in miniature (configs/paper_tiny.py): runs all, writes the table.

  python benchmarks/paper_tiny.py --workdir=paper_tiny               # hours
  python benchmarks/paper_tiny.py --workdir=paper_tiny --seeds=1     # short

Every arm of every seed is a run of its own, on one core. A queue keeps the
cores busy; what is finished is not run again, and what was interrupted goes on
from its checkpoint. WORKDIR/table.md is written anew after each run.
"""

import argparse
import concurrent.futures
import math
import os
import pathlib
import queue
import statistics
import subprocess
import sys

from scipy import stats

from exprl_jax.runtime import metrics

STAGE1 = ('sft', 'grpo', 'self_distill', 'outcome', 'process')
NOT_EXPRL = ('oracle', 'wrong_references')
NAMES = {
    'base': 'base', 'sft': 'SFT', 'grpo': 'sparse GRPO',
    'self_distill': 'self-distillation', 'outcome': 'ExpRL-Outcome',
    'process': 'ExpRL-Process', 'oracle': 'oracle as reward (not ExpRL)',
    'wrong_references': 'wrong references (not ExpRL)'
}


def jobs(seeds):
  """(name of the run, its flags, the run before it) in order."""
  for seed in range(seeds):
    for arm in (*STAGE1, *NOT_EXPRL):
      yield f'{arm}-{seed}', [
          f'--config=configs/paper_tiny.py:{arm}', f'--config.seed={seed}'
      ], ''
    for arm in ('base', *STAGE1):
      before = '' if arm == 'base' else f'{arm}-{seed}'
      yield f'{arm}-{seed}-stage2', [
          '--config=configs/paper_tiny.py:stage2', f'--config.seed={seed}'
      ], before


def done(folder):
  """Whether a run has ended."""
  return (folder / 'model/config.json').exists()


def run(root, name, flags, core):
  """Runs a job on one core; its output goes to a file."""
  with (root / f'{name}.log').open('a') as log:
    code = subprocess.run([
        sys.executable, '-m', 'exprl_jax.main', f'--workdir={root / name}',
        '--config.checkpoint.every=20', *flags
    ], stdout=log, stderr=log,
                          preexec_fn=lambda: os.sched_setaffinity(0, {core}),
                          check=False).returncode
  print(f'{name}: {"done" if not code else f"exit code {code}, see its log"}',
        flush=True)


def work(root, seeds, cores):
  """Runs what is missing; a stage 2 waits for its stage 1."""
  free = queue.Queue()
  for core in cores:
    free.put(core)
  ended = {}

  def one(name, flags, before):
    if before:
      ended[before].result()
      flags = [*flags, f'--config.policy.init={root / before}']
    if not done(root / name):
      core = free.get()
      try:
        run(root, name, flags, core)
      finally:
        free.put(core)
      (root / 'table.md').write_text(table(root, seeds))

  with concurrent.futures.ThreadPoolExecutor(len(cores)) as pool:
    for job in jobs(seeds):
      ended[job[0]] = pool.submit(one, *job)


def result(root, name, k, first=False):
  """(pass@k, half of its interval over problems) of a run's last evaluation."""
  rows = [
      r for r in metrics.read(root / name / 'metrics.jsonl')
      if f'eval/pass@{k}' in r
  ]
  row, key = rows[0 if first else -1], f'eval/pass@{k}'
  return row[key], (row[f'{key}_high'] - row[f'{key}_low']) / 2


def interval(values):
  """Half of Student's 95 % interval of the mean over seeds."""
  if len(values) < 2:
    return 0.0
  spread = statistics.stdev(values) / math.sqrt(len(values))
  return float(stats.t.ppf(0.975, len(values) - 1)) * spread


def cell(root, names, k, first=False):
  """Mean over seeds, with the interval over seeds and problems."""
  found = [result(root, name, k, first) for name in names]
  if not found:
    return ''
  values = [value for value, _ in found]
  over_problems = statistics.mean(half for _, half in found)
  half = math.hypot(interval(values), over_problems)
  return f'{statistics.mean(values):.3f} ± {half:.3f}'


def table(root, seeds):
  """Markdown: pass@1 and pass@16 after both stages, and paired differences."""
  lines = [
      '| arm | seeds | stage 1: pass@1 | pass@16 | above sparse GRPO | seeds | '
      'stage 2: pass@1 | pass@16 |', '|---|---|---|---|---|---|---|---|'
  ]
  for arm in ('base', *STAGE1, *NOT_EXPRL):
    own = 'process' if arm == 'base' else arm
    one = [f'{own}-{s}' for s in range(seeds) if done(root / f'{own}-{s}')]
    two = [
        name for s in range(seeds) if done(root / (name := f'{arm}-{s}-stage2'))
    ]
    if not one:
      continue
    pairs = [
        result(root, name, 1)[0] - result(root, sparse, 1)[0]
        for name in one
        if arm not in ('base', 'grpo')
        and done(root / (sparse := f'grpo-{name.rpartition("-")[2]}'))
    ]
    above = f'{statistics.mean(pairs):+.3f}' if pairs else ''
    if len(pairs) > 1:
      above += f' ± {interval(pairs):.3f}'
    first = arm == 'base'
    lines.append(
        f'| {NAMES[arm]} | {1 if first else len(one)} | '
        f'{cell(root, one[:1] if first else one, 1, first)} | '
        f'{cell(root, one[:1] if first else one, 16, first)} | {above} | '
        f'{len(two)} | {cell(root, two, 1)} | {cell(root, two, 16)} |')
  lines += [
      '', 'pass@1 after stage 1 by seed:', '',
      '| arm | ' + ' | '.join(map(str, range(seeds))) + ' |',
      '|---' * (seeds + 1) + '|'
  ]
  for arm in (*STAGE1, *NOT_EXPRL):
    cells = [
        f'{result(root, f"{arm}-{s}", 1)[0]:.3f}' if done(root /
                                                          f'{arm}-{s}') else ''
        for s in range(seeds)
    ]
    lines.append(f'| {NAMES[arm]} | {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def main():
  """Runs what is missing and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--seeds', type=int, default=8)
  parser.add_argument('--cores', default='',
                      help='such as 0,1; by default all that there are')
  args = parser.parse_args()
  root = pathlib.Path(args.workdir).absolute()
  root.mkdir(parents=True, exist_ok=True)
  cores = ([int(c) for c in args.cores.split(',')] if args.cores else sorted(
      os.sched_getaffinity(0)))
  work(root, args.seeds, cores)
  print(table(root, args.seeds))


if __name__ == '__main__':
  main()
