"""run='export': a model or a checkpoint as a Hugging Face directory."""

from etils import epath
import jax

from exprl_jax.config import Config
from exprl_jax.models import config as model_config
from exprl_jax.models import hf, peft
from exprl_jax.models import references as source_lib
from exprl_jax.runtime import checkpoints as checkpoint
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError


def export(config: Config) -> None:
  """Writes the model of policy.init to config.export.out.

  policy.init names a workdir, WORKDIR@STEP or a model directory. A workdir
  exports its checkpoint of step `export.step`, the newest by default. With
  export.format='peft' only adapters are written, as PEFT does.

  Raises:
    InputError: the checkpoint does not exist, `out` is not empty, or there are
      no adapters to export as such.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  out = epath.Path(config.export.out)
  if out.exists() and any(out.iterdir()):
    raise InputError(f'config.export.out={out} is not empty; name a fresh '
                     'folder')
  source = _source(config.policy.init, config.export.step)
  if config.export.format == 'peft':
    dtype = _adapters(source, out, mesh)
  else:
    dtype = config.export.dtype
    if dtype == 'auto':
      dtype = 'float32' if source.under else 'bfloat16'
    base, cfg, params = source_lib.load(source, mesh)
    hf.save(out, cfg, params, base, dtype)
  what = (f'{source.workdir}, step {source.step}'
          if source.workdir else str(source))
  print(f'{what} -> {out}, {dtype}')


def _adapters(source: source_lib.Reference, out: epath.Path,
              mesh: jax.sharding.Mesh) -> str:
  """Writes the adapters as PEFT does; returns what they are."""
  base = source_lib.base_of_adapters(source)
  model = model_config.read_config(source.folder)
  adapters, scale = source_lib.load_adapters(source, model, mesh)
  peft.save(out, model, adapters, scale, base)
  return f'adapters of {base}, float32'


def _source(init: str, step: int) -> source_lib.Reference:
  """Finds the source; in a workdir, a checkpoint before the final model.

  A run may have continued after it wrote its final model.
  """
  if checkpoint.steps(init):
    return source_lib.of_checkpoint(init, step)
  source = source_lib.find(init)
  if step and step != source.step:
    raise InputError(f'config.export.step={step}, but {init} ' + (
        'names another' if source.workdir else 'has no checkpoints'))
  return source
