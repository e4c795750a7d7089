"""Where a model comes from: a folder, the Hub, or a workdir.

A config names a model by its source:
  FOLDER           a Hugging Face directory, asset:NAME, or on gs://; or LoRA
                   adapters of PEFT, which come with their base model
  ORG/NAME         the same on the Hugging Face Hub, if there is no such folder;
                   ORG/NAME@REVISION for a branch, tag or commit
  WORKDIR          the model that its run wrote at its end, else the newest
                   checkpoint
  WORKDIR@STEP     the checkpoint of a step
"""

from collections.abc import Callable, Iterator
import contextlib
import contextvars
import dataclasses
import functools
from typing import Any, NamedTuple

from etils import epath
import jax

from exprl_jax.config import Config, longest, resolve
from exprl_jax.models import config as model_config
from exprl_jax.models import (
    download,
    hf,
    lora,
    peft,
    safetensors,
    stored,
    transformer,
)
from exprl_jax.models.config import ModelConfig
from exprl_jax.runtime import checkpoints as checkpoint
from exprl_jax.runtime import failures, hub, inputs
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError, Params

_DOWNLOADS_WEIGHTS = contextvars.ContextVar('downloads_weights', default=True)


class Reference(NamedTuple):
  """A model that exists.

  Attributes:
    folder: has config.json and the tokenizer.
    workdir: of the checkpoint that has the parameters; None: `folder` does.
    step: of the checkpoint.
    under: the model that adapters belong to: those of the checkpoint, if
      it has any, or of `adapters`.
    adapters: a folder of PEFT's.
  """

  folder: epath.Path
  workdir: epath.Path | None = None
  step: int = 0
  under: 'Reference | None' = None
  adapters: epath.Path | None = None

  @property
  def is_folder(self) -> bool:
    """Whether `folder` has the weights as they are."""
    return self.workdir is None and self.adapters is None

  def __str__(self) -> str:
    return (f'{self.workdir}@{self.step}'
            if self.workdir else str(self.adapters or self.folder))


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
  """Within it, `find` downloads all of a model of the Hub but its weights."""
  token = _DOWNLOADS_WEIGHTS.set(False)
  try:
    yield
  finally:
    _DOWNLOADS_WEIGHTS.reset(token)


def find(source: str) -> Reference:
  """Finds the model that a source names; reads no weights.

  A model of the Hub is downloaded, unless it is in the cache.

  Raises:
    InputError: no such folder, model or checkpoint, or a workdir without its
      config; or storage lets us not in.
  """
  with failures.naming(source):
    return _find(source)


def _find(source: str) -> Reference:
  workdir, at, step = source.rpartition('@')
  folder, id_ = resolve(source), hub.parse(source)
  if at and step.isdigit() and not folder.exists():
    if id_ is None or epath.Path(workdir).exists():
      return of_checkpoint(workdir, int(step))
  if id_ and not folder.exists():
    folder = download.model(source, id_, _DOWNLOADS_WEIGHTS.get())
  if peft.is_adapters(folder):
    return _of_adapters(folder)
  if not (folder / 'config.json').is_file() or _is_run(folder):
    if checkpoint.steps(folder):  # of a run that has not ended
      return of_checkpoint(source, 0)
  safetensors.refuse_formats(folder)
  return Reference(folder)


def find_to_sample(source: str) -> Reference:
  """As `find`, but of a run that trained adapters the newest checkpoint.

  It keeps them beside their matrices; rounded to bfloat16, the merged model of
  the same step would lose a small change.

  Raises:
    InputError: as `find`.
  """
  workdir = epath.Path(source)
  if (workdir / 'config.json').is_file() and _is_run(workdir):
    start = _policy_of(workdir)
    if start.get('lora_rank') and not start.get('random') and checkpoint.steps(
        source):
      return of_checkpoint(source, 0)
  return find(source)


def folder_of(source: str) -> epath.Path:
  """Finds a model that has to be a folder (or a model of the Hub), as judges.

  Raises:
    InputError: as `find`, or the source names a checkpoint or adapters.
  """
  reference = find(source)
  if not reference.is_folder:
    raise InputError(f'{source}: names {reference}, whose weights are to be '
                     "merged first; run='export' it, and name the new folder")
  return reference.folder


def check(reference: Reference) -> None:
  """Checks all that `load` can object to in a model's files, without reading
  weights: each tensor that the model needs is there, in its shape and in a
  dtype that is implemented. Checkpoints are taken as they are.

  Raises:
    InputError: names the file or tensor, and the remedy.
  """
  if reference.under:
    check(reference.under)
  if reference.workdir:
    return
  model = model_config.read_config(reference.folder)
  if reference.adapters:
    peft.check(reference.adapters, model)
  else:
    stored.open_model(reference.folder, model,
                      transformer.abstract_params(model))


