"""Ropes against transformers: sin and cos, and log-probabilities of a model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='pip install -e ".[test]"')
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from exprl_jax import config as config_lib
from exprl_jax.models import hf, references
from exprl_jax.models.config import for_length, parse_config
from exprl_jax.models.rope import KINDS, frequencies
from exprl_jax.rollout import engine
from exprl_jax.rollout.requests import Request, Sampling
from exprl_jax.types import InputError
from tests.test_models import logits

ORIGINAL, LONGEST = 16, 64  # tokens of training, and of the stretched model
SIZES = dict(vocab_size=97, num_hidden_layers=2, hidden_size=48,
             intermediate_size=56, num_attention_heads=4, num_key_value_heads=2,
             head_dim=16, max_position_embeddings=LONGEST, rope_theta=1e4,
             model_type='llama', rms_norm_eps=1e-6)
_STRETCHED = dict(factor=4.0, original_max_position_embeddings=ORIGINAL)
_FACTORS = dict(short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
                long_factor=[1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0])
ROPES = {
    'linear': dict(rope_type='linear', factor=2.0),
    'llama3': dict(rope_type='llama3', low_freq_factor=1.0,
                   high_freq_factor=4.0, **_STRETCHED),
    'yarn': dict(rope_type='yarn', **_STRETCHED),
    'yarn, mscale': dict(rope_type='yarn', mscale=0.7, mscale_all_dim=1.1,
                         **_STRETCHED),
    'yarn, one mscale': dict(rope_type='yarn', mscale=0.7, **_STRETCHED),
    'yarn, not truncated': dict(rope_type='yarn', truncate=False, beta_fast=9.0,
                                beta_slow=2.0, **_STRETCHED),
    'yarn, attention factor': dict(rope_type='yarn', attention_factor=1.3,
                                   **_STRETCHED),
    'yarn, factor from the lengths': dict(
        rope_type='yarn', factor=None,
        original_max_position_embeddings=ORIGINAL),
    'longrope': dict(rope_type='longrope', **_FACTORS, **_STRETCHED),
    'longrope, factor from the lengths': dict(
        rope_type='longrope', original_max_position_embeddings=ORIGINAL,
        **_FACTORS),
    'longrope, attention factor': dict(rope_type='longrope',
                                       attention_factor=1.2, **_FACTORS,
                                       **_STRETCHED),
    'dynamic': dict(rope_type='dynamic', factor=3.0),
}


def both_configs(rope):
  raw = SIZES | {'rope_scaling': rope}
  theirs = transformers.LlamaConfig(
      **{k: v for k, v in raw.items() if k != 'model_type'}, pad_token_id=0)
  return parse_config(raw, 'config.json'), theirs


def test_every_kind_has_a_case():
  assert {r['rope_type'] for r in ROPES.values()} | {'default'} == set(KINDS)


@pytest.mark.parametrize('tokens', [ORIGINAL - 1, ORIGINAL + 1, LONGEST])
@pytest.mark.parametrize('name', ROPES)
def test_sin_and_cos(name, tokens):
  cfg, theirs = both_configs(ROPES[name])
  inverse, factor = ROPE_INIT_FUNCTIONS[ROPES[name]['rope_type']](
      theirs, 'cpu', seq_len=tokens)
  got, got_factor = frequencies(cfg.rope, cfg.head_dim, tokens)
  assert got_factor == pytest.approx(factor, rel=1e-6)
  np.testing.assert_allclose(got, inverse.numpy(), rtol=1e-6)
  angles = np.arange(tokens)[:, None] * inverse.numpy()
  mine = np.arange(tokens)[:, None] * got
  for f in (np.sin, np.cos):
    np.testing.assert_allclose(got_factor * f(mine), factor * f(angles),
                               atol=2e-5)


@pytest.fixture(scope='module', params=ROPES)
def model(request, tmp_path_factory, one_device):
  """(a model of transformers, ours as it is read from its files)."""
  _, config = both_configs(ROPES[request.param])
  torch.manual_seed(0)
  theirs = transformers.LlamaForCausalLM(config).eval()
  with torch.no_grad():
    for p in theirs.parameters():
      p.copy_(torch.randn(p.shape) * (1.0 if p.ndim == 1 else p.shape[-1]**-.5))
  folder = tmp_path_factory.mktemp('model')
  theirs.save_pretrained(folder)
  return theirs, *hf.load(folder, one_device)


@pytest.mark.parametrize('tokens', [ORIGINAL - 1, ORIGINAL + 4])
def test_log_probabilities(model, rng, tokens):
  """On both sides of the original length."""
  theirs, cfg, params = model
  ids = rng.integers(0, 97, (2, tokens))
  with torch.no_grad():
    want = torch.log_softmax(theirs(torch.tensor(ids)).logits, -1).numpy()
  got = jax.nn.log_softmax(
      logits(for_length(cfg, tokens), params, jnp.asarray(ids)))
  assert want.std() > 0.3
  np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize('model', ['longrope'], indirect=True)
def test_samples_and_training_agree_on_the_length(model, rng, one_device):
  """A short sample of a run that allows long ones has the long rope."""
  _, cfg, params = model
  cfg = for_length(cfg, LONGEST)
  rollout = engine.Engine(
      cfg, one_device,
      engine.Options(slots=2, max_tokens=LONGEST, page=8, prefill=8))
  prompt = rng.integers(0, 97, 5)
  (sample,) = rollout.generate(params, [Request(prompt, 0, 1, Sampling(20))],
                               jax.random.key(0))
  ids = np.concatenate([prompt, sample.tokens])[None]
  scores = jax.nn.log_softmax(logits(cfg, params, jnp.asarray(ids)))[0]
  want = scores[np.arange(4, 24), sample.tokens]
  np.testing.assert_allclose(sample.logprobs, want, atol=1e-4)


def test_a_run_without_a_length_is_refused():
  cfg, _ = both_configs(ROPES['longrope'])
  small = dataclasses.replace(cfg, vocab_size=8)
  with pytest.raises(InputError, match="'longrope' depends on the longest"):
    logits(small, {'layers': {}, 'embedding': jnp.zeros((8, 48))},
           jnp.zeros((1, 2), jnp.int32))


def test_the_engine_refuses_what_a_rope_cannot(one_device):
  cfg, _ = both_configs(ROPES['dynamic'])
  options = engine.Options(slots=2, max_tokens=LONGEST + 1, page=8, prefill=8)
  with pytest.raises(InputError, match='lower the token budgets of the run'):
    engine.Engine(cfg, one_device, options)


def test_a_policy_is_refused_before_its_weights_are_read(tmp_path, one_device):
  """The folder has none."""
  raw = SIZES | {'rope_scaling': ROPES['dynamic']}
  (tmp_path / 'config.json').write_text(json.dumps(raw))
  default = config_lib.Config()
  config = dataclasses.replace(
      default, policy=dataclasses.replace(default.policy, init=str(tmp_path)),
      rollout=dataclasses.replace(default.rollout, max_prompt_tokens=40,
                                  max_new_tokens=25))
  with pytest.raises(InputError, match='=64 tokens, not 65'):
    references.policy(config, one_device)
