"""The shape of a decoder, read from a Hugging Face config.json."""

import dataclasses
import json
from typing import Any

from etils import epath

from exprl_jax.models.families import FAMILIES, common
from exprl_jax.models.rope import Rope
from exprl_jax.types import InputError


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

  @property
  def kinds(self) -> tuple[int, ...]:
    """The distinct windows. The kind of a layer is an index into them."""
    return tuple(sorted(set(self.windows))) or (0,)

  @property
  def layer_kinds(self) -> tuple[int, ...]:
    """The kind of each layer."""
    windows = self.windows or (0,) * self.num_layers
    return tuple(self.kinds.index(w) for w in windows)


# Keys of config.json that say nothing about the function being computed.
_IRRELEVANT = frozenset({
    '_attn_implementation', '_attn_implementation_autoset', '_name_or_path',
    'architectures', 'attention_dropout', 'auto_map', 'bos_token_id',
    'cache_implementation', 'chunk_size_feed_forward', 'dtype', 'eos_token_id',
    'id2label', 'initializer_range', 'label2id', 'output_attentions',
    'output_hidden_states', 'output_router_logits', 'pad_token_id',
    'problem_type', 'return_dict', 'router_aux_loss_coef', 'tokenizer_class',
    'torch_dtype', 'torchscript', 'transformers_version', 'unsloth_fixed',
    'unsloth_version', 'use_bfloat16', 'use_cache'
})


def read_config(folder: epath.PathLike) -> ModelConfig:
  """Reads `folder`/config.json; the folder may be on gs://.

  Raises:
    InputError: no such file, an architecture that is not implemented, or a key
      that changes the model and is not implemented.
  """
  path = epath.Path(folder) / 'config.json'
  try:
    raw = json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError):
    raise InputError(
        f'{folder}: no config.json; name the folder of a Hugging Face model '
        '(config.json, *.safetensors, tokenizer.json)') from None
  except json.JSONDecodeError as e:
    raise InputError(f'{path}: not JSON ({e})') from None
  return parse_config(raw, str(path))


def parse_config(raw: dict[str, Any], path: str) -> ModelConfig:
  """Builds the ModelConfig of a config.json's values; errors name `path`.

  Raises:
    InputError: as read_config.
  """
  if not isinstance(raw, dict):
    raise InputError(f'{path}: not a JSON object')
  if quantized := raw.get('quantization_config'):
    method = (quantized.get('quant_method', 'unknown method') if isinstance(
        quantized, dict) else quantized)
    raise InputError(f'{path}: the weights are quantized ({method}), which is '
                     'not implemented; name the model that they were made from')
  raw = {k: v for k, v in raw.items() if k not in _IRRELEVANT}
  family = raw.pop('model_type', None)
  if family not in FAMILIES:
    raise InputError(f'{path}: model_type {family!r} is not implemented; '
                     f'these are: {", ".join(sorted(FAMILIES))}')
  try:
    fields = common.parse_sizes(raw) | FAMILIES[family].parse(raw)
    fields['windows'] = common.parse_windows(raw.pop('layer_types', None),
                                             fields['num_layers'],
                                             *fields['windows'])
    raw.pop('max_position_embeddings', None)
  except KeyError as e:
    raise InputError(f'{path}: key {e} is missing') from None
  except TypeError as e:
    raise InputError(f'{path}: a value of the wrong type ({e})') from None
  except common.UnsupportedError as e:
    raise InputError(f'{path}: {e}') from None
  if raw:
    raise InputError(f'{path}: keys {sorted(raw)} are not implemented')
  return ModelConfig(family=family, **fields)
