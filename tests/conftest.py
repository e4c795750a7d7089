"""Eight CPU devices, strict rank promotion, and models small enough to test."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

import numpy as np
import pytest

from exprl_jax import config as config_lib
from exprl_jax import mesh as mesh_lib
from exprl_jax.models import hf, transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.tokenizer import Tokenizer

POLICY = config_lib.resolve('asset:tiny_policy')
JUDGE = config_lib.resolve('asset:tiny_judge')

# Odd sizes on purpose: grouped heads, head_dim unequal embed_dim / heads.
SMALL = ModelConfig(
    vocab_size=40, num_layers=2, embed_dim=24, mlp_dim=40, num_heads=4,
    num_kv_heads=2, head_dim=16, rope_theta=1e4, norm_eps=1e-6,
    tied_embedding=False)


@pytest.fixture(scope='session')
def one_device():
  return mesh_lib.make_mesh(config_lib.Mesh(data=1, fsdp=1),
                            jax.devices()[:1])


@pytest.fixture(scope='session')
def small(one_device):
  """(ModelConfig, parameters) of a random model."""
  del one_device
  return SMALL, transformer.init(SMALL, jax.random.key(0))


@pytest.fixture(scope='session')
def policy(one_device):
  """(ModelConfig, parameters, tokenizer) of the shipped policy."""
  return (*hf.load(POLICY, one_device), Tokenizer(POLICY))


@pytest.fixture
def rng():
  return np.random.default_rng(0)
