"""What the families share: keys of config.json, and names of tensors."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from exprl_jax.models.rope import OPTIONAL_ROPE_KEYS, ROPE_KEYS, Rope

# The keys of a config.json that are not parsed yet.
Raw = dict[str, Any]
# Fields of ModelConfig.
Fields = dict[str, Any]


class UnsupportedError(Exception):
  """A value of config.json that changes the model and is not implemented."""


class Family(NamedTuple):
  """How one architecture is written down in a Hugging Face directory.

  Attributes:
    parse: takes the keys of config.json that the family knows out of the dict
      and returns fields of ModelConfig; keys that remain are an error. Of the
      fields, `windows` is a pair (window or None, whether a layer has it),
      which holds where config.json has no layer_types.
    tensors: name of each parameter's tensor. '{layer}' stands for the layer;
      a parameter of all experts is stored as one tensor for each '{expert}'.
  """

  parse: Callable[[Raw], Fields]
  tensors: Mapping[str, str]


_LAYER = 'model.layers.{layer}.'
# Parameter -> tensor. Stored matrices are [out, in]; parameters are [in, *out],
# or [*in, out] for the attention output.
TENSORS = {
    'embedding': 'model.embed_tokens.weight',
    'final_norm': 'model.norm.weight',
    'head': 'lm_head.weight',
    'attention_norm': _LAYER + 'input_layernorm.weight',
    'q': _LAYER + 'self_attn.q_proj.weight',
    'k': _LAYER + 'self_attn.k_proj.weight',
    'v': _LAYER + 'self_attn.v_proj.weight',
    'o': _LAYER + 'self_attn.o_proj.weight',
    'mlp_norm': _LAYER + 'post_attention_layernorm.weight',
    'gate': _LAYER + 'mlp.gate_proj.weight',
    'up': _LAYER + 'mlp.up_proj.weight',
    'down': _LAYER + 'mlp.down_proj.weight',
}
QKV_BIASES = {
    'q_bias': _LAYER + 'self_attn.q_proj.bias',
    'k_bias': _LAYER + 'self_attn.k_proj.bias',
    'v_bias': _LAYER + 'self_attn.v_proj.bias',
}
QK_NORMS = {
    'q_norm': _LAYER + 'self_attn.q_norm.weight',
    'k_norm': _LAYER + 'self_attn.k_norm.weight',
}
EXPERTS = {
    'router': _LAYER + 'mlp.gate.weight',
    'gate': _LAYER + 'mlp.experts.{expert}.gate_proj.weight',
    'up': _LAYER + 'mlp.experts.{expert}.up_proj.weight',
    'down': _LAYER + 'mlp.experts.{expert}.down_proj.weight',
}
# Norms before and after each block: a name of TENSORS has another meaning here.
POST_NORMS = {
    'attention_post_norm': _LAYER + 'post_attention_layernorm.weight',
    'mlp_norm': _LAYER + 'pre_feedforward_layernorm.weight',
    'mlp_post_norm': _LAYER + 'post_feedforward_layernorm.weight',
}


def require(raw: Raw, **implemented: Any) -> None:
  """Takes keys out of `raw` of which one value only is implemented."""
  for key, only in implemented.items():
    value = raw.pop(key, only)
    if value != only:
      raise UnsupportedError(f'{key}={value!r}: only {only!r} is implemented')


def parse_sizes(raw: Raw) -> Fields:
  """Takes the keys out of `raw` that every family has."""
  heads, embed = raw.pop('num_attention_heads'), raw.pop('hidden_size')
  require(raw, attention_bias=False, is_encoder_decoder=False, is_decoder=False,
          add_cross_attention=False, tie_encoder_decoder=False)
  for key, value in (('num_attention_heads', heads), ('hidden_size', embed)):
    if not isinstance(value, int):
      raise TypeError(f'{key} should be a number')
  return {
      'vocab_size': raw.pop('vocab_size'),
      'num_layers': raw.pop('num_hidden_layers'), 'embed_dim': embed,
      'mlp_dim': raw.pop('intermediate_size'), 'num_heads': heads,
      'num_kv_heads': raw.pop('num_key_value_heads', None) or heads,
      'head_dim': raw.pop('head_dim', None) or embed // heads,
      'norm_eps': raw.pop('rms_norm_eps')
  }


def parse_windows(types: list[str] | None, num_layers: int, window: int | None,
                  is_local: Callable[[int], bool]) -> tuple[int, ...]:
  """The window of every layer.

  Args:
    types: layer_types of config.json; None: `is_local` decides.
    num_layers: of the model.
    window: tokens that a layer with a window looks back.
    is_local: whether layer i has the window.

  Returns:
    Tokens, 0 where a layer sees all; () where every layer does.
  """
  size_of = {'sliding_attention': window or 0, 'full_attention': 0}
  if types is None:
    types = [
        'sliding_attention' if is_local(i) else 'full_attention'
        for i in range(num_layers)
    ]
  if unknown := set(types) - set(size_of):
    raise UnsupportedError(f'layer_types {unknown} are not implemented')
  if len(types) != num_layers:
    raise UnsupportedError(f'layer_types has {len(types)} entries for '
                           f'{num_layers} layers')
  windows = tuple(size_of[t] for t in types)
  return windows if any(windows) else ()


def parse_rope(raw: Raw) -> Rope:
  """Reads rope_theta and rope_scaling, or the newer rope_parameters."""
  new, old = raw.pop('rope_parameters', None), raw.pop('rope_scaling', None)
  if new and old:
    raise UnsupportedError('both rope_parameters and rope_scaling: leave one')
  values = dict(new or old or {})
  theta = raw.pop('rope_theta', None)
  theta = values.pop('rope_theta', theta)
  if theta is None:
    raise KeyError('rope_theta')
  kind = values.pop('rope_type', values.get('type', 'default'))
  values.pop('type', None)
  if kind == 'yarn':
    if values.pop('truncate', True) is not True:
      raise UnsupportedError('truncate=False of yarn is not implemented')
    values.setdefault('original_max_position_embeddings',
                      raw.get('max_position_embeddings'))
  if kind not in ROPE_KEYS:
    raise UnsupportedError(f'rope_type {kind!r} is not implemented; these are: '
                           f'{", ".join(ROPE_KEYS)}')
  fields = {}
  for key, field in ROPE_KEYS[kind].items():
    value = values.pop(key, None)
    if value is None and field not in OPTIONAL_ROPE_KEYS[kind]:
      raise KeyError(f'{key} of rope_type {kind}')
    fields[field] = value
  if values:
    raise UnsupportedError(f'rope keys {sorted(values)} are not implemented')
  return Rope(float(theta), kind, **fields)
