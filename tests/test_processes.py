"""Two processes with four devices each are one process with eight."""

import functools
import json
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax import mesh as mesh_lib
from exprl_jax.models import hf
from tests.test_models import logits

ROOT = pathlib.Path(__file__).parent.parent


def run(folder, out, sizes):
  """What every process does: load, forward, backward, export."""
  mesh = mesh_lib.make_mesh(config_lib.Mesh(**sizes))
  cfg, params = hf.load(folder, mesh)
  rows = np.random.default_rng(0).integers(0, 40, (8, 9))

  @functools.partial(jax.jit, static_argnums=0)
  def loss(cfg, params, rows):
    value = logits(cfg, params, rows)
    return jnp.sum(jax.nn.log_softmax(value)[..., 3]), value

  with jax.set_mesh(mesh):
    (_, value), gradient = jax.value_and_grad(loss, 1, has_aux=True)(
        cfg, params, mesh_lib.shard_rows(rows, mesh))
  hf.save(out / 'model', cfg, params, folder)
  value, gradient = mesh_lib.fetch((value, gradient))
  if jax.process_index() == 0:
    leaves = jax.tree.leaves((value, gradient))
    np.savez(out / 'arrays.npz', *leaves)


def two_processes(folder, out, sizes):
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  spec = json.dumps([str(folder), str(out), sizes, port])
  children = [subprocess.Popen(
      [sys.executable, '-m', 'tests.test_processes', spec, str(i)], cwd=ROOT,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
      for i in range(2)]
  said = [child.communicate(timeout=300)[0] for child in children]
  assert [child.returncode for child in children] == [0, 0], '\n'.join(said)


@pytest.mark.parametrize('sizes', [
    dict(data=1, fsdp=8), dict(data=2, fsdp=2, tensor=2)])
def test_two_processes_are_one(small_folder, tmp_path, sizes):
  one, two = tmp_path / 'one', tmp_path / 'two'
  for out in (one, two):
    out.mkdir()
  run(small_folder, one, sizes)
  two_processes(small_folder, two, sizes)
  a, b = (np.load(out / 'arrays.npz') for out in (one, two))
  assert len(a.files) == len(b.files) > 5
  for name in a.files:
    np.testing.assert_allclose(a[name], b[name],
                               atol=1e-5 * np.abs(a[name]).max())
  for file in ('model.safetensors', 'config.json', 'tokenizer.json'):
    assert (one / 'model' / file).read_bytes() == (
        two / 'model' / file).read_bytes()


if __name__ == '__main__':
  folder, out, sizes, port = json.loads(sys.argv[1])
  jax.config.update('jax_num_cpu_devices', 4)
  jax.distributed.initialize(f'127.0.0.1:{port}', 2, int(sys.argv[2]))
  assert (jax.process_count(), jax.local_device_count()) == (2, 4)
  run(pathlib.Path(folder), pathlib.Path(out), sizes)
