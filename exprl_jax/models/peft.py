"""LoRA adapters of PEFT: adapter_config.json and adapter_model.safetensors.

The matrix of a module becomes W + scale * B A, with A [r, in], B [out, r] and
scale = alpha / r, or alpha / sqrt(r) with use_rslora (arXiv 2312.03732).
"""

from collections.abc import Callable, Mapping
import json
import math
import re
from typing import Any

from etils import epath
import jax
import numpy as np

from exprl_jax.models import lora, safetensors, stored, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.runtime import hub, inputs
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError, Params

_WEIGHTS = 'adapter_model.safetensors'
# Keys of adapter_config.json that say nothing about what the adapters compute,
# or only what the names of the tensors say again.
_IRRELEVANT = frozenset({
    'auto_mapping', 'ensure_weight_tying', 'eva_config', 'exclude_modules',
    'inference_mode', 'layers_pattern', 'layers_to_transform', 'loftq_config',
    'lora_dropout', 'megatron_core', 'peft_version', 'qalora_group_size',
    'runtime_config', 'target_modules', 'task_type'
})
_READ = frozenset({
    'alpha_pattern', 'base_model_name_or_path', 'bias', 'init_lora_weights',
    'lora_alpha', 'peft_type', 'r', 'rank_pattern', 'revision', 'use_rslora'
})
# Others change the base model when they draw the adapters.
_INITS = (True, False, 'gaussian', 'eva', 'orthogonal')


def is_adapters(folder: epath.Path) -> bool:
  """Whether a folder has adapters, to be added to a model elsewhere."""
  return (folder / 'adapter_config.json').is_file()


def base(folder: epath.Path) -> str:
  """Returns the source of the model that adapters belong to.

  Raises:
    InputError: they are of a kind that is not implemented.
  """
  raw = _read_config(folder)
  name, revision = raw['base_model_name_or_path'], raw.get('revision')
  if revision and not epath.Path(name).exists():
    return f'{name}@{revision}'
  return name


def check(folder: epath.Path, cfg: ModelConfig) -> None:
  """Checks adapters against the base model's config; reads no weights.

  Raises:
    InputError: they are of a kind that is not implemented, or a tensor is not
      as it should be; names it.
  """
  _read_config(folder)
  _open(folder, cfg)


def load(folder: epath.Path, cfg: ModelConfig) -> Params:
  """Reads adapters as `lora.merge` takes them, with scale 1.

  Args:
    folder: has adapter_config.json and adapter_model.safetensors.
    cfg: of the base model.

  Returns:
    {'layers': {'q': {'a': f32[L, in, r], 'b': f32[L, r, out]}, ...}}, with
    r the largest rank of any layer; the scale is in b, and what has no adapter
    is 0.

  Raises:
    InputError: as `check`.
  """
  config, pairs = _read_config(folder), _open(folder, cfg)
  out: dict[str, dict[str, np.ndarray]] = {}
  for key in sorted({part.key for part in pairs}):
    mine = {p.layer: pair for p, pair in pairs.items() if p.key == key}
    rank = max(a.shape[0] for a, _ in mine.values())
    a_shape, b_shape = next((a.shape, b.shape) for a, b in mine.values())
    a = np.zeros((cfg.num_layers, a_shape[1], rank), np.float32)
    b = np.zeros((cfg.num_layers, rank, b_shape[0]), np.float32)
    for layer, (stored_a, stored_b) in mine.items():
      r = stored_a.shape[0]
      scale = _scale(config, _module(stored_a.name), r)
      a[layer, :, :r] = stored_a.rows(0, r).astype(np.float32).T
      b[layer, :r] = scale * stored_b.rows(0, stored_b.shape[0]).astype(
          np.float32).T
    out[key] = {'a': a, 'b': b}
  return {'layers': out}


def save(folder: epath.Path, cfg: ModelConfig, adapters: Params, scale: float,
         source: str) -> None:
  """Writes adapters as PEFT does; all processes call it, process 0 writes.

  Args:
    folder: on disk or gs://; created.
    cfg: of the base model.
    adapters: as `lora.init` makes them, replicated or not; stored in float32.
    scale: of A B.
    source: the base model, a folder or ORG/NAME@REVISION of the Hub.
  """
  names = {
      p: 'base_model.model.' + p.names[0].removesuffix('.weight')
      for p in stored.stored_parts(cfg, transformer.abstract_params(cfg))
      if p.key in adapters['layers']
  }
  host = jax.tree.map(mesh_lib.fetch, adapters['layers'])
  tensors: dict[str, np.ndarray] = {}
  for part, name in names.items():
    a, b = (host[part.key][k][part.layer].T for k in 'ab')
    tensors |= {f'{name}.lora_A.weight': a, f'{name}.lora_B.weight': b}
  if jax.process_index():
    return
  ranks = {
      name.rpartition('.')[2]: host[part.key]['a'].shape[-1]
      for part, name in names.items()
  }
  folder.mkdir(parents=True, exist_ok=True)
  safetensors.write_file(folder / _WEIGHTS,
                         {name: x.shape for name, x in tensors.items()},
                         np.dtype(np.float32), iter(tensors.items()))
  (folder / 'adapter_config.json'
  ).write_text(json.dumps(_config(ranks, scale, source), indent=2) + '\n')


