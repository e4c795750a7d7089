"""Laws of packing: nothing is lost, nothing overlaps, little is wasted."""

import numpy as np
import pytest

from exprl_jax.rl import packing


def sequences(rng, rows=30, columns=40):
  """Long-tailed lengths, each somewhere in its row."""
  length = np.minimum(1 + rng.geometric(0.1, rows), columns)
  start = rng.integers(0, columns - length + 1)
  column = np.arange(columns)[None, :]
  return (column >= start[:, None]) & (column < (start + length)[:, None])


@pytest.mark.parametrize('seed', range(5))
def test_what_is_packed_comes_back(seed):
  rng = np.random.default_rng(seed)
  valid = sequences(rng)
  x = rng.standard_normal(valid.shape).astype(np.float32) * valid
  plan = packing.plan(valid, 50, 3)
  packed = plan.pack(x)
  assert packed.shape == (plan.micro_batches, 3, 50)
  np.testing.assert_array_equal(plan.unpack(list(packed), x), x)
  ids = plan.segment_ids(valid)
  assert (ids > 0).sum() == valid.sum()
  np.testing.assert_array_equal(packed[ids == 0], 0)
  assert plan.fill == pytest.approx(valid.sum() / ids.size)


@pytest.mark.parametrize('seed', range(5))
def test_a_segment_is_a_sequence(seed):
  rng = np.random.default_rng(seed)
  valid = sequences(rng)
  number = np.broadcast_to(np.arange(1, 31)[:, None], valid.shape)
  plan = packing.plan(valid, 50, 3)
  owner = plan.pack(np.where(valid, number, 0))
  ids = plan.segment_ids(valid)
  for row, segments in zip(owner.reshape(-1, 50), ids.reshape(-1, 50)):
    for segment in set(segments) - {0}:
      (columns,) = np.nonzero(segments == segment)
      assert len(set(row[columns])) == 1
      assert np.ptp(columns) + 1 == len(columns), 'in neighbouring columns'


def test_long_tails_cost_their_tokens():
  """Mean length 10 of at most 200: padded rows would be 5 % full."""
  rng = np.random.default_rng(0)
  length = np.minimum(rng.geometric(0.1, 500), 200)
  valid = np.arange(200)[None, :] < length[:, None]
  assert packing.plan(valid, 200, 1).fill > 0.95


def test_holes_are_padding():
  valid = np.array([[0, 1, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0]], bool)
  plan = packing.plan(valid, 6, 1)
  np.testing.assert_array_equal(plan.segment_ids(valid), [[[1, 0, 1, 1, 2, 2]]])


def test_the_last_micro_batch_may_have_empty_rows():
  plan = packing.plan(np.ones((3, 7), bool), 7, 2)
  assert (plan.micro_batches, plan.row_tokens) == (2, 7)
  assert plan.pack(np.ones((3, 7)))[1, 1].sum() == 0, 'an empty row'


def test_a_sequence_longer_than_a_row_is_an_error():
  with pytest.raises(ValueError, match='7 tokens does not fit'):
    packing.plan(np.ones((1, 7), bool), 6, 1)
