"""Where a model comes from: a folder, a workdir, or a checkpoint of one.

What names a model in a config ("source"):
  FOLDER           a Hugging Face directory, asset:NAME, or on gs://
  WORKDIR          what its run has written at the end, else the newest
                   checkpoint
  WORKDIR@STEP     the checkpoint of a step
"""

import dataclasses
import functools
import json
from typing import NamedTuple

from etils import epath
import jax
from jax.sharding import NamedSharding, PartitionSpec

from exprl_jax.config import Config, resolve
from exprl_jax.models import config as model_config
from exprl_jax.models import hf, lora, transformer
from exprl_jax.runtime import checkpoints as checkpoint
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError


class Reference(NamedTuple):
  """A model that is there."""

  folder: epath.Path  # has config.json and the tokenizer
  workdir: epath.Path | None = None  # of the checkpoint; None: `folder` has it
  step: int = 0  # of the checkpoint
  under: 'Reference | None' = None  # of adapters: the model they train on


def find(source: str) -> Reference:
  """What a source names; no weights are read.

  Raises:
    InputError: no such checkpoint, or a workdir without its config.
  """
  workdir, at, step = source.rpartition('@')
  if at and step.isdigit() and not epath.Path(source).exists():
    return of_checkpoint(workdir, int(step))
  folder = resolve(source)
  if not (folder / 'config.json').is_file() or _is_run(folder):
    if checkpoint.steps(folder):  # of a run that has not ended
      return of_checkpoint(source, 0)
  return Reference(folder)


def of_checkpoint(workdir: str, step: int) -> Reference:
  """The checkpoint of a step; step 0 is the newest.

  Raises:
    InputError: there is none, or the workdir has no config.json.
  """
  path = epath.Path(workdir)
  have = checkpoint.steps(path)
  if not have:
    raise InputError(f'{workdir} has no checkpoints; wanted step {step}')
  if step and step not in have:
    raise InputError(f'{workdir}: no checkpoint of step {step}; it has '
                     f'{", ".join(map(str, have))}')
  start = _policy_of(path)
  under = find(start['init'])
  return Reference(under.folder, path, step or have[-1],
                   under if start.get('lora_rank') else None)


def load(source: str | Reference, mesh: jax.sharding.Mesh,
         dtype: str = 'float32', *, frozen: bool = False, **options):
  """Loads what a source names onto a mesh.

  Args:
    source: see above, or what `find` has made of it.
    mesh: where the parameters go, sharded by their logical axes.
    dtype: of the matrix products.
    frozen: keep the matrices in `dtype`; otherwise all is float32.
    **options: of hf.load. With `random_key` only the config is taken.

  Returns:
    (folder with the tokenizer, ModelConfig, parameters).

  Raises:
    InputError: no such model or checkpoint, or it is not as it should be.
  """
  if isinstance(source, str):
    source = find(source)
  if source.workdir is None or options.get('random_key') is not None:
    return source.folder, *hf.load(source.folder, mesh, dtype, frozen=frozen, **
                                   options)
  if options.pop('weights', ''):
    raise InputError(f'{source.workdir}@{source.step}: a checkpoint has no '
                     "int8 weights; run='export' it first")
  model = dataclasses.replace(
      model_config.read_config(source.folder), dtype=dtype,
      **{k: v for k, v in options.items() if k in ('remat', 'attention')})
  if source.under is None:
    params = checkpoint.restore_params(source.workdir, source.step,
                                       _abstract(model, mesh))[1]
  else:
    params = _merged(source, model, mesh)
  cast = functools.partial(transformer.cast, model) if frozen else lambda x: x
  return source.folder, model, _as(params, _abstract(model, mesh, cast))


def policy(config: Config, mesh: jax.sharding.Mesh):
  """The policy of a run that trains it.

  Returns:
    (ModelConfig, what is trained, what is frozen under it). With
    policy.lora_rank=0 all parameters are trained and the latter is None;
    otherwise adapters on a frozen model.
  """
  cfg = config.policy
  _, model, params = load(
      cfg.init, mesh, cfg.dtype, remat=cfg.remat, attention=cfg.attention,
      frozen=cfg.lora_rank > 0, random_std=cfg.random_std,
      random_key=jax.random.key(config.seed) if cfg.random else None)
  if not cfg.lora_rank:
    return model, params, None
  with jax.set_mesh(mesh):
    adapters = lora.init(model, params, cfg.lora_rank,
                         jax.random.key(config.seed))
  return model, adapters, params


def _as(params, wanted):
  """Arrays with the dtypes and shardings of `wanted`; themselves if they are.
  """
  same = jax.tree.map(
      lambda x, w: x.dtype == w.dtype and x.sharding.is_equivalent_to(
          w.sharding, x.ndim), params, wanted)
  if all(jax.tree.leaves(same)):
    return params
  return jax.jit(
      lambda params: jax.tree.map(lambda x, w: x.astype(w.dtype), params, wanted
                                 ),
      out_shardings=jax.tree.map(lambda x: x.sharding, wanted))(params)


def _merged(source: Reference, model, mesh: jax.sharding.Mesh):
  """A checkpoint of adapters, with the model under them as they saw it."""
  start = _policy_of(source.workdir)
  if start.get('random'):
    raise InputError(f'{source.workdir}: adapters on random weights, which are '
                     'not kept; only its model/ can be loaded')
  whole = NamedSharding(mesh, PartitionSpec())
  params = load(source.under, mesh, start['dtype'], frozen=True)[2]
  adapters = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
      jax.eval_shape(
          lambda params, key: lora.init(model, params, start['lora_rank'], key),
          params, jax.random.key(0)))
  adapters = checkpoint.restore_params(source.workdir, source.step, adapters)[1]
  with jax.set_mesh(mesh):
    return lora.merge(params, adapters,
                      start['lora_alpha'] / start['lora_rank'], 'float32')


def _abstract(model, mesh, change=lambda x: x):
  """Shapes and shardings of the parameters after a change of dtype."""
  abstract = jax.eval_shape(change, transformer.abstract_params(model))
  shardings = mesh_lib.shardings(transformer.logical_axes(model), abstract,
                                 mesh)
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract,
      shardings)


def _is_run(folder: epath.Path) -> bool:
  """Whether a config.json is that of a run, not of a model."""
  try:
    return 'model_type' not in json.loads((folder / 'config.json').read_text())
  except ValueError:
    return False


def _policy_of(workdir: epath.Path) -> dict:
  """The config's `policy` of a run: what it started from, with adapters or
  without."""
  path = workdir / 'config.json'
  try:
    policy = json.loads(path.read_text())['policy']
    policy['init']
    return policy
  except (OSError, ValueError, KeyError):
    raise InputError(f'{path}: not the config of a run; a checkpoint needs it '
                     'to know its model') from None
