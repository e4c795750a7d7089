"""config.json files as they stand on model hubs, shortened to what matters."""

import importlib
import json
import math
import pkgutil
import sys

import jax
import pytest

from exprl_jax.models import families, stored, transformer
from exprl_jax.models.config import parse_config, read_config
from exprl_jax.models.families import common
from exprl_jax.models.rope import Rope
from exprl_jax.runtime import registry
from exprl_jax.types import InputError

QWEN = {
    'attention_dropout': 0.0, 'bos_token_id': 151643, 'eos_token_id': 151645,
    'hidden_act': 'silu', 'initializer_range': 0.02,
    'max_position_embeddings': 32768, 'rms_norm_eps': 1e-6,
    'sliding_window': None, 'torch_dtype': 'bfloat16',
    'transformers_version': '4.51.0', 'use_cache': True,
    'use_sliding_window': False, 'vocab_size': 151936
}
QWEN3_4B = QWEN | {
    'architectures': ['Qwen3ForCausalLM'], 'attention_bias': False,
    'head_dim': 128, 'hidden_size': 2560, 'intermediate_size': 9728,
    'max_position_embeddings': 262144, 'max_window_layers': 36,
    'model_type': 'qwen3', 'num_attention_heads': 32, 'num_hidden_layers': 36,
    'num_key_value_heads': 8, 'rope_scaling': None, 'rope_theta': 5000000,
    'tie_word_embeddings': True
}
QWEN25_MATH = QWEN | {
    'architectures': ['Qwen2ForCausalLM'], 'hidden_size': 3584,
    'intermediate_size': 18944, 'max_window_layers': 28, 'model_type': 'qwen2',
    'num_attention_heads': 28, 'num_hidden_layers': 28,
    'num_key_value_heads': 4, 'rope_theta': 10000, 'sliding_window': 4096,
    'tie_word_embeddings': False, 'use_mrope': False, 'vocab_size': 152064
}
QWEN3_MOE = QWEN | {
    'architectures': ['Qwen3MoeForCausalLM'], 'attention_bias': False,
    'decoder_sparse_step': 1, 'head_dim': 128, 'hidden_size': 2048,
    'intermediate_size': 6144, 'max_window_layers': 48, 'mlp_only_layers': [],
    'model_type': 'qwen3_moe', 'moe_intermediate_size': 768,
    'norm_topk_prob': True, 'num_attention_heads': 32, 'num_experts': 128,
    'num_experts_per_tok': 8, 'num_hidden_layers': 48, 'num_key_value_heads': 4,
    'output_router_logits': False, 'qkv_bias': False, 'rope_scaling': None,
    'rope_theta': 10000000, 'router_aux_loss_coef': 0.001,
    'shared_expert_intermediate_size': 0, 'tie_word_embeddings': False,
    'use_qk_norm': True
}
LLAMA31 = {
    'architectures': ['LlamaForCausalLM'
                     ], 'attention_bias': False, 'attention_dropout': 0.0,
    'bos_token_id': 128000, 'eos_token_id': [128001, 128008, 128009],
    'hidden_act': 'silu', 'hidden_size': 4096, 'initializer_range': 0.02,
    'intermediate_size': 14336, 'max_position_embeddings': 131072,
    'mlp_bias': False, 'model_type': 'llama', 'num_attention_heads': 32,
    'num_hidden_layers': 32, 'num_key_value_heads': 8, 'pretraining_tp': 1,
    'rms_norm_eps': 1e-5, 'rope_scaling': {
        'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
        'original_max_position_embeddings': 8192, 'rope_type': 'llama3'
    }, 'rope_theta': 500000.0, 'tie_word_embeddings': False,
    'torch_dtype': 'bfloat16', 'use_cache': True, 'vocab_size': 128256
}
MISTRAL = {
    'architectures': ['MistralForCausalLM'], 'hidden_act': 'silu',
    'hidden_size': 4096, 'initializer_range': 0.02, 'intermediate_size': 14336,
    'max_position_embeddings': 32768, 'model_type': 'mistral',
    'num_attention_heads': 32, 'num_hidden_layers': 32,
    'num_key_value_heads': 8, 'rms_norm_eps': 1e-5, 'rope_theta': 10000.0,
    'sliding_window': 4096, 'tie_word_embeddings': False,
    'torch_dtype': 'bfloat16', 'use_cache': True, 'vocab_size': 32000
}
GEMMA2_9B = {
    'architectures': ['Gemma2ForCausalLM'], 'attention_bias': False,
    'attention_dropout': 0.0, 'attn_logit_softcapping': 50.0,
    'cache_implementation': 'hybrid', 'final_logit_softcapping': 30.0,
    'head_dim': 256, 'hidden_act': 'gelu_pytorch_tanh',
    'hidden_activation': 'gelu_pytorch_tanh', 'hidden_size': 3584,
    'intermediate_size': 14336, 'max_position_embeddings': 8192,
    'model_type': 'gemma2', 'num_attention_heads': 16, 'num_hidden_layers': 42,
    'num_key_value_heads': 8, 'query_pre_attn_scalar': 256,
    'rms_norm_eps': 1e-6, 'rope_theta': 10000.0, 'sliding_window': 4096,
    'sliding_window_size': 4096, 'vocab_size': 256000
}
GEMMA3_1B = {
    'architectures': ['Gemma3ForCausalLM'
                     ], 'attention_bias': False, 'attn_logit_softcapping': None,
    'cache_implementation': 'hybrid', 'final_logit_softcapping': None,
    'head_dim': 256, 'hidden_activation': 'gelu_pytorch_tanh',
    'hidden_size': 1152, 'intermediate_size': 6912,
    'max_position_embeddings': 32768, 'model_type': 'gemma3_text',
    'num_attention_heads': 4, 'num_hidden_layers': 26, 'num_key_value_heads': 1,
    'query_pre_attn_scalar': 256, 'rms_norm_eps': 1e-6,
    'rope_local_base_freq': 10000, 'rope_scaling': None, 'rope_theta': 1000000,
    'sliding_window': 512, 'sliding_window_pattern': 6, 'vocab_size': 262144
}


