"""What the families share: keys of config.json, and names of tensors."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from exprl_jax.models.rope import KINDS, Rope

# The keys of a config.json that are not parsed yet.
Raw = dict[str, Any]
# Fields of ModelConfig.
Fields = dict[str, Any]

# Sizes beyond these are no model's, and would take for ever to look at.
_MOST = {
    'vocab_size': 2**24, 'num_hidden_layers': 4096, 'hidden_size': 2**20,
    'intermediate_size': 2**24, 'num_attention_heads': 2**14,
    'num_key_value_heads': 2**14, 'head_dim': 2**14,
    'moe_intermediate_size': 2**24, 'num_experts': 4096,
    'num_local_experts': 4096
}
_ORIGINAL = 'original_max_position_embeddings'


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
  """Takes keys out of `raw` of which one value only is implemented.

  A key that is null is as good as absent. Keys whose values mean the same in
  all families are in `keys.FIXED` instead.
  """
  for key, only in implemented.items():
    value = raw.pop(key, None)
    if value is not None and value != only:
      raise UnsupportedError(f'{key}={value!r}: only {only!r} is implemented')


def parse_sizes(raw: Raw) -> Fields:
  """Takes the keys out of `raw` that every family has.

  num_hidden_layers stays: families need it.
  """
  for key in ('num_attention_heads', 'hidden_size', 'vocab_size',
              'num_hidden_layers', 'intermediate_size', 'rms_norm_eps'):
    if raw.get(key) is None:
      raise KeyError(key)
  for key, most in _MOST.items():
    value = raw.get(key)
    if value is not None and (type(value) is not int or not 0 < value <= most):
      raise UnsupportedError(f'{key}={value!r} should be a number from 1 to '
                             f'{most}')
  heads, embed = raw.pop('num_attention_heads'), raw.pop('hidden_size')
  return {
      'vocab_size': raw.pop('vocab_size'),
      'num_layers': raw['num_hidden_layers'], 'embed_dim': embed,
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


def parse_rope(raw: Raw, default_theta: float = 10000.0) -> Rope:
  """Takes rope_theta and rope_scaling, or the newer rope_parameters.

  Args:
    raw: has max_position_embeddings, which stays.
    default_theta: where the file has no rope_theta.
  """
  # 1. One dict of values, without nulls.
  new, old = raw.pop('rope_parameters', None), raw.pop('rope_scaling', None)
  if new and old:
    raise UnsupportedError('both rope_parameters and rope_scaling: leave one')
  theta = raw.pop('rope_theta', None)
  values = {'rope_theta': theta, **(new or old or {})}
  values = {k: v for k, v in values.items() if v is not None}
  # 2. The kind, by its newer or its older name.
  kind, older = values.pop('rope_type', None), values.pop('type', None)
  kind = kind or older or 'default'
  if kind not in KINDS:
    raise UnsupportedError(f'rope_type {kind!r} is not implemented; these are: '
                           f'{", ".join(KINDS)}')
  theta = values.pop('rope_theta', default_theta)
  require(values, partial_rotary_factor=1.0)
  _fill_lengths(kind, values, raw)
  # 3. Its fields.
  fields: Fields = {}
  for key, field in KINDS[kind].keys.items():
    if key in values:
      value = values.pop(key)
      fields[field] = tuple(value) if isinstance(value, list) else value
    elif field not in KINDS[kind].optional:
      raise KeyError(f'{key} of rope_type {kind}')
  values.pop('finetuned', None)  # says how a YaRN model was trained
  if values:
    raise UnsupportedError(f'rope keys {sorted(values)} are not implemented')
  return Rope(float(theta), kind, **fields)


def _fill_lengths(kind: str, values: Raw, raw: Raw) -> None:
  """Fills in what transformers derives from keys beside the rope's own."""
  longest, key = raw.get('max_position_embeddings'), _ORIGINAL
  original = raw.pop(key, None) or values.get(key)
  if key not in KINDS[kind].keys:
    values.pop(key, None)  # nothing depends on it
    return
  if kind in ('yarn', 'longrope') and original and longest:
    values.setdefault('factor', longest / original)
  values[key] = longest if kind == 'dynamic' else original or longest
  if values[key] is None:
    raise KeyError('max_position_embeddings')
