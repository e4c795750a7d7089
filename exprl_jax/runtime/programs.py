"""Compiled programs, listed with abstract arguments.

Learner and engine list the programs that a config runs on a mesh in
rl/programs.py and rollout/programs.py; runs/programs.py has all of them.
Warm-up, planning and ahead-of-time compilation for absent devices read this
list.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from exprl_jax.runtime import mesh as mesh_lib


class Program(NamedTuple):
  """A jitted function and the arguments it is compiled for.

  Attributes:
    name: 'learner/gradient' and so on.
    function: the jitted function.
    args: static values, and ShapeDtypeStructs with shardings.
    kwargs: likewise.
    mesh: in whose context it is traced.
  """

  name: str
  function: Any
  args: tuple[Any, ...]
  kwargs: Mapping[str, Any]
  mesh: Mesh

  def lower(self) -> jax.stages.Lowered:
    """Traces the program; nothing is computed."""
    with jax.set_mesh(self.mesh):
      return self.function.lower(*self.args, **self.kwargs)

  def compile(self,
              options: Mapping[str, str] | None = None) -> jax.stages.Compiled:
    """Compiles the program for the devices of its mesh.

    Args:
      options: of XLA, such as flags for TPUs.
    """
    return self.lower().compile(
        compiler_options=dict(options) if options else None)

  def results(self) -> Any:
    """The results as ShapeDtypeStructs, with the shardings of the program.

    Only for programs that fix them.
    """
    out = self.lower().out_info
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        out)


def abstract(mesh: Mesh, shape: tuple[int, ...], dtype: Any, *axes:
             str | None) -> Any:
  """A ShapeDtypeStruct in place of an array; without axes it is replicated."""
  spec = mesh_lib.spec(axes or (None,) * len(shape), shape, mesh)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
