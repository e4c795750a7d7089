"""Gemma 2, and Gemma 3 as far as it is text."""

from exprl_jax.models.families import common
from exprl_jax.models.families.common import Family, Fields, Raw
from exprl_jax.models.rope import Rope


def _gemma(raw: Raw) -> Fields:
  """Parses what Gemma 2 and 3 have in common."""
  # The older key hidden_act stands beside it and is not used.
  raw.pop('hidden_act', None)
  common.require(raw, hidden_activation='gelu_pytorch_tanh')
  scalar = raw.pop('query_pre_attn_scalar')
  return {
      'activation': 'gelu_tanh', 'attention_scale': scalar**-0.5,
      'attention_softcap': raw.pop('attn_logit_softcapping', None) or 0.0,
      'logit_softcap': raw.pop('final_logit_softcapping', None) or 0.0,
      'norm_offset': True, 'post_norms': True,
      'tied_embedding': raw.pop('tie_word_embeddings', True)
  }


def _gemma2(raw: Raw) -> Fields:
  """Every other layer has a window, the first one included."""
  window = raw.pop('sliding_window')
  common.require(raw, sliding_window_size=window)  # some files say it twice
  for key in ('attn_logit_softcapping', 'final_logit_softcapping'):
    if key not in raw:
      raise KeyError(key)
  return _gemma(raw) | {
      'rope': common.parse_rope(raw), 'embed_scaled': True,
      'windows': (window, lambda i: i % 2 == 0)
  }


def _gemma3(raw: Raw) -> Fields:
  """Every sixth layer sees all; layers with a window have their own rope."""
  pattern = 6
  for key in ('sliding_window_pattern', '_sliding_window_pattern'):
    pattern = raw.pop(key, pattern)
  local_theta = raw.pop('rope_local_base_freq', None) or 1e4
  ropes = raw.get('rope_parameters')
  if ropes and 'full_attention' in ropes:
    local_values = {'rope_parameters': ropes['sliding_attention']}
    local = common.parse_rope(local_values, local_theta)
    raw['rope_parameters'] = ropes['full_attention']
  else:
    local = Rope(float(local_theta))
  rope = common.parse_rope(raw, 1e6)
  return _gemma(raw) | {
      'rope': rope, 'local_rope': local, 'qk_norm': True, 'embed_scaled': True,
      'windows': (raw.pop('sliding_window'), lambda i: (i + 1) % pattern != 0)
  }


# What the text part of a multimodal Gemma 3 leaves out: transformers' defaults.
GEMMA3_DEFAULTS = {
    'vocab_size': 262208, 'hidden_size': 2304, 'intermediate_size': 9216,
    'num_hidden_layers': 26, 'num_attention_heads': 8, 'num_key_value_heads': 4,
    'head_dim': 256, 'max_position_embeddings': 131072, 'rms_norm_eps': 1e-6,
    'query_pre_attn_scalar': 256, 'sliding_window': 4096
}
_SHARED = ('bos_token_id', 'eos_token_id', 'pad_token_id', 'torch_dtype',
           'dtype', 'transformers_version')


def _text_of_gemma3(raw: Raw) -> Raw:
  """Makes the config of a gemma3_text out of that of a multimodal model."""
  shared = {k: raw[k] for k in _SHARED if k in raw}
  return GEMMA3_DEFAULTS | shared | raw['text_config'] | {
      'model_type': 'gemma3_text', 'architectures': ['Gemma3ForCausalLM'],
      'tie_word_embeddings': raw.get('tie_word_embeddings', True)
  }


_GEMMA2_TENSORS = common.TENSORS | common.POST_NORMS

FAMILIES = {
    'gemma2': Family(_gemma2, _GEMMA2_TENSORS),
    'gemma3_text': Family(_gemma3, _GEMMA2_TENSORS | common.QK_NORMS),
}
TEXT_PARTS = {'gemma3': _text_of_gemma3}
