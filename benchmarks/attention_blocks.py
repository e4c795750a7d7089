"""Counts the blocks that attention computes in packed rows.

  python benchmarks/attention_blocks.py

Lengths are lognormal with a mean of 5.1k and a 90th percentile of 10.6k tokens,
at most 16,384; rows have 20,480. Eight rows are a micro-batch on eight chips,
which waits for the one with the most blocks.
"""

import jax.numpy as jnp
import numpy as np

from exprl_jax.models import splash
from exprl_jax.rl import packing

MEDIAN, SIGMA, MOST, ROW, CHIPS = 3951, 0.77, 16384, 20480, 8


def rows(seed: int) -> np.ndarray:
  """Packs the 360 samples of a step: segment ids i32[R, ROW]."""
  draws = np.random.default_rng(seed).normal(size=360)
  lengths = np.clip(MEDIAN * np.exp(SIGMA * draws), 64, MOST).astype(int)
  plan = packing.plan(lengths.tolist(), ROW, CHIPS)
  return np.concatenate(
      [plan.segment_ids(plan.lengths, i) for i in range(plan.micro_batches)])


def main() -> None:
  """Prints a line for each size of block; a step is one of the kernel's."""
  steps = [rows(seed) for seed in range(10)]
  ids = np.concatenate(steps)
  print(f'{len(ids)} rows, {ids.max(1).mean():.1f} segments in each, '
        f'{(ids > 0).mean():.1%} tokens')
  for block in (256, 512, 1024, 2048):
    m = ROW // block
    whole = m * (m + 1) // 2
    _, by_key = splash.needed(jnp.asarray(ids), block, 0)
    count = (np.asarray(by_key) - np.arange(m) + 1).sum(1)
    slowest = count.reshape(-1, CHIPS).max(1)
    area = block**2 / (ROW * (ROW + 1) / 2)
    print(
        f'block {block}: {count.mean():.1f} of {whole} blocks = '
        f'{count.mean() / whole:.3f}, slowest chip {slowest.mean() / whole:.3f}'
        f', area {count.mean() * area:.3f} of the triangle, '
        f'{m * m - count.mean():.0f} empty steps')


if __name__ == '__main__':
  main()
