"""What a run does on its devices: flags, compilations, memory, operations."""

import dataclasses
import importlib.util
import math
import os
import pathlib
import subprocess
import sys

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np
import pytest

from exprl_jax import main
from exprl_jax.models import flops, transformer
from exprl_jax.runtime import (
    bugs,
    chips,
    compilation,
    failures,
    memory,
    metrics,
    profiler,
    xla_flags,
)
from exprl_jax.types import InputError
from tests.conftest import SMALL

TINY = [
    '--config.compare=', '--config.eval.problems=', '--config.data.batch=4',
    '--config.rollout.group_size=4', '--config.checkpoint.every=0'
]

# Flags.


def test_the_generation_is_that_of_the_accelerator():
  for kind, name in (('v5litepod-8', 'v5e'), ('v5p-8', 'v5p'), ('v6e-1', 'v6e'),
                     ('v4-8', 'v4'), ('tpu7x-8', 'tpu7x'), ('v99-8', None)):
    assert xla_flags.generation({'TPU_ACCELERATOR_TYPE': kind}) == name
  assert xla_flags.generation({}) is None


def test_flags_are_of_chips_that_are_known():
  assert set(xla_flags.TABLE) <= {chip.name for chip in chips.CHIPS.values()}
  for name in (None, 'other', *xla_flags.TABLE):
    options = xla_flags.compiler_options(name)
    assert {flag.name for flag in xla_flags.COMMON} <= set(options)


def test_flags_that_are_set_stay():
  name = 'xla_tpu_licm_size_inflation_ratio'
  environ = {
      'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
      'LIBTPU_INIT_ARGS': f'--other=1 --{name}=0.5'
  }
  added = xla_flags.apply(environ=environ)
  found = dict(
      x.removeprefix('--').split('=')
      for x in environ['LIBTPU_INIT_ARGS'].split())
  if not importlib.util.find_spec('libtpu'):
    assert not added and len(found) == 2
    return
  assert name not in added
  assert found == xla_flags.compiler_options('v5e') | {
      'other': '1', name: '0.5'
  }
  assert xla_flags.apply(environ=environ) == {}, 'a second time adds nothing'


def test_no_flags_without_tpus():
  environ = {'JAX_PLATFORMS': 'cpu,cuda'}
  assert xla_flags.apply(environ=environ) == {}
  assert 'LIBTPU_INIT_ARGS' not in environ


def test_flags_come_before_the_devices():
  """Nothing that main imports asks JAX for its devices."""
  subprocess.run([
      sys.executable, '-c', 'import exprl_jax.main; '
      'from exprl_jax.runs import recipes; from jax._src import xla_bridge; '
      'assert not xla_bridge.backends_are_initialized()'
  ], check=True)


# Compilations.


@pytest.fixture
def watch():
  watch = compilation.Watch(late_s=0.0)
  yield watch
  watch.close()


@jax.jit
def total(x, tree):
  return x.sum() + tree['a'].sum()


def test_a_late_compilation_names_program_and_argument(watch):
  x, a = np.ones(3, np.float32), np.ones(2, np.float32)
  total(x, {'a': a})
  counts, late = watch.step()
  assert counts['perf/compilations'] >= 1 and counts['perf/compile_s'] > 0
  assert not late
  watch.warmed_up()
  total(x, {'a': a})
  assert watch.step() == ({'perf/compilations': 0, 'perf/compile_s': 0}, [])
  total(x, {'a': np.ones(5, np.float32)})
  _, (line,) = watch.step()
  assert line.startswith('total was compiled again, in ')
  assert line.endswith("at tree['a'], now f32[5] and before f32[2]")
  total(x, {'a': np.ones(5, np.int32)})
  _, (line,) = watch.step()
  assert "at tree['a'], now i32[5] and before f32[" in line


def test_a_program_that_appears_late_is_expected_once(watch, caplog):
  watch.warmed_up()
  late = jax.jit(lambda x: x * 2)
  late(np.ones(3))
  counts, lines = watch.step()
  assert counts['perf/compilations'] == 1 and not lines
  jax.jit(lambda x: x * 3)(np.ones(3))
  _, (line,) = watch.step()
  assert line.endswith('a new function of this name')
  assert not caplog.records, "jax's own explanations are not shown"


