"""Mistral 7B and Nemo: every layer may have a window."""

from exprl_jax.models.families import common
from exprl_jax.models.families.common import Family, Fields, Raw


def _mistral(raw: Raw) -> Fields:
  common.require(raw, hidden_act='silu')
  rope = common.parse_rope(raw)
  window = raw.pop('sliding_window', 4096)  # null: none
  return {
      'rope': rope, 'windows': (window, lambda i: True),
      'tied_embedding': raw.pop('tie_word_embeddings', False)
  }


FAMILIES = {'mistral': Family(_mistral, common.TENSORS)}