@pytest.mark.parametrize('raw, want', [
    (QWEN3_4B,
     dict(qk_norm=True, rope=Rope(5e6), windows=(), tied_embedding=True,
          qkv_bias=False)),
    (QWEN25_MATH, dict(qkv_bias=True, qk_norm=False, windows=(), head_dim=128)),
    (QWEN3_MOE,
     dict(num_experts=128, experts_per_token=8, mlp_dim=768, norm_topk=True,
          windows=())),
    (LLAMA31, dict(rope=Rope(5e5, 'llama3', 8.0, 1.0, 4.0, 8192),
                   head_dim=128)),
    (MISTRAL, dict(windows=(4096,) * 32)),
    (GEMMA2_9B,
     dict(windows=(4096, 0) * 21, attention_softcap=50.0, logit_softcap=30.0,
          attention_scale=1 / 16, activation='gelu_tanh', tied_embedding=True,
          embed_scaled=True)),
    (GEMMA3_1B,
     dict(windows=((512,) * 5 + (0,)) * 4 +
          (512,) * 2, rope=Rope(1e6), local_rope=Rope(1e4), qk_norm=True)),
], ids=lambda x: x.get('model_type', ''))
def test_hub_configs(raw, want):
  cfg = parse_config(dict(raw), 'config.json')
  assert cfg.family == raw['model_type']
  assert {k: getattr(cfg, k) for k in want} == want


YARN = {'rope_type': 'yarn', 'factor': 4.0}


@pytest.mark.parametrize('raw, message', [
    (QWEN3_4B | {'rope_scaling': YARN, 'rope_parameters': {'rope_theta': 1e6}},
     'both rope_parameters and rope_scaling'),
    (QWEN3_4B | {'rope_scaling': {'rope_type': 'yarn'}}, "'factor of rope_typ"),
    (LLAMA31 | {'rope_scaling': {'rope_type': 'llama3', 'factor': 8.0}},
     'low_freq_factor of rope_type llama3'),
    (QWEN3_4B | {
        'use_sliding_window': True, 'sliding_window': 8,
        'layer_types': ['full_attention']
    }, '1 entries for 36 layers'),
    ({k: v for k, v in QWEN3_4B.items() if k != 'max_window_layers'} |
     {'use_sliding_window': True, 'sliding_window': 8}, 'max_window_layers'),
    (GEMMA2_9B | {'sliding_window_size': 5}, 'sliding_window_size=5: only'),
    (GEMMA2_9B | {'hidden_activation': 'gelu'}, "hidden_activation='gelu'"),
    (QWEN3_4B | {'num_attention_heads': 'x'}, 'wrong type'),
])
def test_what_would_change_the_function_is_an_error(raw, message):
  with pytest.raises(InputError, match=message):
    parse_config(raw, 'config.json')


