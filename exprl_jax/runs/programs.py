"""One list of all programs that a training run compiles."""

import dataclasses

import jax

from exprl_jax.config import Config, longest
from exprl_jax.judge import factory
from exprl_jax.models import config as model_config
from exprl_jax.models import references
from exprl_jax.rl import programs as learner_programs
from exprl_jax.rollout import programs as engine_programs
from exprl_jax.rollout import sampler
from exprl_jax.runs import recipes
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime.programs import Program


def programs(config: Config,
             mesh: jax.sharding.Mesh | None = None) -> list[Program]:
  """Lists the programs of learner, policy and judge; no weights are read.

  Args:
    config: of a training run; its models' config.json are read.
    mesh: to train on; by default the config's, on the devices there are.
  """
  mesh = mesh or mesh_lib.make_mesh(config.mesh)
  sampling = mesh_lib.rollout_mesh(mesh, config.mesh.rollout_tensor)
  folder = references.find(config.policy.init).folder
  cfg = config.policy
  model = dataclasses.replace(model_config.read_config(folder), dtype=cfg.dtype,
                              remat=cfg.remat, attention=cfg.attention)
  model = model_config.for_length(model, longest(config))
  out = learner_programs.programs(config, model, mesh)
  out += engine_programs.programs(model, sampling,
                                  sampler.engine_options(config, model),
                                  'policy')
  if recipes.uses_judge(config):
    judge_model, options = factory.engine_options(config)
    out += engine_programs.programs(judge_model, sampling, options, 'judge')
  return out
