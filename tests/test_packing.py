"""Laws of packing: nothing is lost, nothing overlaps, little is wasted."""

import numpy as np
import pytest

from exprl_jax.rl import packing


def sequences(rng, rows=30, longest=40):
  """Long-tailed lengths."""
  lengths = np.minimum(1 + rng.geometric(0.1, rows), longest)
  return [rng.standard_normal(n).astype(np.float32) for n in lengths]


def pack_all(plan, rows):
  return [plan.pack(rows, i) for i in range(plan.micro_batches)]


def ids_of(plan, lengths):
  return [plan.segment_ids(lengths, i) for i in range(plan.micro_batches)]


@pytest.mark.parametrize('seed', range(5))
def test_what_is_packed_comes_back(seed):
  rows = sequences(np.random.default_rng(seed))
  lengths = list(map(len, rows))
  plan = packing.plan(lengths, 50, 3)
  packed = pack_all(plan, rows)
  assert {x.shape for x in packed} == {(3, 50)}
  for a, b in zip(plan.unpack(packed), rows, strict=True):
    np.testing.assert_array_equal(a, b)
  ids = np.array(ids_of(plan, lengths))
  assert (ids > 0).sum() == sum(lengths)
  np.testing.assert_array_equal(np.array(packed)[ids == 0], 0)
  assert plan.fill == pytest.approx(sum(lengths) / ids.size)


@pytest.mark.parametrize('seed', range(5))
def test_a_segment_is_a_sequence(seed):
  lengths = list(map(len, sequences(np.random.default_rng(seed))))
  plan = packing.plan(lengths, 50, 3)
  owner = pack_all(plan, [np.full(n, i + 1) for i, n in enumerate(lengths)])
  ids = ids_of(plan, lengths)
  for row, segments in zip(np.concatenate(owner), np.concatenate(ids)):
    for segment in set(segments) - {0}:
      (columns,) = np.nonzero(segments == segment)
      assert len(set(row[columns])) == 1
      assert np.ptp(columns) + 1 == len(columns), 'in neighboring columns'


def test_long_tails_cost_their_tokens():
  """Mean length 10 of at most 200: padded rows would be 5 % full."""
  rng = np.random.default_rng(0)
  lengths = np.minimum(rng.geometric(0.1, 500), 200).tolist()
  assert packing.plan(lengths, 200, 1).fill > 0.95


def test_shorter_sequences_end_where_their_place_ends():
  """So that completions behind other prompts share their columns."""
  plan = packing.plan([4, 2], 6, 1)
  np.testing.assert_array_equal(
      plan.pack([np.array([1, 2, 3]), np.array([4, 5])], 0),
      [[0, 1, 2, 3, 4, 5]])
  np.testing.assert_array_equal(plan.segment_ids([3, 2], 0),
                                [[0, 1, 1, 1, 2, 2]])


def test_the_last_micro_batch_may_have_empty_rows():
  plan = packing.plan([7] * 3, 7, 2)
  assert (plan.micro_batches, plan.row_tokens) == (2, 7)
  assert plan.pack([np.ones(7)] * 3, 1)[1].sum() == 0, 'an empty row'


def test_a_sequence_longer_than_a_row_is_an_error():
  with pytest.raises(ValueError, match='7 tokens does not fit'):
    packing.plan([7], 6, 1)
