"""The list of programs: a run compiles what is listed, and no more."""

import jax
import jax.numpy as jnp
import pytest

from exprl_jax import main
from exprl_jax.planning import programs
from exprl_jax.rl import learner, optimizer
from exprl_jax.rollout import decode
from exprl_jax.runs import recipes
from exprl_jax.runtime import mesh as mesh_lib


def tiny(*flags):
  _, values, _ = main.parse(['--config=configs/tiny.py', *flags])
  return recipes.freeze(values)


def test_every_program_of_the_main_job_is_listed():
  names = [p.name for p in programs.programs(tiny())]
  assert len(set(names)) == len(names)
  for name in ('learner/gradient', 'learner/add_gradient',
               'learner/apply_gradient', 'policy/logprobs', 'policy/decode',
               'policy/empty', 'policy/copy', 'judge/decode'):
    assert name in names
  assert any(name.startswith('judge/prefill_') for name in names)
  sparse = [
      p.name for p in programs.programs(
          tiny('--config.reward=sparse', '--config.credit.rule=group',
               '--config.credit.first=final'))
  ]
  assert not any(name.startswith('judge/') for name in sparse)


@pytest.mark.parametrize(
    'flags',
    [[],
     pytest.param(['--config.policy.lora_rank=2'], marks=pytest.mark.slow)],
    ids=str)
def test_listed_programs_compile(flags):
  """On two devices, with adapters, too."""
  config = tiny('--config.mesh.data=1', '--config.mesh.fsdp=2', *flags)
  meshes = mesh_lib.meshes(config, jax.devices()[:2])
  listed = {p.name: p for p in programs.programs(config, meshes)}
  for name in ('learner/gradient', 'learner/apply_gradient', 'policy/logprobs'):
    assert listed[name].compile().memory_analysis() is not None


def test_what_is_listed_is_what_runs(policy, one_device):
  """The listed update finds its compiled program: no new one for real
  arguments."""
  model, params, _ = policy
  config = tiny()
  listed = {
      p.name: p for p in programs.programs(
          config, mesh_lib.meshes(config,
                                  jax.devices()[:1]))
  }
  apply = listed['learner/apply_gradient']
  state = optimizer.init_state(jax.tree.map(jnp.copy, params), config.optim,
                               config.steps * config.optim.updates)
  want = [(x.shape, x.dtype) for x in jax.tree.leaves(apply.args[0])]
  assert [(x.shape, x.dtype) for x in jax.tree.leaves(state)] == want
  compiled = apply.compile()
  out, values = compiled(state, params)
  assert int(out.step) == 1 and float(values['optim/grad_norm']) > 0
  assert {p.function for p in listed.values()
         } >= {learner.gradient, learner.apply, decode.decode, decode.prefill}
