"""The shape of a decoder, read from a Hugging Face config.json."""

import dataclasses
import math
from typing import Any

from etils import epath

from exprl_jax.models import keys
from exprl_jax.models.families import FAMILIES, TEXT_PARTS, common
from exprl_jax.models.rope import KINDS, Rope
from exprl_jax.runtime import inputs
from exprl_jax.types import InputError

_MOST_PARAMS = 10**12  # far more than any model of the families has
_MOST_EXPERTS = 4096


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder of any family. Hashable, so it is a static argument of jit."""

  vocab_size: int
  num_layers: int
  embed_dim: int
  mlp_dim: int  # of one expert, in a mixture of experts
  num_heads: int
  num_kv_heads: int
  head_dim: int
  norm_eps: float
  tied_embedding: bool
  rope: Rope
  family: str = 'llama'  # model_type of config.json: a key of FAMILIES
  local_rope: Rope | None = None  # of layers with a window; None: as `rope`
  nope_layers: tuple[int, ...] = ()  # layers that rotate nothing
  windows: tuple[int, ...] = ()  # tokens each layer looks back; 0, (): all
  attention_scale: float = 0.0  # multiplies the scores; 0: head_dim ** -0.5
  attention_softcap: float = 0.0  # c tanh(score / c); 0: none
  logit_softcap: float = 0.0
  embed_scaled: bool = False  # embeddings are multiplied by sqrt(embed_dim)
  activation: str = 'silu'  # silu | gelu_tanh
  qkv_bias: bool = False
  qk_norm: bool = False  # norm of each head's query and key
  norm_offset: bool = False  # norms multiply by 1 + weight
  post_norms: bool = False  # norms behind attention and MLP, too
  num_experts: int = 0  # 0: one dense MLP
  experts_per_token: int = 0
  norm_topk: bool = False  # the chosen experts' weights sum to 1
  dtype: str = 'float32'  # of the matrix products; norms stay float32
  remat: str = 'none'  # a key of transformer.REMAT
  attention: str = 'auto'  # auto | einsum | dot_product | splash
  max_tokens: int = 0  # longest sequence; 0 unless a rope needs it: for_length

  @property
  def kinds(self) -> tuple[int, ...]:
    """The distinct windows. The kind of a layer is an index into them."""
    return tuple(sorted(set(self.windows))) or (0,)

  @property
  def layer_kinds(self) -> tuple[int, ...]:
    """The kind of each layer."""
    windows = self.windows or (0,) * self.num_layers
    return tuple(self.kinds.index(w) for w in windows)

  @property
  def layer_ropes(self) -> tuple[Rope | None, ...]:
    """The rotary embedding of each layer; None: it rotates nothing."""
    windows = self.windows or (0,) * self.num_layers
    local = self.local_rope or self.rope
    ropes: list[Rope | None] = [local if w else self.rope for w in windows]
    for i in self.nope_layers:
      ropes[i] = None
    return tuple(ropes)

  @property
  def needs_length(self) -> bool:
    """Whether a rope depends on the longest sequence: see for_length."""
    return any(rope and KINDS[rope.kind].needs_length
               for rope in (self.rope, self.local_rope))


def read_config(folder: epath.PathLike) -> ModelConfig:
  """Reads `folder`/config.json; the folder may be on gs://.

  Raises:
    InputError: no such file, an architecture that is not implemented, or a key
      that changes the model and is not implemented.
  """
  path = epath.Path(folder) / 'config.json'
  try:
    raw = inputs.read_object(path)
  except (FileNotFoundError, NotADirectoryError):
    raise InputError(
        f'{folder}: no config.json; name the folder of a Hugging Face model '
        '(config.json, *.safetensors, tokenizer.json)') from None
  return parse_config(raw, str(path))


def parse_config(raw: dict[str, Any], path: str) -> ModelConfig:
  """Builds the ModelConfig of a config.json's values; errors name `path`.

  Raises:
    InputError: as read_config.
  """
  if not isinstance(raw, dict):
    raise InputError(f'{path}: not a JSON object')
  whole, raw = raw, text_part(raw, path)
  keys.check_weights(whole | raw, path)
  family = raw.pop('model_type', None)
  if not isinstance(family, str) or family not in FAMILIES:
    raise InputError(
        f'{path}: model_type {family!r} is not implemented; '
        f'these are: {", ".join(sorted({*FAMILIES, *TEXT_PARTS}))}')
  try:
    fields = common.parse_sizes(raw) | FAMILIES[family].parse(raw)
    fields['windows'] = common.parse_windows(raw.pop('layer_types', None),
                                             fields['num_layers'],
                                             *fields['windows'])
    del raw['num_hidden_layers']
  except KeyError as e:
    raise InputError(f'{path}: key {e} is missing') from None
  except (TypeError, ValueError, AttributeError, ArithmeticError,
          LookupError) as e:
    raise InputError(f'{path}: a value of the wrong type ({e})') from None
  except common.UnsupportedError as e:
    raise InputError(f'{path}: {e}') from None
  keys.check_rest(raw, family, path)
  cfg = ModelConfig(family=family, **fields)
  if why := _wrong(cfg):
    raise InputError(f'{path}: {why}; copy the file again')
  return cfg


def _wrong(cfg: ModelConfig) -> str:
  """Says what no decoder can have; '' if there is nothing."""
  for field in dataclasses.fields(cfg):
    value = getattr(cfg, field.name)
    if type(value) is not field.type and field.type in (int, bool, str):
      return f'{field.name}={value!r} should be {field.type.__name__}'
    if field.type is float and not _is_number(value):
      return f'{field.name}={value!r} should be a number'
  if cfg.num_heads % cfg.num_kv_heads or cfg.head_dim % 2:
    return (f'{cfg.num_heads} heads, {cfg.num_kv_heads} of keys, head_dim='
            f'{cfg.head_dim}: want a multiple, and an even number')
  if not 0 <= cfg.experts_per_token <= cfg.num_experts <= _MOST_EXPERTS:
    return f'{cfg.experts_per_token} of {cfg.num_experts} experts'
  if any(type(w) is not int or w < 0 for w in cfg.windows):
    return f'windows of {sorted(set(map(str, cfg.windows)))} tokens'
  for rope in filter(None, (cfg.rope, cfg.local_rope)):
    if why := rope.wrong(cfg.head_dim):
      return why
  if (size := num_params(cfg)) > _MOST_PARAMS:
    return f'{size:.2g} parameters, at most {_MOST_PARAMS:.2g} are implemented'
  return ''


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and 0 <= value < math.inf


def num_params(cfg: ModelConfig) -> int:
  """Counts the parameters of the matrices; the others are few."""
  attention = cfg.embed_dim * cfg.head_dim * 2 * (cfg.num_heads +
                                                  cfg.num_kv_heads)
  mlp = 3 * cfg.embed_dim * cfg.mlp_dim * max(cfg.num_experts, 1)
  embeddings = cfg.vocab_size * cfg.embed_dim * (2 - cfg.tied_embedding)
  return embeddings + cfg.num_layers * (attention + mlp)


def text_part(raw: dict[str, Any], path: str) -> dict[str, Any]:
  """Returns a config.json's values, or those of a multimodal one's text model.

  Raises:
    InputError: a multimodal model without text_config.
  """
  family = raw.get('model_type')
  if not isinstance(family, str) or family not in TEXT_PARTS:
    return dict(raw)
  if not isinstance(raw.get('text_config'), dict):
    raise InputError(f'{path}: model_type {family!r} without text_config')
  return TEXT_PARTS[family](raw)


def for_length(cfg: ModelConfig, max_tokens: int) -> ModelConfig:
  """Fixes what depends on the longest sequence that a run may meet.

  Without effect on models whose ropes do not depend on it, and on a config
  that has been fixed before: whoever loads a model to train it comes first.

  Args:
    cfg: the model.
    max_tokens: of the longest sequence, prompt included.

  Raises:
    InputError: the model's rope is not implemented for such sequences.
  """
  if cfg.max_tokens or not cfg.needs_length:
    return cfg
  for rope in (cfg.rope, cfg.local_rope):
    if rope and rope.kind == 'dynamic' and max_tokens > rope.original_length:
      raise InputError(
          "rope_type 'dynamic' is implemented for sequences of up to "
          f'max_position_embeddings={rope.original_length} tokens, not '
          f'{max_tokens}; lower the token budgets of the run')
  return dataclasses.replace(cfg, max_tokens=max_tokens)


def with_layers(cfg: ModelConfig, layers: int) -> ModelConfig:
  """Returns the model with only its first layers."""
  return dataclasses.replace(
      cfg, num_layers=layers, windows=cfg.windows[:layers],
      nope_layers=tuple(i for i in cfg.nope_layers if i < layers))
