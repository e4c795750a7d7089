"""The shape of a decoder, read from a Hugging Face config.json."""

from collections.abc import Callable
import dataclasses
import json

from etils import epath

from exprl_jax.models.rope import OPTIONAL_ROPE_KEYS, ROPE_KEYS, Rope
from exprl_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """One decoder of any family. Hashable, so it is a static argument of jit."""

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
  local_rope: Rope | None = None  # of layers with a window; None: as `rope`
  windows: tuple[int, ...] = ()  # tokens each layer looks back; 0, (): all
  attention_scale: float = 0.0  # of the scores; 0: head_dim ** -0.5
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
  remat: str = 'none'  # transformer.REMAT
  attention: str = 'auto'  # auto | einsum | dot_product | splash

  @property
  def kinds(self) -> tuple[int, ...]:
    """The different windows; a layer is of one of these kinds."""
    return tuple(sorted(set(self.windows))) or (0,)

  @property
  def layer_kinds(self) -> tuple[int, ...]:
    """The kind of each layer, an index into `kinds`."""
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
    InputError: no such file, another architecture, or a key that changes the
      model and is not implemented.
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


def parse_config(raw: dict, path: str) -> ModelConfig:
  """The model of a config.json's values; errors name `path`.

  Raises:
    InputError: as read_config.
  """
  if not isinstance(raw, dict):
    raise InputError(f'{path}: not a JSON object')
  raw = {k: v for k, v in raw.items() if k not in _IRRELEVANT}
  family = raw.pop('model_type', None)
  if family not in FAMILIES:
    raise InputError(f'{path}: model_type {family!r} is not implemented; '
                     f'these are: {", ".join(sorted(FAMILIES))}')
  try:
    values = _common(raw) | FAMILIES[family](raw)
    values['windows'] = _windows(raw.pop('layer_types', None),
                                 values['num_layers'], *values['windows'])
    raw.pop('max_position_embeddings', None)
  except KeyError as e:
    raise InputError(f'{path}: key {e} is missing') from None
  except TypeError as e:
    raise InputError(f'{path}: a value of the wrong type ({e})') from None
  except _NotImplemented as e:
    raise InputError(f'{path}: {e}') from None
  if raw:
    raise InputError(f'{path}: keys {sorted(raw)} are not implemented')
  return ModelConfig(**values)


class _NotImplemented(Exception):
  pass


def _only(raw: dict, **wanted) -> None:
  """Takes keys that may have one value only."""
  for key, value in wanted.items():
    if (found := raw.pop(key, value)) != value:
      raise _NotImplemented(f'{key}={found!r}: only {value!r} is implemented')


def _common(raw: dict) -> dict:
  heads, embed = raw.pop('num_attention_heads'), raw.pop('hidden_size')
  _only(raw, attention_bias=False, is_encoder_decoder=False, is_decoder=False,
        add_cross_attention=False, tie_encoder_decoder=False)
  for key in ('num_attention_heads', 'hidden_size'):
    if not isinstance({'num_attention_heads': heads, 'hidden_size': embed}[key],
                      int):
      raise TypeError(f'{key} should be a number')
  return {
      'vocab_size': raw.pop('vocab_size'),
      'num_layers': raw.pop('num_hidden_layers'), 'embed_dim': embed,
      'mlp_dim': raw.pop('intermediate_size'), 'num_heads': heads,
      'num_kv_heads': raw.pop('num_key_value_heads', None) or heads,
      'head_dim': raw.pop('head_dim', None) or embed // heads,
      'norm_eps': raw.pop('rms_norm_eps')
  }


def _windows(types: list[str] | None, num_layers: int, window: int | None,
             is_local: Callable[[int], bool]) -> tuple[int, ...]:
  """The window of every layer, from layer_types or the family's rule."""
  kinds = {'sliding_attention': window or 0, 'full_attention': 0}
  if types is None:
    types = [
        'sliding_attention' if is_local(i) else 'full_attention'
        for i in range(num_layers)
    ]
  if unknown := set(types) - set(kinds):
    raise _NotImplemented(f'layer_types {unknown} are not implemented')
  if len(types) != num_layers:
    raise _NotImplemented(f'layer_types has {len(types)} entries for '
                          f'{num_layers} layers')
  windows = tuple(kinds[t] for t in types)
  return windows if any(windows) else ()


def _rope(raw: dict) -> Rope:
  """Either spelling: rope_theta and rope_scaling, or rope_parameters."""
  new, old = raw.pop('rope_parameters', None), raw.pop('rope_scaling', None)
  if new and old:
    raise _NotImplemented('both rope_parameters and rope_scaling: leave one')
  values = dict(new or old or {})
  theta = raw.pop('rope_theta', None)
  theta = values.pop('rope_theta', theta)
  if theta is None:
    raise KeyError('rope_theta')
  kind = values.pop('rope_type', values.get('type', 'default'))
  values.pop('type', None)
  if kind == 'yarn':
    if values.pop('truncate', True) is not True:
      raise _NotImplemented('truncate=False of yarn is not implemented')
    values.setdefault('original_max_position_embeddings',
                      raw.get('max_position_embeddings'))
  if kind not in ROPE_KEYS:
    raise _NotImplemented(f'rope_type {kind!r} is not implemented; these are: '
                          f'{", ".join(ROPE_KEYS)}')
  known = {}
  for theirs, ours in ROPE_KEYS[kind].items():
    value = values.pop(theirs, None)
    if value is None and ours not in OPTIONAL_ROPE_KEYS[kind]:
      raise KeyError(f'{theirs} of rope_type {kind}')
    known[ours] = value
  if values:
    raise _NotImplemented(f'rope keys {sorted(values)} are not implemented')
  return Rope(float(theta), kind, **known)


