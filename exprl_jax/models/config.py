"""The shape of a decoder, read from a Hugging Face config.json."""

import dataclasses
import json
import pathlib

from exprl_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A Qwen3 dense decoder. Hashable, so it is a static argument of jit."""

  vocab_size: int
  num_layers: int
  embed_dim: int
  mlp_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  rope_theta: float
  norm_eps: float
  tied_embedding: bool
  dtype: str = 'float32'  # of the matrix products; parameters stay float32
  remat: bool = False  # recompute each layer in the backward pass


# Keys of config.json that say nothing about the function being computed.
_IRRELEVANT = frozenset({
    '_name_or_path', 'architectures', 'attention_dropout', 'bos_token_id',
    'chunk_size_feed_forward', 'dtype', 'eos_token_id', 'id2label',
    'initializer_range', 'is_encoder_decoder', 'label2id', 'layer_types',
    'max_position_embeddings', 'max_window_layers', 'output_attentions',
    'output_hidden_states', 'pad_token_id', 'problem_type', 'return_dict',
    'torch_dtype', 'transformers_version', 'use_cache'})


def read_config(folder: str | pathlib.Path) -> ModelConfig:
  """Reads `folder`/config.json.

  Raises:
    InputError: no such file, another architecture, or a key that changes the
      model and is not implemented.
  """
  path = pathlib.Path(folder) / 'config.json'
  try:
    raw = json.loads(path.read_text())
  except FileNotFoundError:
    raise InputError(
        f'{folder}: no config.json; name the folder of a Hugging Face model '
        '(config.json, *.safetensors, tokenizer.json)') from None
  except json.JSONDecodeError as e:
    raise InputError(f'{path}: not JSON ({e})') from None
  if raw.get('model_type') != 'qwen3':
    raise InputError(f'{path}: model_type {raw.get("model_type")!r} is not '
                     "implemented; this version reads 'qwen3'")
  rope = raw.pop('rope_parameters', None) or {}
  theta = rope.get('rope_theta', raw.pop('rope_theta', None))
  wanted = {
      'model_type': 'qwen3', 'hidden_act': 'silu', 'attention_bias': False,
      'use_sliding_window': False, 'rope_scaling': None,
      'sliding_window': raw.get('sliding_window')
      if not raw.get('use_sliding_window') else None}
  for key, value in wanted.items():
    if raw.pop(key, value) != value:
      raise InputError(f'{path}: only {key}={value!r} is implemented')
  if rope.get('rope_type', 'default') != 'default':
    raise InputError(f'{path}: rope_type {rope["rope_type"]!r} is not '
                     'implemented')
  try:
    cfg = ModelConfig(
        vocab_size=raw.pop('vocab_size'),
        num_layers=raw.pop('num_hidden_layers'),
        embed_dim=raw.pop('hidden_size'),
        mlp_dim=raw.pop('intermediate_size'),
        num_heads=raw.pop('num_attention_heads'),
        num_kv_heads=raw.pop('num_key_value_heads'),
        head_dim=raw.pop('head_dim'),
        rope_theta=float(theta),
        norm_eps=raw.pop('rms_norm_eps'),
        tied_embedding=raw.pop('tie_word_embeddings', False))
  except (KeyError, TypeError) as e:
    raise InputError(f'{path}: key {e} is missing') from None
  if unknown := sorted(set(raw) - _IRRELEVANT):
    raise InputError(f'{path}: keys {unknown} are not implemented')
  return cfg


def to_hf(cfg: ModelConfig, dtype: str) -> dict:
  """The config.json that `transformers` opens as Qwen3ForCausalLM."""
  return {
      'architectures': ['Qwen3ForCausalLM'], 'model_type': 'qwen3',
      'vocab_size': cfg.vocab_size, 'num_hidden_layers': cfg.num_layers,
      'hidden_size': cfg.embed_dim, 'intermediate_size': cfg.mlp_dim,
      'num_attention_heads': cfg.num_heads,
      'num_key_value_heads': cfg.num_kv_heads, 'head_dim': cfg.head_dim,
      'rope_theta': cfg.rope_theta, 'rms_norm_eps': cfg.norm_eps,
      'tie_word_embeddings': cfg.tied_embedding, 'hidden_act': 'silu',
      'attention_bias': False, 'max_position_embeddings': 32768,
      'torch_dtype': dtype}