@pytest.fixture
def other_cache():
  """Puts the cache of the tests back."""
  names = [
      'jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs'
  ]
  before = {name: jax.config.values[name] for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def test_compiled_programs_are_kept(tmp_path, other_cache):
  assert compilation.use_cache(str(tmp_path)) == str(tmp_path)
  # All compilations, also short ones.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.jit(lambda x: x @ x)(np.ones((3, 3)))
  assert list(tmp_path.iterdir())
  assert compilation.use_cache('') == ''


def test_the_cache_is_the_users_and_is_bounded(tmp_path, other_cache,
                                               monkeypatch):
  monkeypatch.setenv('EXPRL_CACHE', str(tmp_path))
  monkeypatch.setattr(compilation, '_CACHE_BYTES', 250)
  assert compilation.use_cache('') == ''
  folder = pathlib.Path(compilation.use_cache('auto'))
  assert folder.parent == tmp_path / 'xla', 'a folder for this kind of CPU'
  folder.mkdir(parents=True)
  for age, name in enumerate('abc'):
    (folder / name).write_bytes(bytes(100))
    os.utime(folder / name, (1000 - age, 1000 - age))
  compilation.use_cache('')
  compilation.use_cache('auto')
  assert {x.name for x in folder.iterdir()} == {'a', 'b'}, 'c is the oldest'


GROWING = """
import jax
import numpy as np

calls = []

@jax.jit
def measure(lengths):
  return lengths.sum()

def growing(traces):
  calls.append(1)
  measure(np.ones(len(calls), np.float32))
  value = np.float32([[len(t.text) % 7] for t in traces])
  return value, np.ones(value.shape, bool), {}
"""


@pytest.mark.slow
def test_a_run_compiles_nothing_after_its_first_step(tmp_path, capsys):
  """And shows its phases to the profiler."""
  main.main([
      '--config=configs/tiny.py', f'--workdir={tmp_path}', *TINY,
      '--config.steps=4', '--config.profile.steps=2:3'
  ])
  rows = metrics.read(tmp_path / 'metrics.jsonl')
  counts = [row['perf/compilations'] for row in rows]
  assert counts[0] > 0 and counts[1:] == [0, 0, 0]
  assert rows[0]['perf/compile_s'] > 0
  assert 'warning' not in capsys.readouterr().out
  for row in rows:
    assert row['hbm/policy_gb'] > 0
    # AdamW: two moments for each parameter.
    assert row['hbm/moments_gb'] == pytest.approx(2 * row['hbm/policy_gb'],
                                                  rel=1e-3)
    assert row['hbm/reference_gb'] == row['hbm/policy_gb']
    assert row['hbm/judge_gb'] > 0 and row['hbm/other_gb'] > 0
    assert row['perf/train_tokens_per_s'] > 0
    assert 'perf/train_mfu' not in row, 'of an unknown chip'
  (trace,) = (tmp_path / 'profile').rglob('*.xplane.pb')
  data = trace.read_bytes()
  for name in (b'rollout', b'judge', b'update', b'train'):
    assert name in data, name


@pytest.mark.slow
def test_a_run_warns_of_a_shape_that_changes(tmp_path, capsys):
  path = tmp_path / 'growing.py'
  path.write_text(GROWING)
  main.main([
      '--config=configs/tiny.py:grpo', f'--workdir={tmp_path / "w"}', *TINY,
      '--config.steps=3', f'--config.reward={path}:growing'
  ])
  lines = [
      x for x in capsys.readouterr().out.splitlines() if x.startswith('warning')
  ]
  assert len(lines) == 2
  for step, line in zip((2, 3), lines):
    assert line.startswith(f'warning: step {step}: measure was compiled again')
    assert f'at lengths, now f32[{step}] and before f32[' in line


# Profiler.


def test_the_steps_of_a_profile():
  assert list(profiler.parse('3:5', 5)) == [3, 4, 5]
  assert list(profiler.parse('2', 5)) == [2]
  assert not profiler.parse('', 5)
  for bad in ('3:6', '0:2', '4:3', '3-5', 'x', ':'):
    with pytest.raises(InputError, match='config.profile.steps'):
      profiler.parse(bad, 5)


def test_a_bad_profile_is_reported_before_work(tmp_path):
  for flags in (['--config.profile.steps=1:9', '--config.steps=3'],
                ['--config.profile.steps=1', '--config.run=evaluate']):
    with pytest.raises(InputError, match='config.profile.steps'):
      main.main(
          ['--config=configs/tiny.py', f'--workdir={tmp_path / "w"}', *flags])
  assert not (tmp_path / 'w').exists()


# Memory.


def test_live_bytes_are_by_owner_and_on_the_fullest_device():
  before = memory.live_bytes({})['other']
  mesh = jax.make_mesh((8,), ('x',))
  split = jax.device_put(
      jnp.zeros((16, 100)),
      jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x')))
  whole = jax.device_put(jnp.ones(50), jax.devices()[3])
  gone = jnp.zeros(7)
  gone.delete()
  found = memory.live_bytes({
      'policy': {'split': split, 'gone': gone}, 'copy': [split, whole],
      'none': None
  })
  assert found['policy'] == 4 * 2 * 100
  assert found['copy'] == 4 * 50, 'what is shared counts for the first'
  assert found['none'] == 0
  assert found['other'] <= before


def test_cpus_report_no_memory():
  assert memory.hbm() == {}


# Operations.


def dots(jaxpr):
  """Operations of the matrix products of a jaxpr."""
  count = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      ((contract, _), _) = eqn.params['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      count += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(
          shape[i] for i in contract)
    times = eqn.params.get('length', 1)
    for inner in jax.tree.leaves(
        eqn.params,
        is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        count += times * dots(inner)
  return count


@pytest.mark.parametrize('tied', [False, True])
def test_flops_are_those_of_the_traced_model(tied):
  """Exact but for attention: the reference computes what the mask hides."""
  cfg = dataclasses.replace(SMALL, attention='einsum', tied_embedding=tied)
  rows, length = 3, 20
  params = transformer.abstract_params(cfg)
  ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)

  def logits(params, tokens):
    hidden = transformer.forward(cfg, params, tokens, tokens, tokens)
    matrix = params['embedding'].T if tied else params['head']
    return hidden @ matrix

  def gradient(params, tokens):
    return jax.grad(lambda p: logits(p, tokens).sum())(params)

  lengths = [length] * rows
  hidden = (4 * cfg.num_layers * cfg.num_heads * cfg.head_dim * rows *
            length**2 / 2)
  forward = dots(jax.make_jaxpr(logits)(params, ids).jaxpr)
  assert forward == flops.forward_flops(cfg, lengths) + hidden
  assert (dots(jax.make_jaxpr(gradient)(
      params, ids).jaxpr) == flops.train_flops(cfg, lengths) + 3 * hidden)
  tokens = rows * length
  assert (flops.forward_flops(
      cfg, lengths) == 2 * flops.matmul_params(cfg) * tokens + hidden)
  assert (flops.train_flops(cfg, lengths,
                            frozen=True) == flops.train_flops(cfg, lengths) -
          2 * flops.matmul_params(cfg) * tokens)


def test_windows_hide_pairs_and_experts_are_the_chosen_ones():
  windowed = dataclasses.replace(SMALL, windows=(0, 8))
  per_pair = 4 * SMALL.num_heads * SMALL.head_dim
  assert (flops.forward_flops(SMALL, [20]) - flops.forward_flops(
      windowed, [20])) == per_pair * (20**2 / 2 - (8 * 20 - 8**2 / 2))
  assert flops.forward_flops(windowed, [8]) == flops.forward_flops(SMALL, [8])
  experts = dataclasses.replace(SMALL, num_experts=4, experts_per_token=2)
  more = flops.matmul_params(experts) - flops.matmul_params(SMALL)
  assert more == SMALL.num_layers * SMALL.embed_dim * (3 * SMALL.mlp_dim + 4)


def test_late_compilations_say_what_differs_and_no_more():
  model = 'Static(val=Model(' + 'a=1, ' * 100 + 'layers={}, ' + 'b=2, ' * 100
  text = (f'at input path [0], now {model.format(3)} and before '
          f'{model.format(4)}, so the metadata does not match')
  brief = compilation._brief(text)
  assert brief.startswith('at input path [0], now layers=3, b=2')
  assert ' and before layers=4, b=2' in brief and len(brief) < 200
  assert compilation._brief('x' * 999) == 'x' * 60


def test_the_same_bug_at_the_same_step_three_times_is_final(tmp_path):
  """What happens in between, another error or another step, begins anew."""

  def fail(text, error=ValueError):
    with pytest.raises(Exception) as e, bugs.counting(tmp_path):
      raise error(text)
    return failures.exit_code(e.value)

  assert [fail('a'), fail('a'), fail('a')] == [1, 1, 3]
  assert [fail('a'), fail('b'), fail('b')] == [1, 1, 1]
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n')
  assert [fail('b'), fail('b'), fail('b')] == [1, 1, 3]
  assert [fail('x', InputError)] * 3 == [2] * 3