def _qwen(raw: dict) -> dict:
  _only(raw, hidden_act='silu', use_mrope=False)
  window, first = raw.pop('sliding_window', None), 0
  if 'max_window_layers' in raw:
    first = raw.pop('max_window_layers')
  elif raw.get('use_sliding_window') and 'layer_types' not in raw:
    raise KeyError('max_window_layers')
  if not raw.pop('use_sliding_window', False):
    window = None
  return {
      'rope': _rope(raw), 'windows': (window, lambda i: i >= first),
      'tied_embedding': raw.pop('tie_word_embeddings', False)
  }


def _qwen2(raw: dict) -> dict:
  return _qwen(raw) | {'qkv_bias': True}


def _qwen3(raw: dict) -> dict:
  return _qwen(raw) | {'qk_norm': True}


def _qwen3_moe(raw: dict) -> dict:
  _only(raw, decoder_sparse_step=1, mlp_only_layers=[], qkv_bias=False,
        use_qk_norm=True, shared_expert_intermediate_size=0)
  experts = [
      raw.pop(k) for k in ('num_experts', 'num_local_experts') if k in raw
  ]
  raw['max_window_layers'] = 0  # a window would be on all layers
  if not experts:
    raise KeyError('num_experts')
  return _qwen3(raw) | {
      'num_experts': experts[0],
      'experts_per_token': raw.pop('num_experts_per_tok'),
      'mlp_dim': raw.pop('moe_intermediate_size'),
      'norm_topk': raw.pop('norm_topk_prob')
  }


def _llama(raw: dict) -> dict:
  _only(raw, hidden_act='silu', mlp_bias=False, pretraining_tp=1)
  return {
      'rope': _rope(raw), 'windows': (None, lambda i: False),
      'tied_embedding': raw.pop('tie_word_embeddings', False)
  }


def _mistral(raw: dict) -> dict:
  _only(raw, hidden_act='silu')
  return {
      'rope': _rope(raw), 'windows': (raw.pop('sliding_window',
                                              None), lambda i: True),
      'tied_embedding': raw.pop('tie_word_embeddings', False)
  }


def _gemma(raw: dict) -> dict:
  """What Gemma 2 and 3 have in common."""
  if raw.pop('use_bidirectional_attention', None):
    raise _NotImplemented('use_bidirectional_attention is not implemented')
  # The older key hidden_act stands beside it and is not used.
  raw.pop('hidden_act', None)
  _only(raw, hidden_activation='gelu_pytorch_tanh')
  scalar = raw.pop('query_pre_attn_scalar')
  return {
      'activation': 'gelu_tanh', 'attention_scale': scalar**-0.5,
      'attention_softcap': raw.pop('attn_logit_softcapping', None) or 0.0,
      'logit_softcap': raw.pop('final_logit_softcapping', None) or 0.0,
      'norm_offset': True, 'post_norms': True,
      'tied_embedding': raw.pop('tie_word_embeddings', True)
  }


def _gemma2(raw: dict) -> dict:
  window = raw.pop('sliding_window')
  _only(raw, sliding_window_size=window)  # some files say it twice
  for key in ('attn_logit_softcapping', 'final_logit_softcapping'):
    if key not in raw:
      raise KeyError(key)
  return _gemma(raw) | {
      'rope': _rope(raw), 'embed_scaled': True,
      'windows': (window, lambda i: i % 2 == 0)
  }


def _gemma3(raw: dict) -> dict:
  pattern = 6
  for key in ('sliding_window_pattern', '_sliding_window_pattern'):
    pattern = raw.pop(key, pattern)
  both = raw.pop('rope_parameters', None)
  if both:
    rope = _rope({'rope_parameters': both['full_attention']})
    local = _rope({'rope_parameters': both['sliding_attention']})
  else:
    rope, local = _rope(raw), Rope(float(raw.pop('rope_local_base_freq')))
  return _gemma(raw) | {
      'rope': rope, 'local_rope': local, 'qk_norm': True, 'embed_scaled': True,
      'windows': (raw.pop('sliding_window'), lambda i: (i + 1) % pattern != 0)
  }


# model_type of config.json -> what it adds to the common values. It takes the
# keys it understands out of the dict; what is left over is an error.
FAMILIES: dict[str, Callable[[dict], dict]] = {
    'qwen2': _qwen2, 'qwen3': _qwen3, 'qwen3_moe': _qwen3_moe, 'llama': _llama,
    'mistral': _mistral, 'gemma2': _gemma2, 'gemma3_text': _gemma3
}
