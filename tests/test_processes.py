"""Several processes with eight devices together are one process with eight."""

import functools
import gzip
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax import main
from exprl_jax.models import hf
from exprl_jax.rollout import decode, engine
from exprl_jax.rollout.requests import Request, Sampling
from exprl_jax.runtime import checkpoints, metrics
from exprl_jax.runtime import mesh as mesh_lib
from tests.test_checkpoints import flip_in_arrays
from tests.test_models import logits
from tests.test_train import without_times

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
    (_, value), gradient = jax.value_and_grad(loss, 1,
                                              has_aux=True)(cfg, params,
                                                            mesh_lib.shard_rows(
                                                                rows, mesh))
  hf.save(out / 'model', cfg, params, folder)
  sampling = mesh_lib.rollout_mesh(mesh, sizes.get('tensor', 0))
  generator = engine.Engine(
      cfg, sampling,
      engine.Options(slots=8, max_tokens=40, page=4, pages=22, chunk=7,
                     prefill=8))
  samples = generator.generate(decode.prepare(cfg, params, sampling), [
      Request([3 + i] * (i + 1), i * 4, 4, Sampling(20, eos_ids=(1,)))
      for i in range(8)
  ], jax.random.key(0))
  value, gradient = mesh_lib.fetch((value, gradient))
  if jax.process_index() == 0:
    leaves = jax.tree.leaves((value, gradient))
    np.savez(out / 'arrays.npz', *leaves)
    (out / 'samples.json').write_text(
        json.dumps([s.tokens.tolist() for s in samples]))


def two_processes(*command):
  """Runs a command of this file in two processes; what they said."""
  return processes(2, *command)


def processes(count, *command):
  """Runs a command of this file in several processes; what they said."""
  children = start(count, *command)
  said = [child.communicate(timeout=600)[0] for child in children]
  assert [child.returncode for child in children
         ] == [0] * count, '\n'.join(said)
  return said


def start_two(*command):
  """Starts a command of this file in two processes."""
  return start(2, *command)


