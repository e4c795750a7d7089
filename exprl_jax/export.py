"""run='export': a model or a checkpoint as a Hugging Face directory."""

import json

from etils import epath
import jax

from exprl_jax import checkpoint
from exprl_jax import mesh as mesh_lib
from exprl_jax.config import Config, resolve
from exprl_jax.models import config as model_config
from exprl_jax.models import hf, transformer
from exprl_jax.types import InputError


def export(config: Config) -> None:
  """Writes config.export.out.

  policy.init is a workdir, whose checkpoint of step `export.step` (the newest
  by default) is taken, or any model directory.

  Raises:
    InputError: no such checkpoint, or `out` holds something.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  out, source = epath.Path(config.export.out), epath.Path(config.policy.init)
  if out.exists() and any(out.iterdir()):
    raise InputError(f'config.export.out={out} is not empty; name a fresh '
                     'folder')
  if checkpoint.steps(source):
    base = resolve(_policy_of(source))
    cfg = model_config.read_config(base)
    abstract = transformer.abstract_params(cfg)
    shardings = mesh_lib.shardings(transformer.logical_axes(cfg), abstract,
                                   mesh)
    step, params = checkpoint.restore_params(
        source, config.export.step, jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            abstract, shardings))
    what = f'{source}, step {step}'
  else:
    if config.export.step:
      raise InputError(f'config.export.step={config.export.step}, but '
                       f'{source} has no checkpoints')
    base = resolve(str(source))
    cfg, params = hf.load(base, mesh)
    what = str(base)
  hf.save(out, cfg, params, base, config.export.dtype)
  print(f'{what} -> {out}, {config.export.dtype}')


def _policy_of(workdir: epath.Path) -> str:
  """The model that a run started from: its shape and its tokenizer."""
  run = json.loads((workdir / 'config.json').read_text())
  return run['policy']['init']
