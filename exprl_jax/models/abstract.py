"""Parameters as ShapeDtypeStructs with shardings, to compile without weights.
"""

import functools

import jax

from exprl_jax.models import quantization, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import Params


def sharded_params(cfg: ModelConfig, mesh: jax.sharding.Mesh,
                   frozen: bool = False, int8: bool = False) -> Params:
  """The parameters of a model on a mesh.

  Args:
    cfg: the model.
    mesh: they are sharded by their logical axes.
    frozen: matrices are in `cfg.dtype`, as samplers and judges hold them;
      otherwise all is float32.
    int8: matrices of the layers are in int8.
  """
  abstract = transformer.abstract_params(cfg)
  axes = (quantization if int8 else transformer).logical_axes(cfg)
  if frozen or int8:
    cast = quantization.quantize if int8 else transformer.cast
    abstract = jax.eval_shape(functools.partial(cast, cfg), abstract)
  shardings = mesh_lib.shardings(axes, abstract, mesh)
  return jax.tree.map(lambda x, s: x.update(sharding=s), abstract, shardings)
