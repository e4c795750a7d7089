"""Keys of config.json that no family reads: which of them may be ignored.

A model that is computed slightly wrong trains without a sign of it, so a key
that may change the computation is an error. What is left after a family took
its keys falls into three groups:

  inert         metadata, training, generation, tools: ignored
  FIXED         changes the computation: one value is implemented
  unknown       null, false or empty: ignored with a warning; else an error
"""

from collections.abc import Mapping
import functools
import re
from typing import Any

from absl import logging

from exprl_jax.types import InputError, printable

# Whole names of keys that do not change the logits.
_INERT = re.compile('|'.join((
    # Where the file comes from, and what reads it.
    'architectures|auto_map|torch_dtype|dtype',
    'tokenizer_class|finetuning_task|task_specific_params|problem_type',
    r'name_or_path|is_llama_config|is_composition|transformers\.js_config',
    r'(\w+_)?version',
    r'_\w*(path|implementation\w*|commit_hash|from_auto|enabled)',
    r'unsloth_\w+|model_name|license|language|keys_to_ignore_at_inference',
    # Tokens, labels and other heads.
    r'\w+_token_(id|ids|index)|id2label|label2id|num_labels|prefix',
    # Training.
    r'\w*dropout\w*|\w+_pdrop|layerdrop|initializer_\w+|init_std',
    'router_(aux_loss_coef|z_loss_coef|jitter_noise)|neftune_noise_alpha',
    r'gradient_checkpointing|use_reentrant_checkpointing|pretraining_tp',
    # How a library computes and what it returns.
    r'\w*attn_implementation|use_flash_attn\w*|use_flash_attention\w*',
    'use_cache|cache_implementation|chunk_size_feed_forward|torchscript',
    'use_bfloat16|tf_legacy_loss|return_dict|output_attentions',
    'output_hidden_states|output_router_logits|num_logits_to_keep|is_decoder',
    # Lengths and windows, where no layer has a window.
    'max_position_embeddings|max_window_layers|seq_length|model_max_length',
    # Defaults of generation.
    'max_length|min_length|max_new_tokens|min_new_tokens|do_sample',
    'early_stopping|num_beams|num_beam_groups|diversity_penalty',
    'temperature|top_k|top_p|min_p|typical_p|repetition_penalty',
    r'length_penalty|\w*no_repeat_ngram_size|bad_words_ids|output_scores',
    'num_return_sequences|return_dict_in_generate|remove_invalid_values',
    'exponential_decay_length_penalty|(begin_)?suppress_tokens',
)))

# Keys that change the computation of some model, by the value that does not.
_FIXED_BY_VALUE: tuple[tuple[Any, str], ...] = (
    # Biases; attention; positions; residual stream.
    (False, 'attention_bias attention_out_bias qkv_bias use_qkv_bias mlp_bias '
     'use_bias bias lm_head_bias add_bias_linear'),
    (False, 'use_qk_norm qk_layernorm qk_layer_norms alibi multi_query '
     'use_bidirectional_attention use_sliding_window attn_temperature_tuning '
     'scale_attn_by_inverse_layer_idx add_cross_attention is_encoder_decoder '
     'tie_encoder_decoder norm_topk_prob'),
    (False, 'rope_interleaved rope_interleave use_mrope'),
    (False, 'use_parallel_residual parallel_attn new_decoder_architecture '
     'apply_residual_connection_post_layernorm scale_embedding'),
    (True, 'is_causal causal use_rope'),
    (None, 'clip_qkv attn_logit_softcapping final_logit_softcapping '
     'attention_multiplier query_pre_attn_scalar softmax_scale sliding_window '
     'sliding_window_size sliding_window_pattern _sliding_window_pattern '
     'attention_window attention_chunk_size q_lora_rank kv_lora_rank '
     'cross_attention_hidden_size cross_attention_layers rotary_dim '
     'rope_local_base_freq no_rope_layers no_rope_layer_interval '
     'scale_depth dim_model_base layers_block_type hybrid_override_pattern '
     'swiglu_limit'),
    # Factors of embeddings, scores, branches and logits.
    (1.0, 'partial_rotary_factor rotary_pct embedding_multiplier '
     'residual_multiplier logits_scaling logit_scale lm_head_multiplier '
     'key_multiplier scale_emb embedding_scale residual_scale '
     'routed_scaling_factor'),
    # Mixtures of experts, and layers beside the others.
    (0, 'num_experts num_local_experts n_routed_experts n_shared_experts '
     'num_shared_experts moe_num_experts shared_expert_intermediate_size '
     'first_k_dense_replace num_experts_per_tok moe_intermediate_size '
     'num_nextn_predict_layers num_mtp_layers '
     'hidden_size_per_layer_input num_kv_shared_layers'),
    (None, 'mlp_only_layers decoder_sparse_step n_group topk_group '
     'mlp_layer_types'),
    ('rope', 'position_embedding_type'),
    ({}, 'pruned_heads'),
)
FIXED: Mapping[str, Any] = {
    key: value for value, keys in _FIXED_BY_VALUE for key in keys.split()
}

_QUANTIZED = ('quantization_config', 'quantization', 'compression_config')


def check_weights(raw: Mapping[str, Any], path: str) -> None:
  """Checks that the weights are not stored quantized.

  Raises:
    InputError: they are.
  """
  for key in _QUANTIZED:
    if settings := raw.get(key):
      method = key
      if isinstance(settings, dict):
        method = settings.get('quant_method') or key
      raise InputError(
          f'{path}: the weights are quantized ({method}), which is not '
          'implemented; name the model that they were made from '
          "(judge.weights='int8' quantizes a judge as it is read)")


def check_rest(rest: Mapping[str, Any], family: str, path: str) -> None:
  """Checks the keys that the family did not read, and logs which are ignored.

  Raises:
    InputError: a key changes the computation, or may do so.
  """
  # 1. Keys that change the computation; null stands for an absent key.
  for key, value in rest.items():
    if key in FIXED and value is not None and value != FIXED[key]:
      raise InputError(
          f'{path}: {key}={value!r}: only {FIXED[key]!r} is implemented for '
          f'model_type {family!r}, and the key changes the computation; remove '
          'it only if the weights were trained without it')
  left = [k for k in rest if k not in FIXED and k not in _QUANTIZED]
  # 2. Keys that nobody knows.
  unknown = [k for k in left if not _INERT.fullmatch(k)]
  if wrong := [k for k in unknown if not _is_empty(rest[k])]:
    raise InputError(
        f'{path}: keys {wrong} are unknown and may change the computation; '
        'remove them from config.json if they are metadata')
  # 3. What is ignored is said once.
  _say(logging.WARNING, path, 'unknown and without a value',
       tuple(sorted(unknown)))
  _say(logging.INFO, path, 'without effect on the logits',
       tuple(sorted(set(left) - set(unknown))))


def _is_empty(value: Any) -> bool:
  """Whether a value switches nothing on; 0 may be a factor."""
  return value is None or value is False or value in ('', [], {})


@functools.cache  # a run reads a config.json several times
def _say(level: int, path: str, why: str, ignored: tuple[str, ...]) -> None:
  if ignored:
    logging.log(level, '%s: ignored keys, %s: %s', path, why,
                printable(', '.join(ignored)))