def _config(ranks: Mapping[str, int], scale: float,
            source: str) -> dict[str, Any]:
  """Makes adapter_config.json, of modules of these ranks."""
  most, id_ = max(ranks.values()), hub.parse(source)
  others = {name: rank for name, rank in ranks.items() if rank != most}
  return {
      'peft_type': 'LORA', 'task_type': 'CAUSAL_LM',
      'base_model_name_or_path': source.partition('@')[0] if id_ else source,
      'revision': (source.partition('@')[2] or None) if id_ else None,
      'r': most, 'lora_alpha': _plain(scale * most),
      'target_modules': sorted(ranks), 'rank_pattern': others,
      'alpha_pattern': {k: _plain(scale * r) for k, r in others.items()},
      'use_rslora': False, 'bias': 'none', 'lora_dropout': 0.0,
      'fan_in_fan_out': False, 'init_lora_weights': True, 'inference_mode': True
  }


def _plain(x: float) -> float | int:
  """An integer where it is one, as PEFT writes it."""
  return int(x) if x == int(x) else x


def _read_config(folder: epath.Path) -> dict[str, Any]:
  """Reads adapter_config.json; a key that is not implemented is an error."""
  path = folder / 'adapter_config.json'
  raw = inputs.read_object(path)
  if what := _not_implemented(raw):
    raise InputError(f'{path}: {what} is not implemented; {_remedy(folder)}')
  for key in ('base_model_name_or_path', 'lora_alpha'):
    if not raw.get(key):
      raise InputError(f'{path}: key {key!r} is missing; add it')
  if wrong := [
      k for k, is_good in _FORMS.items()
      if k in raw and not (raw[k] is None or is_good(raw[k]))
  ]:
    raise InputError(f'{path}: {wrong[0]}={raw[wrong[0]]!r} is not as PEFT '
                     'writes it; copy the file again')
  return raw


def _is_alpha(value: Any) -> bool:
  return type(value) in (int, float) and 0 < value < math.inf


def _are_patterns(value: Any) -> bool:
  """Whether they are regular expressions, each with a number."""
  try:
    return all(re.compile(k) and _is_alpha(v) for k, v in value.items())
  except (AttributeError, re.error, RecursionError, OverflowError):
    return False


_FORMS: Mapping[str, Callable[[Any], bool]] = {
    'base_model_name_or_path': lambda x: isinstance(x, str),
    'revision': lambda x: isinstance(x, str), 'lora_alpha': _is_alpha,
    'alpha_pattern': _are_patterns, 'use_rslora': lambda x: type(x) is bool
}


def _remedy(folder: epath.Path) -> str:
  return ('merge with PEFT: AutoPeftModelForCausalLM.from_pretrained('
          f"'{folder}').merge_and_unload().save_pretrained(OUT)")


def _not_implemented(raw: Mapping[str, Any]) -> str:
  """Returns the first key of adapter_config.json that is not implemented."""
  if raw.get('peft_type') != 'LORA':
    return f'peft_type={raw.get("peft_type")!r}'
  if raw.get('bias', 'none') != 'none':
    return f'bias={raw["bias"]!r}'
  init = raw.get('init_lora_weights', True)
  if type(init) not in (bool, str) or init not in _INITS:
    return f'init_lora_weights={init!r}'
  for key in sorted(set(raw) - _IRRELEVANT - _READ):
    if raw[key]:  # null, false and {} are off
      return f'{key}={raw[key]!r}'
  return ''


# A [r, in] and B [out, r] of a part of the model.
_Pairs = dict[stored.Part, tuple[safetensors.Tensor, safetensors.Tensor]]


def _open(folder: epath.Path, cfg: ModelConfig) -> _Pairs:
  """Finds the tensors of all adapters, and checks names and shapes."""
  if not (folder / _WEIGHTS).exists():
    raise InputError(f'{folder}: no {_WEIGHTS}; PEFT writes it with '
                     'save_pretrained(safe_serialization=True)')
  tensors = safetensors.open_file(folder / _WEIGHTS)
  pairs: _Pairs = {}
  for part in stored.stored_parts(cfg, transformer.abstract_params(cfg)):
    if part.key not in lora.INPUTS or part.has_experts:
      continue
    module = 'base_model.model.' + part.names[0].removesuffix('.weight')
    a = tensors.pop(f'{module}.lora_A.weight', None)
    b = tensors.pop(f'{module}.lora_B.weight', None)
    if a is None and b is None:
      continue
    if a is None or b is None:
      raise InputError(f'{folder / _WEIGHTS}: {module} has one of lora_A and '
                       'lora_B; copy the file again')
    outputs, width = part.stored_shape
    if (a.shape[1:] != (width,) or b.shape != (outputs, a.shape[0])
        or not a.shape[0]):
      raise InputError(f'{a}: shapes {a.shape} and {b.shape}, the base model '
                       f'wants (r, {width}) and ({outputs}, r)')
    pairs[part] = a, b
  if tensors:
    raise InputError(f'{next(iter(tensors.values()))} is not of '
                     f'{", ".join(lora.INPUTS)} of a layer, which alone are '
                     f'implemented; {_remedy(folder)}')
  if not pairs:
    raise InputError(f'{folder / _WEIGHTS}: no adapters in it')
  return pairs


def _module(tensor: str) -> str:
  """Returns the module's name, which patterns are matched with."""
  return tensor.removeprefix('base_model.model.').rpartition('.lora_')[0]


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
  """Returns what B A is multiplied by."""
  alpha = config['lora_alpha']
  for pattern, value in (config.get('alpha_pattern') or {}).items():
    if re.fullmatch(rf'(.*\.)?({pattern})', module):
      alpha = value
      break
  return alpha / (math.sqrt(rank) if config.get('use_rslora') else rank)
