"""Packing: ragged sequences side by side in rows of one length.

Rollouts are long-tailed: padded to the longest, most of a batch is padding.
Packed, each sequence costs its tokens. Segment ids keep neighbors apart in
attention, positions and losses.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jaxtyping import Int, Shaped
import numpy as np

from exprl_jax.config import Config, longest
from exprl_jax.runtime import mesh as mesh_lib


class Packing(NamedTuple):
  """Where the sequences of a batch lie, in micro-batches of equal shape.

  Attributes:
    rows: for each row, its sequences as (number, first column).
    lengths: columns that each sequence takes.
    micro_rows: R, rows of a micro-batch.
    row_tokens: L, columns of a row.
  """

  rows: list[list[tuple[int, int]]]
  lengths: list[int]
  micro_rows: int
  row_tokens: int

  @property
  def micro_batches(self) -> int:
    """How many there are; the last one may have empty rows."""
    return -(-len(self.rows) // self.micro_rows)

  @property
  def fill(self) -> float:
    """Share of the cells that a sequence takes."""
    cells = self.micro_batches * self.micro_rows * self.row_tokens
    return float(np.sum(self.lengths)) / cells

  def _rows_of(self, micro_batch: int) -> list[list[tuple[int, int]]]:
    start = micro_batch * self.micro_rows
    return self.rows[start:start + self.micro_rows]

  def pack(self, sequences: Sequence[np.ndarray],
           micro_batch: int) -> Shaped[np.ndarray, 'R L']:
    """One micro-batch of per-token values, 0 between sequences.

    A sequence shorter than its place is put at the end of it, so that
    completions behind prompts of different lengths share their columns.

    Args:
      sequences: an array per sequence, at most `lengths` long.
      micro_batch: its number.
    """
    out = np.zeros((self.micro_rows, self.row_tokens), sequences[0].dtype)
    for row, places in zip(out, self._rows_of(micro_batch)):
      for number, start in places:
        end, x = start + self.lengths[number], sequences[number]
        row[end - len(x):end] = x
    return out

  def segment_ids(self, lengths: Sequence[int],
                  micro_batch: int) -> Int[np.ndarray, 'R L']:
    """1, 2, ... by sequence in each row, 0 where there is none.

    Args:
      lengths: of the sequences that `pack` is given.
      micro_batch: its number.
    """
    out = np.zeros((self.micro_rows, self.row_tokens), np.int32)
    for row, places in zip(out, self._rows_of(micro_batch)):
      for segment, (number, start) in enumerate(places, 1):
        end = start + self.lengths[number]
        row[end - lengths[number]:end] = segment
    return out

  def unpack(self, packed: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The inverse of `pack`: micro-batches [R, L] to an array per sequence."""
    out: list[np.ndarray] = [packed[0][0, :0]] * len(self.lengths)
    rows = [row for micro_batch in packed for row in micro_batch]
    for row, places in zip(rows, self.rows):
      for number, start in places:
        out[number] = row[start:start + self.lengths[number]]
    return out


def plan(lengths: Sequence[int], row_tokens: int, micro_rows: int) -> Packing:
  """First fit by decreasing length.

  Args:
    lengths: tokens of each sequence.
    row_tokens: L.
    micro_rows: R.

  Raises:
    ValueError: a sequence is longer than a row.
  """
  if max(lengths, default=0) > row_tokens:
    raise ValueError(f'a sequence of {max(lengths)} tokens does not fit into '
                     f'rows of {row_tokens}')
  rows: list[list[tuple[int, int]]] = []
  free = np.zeros(len(lengths), np.int64)  # columns left in each row
  for number in np.argsort(-np.asarray(lengths, np.int64), kind='stable'):
    length = lengths[number]
    row = int(np.argmax(free[:len(rows) + 1] >= length))
    if row == len(rows) or free[row] < length:
      row = len(rows)
      rows.append([])
      free[row] = row_tokens
    rows[row].append((int(number), int(row_tokens - free[row])))
    free[row] -= length
  return Packing(rows, list(lengths), micro_rows, row_tokens)


def plan_batch(lengths: Sequence[int], config: Config,
               mesh: jax.sharding.Mesh) -> Packing:
  """Plans by the config, in the same shapes at every step of a run."""
  return plan(lengths, row_tokens(config), micro_rows(config, mesh))


def row_tokens(config: Config) -> int:
  """Columns of a row: optim.row_tokens, or the longest possible sequence."""
  return config.optim.row_tokens or longest(config)


def micro_rows(config: Config, mesh: jax.sharding.Mesh) -> int:
  """Rows of a micro-batch: optim.micro_rows on each device."""
  return config.optim.micro_rows * mesh_lib.batch_parts(mesh)