def _of_adapters(folder: epath.Path) -> Reference:
  """Finds the model that a folder of PEFT's belongs to."""
  base = peft.base(folder)
  try:
    under = find(base)
    model_config.read_config(under.folder)
  except InputError as e:
    raise InputError(f'{folder / "adapter_config.json"}: '
                     f'base_model_name_or_path={base!r}: {e}') from None
  return Reference(under.folder, under=under, adapters=folder)


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
         dtype: str = 'float32', *, frozen: bool = False, merged: bool = False,
         **options: Any) -> tuple[epath.Path, ModelConfig, Params]:
  """Loads the model of a source onto a mesh.

  Args:
    source: see above, or the result of `find`.
    mesh: where the parameters go, sharded by their logical axes.
    dtype: of the matrix products.
    frozen: keep the matrices in `dtype`; otherwise all is float32.
    merged: add adapters to their matrices, in float32, before these are
      rounded. Otherwise only parameters that are not frozen are merged; frozen
      ones keep the adapters beside them (lora.attach), which loses nothing.
    **options: of hf.load. With `random_key` only the config is taken.

  Returns:
    (folder with the tokenizer, ModelConfig, parameters).

  Raises:
    InputError: no such model or checkpoint, or it is not as it should be.
  """
  if isinstance(source, str):
    source = find(source)
  if source.is_folder or options.get('random_key') is not None:
    return source.folder, *hf.load(source.folder, mesh, dtype, frozen=frozen, **
                                   options)
  if options.pop('weights', ''):
    raise InputError(f'{source}: no int8 weights of a checkpoint, or of '
                     "adapters; run='export' it first")
  model = dataclasses.replace(
      model_config.read_config(source.folder), dtype=dtype,
      **{k: v for k, v in options.items() if k in ('remat', 'attention')})
  cast = functools.partial(transformer.cast, model) if frozen else lambda x: x
  wanted = _abstract(model, mesh, cast)
  if not source.under:
    params = checkpoint.restore_params(source.workdir, source.step,
                                       _abstract(model, mesh))[1]
    return source.folder, model, _as(params, wanted)
  apart = frozen and not merged
  adapters, scale = load_adapters(source, model, mesh)
  params = _under_adapters(source, model, mesh, apart)
  if not apart:
    with jax.set_mesh(mesh):
      params = lora.merge(params, adapters, scale)
  params = _as(params, wanted)
  return source.folder, model, (lora.attach(params, adapters, scale)
                                if apart else params)


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
      frozen=cfg.lora_rank > 0, merged=True, random_std=cfg.random_std,
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


def _under_adapters(source: Reference, model: ModelConfig,
                    mesh: jax.sharding.Mesh, frozen: bool) -> Params:
  """Loads the model under adapters.

  Args:
    source: has adapters.
    model: the decoder.
    mesh: where it goes.
    frozen: keep its matrices in `model.dtype`. Under adapters of a checkpoint
      it is always as it was when they were trained.
  """
  assert source.under is not None
  dtype = model.dtype
  if source.workdir:
    dtype, frozen = _policy_of(source.workdir)['dtype'], True
  return load(source.under, mesh, dtype, frozen=frozen, merged=True)[2]


def load_adapters(source: Reference, model: ModelConfig,
                  mesh: jax.sharding.Mesh) -> tuple[Params, float]:
  """Loads only the adapters of a source that has any, and their scale.

  Args:
    source: with `under`.
    model: the decoder.
    mesh: where they go, split as their matrices are.

  Raises:
    InputError: as `load`.
  """
  params = _abstract(model, mesh)
  if source.adapters:
    found = peft.load(source.adapters, model)
    return jax.device_put(found, lora.shardings(params, found)), 1.0
  assert source.workdir is not None
  start = _policy_of(source.workdir)
  if start.get('random'):
    raise InputError(f'{source.workdir}: adapters on random weights, which are '
                     'not kept; only its model/ can be loaded')
  shapes = jax.eval_shape(
      lambda params, key: lora.init(model, params, start['lora_rank'], key),
      params, jax.random.key(0))
  wanted = jax.tree.map(lambda x, s: x.update(sharding=s), shapes,
                        lora.shardings(params, shapes))
  found = checkpoint.restore_params(source.workdir, source.step, wanted)[1]
  return found, start['lora_alpha'] / start['lora_rank']


def base_of_adapters(source: Reference) -> str:
  """Names the model under adapters: a folder, or a model of the Hub.

  Raises:
    InputError: the source has no adapters, or those of another adapter or
      checkpoint.
  """
  if source.under is None:
    raise InputError(f'{source}: has no adapters')
  if not source.under.is_folder:
    raise InputError(
        f'{source}: its adapters belong to {source.under}, which '
        "is not a folder; run='export' that first, and this merged")
  name = (peft.base(source.adapters)
          if source.adapters else _policy_of(source.workdir)['init'])
  on_hub = hub.parse(name) and not resolve(name).exists()
  return name if on_hub else str(source.under.folder)


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
    return 'model_type' not in inputs.read_object(folder / 'config.json')
  except ValueError:
    return False


def _policy_of(workdir: epath.Path | None) -> dict:
  """Reads section `policy` of a run's config: the model it started from."""
  assert workdir is not None
  path = workdir / 'config.json'
  try:
    policy = inputs.read_object(path)['policy']
    policy['init']
    return policy
  except (OSError, ValueError, KeyError, TypeError):
    raise InputError(f'{path}: not the config of a run; a checkpoint needs it '
                     'to know its model') from None
