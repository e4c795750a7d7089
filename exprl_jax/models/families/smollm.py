"""SmolLM3: Llama, but every fourth layer rotates nothing (NoPE).

SmolLM and SmolLM2 are Llamas, by model_type, too.
"""

from exprl_jax.models.families import common
from exprl_jax.models.families.common import Family, Fields, Raw


def _smollm3(raw: Raw) -> Fields:
  """Layers without a rope are those that may have a window."""
  common.require(raw, hidden_act='silu')
  layers, every = raw['num_hidden_layers'], raw.pop('no_rope_layer_interval', 4)
  rotates = raw.pop('no_rope_layers', None)  # 1 where a layer does
  if rotates is None:
    rotates = [(i + 1) % every != 0 for i in range(layers)]
  if len(rotates) < layers:
    raise common.UnsupportedError(f'no_rope_layers has {len(rotates)} entries '
                                  f'for {layers} layers')
  nope = tuple(i for i, rotated in enumerate(rotates[:layers]) if not rotated)
  window = raw.pop('sliding_window', None)
  if not raw.pop('use_sliding_window', False):
    window = None
  return {
      'rope': common.parse_rope(raw, 2e6), 'nope_layers': nope,
      'windows': (window, lambda i: i in nope),
      'tied_embedding': raw.pop('tie_word_embeddings', True)
  }


FAMILIES = {'smollm3': Family(_smollm3, common.TENSORS)}
