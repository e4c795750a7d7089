"""config.json files as they are published: tests/configs has some."""

import importlib
import json
import math
import pathlib
import pkgutil
import sys

import jax
import pytest

from exprl_jax.models import families, keys, stored, transformer
from exprl_jax.models.config import for_length, parse_config, read_config
from exprl_jax.models.families import common, gemma
from exprl_jax.models.rope import Rope
from exprl_jax.runtime import registry
from exprl_jax.types import InputError

FOLDER = pathlib.Path(__file__).parent / 'configs'
ALL = sorted(path.stem for path in FOLDER.glob('*.json'))
OTHER = ('Olmo-3.1-32B-Instruct', 'phi-4')  # families that are not implemented
PUBLISHED = [name for name in ALL if name not in OTHER]


def published(name):
  """The config.json of a published model."""
  return json.loads((FOLDER / f'{name}.json').read_text())


QWEN3_4B = published('Qwen3-4B-Instruct-2507')
LLAMA31 = published('Llama-3.1-8B-Instruct')
MISTRAL = published('Mistral-7B-v0.1')
GEMMA2_9B = published('gemma-2-9b')
GEMMA3_1B = published('gemma-3-1b-it')
GEMMA3_12B = published('gemma-3-12b-it')
SMOLLM3 = published('SmolLM3-3B')


