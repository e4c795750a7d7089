"""Sequences of all lengths in rows of one length, so that each costs its
tokens.

Rollouts are long-tailed: padded to the longest, most of a batch is padding.
Here they are laid out one behind the other; segment ids keep them apart, in
attention, positions and losses alike.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Packing(NamedTuple):
  """Where the sequences of a batch stand, in micro-batches of equal shape."""

  rows: list[list[tuple[int, int]]]  # of each row: (sequence, its column)
  spans: np.ndarray  # i64[B, 2], the columns of each sequence that are packed
  micro_rows: int  # R
  row_tokens: int  # L

  @property
  def micro_batches(self) -> int:
    """Of R rows each; the last one may have empty rows."""
    return -(-len(self.rows) // self.micro_rows)

  def pack(self, x: np.ndarray) -> np.ndarray:
    """[B, T] -> [micro-batches, R, L], 0 between sequences."""
    out = np.zeros((self.micro_batches * self.micro_rows, self.row_tokens),
                   x.dtype)
    for row, sequences in zip(out, self.rows):
      for b, at in sequences:
        start, stop = self.spans[b]
        row[at:at + stop - start] = x[b, start:stop]
    return out.reshape(-1, self.micro_rows, self.row_tokens)

  def unpack(self, packed: Sequence[np.ndarray],
             like: np.ndarray) -> np.ndarray:
    """Micro-batches [R, L] -> [B, T], into the shape of `like`."""
    out = np.zeros(like.shape, packed[0].dtype)
    for row, sequences in zip(np.concatenate(packed), self.rows):
      for b, at in sequences:
        start, stop = self.spans[b]
        out[b, start:stop] = row[at:at + stop - start]
    return out

  def segment_ids(self, valid: np.ndarray) -> np.ndarray:
    """i32[micro-batches, R, L]: 1, 2, ... in each row; 0 is padding."""
    ids = np.zeros(valid.shape, np.int32)
    for sequences in self.rows:
      for number, (b, _) in enumerate(sequences, 1):
        ids[b] = number
    return self.pack(np.where(valid, ids, 0))

  @property
  def fill(self) -> float:
    """Share of the cells that hold a sequence."""
    used = (self.spans[:, 1] - self.spans[:, 0]).sum()
    return float(used) / (self.micro_batches * self.micro_rows *
                          self.row_tokens)


def plan(valid: np.ndarray, row_tokens: int, micro_rows: int) -> Packing:
  """First fit by decreasing length.

  Args:
    valid: bool[B, T]. A sequence is packed from its first valid column to its
      last; holes in between stay padding.
    row_tokens: L.
    micro_rows: R.

  Raises:
    ValueError: a sequence is longer than a row.
  """
  any_ = valid.any(axis=1)
  start = np.where(any_, valid.argmax(axis=1), 0)
  stop = np.where(any_, valid.shape[1] - valid[:, ::-1].argmax(axis=1), 0)
  if len(valid) and (stop - start).max() > row_tokens:
    raise ValueError(f'a sequence of {(stop - start).max()} tokens does not '
                     f'fit into rows of {row_tokens}')
  rows, left = [], np.zeros(len(valid), np.int64)  # room of each row
  for b in np.argsort(start - stop, kind='stable'):
    length = stop[b] - start[b]
    row = int(np.argmax(left[:len(rows) + 1] >= length))
    if row == len(rows) or left[row] < length:
      row = len(rows)
      rows.append([])
      left[row] = row_tokens
    rows[row].append((int(b), int(row_tokens - left[row])))
    left[row] -= length
  return Packing(rows, np.stack([start, stop], axis=1), micro_rows, row_tokens)
