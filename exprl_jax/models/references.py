"""Where a model comes from: a folder, a workdir, or a checkpoint of one.

A config names a model by its source:
  FOLDER           a Hugging Face directory, asset:NAME, or on gs://
  WORKDIR          the model that its run wrote at its end, else the newest
                   checkpoint
  WORKDIR@STEP     the checkpoint of a step
"""

from collections.abc import Callable
import dataclasses
import functools
import json
from typing import Any, NamedTuple

from etils import epath
import jax
from jax.sharding import NamedSharding, PartitionSpec

from exprl_jax.config import Config, longest, resolve
from exprl_jax.models import config as model_config
from exprl_jax.models import hf, lora, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.runtime import checkpoints as checkpoint
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError, Params


class Reference(NamedTuple):
  """A model that exists.

  Attributes:
    folder: has config.json and the tokenizer.
    workdir: of the checkpoint that has the parameters; None: `folder` does.
    step: of the checkpoint.
    under: the frozen model, if the checkpoint has adapters.
  """

  folder: epath.Path
  workdir: epath.Path | None = None
  step: int = 0
  under: 'Reference | None' = None


def find(source: str) -> Reference:
  """Finds the model that a source names; reads no weights.

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
  """Finds the checkpoint of a step; step 0 is the newest.

  Raises:
    InputError: no such checkpoint, or the workdir has no config.json.
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
         dtype: str = 'float32', *, frozen: bool = False,
         **options: Any) -> tuple[epath.Path, ModelConfig, Params]:
  """Loads the model of a source onto a mesh.

  Args:
    source: see above, or the result of `find`.
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


def policy(
    config: Config,
    mesh: jax.sharding.Mesh) -> tuple[ModelConfig, Params, Params | None]:
  """Loads the policy of a run that trains it.

  Returns:
    (ModelConfig, trained, frozen). With policy.lora_rank=0 the parameters are
    trained and None is frozen, else adapters on frozen parameters.
  """
  cfg, source = config.policy, find(config.policy.init)
  # Before weights are read: sequences may be too long for the model.
  fixed = model_config.for_length(model_config.read_config(source.folder),
                                  longest(config))
  _, model, params = load(
      source, mesh, cfg.dtype, remat=cfg.remat, attention=cfg.attention,
      frozen=cfg.lora_rank > 0, random_std=cfg.random_std,
      random_key=jax.random.key(config.seed) if cfg.random else None)
  model = dataclasses.replace(model, max_tokens=fixed.max_tokens)
  if not cfg.lora_rank:
    return model, params, None
  with jax.set_mesh(mesh):
    adapters = lora.init(model, params, cfg.lora_rank,
                         jax.random.key(config.seed))
  return model, adapters, params


def _as(params: Params, wanted: Params) -> Params:
  """Converts to the dtypes and shardings of `wanted`, where they differ."""
  same = jax.tree.map(
      lambda x, w: x.dtype == w.dtype and x.sharding.is_equivalent_to(
          w.sharding, x.ndim), params, wanted)
  if all(jax.tree.leaves(same)):
    return params
  return jax.jit(
      lambda params: jax.tree.map(lambda x, w: x.astype(w.dtype), params, wanted
                                 ),
      out_shardings=jax.tree.map(lambda x: x.sharding, wanted))(params)


def _merged(source: Reference, model: ModelConfig,
            mesh: jax.sharding.Mesh) -> Params:
  """Merges a checkpoint of adapters into the model they were trained on."""
  assert source.workdir is not None and source.under is not None
  start = _policy_of(source.workdir)
  if start.get('random'):
    raise InputError(f'{source.workdir}: adapters on random weights, which are '
                     'not kept; only its model/ can be loaded')
  replicated = NamedSharding(mesh, PartitionSpec())
  params = load(source.under, mesh, start['dtype'], frozen=True)[2]
  adapters = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
      jax.eval_shape(
          lambda params, key: lora.init(model, params, start['lora_rank'], key),
          params, jax.random.key(0)))
  adapters = checkpoint.restore_params(source.workdir, source.step, adapters)[1]
  with jax.set_mesh(mesh):
    return lora.merge(params, adapters,
                      start['lora_alpha'] / start['lora_rank'], 'float32')


def _abstract(model: ModelConfig, mesh: jax.sharding.Mesh,
              cast: Callable[[Params], Params] = lambda x: x) -> Params:
  """Returns shapes and shardings of the parameters after a change of dtype."""
  abstract = jax.eval_shape(cast, transformer.abstract_params(model))
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
  """Reads section `policy` of a run's config: the model it started from."""
  path = workdir / 'config.json'
  try:
    policy = json.loads(path.read_text())['policy']
    policy['init']
    return policy
  except (OSError, ValueError, KeyError):
    raise InputError(f'{path}: not the config of a run; a checkpoint needs it '
                     'to know its model') from None
