"""Plans: memory by owner, traffic and operations, and what to change."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import pytest

from exprl_jax import config as config_lib
from exprl_jax import main
from exprl_jax.models import flops
from exprl_jax.planning import compiled, memory, programs, search, tables
from exprl_jax.planning import plan as plan_lib
from exprl_jax.rl import learner
from exprl_jax.rollout import decode
from exprl_jax.rollout.options import Options, resolve
from exprl_jax.runs import recipes, train, warm_up
from exprl_jax.runtime import chips, compilation, hlo, jaxpr_flops
from exprl_jax.runtime import memory as device_memory
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError
from tests.conftest import SMALL
from tests.published import folder_of


def tiny(*flags):
  _, values, _ = main.parse(['--config=configs/tiny.py', *flags])
  return recipes.freeze(values)


# Traffic.


def compile_on(devices, function, *shapes):
  mesh = jax.make_mesh((devices,), ('x',), devices=jax.devices()[:devices],
                       axis_types=(jax.sharding.AxisType.Auto,))
  args = [
      jax.ShapeDtypeStruct(shape, jnp.float32,
                           sharding=NamedSharding(mesh, PartitionSpec(*spec)))
      for shape, spec in shapes
  ]
  with jax.set_mesh(mesh):
    return jax.jit(function).lower(*args).compile().as_text()


def test_a_loop_counts_as_often_as_it_runs():

  def layers(n):
    return compile_on(
        1, lambda x, w: jax.lax.scan(lambda x, w:
                                     (jnp.tanh(x @ w), None), x, w)[0],
        ((64, 256), ()), ((n, 256, 256), ()))

  few, many = (hlo.traffic(layers(n)).memory_bytes for n in (10, 20))
  # Each reads its matrix, and not the whole stack.
  per_layer = (many - few) / 10
  assert 256 * 256 * 4 <= per_layer <= 6 * 256 * 256 * 4


def test_a_loop_that_ends_by_its_data_counts_as_often_as_is_said():

  def f(x):
    return jax.lax.while_loop(lambda x: x.sum() < 1e6, lambda x: x * 1.5 + 1, x)

  text = compile_on(1, f, ((1 << 16,), ()))
  one, ten = (hlo.traffic(text, n).memory_bytes for n in (1, 10))
  size = 4 * (1 << 16)
  assert 9 * 2 * size * 0.9 <= ten - one <= 9 * 4 * size


@pytest.mark.parametrize('kind, spec, sent', [
    ('all-gather', (None, 'x'), 7 / 8),
    ('all-reduce', ('x', None), 2 * 7 / 8),
])
def test_what_crosses_the_network(kind, spec, sent):
  """Eight devices: a gather of a [1024, 64] matrix, a sum of such products."""

  def gather(x):
    return jax.lax.with_sharding_constraint(x, PartitionSpec()) * 2.0

  def total(x):
    return jax.lax.with_sharding_constraint(x.T @ jnp.ones((1024, 1024)),
                                            PartitionSpec())

  function = gather if kind == 'all-gather' else total
  text = compile_on(8, function, ((1024, 64), spec))
  traffic = hlo.traffic(text)
  size = 1024 * 64 * 4
  assert traffic.collectives == {kind: 1.0}
  assert traffic.network_bytes == pytest.approx(size * sent)


# Operations.


@pytest.mark.parametrize('remat, passes', [('none', 3), ('full', 4)])
def test_operations_are_two_for_each_parameter_and_attention(remat, passes):
  """Rows of one length; the reference for CPUs computes all pairs."""
  config = dataclasses.replace(
      tiny(), policy=dataclasses.replace(tiny().policy, remat=remat))
  meshes = mesh_lib.meshes(config, jax.devices()[:1])
  model = memory.policy_model(config)
  listed = {p.name: p for p in programs.programs(config, meshes)}

  def count(name):
    p = listed[name]
    with jax.set_mesh(meshes.train):
      return jaxpr_flops.count(p.function.trace(*p.args, **p.kwargs).jaxpr)

  rows, tokens = listed['learner/gradient'].args[2].tokens.shape
  dense = 2 * flops.matmul_params(model) * rows * tokens
  pairs = 4 * model.num_layers * model.num_heads * model.head_dim * (rows *
                                                                     tokens**2)
  head = 2 * model.embed_dim * model.vocab_size * rows * tokens
  assert count('policy/logprobs') == pytest.approx(dense + pairs, rel=0.02)
  # The head is computed again chunk by chunk, whatever `remat` is. The last
  # product of a layer is not: nothing in the backward pass reads it.
  layers = dense - head + pairs
  want = passes * layers + 4 * head
  if remat == 'full':
    want -= (2 * model.num_layers * model.mlp_dim * model.embed_dim * rows *
             tokens)
  assert count('learner/gradient') == pytest.approx(want, rel=0.02)


# Memory.


@pytest.mark.slow
def test_each_program_has_the_memory_that_the_compiler_reports():
  config = tiny('--config.reward=sparse', '--config.credit.rule=group',
                '--config.credit.first=final')
  meshes = mesh_lib.meshes(config, jax.devices()[:1])
  compiler = compiled.Compiler()
  for program in programs.programs(config, meshes):
    if program.name in ('policy/logprobs', 'policy/decode'):
      owned = compiled.owned_bytes(program)
      weight = compiler.weigh(program, owned, 8)
      report = program.compile().memory_analysis()
      assert weight.arguments == report.argument_size_in_bytes
      assert weight.temporaries == report.temp_size_in_bytes
      assert weight.peak == (report.argument_size_in_bytes +
                             report.output_size_in_bytes +
                             report.temp_size_in_bytes -
                             report.alias_size_in_bytes)
      assert 0 < owned <= weight.arguments


@pytest.mark.slow
def test_the_account_is_what_a_run_keeps_alive(tmp_path, monkeypatch):
  """Live arrays while the tiny run decodes, judges and updates: within 10 %."""
  config = tiny('--config.steps=1', '--config.compare=',
                '--config.eval.every=0', '--config.eval.limit=4',
                '--config.optim.updates=1', '--config.rollout.pages=130',
                '--config.judge.pages=258')  # or they would follow the calls
  account = memory.account(config, mesh_lib.meshes(config))
  measured = {}

  def watch(module, name, phase):
    original = getattr(module, name)

    def call(*args, **kwargs):
      key = phase
      if phase == 'engine':  # the policy's and the judge's differ in depth
        key = 'rollout' if args[0].num_layers == layers else 'judge'
      live = device_memory.live_bytes({})['other']
      measured[key] = max(measured.get(key, 0), live)
      return original(*args, **kwargs)

    monkeypatch.setattr(module, name, call)

  layers = memory.policy_model(config).num_layers
  assert memory.decoders(config)[1].num_layers != layers
  watch(decode, 'decode', 'engine')
  watch(learner, 'apply', 'optimizer')
  train.train(config, tmp_path)
  for phase, live in measured.items():
    planned = sum(account.alive(phase).values()) - account.workspaces[phase]
    assert live == pytest.approx(planned, rel=0.1), phase
  assert set(measured) == {'rollout', 'judge', 'optimizer'}


def test_pools_are_sized_by_what_will_be_alive(monkeypatch, one_device):
  """Whatever else there is, sum and margin are below the limit."""
  limit = 200_000_000
  monkeypatch.setattr(chips, 'memory_limit', lambda device: limit)
  options = Options(slots=4096, max_tokens=4096, page=16)
  free = resolve(dataclasses.replace(options, reserved=0), SMALL, one_device)
  beside = resolve(dataclasses.replace(options, reserved=100_000_000), SMALL,
                   one_device)
  page = 16 * 2 * SMALL.num_layers * SMALL.num_kv_heads * SMALL.head_dim * 4
  assert (free.pages - beside.pages) * page == pytest.approx(100e6, abs=page)
  assert free.pages * page < 0.95 * limit
  with pytest.raises(InputError, match='rollout: a row of 4096 tokens'):
    resolve(dataclasses.replace(options, reserved=limit), SMALL, one_device)


def qwen(tmp_path, *flags):
  """The 4B preset, its published config.json and a small tokenizer."""
  folder = folder_of('Qwen3-4B-Instruct-2507', tmp_path)
  _, values, _ = main.parse([
      '--config=configs/qwen3_4b.py:exprl_process_fast',
      f'--config.policy.init={folder}', f'--config.judge.init={folder}', *flags
  ])
  return recipes.freeze(values)


def test_a_run_that_does_not_fit_is_refused_with_what_does(
    tmp_path, monkeypatch):
  """Qwen3-4B on eight devices of 15 GB."""
  monkeypatch.setattr(chips, 'memory_limit', lambda device: 15 * 10**9)
  config = qwen(tmp_path)
  devices = jax.devices()[:8]
  with pytest.raises(InputError, match='it fits with --config') as error:
    search.check(config, devices)
  flags = re.findall(r'--config\.\S+', str(error.value))
  fixed = qwen(tmp_path, *flags)
  search.check(fixed, devices)
  assert search.estimated(fixed, devices).fits
  assert not search.estimated(config, devices).fits


def test_nothing_helps_on_a_device_that_is_far_too_small(tmp_path, monkeypatch):
  monkeypatch.setattr(chips, 'memory_limit', lambda device: 10**9)
  config = qwen(tmp_path)
  devices = jax.devices()[:8]
  with pytest.raises(InputError, match='use more devices'):
    search.check(config, devices)


def test_a_shared_judge_is_one_copy(tmp_path):
  config = qwen(tmp_path)
  meshes = mesh_lib.meshes(config, jax.devices()[:8])
  shared = memory.account(config, meshes).owners
  own = memory.account(qwen(tmp_path, '--config.judge.weights=int8'),
                       meshes).owners
  assert 'gradient' not in shared['judge'][1]
  assert set(own['judge'][1]) == set(memory.PHASES)
  assert own['judge'][0] < 0.65 * shared['judge'][0]


# The command.


def test_the_command_plans_and_writes(tmp_path, capsys):
  main.main([
      '--config=configs/tiny.py:sft', '--config.run=plan',
      '--config.plan.run=sft', f'--workdir={tmp_path}'
  ])
  printed = capsys.readouterr().out
  assert 'learner/gradient' in printed and 'policy pages' in printed
  plan = json.loads((tmp_path / 'plan.json').read_text())
  assert plan['fits'] and plan['memory_bytes']['rollout']['policy'] > 0
  assert plan['programs']['learner/gradient']['flops'] > 1e8
  assert (tmp_path / 'memory.png').stat().st_size > 1000


def test_a_config_written_down_is_the_same_config(tmp_path):
  config = tiny('--config.optim.lr=0.125', "--config.eval.ks=(1, 4)")
  path = tmp_path / 'planned.py'
  path.write_text(config_lib.source(config))
  assert recipes.freeze(config_lib.load(str(path))) == config


@pytest.mark.slow
def test_the_search_compiles_until_it_fits_and_writes_the_config(
    tmp_path, monkeypatch, capsys):
  """The tiny run on devices that are a tenth too small."""
  flags = ['--config=configs/tiny.py:grpo', '--config.rollout.slots=16']
  _, values, _ = main.parse(flags)
  config = recipes.freeze(values)
  peak, phase = plan_lib.make(config,
                              jax.devices()[:1],
                              compiled.Compiler()).account.peak()
  assert phase == 'gradient'
  monkeypatch.setattr(jax, 'devices', lambda: jax.local_devices()[:1])
  monkeypatch.setattr(chips, 'memory_limit', lambda device: int(0.9 * peak))
  main.main([
      *flags, '--config.run=plan', '--config.plan.search=True',
      f'--workdir={tmp_path}'
  ])
  said = capsys.readouterr().out
  assert 'fits with --config.optim.micro_rows=1' in said
  assert f'{peak / 1e9:.2f} GB in gradient' in said
  plan = json.loads((tmp_path / 'plan.json').read_text())
  assert plan['fits'] and plan['limit_bytes'] == int(0.9 * peak)
  found = recipes.freeze(main.parse([f'--config={tmp_path}/planned.py'])[1])
  assert found.optim.micro_rows == 1 and found.rollout.slots == 16


@pytest.mark.parametrize('flag, message', [
    ('--config.plan.topology=v9:2x2', 'generations are v4, v5e'),
    ('--config.plan.topology=v5e:2x2x1', 'has 2 numbers'),
    ('--config.plan.layers=7', 'at most half of'),
])
def test_what_cannot_be_planned_is_said(flag, message, tmp_path):
  with pytest.raises(InputError, match=message):
    main.main([
        '--config=configs/tiny.py', '--config.run=plan', flag,
        f'--workdir={tmp_path}'
    ])


def test_tables_line_up():
  assert tables.table(
      ['a', 'b'],
      [['long', '1'], ['c', '22']]) == ('a      b\nlong   1\nc     22')


@pytest.mark.slow
def test_a_run_finds_the_programs_that_were_compiled_before(tmp_path, caplog):
  """The warm-up fills a cache; the run then compiles no program of the list."""
  # Sizes that fit every call: else CPUs have programs of their own.
  _, values, _ = main.parse([
      '--config=configs/tiny.py:grpo', '--config.steps=1',
      '--config.eval.every=0', '--config.eval.limit=4',
      '--config.rollout.slots=16', '--config.rollout.pages=34'
  ])
  config = recipes.freeze(values)
  before = compilation.use_cache('auto')
  compilation.use_cache(str(tmp_path / 'cache'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  try:
    warm_up.warm_up(config, jax.devices())
    jax.clear_caches()
    with caplog.at_level('DEBUG', logger='jax._src.compiler'):
      train.train(config, tmp_path / 'run')
  finally:
    compilation.use_cache(before)
  found = {
      kind: set(re.findall(rf"{kind} for 'jit_(\w+)'", caplog.text))
      for kind in ('CACHE MISS', 'cache hit')
  }
  listed = {
      'gradient', 'apply_gradient', 'packed_logprobs', 'decode', 'prefill'
  }
  assert listed <= found['cache hit']
  assert not listed & found['CACHE MISS']