def test_yarn_takes_its_old_length_from_where_transformers_does():
  cfg = parse_config(QWEN3_4B | {'rope_scaling': YARN | {'truncate': True}}, '')
  assert cfg.rope == Rope(5e6, 'yarn', 4.0, original_length=262144)


def test_a_list_is_not_a_config(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps([1]))
  with pytest.raises(InputError, match='not a JSON object'):
    read_config(tmp_path)


HUB = [QWEN3_4B, QWEN25_MATH, QWEN3_MOE, LLAMA31, MISTRAL, GEMMA2_9B, GEMMA3_1B]


def test_families_are_what_the_files_of_the_package_declare():
  modules = [
      importlib.import_module(f'exprl_jax.models.families.{m.name}')
      for m in pkgutil.iter_modules(families.__path__)
  ]
  declared = [m.FAMILIES for m in modules if m is not common]
  assert families.FAMILIES == {k: v for d in declared for k, v in d.items()}
  assert set().union(*declared) == set(families.FAMILIES)
  assert sum(map(len, declared)) == len(families.FAMILIES)
  assert {raw['model_type'] for raw in HUB} == set(families.FAMILIES)


def collect_with(name, text, tmp_path, monkeypatch):
  """FAMILIES of the package with one more file, NAME.py."""
  (tmp_path / f'{name}.py').write_text(text)
  monkeypatch.setattr(families, '__path__', [*families.__path__, str(tmp_path)])
  try:
    return registry.collect(families.__name__, 'FAMILIES')
  finally:
    sys.modules.pop(f'{families.__name__}.{name}', None)


def test_a_new_file_is_a_new_family(tmp_path, monkeypatch):
  """Nothing else changes: its model_type is parsed, its tensors are named."""
  discovered = collect_with(
      'olmo', """
from exprl_jax.models.families import common, llama
FAMILIES = {'olmo': common.Family(
    llama.FAMILIES['llama'].parse,
    common.TENSORS | {'final_norm': 'transformer.ln_f.weight'})}
""", tmp_path, monkeypatch)
  assert set(discovered) == {*families.FAMILIES, 'olmo'}
  monkeypatch.setattr('exprl_jax.models.config.FAMILIES', discovered)
  monkeypatch.setattr('exprl_jax.models.stored.FAMILIES', discovered)
  cfg = parse_config(LLAMA31 | {'model_type': 'olmo'}, '')
  assert cfg.family == 'olmo'
  parts = stored.stored_parts(cfg, transformer.abstract_params(cfg))
  names = {p.key: p.names[0] for p in parts}
  assert names['final_norm'] == 'transformer.ln_f.weight'
  assert names['embedding'] == 'model.embed_tokens.weight'


def test_two_files_with_the_same_family_are_refused(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r"zephyr: FAMILIES has \['mistral'\]"):
    collect_with('zephyr', "FAMILIES = {'x': 1, 'mistral': 2}", tmp_path,
                 monkeypatch)


def test_a_file_without_families_adds_none(tmp_path, monkeypatch):
  assert collect_with('helpers', '', tmp_path, monkeypatch) == families.FAMILIES


@pytest.mark.parametrize('raw', HUB, ids=lambda raw: raw['model_type'])
def test_every_parameter_of_a_family_has_tensors_of_its_own(raw):
  cfg = parse_config(raw | {'num_hidden_layers': 2}, '')
  params = transformer.abstract_params(cfg)
  parts = list(stored.stored_parts(cfg, params))
  names = [name for part in parts for name in part.names]
  assert len(names) == len(set(names)) and not any('{' in n for n in names)
  in_layers = {(key, layer) for key in params['layers'] for layer in (0, 1)}
  at_top = {(key, None) for key in params if key != 'layers'}
  assert {(p.key, p.layer) for p in parts} == in_layers | at_top
  assert {p.key for p in parts} <= set(families.FAMILIES[cfg.family].tensors)
  assert all(
      ('layers.1.' in n) == (p.layer == 1) for p in parts for n in p.names)
  sizes = sum(len(p.names) * math.prod(p.stored_shape) for p in parts)
  assert sizes == sum(x.size for x in jax.tree.leaves(params))