@pytest.mark.parametrize('raw, want', [
    (QWEN3_4B,
     dict(qk_norm=True, rope=Rope(5e6), windows=(), tied_embedding=True,
          qkv_bias=False)),
    (published('Qwen2.5-7B-Instruct'),
     dict(qkv_bias=True, qk_norm=False, windows=(), head_dim=128)),
    (published('Qwen3-30B-A3B'),
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
    (SMOLLM3,
     dict(nope_layers=tuple(range(3, 36, 4)), windows=(), tied_embedding=True,
          rope=Rope(5e6))),
], ids=lambda x: x.get('model_type', ''))
def test_hub_configs(raw, want):
  cfg = parse_config(dict(raw), 'config.json')
  assert cfg.family == raw['model_type']
  assert {k: getattr(cfg, k) for k in want} == want


YARN = {'rope_type': 'yarn', 'factor': 4.0}
LONGROPE = {
    'type': 'longrope', 'short_factor': [1.0, 1.5], 'long_factor': [2.0, 3.0]
}


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
    (LLAMA31 | {'rope_interleaved': True},
     "rope_interleaved=True: only False .* 'llama', and the key changes"),
    (LLAMA31 | {'attention_bias': True}, 'attention_bias=True: only False'),
    (LLAMA31 | {'logit_scale': 0.0625}, 'logit_scale=0.0625: only 1.0'),
    (LLAMA31 | {'is_causal': False}, 'is_causal=False: only True'),
    (LLAMA31 | {'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5: '),
    (LLAMA31 | {'num_local_experts': 8}, 'num_local_experts=8: only 0'),
    (LLAMA31 | {'sliding_window': 4096}, 'sliding_window=4096: only None'),
    (QWEN3_4B | {'no_rope_layers': [1, 0] * 18}, 'no_rope_layers=.*only None'),
    (MISTRAL | {'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping=50.0'),
    (GEMMA2_9B | {'use_bidirectional_attention': True}, 'use_bidirectional_at'),
    (SMOLLM3 | {'no_rope_layers': [1, 0]}, '2 entries for 36 layers'),
    (LLAMA31 | {'rope_scaling': {'type': 'dynamic'}},
     'factor of rope_type dyn'),
    (LLAMA31 | {'rope_scaling': LONGROPE},
     'short_factor and long_factor need 64 numbers, half of head_dim'),
    (LLAMA31 | {
        'rope_scaling': {
            'type': 'yarn', 'factor': 2.0, 'partial_rotary_factor': 0.5
        }
    }, 'partial_rotary_factor=0.5'),
    (LLAMA31 | {'quantization_config': {'quant_method': 'awq'}},
     r'quantized \(awq\), .* name the model that they were made from'),
    (GEMMA3_12B | {'quantization': {'bits': 4}}, r'quantized \(quantization\)'),
    ({'model_type': 'gemma3'}, "'gemma3' without text_config"),
    (LLAMA31 | {'new_switch': 3, 'zero': 0},
     r"\['new_switch', 'zero'\] are unk"),
    ({k: v for k, v in QWEN3_4B.items() if k != 'max_window_layers'} |
     {'use_sliding_window': True, 'sliding_window': 8}, 'max_window_layers'),
    (GEMMA2_9B | {'sliding_window_size': 5}, 'sliding_window_size=5: only'),
    (GEMMA2_9B | {'hidden_activation': 'gelu'}, "hidden_activation='gelu'"),
    (QWEN3_4B | {'num_attention_heads': 'x'}, 'should be a number from 1'),
])
def test_what_would_change_the_function_is_an_error(raw, message):
  with pytest.raises(InputError, match=message):
    parse_config(raw, 'config.json')


def test_yarn_takes_its_old_length_from_where_transformers_does():
  cfg = parse_config(QWEN3_4B | {'rope_scaling': YARN | {'truncate': True}}, '')
  assert cfg.rope == Rope(5e6, 'yarn', 4.0, original_length=262144)


def test_without_rope_theta_it_is_10000_as_in_transformers():
  raw = {k: v for k, v in LLAMA31.items() if k != 'rope_theta'}
  for nothing in ({}, {'rope_theta': None}):
    cfg = parse_config(raw | {'rope_scaling': None} | nothing, '')
    assert cfg.rope == Rope(1e4)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_configs_load_untouched(name, caplog):
  """And without a warning: no key of them is unknown."""
  with caplog.at_level('WARNING', logger='absl'):
    cfg = parse_config(published(name), name)
  assert cfg.vocab_size and not caplog.records


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_configs_are_read_as_transformers_reads_them(name):
  """Sizes, windows and ropes, defaults included."""
  transformers = pytest.importorskip('transformers')
  raw = published(name)
  theirs = transformers.AutoConfig.for_model(**raw).get_text_config()
  cfg = parse_config(raw, name)
  for ours, key in (('vocab_size', 'vocab_size'), ('embed_dim', 'hidden_size'),
                    ('num_layers',
                     'num_hidden_layers'), ('num_heads', 'num_attention_heads'),
                    ('num_kv_heads', 'num_key_value_heads'),
                    ('norm_eps', 'rms_norm_eps'), ('tied_embedding',
                                                   'tie_word_embeddings')):
    assert getattr(cfg, ours) == getattr(theirs, key), key
  size = 'moe_intermediate_size' if cfg.num_experts else 'intermediate_size'
  assert cfg.mlp_dim == getattr(theirs, size)
  types = getattr(theirs, 'layer_types', None)
  if types:
    windows = [(theirs.sliding_window or 0) * (t[0] == 's') for t in types]
  else:
    windows = [getattr(theirs, 'sliding_window', 0) or 0] * cfg.num_layers
  assert list(cfg.windows or [0] * cfg.num_layers) == windows
  rope = theirs.rope_parameters
  if 'full_attention' in rope:
    assert cfg.local_rope.theta == rope['sliding_attention']['rope_theta']
    rope = rope['full_attention']
  assert cfg.rope.theta == rope['rope_theta']
  assert cfg.rope.kind == rope['rope_type']
  assert cfg.rope.factor == rope.get('factor', 1.0)


@pytest.mark.parametrize('name', OTHER)
def test_a_family_that_is_not_implemented_is_named(name):
  with pytest.raises(InputError, match='model_type .* is not implemented'):
    parse_config(published(name), name)


@pytest.mark.parametrize('name', PUBLISHED)
def test_transformers_writes_them_anew_as_the_same_models(name, tmp_path):
  """In its present spelling: rope_parameters, dtype, layer_types."""
  transformers = pytest.importorskip('transformers')
  raw = published(name)
  transformers.AutoConfig.for_model(**raw).save_pretrained(tmp_path)
  assert read_config(tmp_path) == parse_config(raw, name)


def test_models_md_lists_the_published_configs():
  """A row for each file: its family, whether it loads, and its rope."""
  text = (FOLDER.parent.parent / 'docs' / 'models.md').read_text()
  rows = {}
  for line in text.splitlines():
    cells = [cell.strip(' `') for cell in line.split('|')[1:-1]]
    if cells and cells[0] in ALL:
      rows[cells[0]] = cells[1:4]
  want = {}
  for name in ALL:
    family = published(name)['model_type']
    want[name] = [family, 'no', '–']
    if name in PUBLISHED:
      rope = parse_config(published(name), name).rope.kind
      want[name] = [family, 'yes', rope]
  assert rows == want


def test_ignored_keys_are_said_once(caplog):
  raw = LLAMA31 | {
      '_model_name_or_path': 'x.gguf', 'unk_token_id': 0, 'unsloth_fixed': True,
      'brand_new': None, 'other_new': False, 'third_new': []
  }
  with caplog.at_level('INFO', logger='absl'):
    for _ in range(2):
      assert parse_config(raw, 'said-once.json') == parse_config(LLAMA31, '')
  lines = {
      r.levelname: r.getMessage()
      for r in caplog.records
      if 'said-once' in r.getMessage()
  }
  assert len(lines) == 2 == sum(
      'said-once' in r.getMessage() for r in caplog.records)
  assert lines['WARNING'].endswith('brand_new, other_new, third_new')
  assert {'_model_name_or_path', 'unk_token_id',
          'unsloth_fixed'} <= set(lines['INFO'].replace(',', '').split())


def test_no_key_is_both_ignored_and_fixed():
  assert not [k for k in keys.FIXED if keys._INERT.fullmatch(k)]


def test_no_key_that_a_family_reads_is_ignored():
  """A family that forgot a key would lose it silently."""
  read = ('hidden_size num_attention_heads head_dim rope_theta rope_scaling '
          'rope_parameters layer_types sliding_window tie_word_embeddings '
          'hidden_act rms_norm_eps query_pre_attn_scalar num_experts_per_tok '
          '_sliding_window_pattern text_config vision_config')
  assert not [k for k in read.split() if keys._INERT.fullmatch(k)]


def test_the_text_part_of_gemma_3_has_transformers_defaults():
  transformers = pytest.importorskip('transformers')
  theirs = transformers.Gemma3TextConfig()
  assert {k: getattr(theirs, k) for k in gemma.GEMMA3_DEFAULTS
         } == gemma.GEMMA3_DEFAULTS
  # Written out by another library, the model is the same.
  full = parse_config(published('unsloth-gemma-3-12b-it'), '')
  assert parse_config(GEMMA3_12B, '') == full and full.rope.factor == 8.0


def test_a_rope_that_depends_on_the_length_is_fixed_by_the_first_to_say():
  raw = LLAMA31 | {'rope_scaling': {'type': 'dynamic', 'factor': 2.0}}
  cfg = parse_config(raw | {'max_position_embeddings': 64}, '')
  fixed = for_length(cfg, 64)
  assert fixed.max_tokens == 64 and for_length(fixed, 1000) == fixed
  with pytest.raises(InputError, match='up to max_position_embeddings=64'):
    for_length(cfg, 65)
  plain = parse_config(LLAMA31, '')
  assert for_length(plain, 10**6) is plain


def test_a_list_is_not_a_config(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps([1]))
  with pytest.raises(InputError, match='not a JSON object'):
    read_config(tmp_path)


HUB = [
    QWEN3_4B,
    published('Qwen2.5-7B-Instruct'),
    published('Qwen3-30B-A3B'), LLAMA31, MISTRAL, GEMMA2_9B, GEMMA3_1B, SMOLLM3
]


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
  cfg = parse_config(raw | {'num_hidden_layers': 2, 'layer_types': None}, '')
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