def start(count, *command):
  """Starts a command of this file in processes with 8 devices together."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  return [
      subprocess.Popen([
          sys.executable, '-m', 'tests.test_processes', f'{port},{count}',
          str(i), *map(str, command)
      ], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
      for i in range(count)
  ]


@pytest.mark.slow
@pytest.mark.parametrize(
    'sizes',
    [dict(data=1, fsdp=8), dict(data=2, fsdp=2, tensor=2)])
def test_two_processes_are_one(small_folder, tmp_path, sizes):
  one, two = tmp_path / 'one', tmp_path / 'two'
  for out in (one, two):
    out.mkdir()
  run(small_folder, one, sizes)
  two_processes('run', small_folder, two, json.dumps(sizes))
  a, b = (np.load(out / 'arrays.npz') for out in (one, two))
  assert len(a.files) == len(b.files) > 5
  for name in a.files:
    np.testing.assert_allclose(a[name], b[name],
                               atol=1e-5 * np.abs(a[name]).max())
  assert (one / 'samples.json').read_text() == (two /
                                                'samples.json').read_text()
  for file in ('model.safetensors', 'config.json', 'tokenizer.json'):
    assert (one / 'model' / file).read_bytes() == (two / 'model' /
                                                   file).read_bytes()


RECIPES = {
    'process': [''],
    'adapters': [
        '', '--config.mesh.data=1', '--config.mesh.fsdp=8',
        '--config.mesh.rollout_tensor=2', '--config.policy.lora_rank=2'
    ],
    'outcome': [':outcome', '--config.mesh.fsdp=2', '--config.mesh.data=4'],
    'teacher': [':self_distill'],
    'dynamic_sampling': [':grpo', '--config.select.drop_zero_variance=True'],
    'partial_rollouts': [':grpo', '--config.rollout.partial_rollouts=4'],
}


@pytest.mark.parametrize('recipe, count', [
    ('process', 2),
    *(pytest.param(name, 2, marks=pytest.mark.slow)
      for name in list(RECIPES)[1:]),
    pytest.param('process', 4, marks=pytest.mark.slow),
    pytest.param('adapters', 4, marks=pytest.mark.slow),
])
def test_several_processes_train_as_one(tmp_path, recipe, count):
  """The whole command, two steps: the same samples, and losses that agree."""
  config, *more = RECIPES[recipe]
  flags = [
      f'--config=configs/tiny.py{config}', '--config.compare=',
      '--config.steps=2', '--config.data.batch=8', '--config.eval.limit=8',
      '--config.eval.samples=2', '--config.eval.ks=(1,2)',
      '--config.judge.check_tokens=0', '--config.mesh.data=8', *more
  ]
  main.main([*flags, f'--workdir={tmp_path}/one'])
  said = processes(count, 'main', *flags, f'--workdir={tmp_path}/several')
  assert 'pass@1' in said[0] and not any('pass@1' in x for x in said[1:])
  one, several = (metrics.read(tmp_path / f'{name}/metrics.jsonl')
                  for name in ('one', 'several'))
  assert len(one) == len(several) == 4
  for a, b in zip(one, several):
    assert a.keys() == b.keys()
    for key in a.keys():
      if not key.startswith(('time/', 'perf/', 'hbm/')):
        np.testing.assert_allclose(a[key], b[key], rtol=1e-3, atol=1e-5)
  texts = [[row['text']
            for row in traces(tmp_path / name)]
           for name in ('one', 'several')]
  assert texts[0] == texts[1] and len(texts[0]) >= 32


def traces(workdir):
  """All traces that a run has kept."""
  out = []
  for path in sorted((workdir / 'traces').glob('*.jsonl.gz')):
    with gzip.open(path, 'rt') as file:
      out += map(json.loads, file)
  return out


@pytest.mark.slow
def test_several_processes_evaluate_and_export_as_one(tmp_path):
  """The same tables and samples, and the same files of a model."""
  evaluate = [
      '--config=configs/tiny.py:evaluate', '--config.eval.limit=16',
      '--config.eval.samples=2', '--config.eval.ks=(1,2)',
      '--config.eval.newly_solved_k=2', '--config.mesh.data=8'
  ]
  export = [
      '--config=configs/export.py', '--config.policy.init=asset:tiny_policy'
  ]
  for name, run_ in (('one', lambda *a: main.command(list(a))),
                     ('two', lambda *a: two_processes('main', *a))):
    run_(*evaluate, f'--workdir={tmp_path}/{name}')
    run_(*export, f'--config.export.out={tmp_path}/{name}-model',
         f'--workdir={tmp_path}/{name}-export')
  one, two = (json.loads((tmp_path / f'{name}/comparison.json').read_text())
              for name in ('one', 'two'))
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
      if isinstance(a, float) else _same(a, b), one, two)
  for file in ('model.safetensors', 'config.json', 'tokenizer.json'):
    assert ((tmp_path / 'one-model' /
             file).read_bytes() == (tmp_path / 'two-model' / file).read_bytes())


def _same(a, b):
  assert a == b


def test_two_processes_share_the_checks_of_data(tmp_path):
  """The same findings in the same order, and the same first error."""
  rows = [
      dict(id=str(i), question=f'max has {i} pens . how many ?',
           solution=f'\\boxed{{ {i} }}', answer=str(i)) for i in range(2600)
  ]
  for i, changed in ((5, dict(solution='')), (1500, dict(question='a\x08b')),
                     (1600, dict(question=rows[3]['question'])),
                     (2300, dict(question='how many ? ' * 40)),
                     (2500, dict(answer='', question=rows[9]['question']))):
    rows[i] |= changed
  (tmp_path / 'rows.jsonl').write_text(''.join(
      json.dumps(row) + '\n' for row in rows))
  flags = [
      '--config=configs/tiny.py', '--config.eval.problems=',
      f'--config.data.train={tmp_path}/rows.jsonl', '--config.compare='
  ]
  for run in ('validate', 'train'):
    command = [*flags, f'--config.run={run}']
    one = subprocess.run([
        sys.executable, '-m', 'exprl_jax.main', *command,
        f'--workdir={tmp_path}/one-{run}'
    ], cwd=ROOT, capture_output=True, text=True, check=False)
    children = start_two('main', *command, f'--workdir={tmp_path}/two-{run}')
    said = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children
           ] == [one.returncode] * 2, (said)
    assert one.returncode == 2
    if run == 'validate':
      assert one.stdout in said[0] and 'too_long' in one.stdout
    assert one.stderr.strip().splitlines()[-1] in said[0]


def result(workdir):
  return (without_times(metrics.read(workdir / 'metrics.jsonl')),
          (workdir / 'model/model.safetensors').read_bytes())


def stop_both(tmp_path, ready, *more):
  """Sends SIGTERM to one of two processes when `ready` says so of the workdir,
  and starts both again.

  Returns:
    What the stopped ones said, and the steps that they saved.
  """
  flags = [
      '--config=configs/tiny.py', '--config.compare=',
      '--config.eval.problems=', '--config.mesh.data=8', *more
  ]
  two_processes('main', *flags, f'--workdir={tmp_path}/whole')
  workdir = tmp_path / 'stopped'
  children = start_two('main', *flags, f'--workdir={workdir}')
  while not ready(workdir):
    time.sleep(0.05)
  children[1].send_signal(signal.SIGTERM)
  said = [child.communicate(timeout=120)[0] for child in children]
  assert [child.returncode for child in children] == [42, 42], '\n'.join(said)
  assert all('stopped by SIGTERM' in text for text in said)
  saved = checkpoints.steps(workdir)
  two_processes('main', *flags, f'--workdir={workdir}')
  assert result(workdir) == result(tmp_path / 'whole')
  return said, saved


def has_row(workdir):
  return bool(metrics.read(workdir / 'metrics.jsonl'))


@pytest.mark.slow
@pytest.mark.parametrize('ready',
                         [lambda w: (w / 'config.json').exists(), has_row],
                         ids=['first', 'later'])
def test_sigterm_to_one_of_two_processes_stops_both(tmp_path, ready):
  """The same saved step, exit code 42, and the rest as if never stopped.

  Before the first step, and in it, as nobody knows how long it takes, they stop
  at once; a later one is finished.
  """
  _, saved = stop_both(tmp_path, ready, '--config.steps=4',
                       '--config.data.batch=8',
                       '--config.checkpoint.grace_s=600')
  assert saved in ([[1], [2], [3]] if ready is has_row else [[]])


@pytest.mark.slow
def test_two_processes_abandon_a_long_step(tmp_path):
  """As long as the first one, which compiles, the second step would outlast the
  grace period: the first one is saved."""
  said, saved = stop_both(tmp_path, has_row, '--config.steps=3',
                          '--config.data.batch=32',
                          '--config.checkpoint.grace_s=20')
  assert saved == [1]
  assert all(re.search(r'stopped by SIGTERM in \w+', text) for text in said)
  assert 'saved step 1' in said[0]


@pytest.mark.slow
def test_one_process_goes_on_as_two_and_two_as_one(tmp_path, capfd):
  """Restoring compares every array with its fingerprint; a damaged checkpoint
  is put aside by both processes."""
  flags = [
      '--config=configs/tiny.py', '--config.compare=',
      '--config.optim.schedule=constant', '--config.data.batch=8',
      '--config.eval.problems=', '--config.mesh.data=8',
      '--config.checkpoint.every=1', '--config.checkpoint.keep=3',
      f'--workdir={tmp_path}'
  ]
  assert main.command([*flags, '--config.steps=1']) == 0
  two_processes('main', *flags, '--config.steps=3', '--resume=always')
  assert checkpoints.steps(tmp_path) == [1, 2, 3]
  assert main.command([*flags, '--config.steps=4', '--resume=always']) == 0
  assert checkpoints.steps(tmp_path) == [2, 3, 4]
  flip_in_arrays(tmp_path, 4)
  said = two_processes('main', *flags, '--config.steps=5')
  assert 'checkpoints/00000004 is damaged' in said[0]
  assert [row['step'] for row in metrics.read(tmp_path / 'metrics.jsonl')
         ] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize('count, lost',
                         [(2, 1),
                          pytest.param(2, 0, marks=pytest.mark.slow),
                          pytest.param(4, 2, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_others_at_once(tmp_path, count, lost):
  """With 42, and a line that names it and the phase; no stack of C++."""
  children = start(count, 'main', '--config=configs/tiny.py:grpo',
                   '--config.eval.problems=', '--config.mesh.data=8',
                   '--config.data.batch=8', f'--workdir={tmp_path}')
  while not has_row(tmp_path):
    time.sleep(0.1)
  children[lost].kill()
  began = time.monotonic()
  for i, child in enumerate(children):
    said = child.communicate(timeout=30)[0]
    if i != lost:
      assert time.monotonic() - began < 5
      assert child.returncode == 42
      assert re.search(
          rf'process {lost} is gone .* process {i} was in [a-z -]+; exiting '
          'with 42',
          said.strip().splitlines()[-1]), said


if __name__ == '__main__':
  where, index, what, *rest = sys.argv[1:]
  port, count = where.split(',')
  jax.config.update('jax_num_cpu_devices', 8 // int(count))
  where = f'127.0.0.1:{port},{count},{index}'
  if what == 'main':
    sys.exit(main.command([*rest, f'--distributed={where}']))
  else:
    main.join(where)
    assert jax.process_count() * jax.local_device_count() == 8
    folder, out, sizes = rest
    run(pathlib.Path(folder), pathlib.Path(out), json.loads(sizes))
