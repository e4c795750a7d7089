"""Every family against `transformers` (torch, CPU, float32), random weights.

docs/models.md has the table of differences that this test prints with -s.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='pip install -e ".[test]"')
import transformers

from exprl_jax.models import head, hf, transformer
from exprl_jax.rollout import engine
from exprl_jax.rollout.requests import Request, Sampling
from tests.test_models import logits

# Odd sizes: grouped heads, head_dim unequal hidden_size / heads.
SIZES = dict(vocab_size=97, num_hidden_layers=3, hidden_size=48,
             intermediate_size=56, num_attention_heads=4, num_key_value_heads=2,
             head_dim=20)
QWEN2_SIZES = {k: v for k, v in SIZES.items() if k != 'head_dim'}
T = 24  # tokens; windows are shorter, and stretched ropes started at 16

FAMILIES = {
    'qwen3': ('Qwen3Config', SIZES),
    'qwen3, tied, window, yarn': ('Qwen3Config', SIZES | dict(
        tie_word_embeddings=True, use_sliding_window=True, sliding_window=5,
        max_window_layers=1, rope_scaling=dict(
            rope_type='yarn', factor=4.0, rope_theta=1e6,
            original_max_position_embeddings=16))),
    'qwen2, tied, window': ('Qwen2Config', QWEN2_SIZES | dict(
        tie_word_embeddings=True, use_sliding_window=True, sliding_window=7,
        max_window_layers=2)),
    'llama 3, scaled rope': ('LlamaConfig', SIZES | dict(rope_scaling=dict(
        rope_type='llama3', factor=8.0, low_freq_factor=1.0,
        high_freq_factor=4.0, original_max_position_embeddings=16))),
    'llama, linear rope, tied': ('LlamaConfig', SIZES | dict(
        tie_word_embeddings=True, rope_scaling=dict(rope_type='linear',
                                                    factor=2.0))),
    'llama, yarn by mscale': ('LlamaConfig', SIZES | dict(rope_scaling=dict(
        rope_type='yarn', factor=4.0, original_max_position_embeddings=16,
        mscale=0.7, mscale_all_dim=1.2, truncate=False))),
    'smollm3': ('SmolLM3Config', QWEN2_SIZES | dict(
        num_hidden_layers=5, use_sliding_window=True, sliding_window=5)),
    'mistral, window': ('MistralConfig', SIZES | dict(sliding_window=5)),
    'gemma 2': ('Gemma2Config', SIZES |
                dict(sliding_window=5, query_pre_attn_scalar=24,
                     attn_logit_softcapping=2.0, final_logit_softcapping=3.0)),
    'gemma 3': ('Gemma3TextConfig', SIZES | dict(
        num_hidden_layers=7, sliding_window=5, query_pre_attn_scalar=24,
        rope_parameters=dict(
            full_attention=dict(rope_type='linear', factor=8.0, rope_theta=1e6),
            sliding_attention=dict(rope_type='default', rope_theta=1e4)))),
    'qwen3 moe': ('Qwen3MoeConfig',
                  SIZES | dict(num_experts=6, num_experts_per_tok=3,
                               moe_intermediate_size=24, norm_topk_prob=True)),
}


@pytest.fixture(scope='module', params=FAMILIES)
def both(request, tmp_path_factory, one_device):
  """(family, their model, folder, our config, our parameters)."""
  name, sizes = FAMILIES[request.param]
  theirs = transformers.AutoModelForCausalLM.from_config(
      getattr(transformers, name)(**sizes, eos_token_id=None, pad_token_id=0,
                                  bos_token_id=None)).eval()
  torch.manual_seed(0)
  with torch.no_grad():
    for path, p in theirs.named_parameters():
      spread = 0.3 if p.ndim == 1 else p.shape[-1]**-0.5
      offset = p.mean() if 'norm' in path else 0.0  # 0 or 1
      p.copy_(offset + spread * torch.randn(p.shape))
  folder = tmp_path_factory.mktemp('model')
  theirs.save_pretrained(folder, max_shard_size='20KB')
  assert len(list(folder.glob('*.safetensors'))) > 3
  return (request.param, theirs, folder, *hf.load(folder, one_device))


def test_logits(both, rng):
  family, theirs, _, cfg, params = both
  ids = rng.integers(0, 97, (2, T))
  with torch.no_grad():
    want = theirs(torch.tensor(ids)).logits.numpy()
  difference = np.abs(logits(cfg, params, jnp.asarray(ids)) - want).max()
  print(f'\n{family}: {difference:.1e} of {want.std():.2f}')
  assert want.std() > 0.3
  assert difference <= 1e-4


def test_padding_and_packing(both, rng):
  """Segments of different lengths in one row are what they are alone."""
  _, theirs, _, cfg, params = both
  parts = [rng.integers(0, 97, n) for n in (T, 9, 1)]
  tokens = np.concatenate([*parts, np.zeros(4, int)])
  positions = np.concatenate([*(np.arange(len(p)) for p in parts), np.zeros(4)])
  segments = np.repeat([1, 2, 3, 0], [len(p) for p in parts] + [4])
  hidden = jax.jit(transformer.forward,
                   static_argnums=0)(cfg, params, tokens[None],
                                     positions[None].astype(np.int32),
                                     segment_ids=jnp.asarray(segments)[None])
  got = np.asarray(head.project(cfg, params, hidden))[0]
  for i, part in enumerate(parts):
    with torch.no_grad():
      want = theirs(torch.tensor(part)[None]).logits.numpy()[0]
    assert np.abs(got[segments == i + 1] - want).max() <= 1e-4


def test_the_same_greedy_tokens(both, rng, one_device):
  _, theirs, _, cfg, params = both
  prompt = rng.integers(0, 97, 6)
  want = theirs.generate(
      torch.tensor(prompt)[None], do_sample=False, max_new_tokens=32,
      attention_mask=torch.ones(1, 6, dtype=torch.int64))[0, 6:].tolist()
  ours = engine.Engine(
      cfg, one_device, engine.Options(slots=2, max_tokens=38, page=8,
                                      prefill=8))
  (sample,) = ours.generate(
      params, [Request(prompt, 0, 1, Sampling(32, temperature=0.0))],
      jax.random.key(0))
  assert sample.tokens.tolist() == want
  assert len(set(want)) > 1


def test_export_is_bit_equal_for_transformers(both, tmp_path):
  _, theirs, folder, cfg, params = both
  hf.save(tmp_path, cfg, params, folder, max_bytes=20_000)
  again, info = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path, output_loading_info=True)
  assert not any(info.values()), info
  want = theirs.state_dict()
  assert want.keys() == again.state_dict().keys()
  for name, value in again.state_dict().items():
    assert torch.equal(value, want[name]), name


def test_bfloat16_export_is_rounded_once(both, tmp_path):
  _, theirs, folder, cfg, params = both
  hf.save(tmp_path, cfg, params, folder, dtype='bfloat16')
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
  assert again.dtype == torch.bfloat16
  for name, value in again.state_dict().items():
    assert torch.equal(value, theirs.state_dict()[name].to(value.dtype)), name


def test_the_text_part_of_a_multimodal_model(one_device, rng, tmp_path):
  """It is loaded from among the other tensors, and exported without them."""
  torch.manual_seed(0)
  config = transformers.Gemma3Config(
      text_config=transformers.Gemma3TextConfig(
          **SIZES | dict(num_hidden_layers=7, sliding_window=5), pad_token_id=0,
          query_pre_attn_scalar=24),
      mm_tokens_per_image=4, vision_config=transformers.SiglipVisionConfig(
          hidden_size=32, intermediate_size=32, num_hidden_layers=1,
          num_attention_heads=2, image_size=28, patch_size=14))
  theirs = transformers.Gemma3ForConditionalGeneration(config).eval()
  theirs.save_pretrained(tmp_path / 'multimodal')
  cfg, params = hf.load(tmp_path / 'multimodal', one_device)
  hf.save(tmp_path / 'text', cfg, params, tmp_path / 'multimodal')
  exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path /
                                                               'text')
  assert exported.config.model_type == 'gemma3_text'
  ids = rng.integers(0, 97, (2, T))
  with torch.no_grad():
    want, again = (
        m(torch.tensor(ids)).logits.numpy() for m in (theirs, exported))
  assert want.std() > 0.1
  np.testing.assert_allclose(logits(cfg, params, jnp.asarray(ids)), want,
                             atol=1e-4)
  np.testing.assert_allclose(again, want, atol=1e-5)
