"""Qwen2, Qwen2.5, Qwen3 and the Qwen3 mixtures of experts."""

from exprl_jax.models.families import common
from exprl_jax.models.families.common import Family, Fields, Raw


def _qwen(raw: Raw) -> Fields:
  """Parses what all of them have; the first layers have no window."""
  common.require(raw, hidden_act='silu')
  window, first = raw.pop('sliding_window', 4096), 0
  if 'max_window_layers' in raw:
    first = raw.pop('max_window_layers')
  elif raw.get('use_sliding_window') and 'layer_types' not in raw:
    raise KeyError('max_window_layers')
  if not raw.pop('use_sliding_window', False):
    window = None
  return {
      'rope': common.parse_rope(raw), 'windows': (window, lambda i: i >= first),
      'tied_embedding': raw.pop('tie_word_embeddings', False)
  }


def _qwen2(raw: Raw) -> Fields:
  return _qwen(raw) | {'qkv_bias': True}


def _qwen3(raw: Raw) -> Fields:
  return _qwen(raw) | {'qk_norm': True}


def _qwen3_moe(raw: Raw) -> Fields:
  common.require(raw, decoder_sparse_step=1, mlp_only_layers=[],
                 use_qk_norm=True)
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


_QWEN3_TENSORS = common.TENSORS | common.QK_NORMS

FAMILIES = {
    'qwen2': Family(_qwen2, common.TENSORS | common.QKV_BIASES),
    'qwen3': Family(_qwen3, _QWEN3_TENSORS),
    'qwen3_moe': Family(_qwen3_moe, _QWEN3_TENSORS | common.EXPERTS),
}
