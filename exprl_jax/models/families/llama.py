"""Llama 3, 3.1, 3.2 and 3.3."""

from exprl_jax.models.families import common
from exprl_jax.models.families.common import Family, Fields, Raw


def _llama(raw: Raw) -> Fields:
  common.require(raw, hidden_act='silu')
  return {
      'rope': common.parse_rope(raw), 'windows': (None, lambda i: False),
      'tied_embedding': raw.pop('tie_word_embeddings', False)
  }


FAMILIES = {'llama': Family(_llama, common.TENSORS)}
