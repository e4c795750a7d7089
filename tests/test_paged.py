"""Attention over pages: what the TPU kernel is given is what it wants.

The interpreter of TPU kernels does not run this one, so jax's own reference
of it stands in: same arguments, same pages.
"""

import dataclasses

import jax
from jax.experimental.pallas.ops.tpu import ragged_paged_attention as kernel
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax.models import paged
from tests.conftest import SMALL


@pytest.mark.parametrize('window, softcap', [(0, 0.0), (3, 2.0)])
def test_the_kernels_arguments(one_device, monkeypatch, window, softcap):
  """A prefill with a short and an idle row, then two tokens of each."""

  def reference(*args, num_kv_pages_per_block, num_queries_per_block,
                vmem_limit_bytes, **options):
    assert min(num_kv_pages_per_block, num_queries_per_block,
               vmem_limit_bytes) > 0
    return kernel.ref_ragged_paged_attention(*args, **options)

  monkeypatch.setattr(kernel, 'ragged_paged_attention', reference)
  cfg = dataclasses.replace(SMALL, windows=(window,) * 2,
                            attention_softcap=softcap)
  table = jnp.array([[3, 1, 5], [2, 4, 0], [0, 0, 0]])
  keys = jax.random.split(jax.random.key(0), 9)

  def run(name):
    layout = paged.Layout(8, 4, 'float32', name)
    pool = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                        paged.abstract_pool(cfg, layout, one_device))
    outputs = []
    prefill = [[0, 1, 2, 3, 4, 5], [0, 1, 2, -1, -1, -1], [-1] * 6]
    for i, positions in enumerate((prefill, [[6], [3], [-1]], [[7], [4],
                                                               [-1]])):
      positions = jnp.array(positions)
      q, k, v = (jax.random.normal(keys[3 * i + j], (*positions.shape, n, 16))
                 for j, n in enumerate((4, 2, 2)))
      out, pool = paged.attend(cfg, layout, q * 0.25, k, v, pool, table,
                               positions, jnp.int32(1), 0)
      outputs.append(np.asarray(out)[np.asarray(positions) >= 0])
    return outputs

  for got, want in zip(run('ragged'), run('reference')):
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(want).max() > 0.1
