"""One list of all programs that a training run compiles."""

from exprl_jax.config import Config
from exprl_jax.models import references
from exprl_jax.models.abstract import sharded_params
from exprl_jax.planning import memory
from exprl_jax.rl import programs as learner_programs
from exprl_jax.rollout import programs as engine_programs
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime.programs import Program


def programs(config: Config, meshes: mesh_lib.Meshes | None = None,
             found: memory.Models | None = None) -> list[Program]:
  """Lists the programs of learner, policy and judge; no weights are read.

  Args:
    config: of a training run; its models' config.json are read.
    meshes: by default the config's, on the devices there are.
    found: the models; by default those of the config.
  """
  meshes = meshes or mesh_lib.meshes(config)
  mesh, sampling, judging = meshes
  found = found or memory.models(config, meshes)
  reference = memory.keeps_reference(config,
                                     references.find(config.policy.init))
  frozen = sharded_params(found.policy, mesh, frozen=True)
  # 1. The learner, beside what else is alive while it works.
  judge = ()
  if found.judge and found.judging and not found.shared:
    judge = sharded_params(found.judge, judging, frozen=True,
                           int8=found.judging.weights == 'int8')
  others = [
      sharded_params(found.policy, mesh, frozen=True)
      for _ in memory.other_frozen(config)
  ]
  out = learner_programs.programs(config, found.policy, mesh, reference,
                                  (judge, others))
  # 2. The policy's engine, and the copy it samples with.
  adapters = None
  held = sharded_params(found.policy, mesh)
  if config.policy.lora_rank:
    adapters = learner_programs.state(config, found.policy, mesh).params
    held = frozen
  if not meshes.split:  # else the cast parameters are sent
    out.append(
        engine_programs.sampling_copy(found.policy, held, sampling, 'policy'))
  out += engine_programs.programs(found.policy, sampling, found.rollout,
                                  'policy', adapters)
  # 3. The judge's.
  if found.judge and found.judging:
    if found.shared:
      out.append(
          engine_programs.sampling_copy(found.judge, frozen, judging, 'judge'))
    out += engine_programs.programs(found.judge, judging, found.judging,
                                    'judge')
  return out
