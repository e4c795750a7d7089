"""Gemma 2, and the text models of Gemma 3."""

from exprl_jax.models.families import common
from exprl_jax.models.families.common import Family, Fields, Raw
from exprl_jax.models.rope import Rope


def _gemma(raw: Raw) -> Fields:
  """Parses what Gemma 2 and 3 have in common."""
  if raw.pop('use_bidirectional_attention', None):
    raise common.UnsupportedError(
        'use_bidirectional_attention is not implemented')
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
  ropes = raw.pop('rope_parameters', None)
  if ropes:
    rope = common.parse_rope({'rope_parameters': ropes['full_attention']})
    local = common.parse_rope({'rope_parameters': ropes['sliding_attention']})
  else:
    rope = common.parse_rope(raw)
    local = Rope(float(raw.pop('rope_local_base_freq')))
  return _gemma(raw) | {
      'rope': rope, 'local_rope': local, 'qk_norm': True, 'embed_scaled': True,
      'windows': (raw.pop('sliding_window'), lambda i: (i + 1) % pattern != 0)
  }


_GEMMA2_TENSORS = common.TENSORS | common.POST_NORMS

FAMILIES = {
    'gemma2': Family(_gemma2, _GEMMA2_TENSORS),
    'gemma3_text': Family(_gemma3, _GEMMA2_TENSORS | common.QK_NORMS),
}
