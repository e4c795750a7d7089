"""Eight CPU devices, strict rank promotion, and models small enough to test."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
# Each module compiles the same small operations again; see below.
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

import jax

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

from jaxtyping import install_import_hook

# Shapes and types are checked at run time where numbers change hands.
install_import_hook([
    'exprl_jax.judge.readouts', 'exprl_jax.judge.tree',
    'exprl_jax.models.attention', 'exprl_jax.models.head',
    'exprl_jax.models.head_kl', 'exprl_jax.models.paged',
    'exprl_jax.models.rope', 'exprl_jax.rl', 'exprl_jax.rewards',
    'exprl_jax.rollout.sampling'
], 'beartype.beartype')

import gc
import json
import shutil

import numpy as np
import pytest
import tokenizers

from exprl_jax import config as config_lib
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.models import config, hf, transformer
from exprl_jax.runtime import compilation
from exprl_jax.runtime import mesh as mesh_lib

POLICY = config_lib.resolve('asset:tiny_policy')
JUDGE = config_lib.resolve('asset:tiny_judge')

# Odd sizes on purpose: grouped heads, head_dim unequal embed_dim / heads.
SMALL_JSON = {
    'model_type': 'qwen3', 'vocab_size': 40, 'num_hidden_layers': 2,
    'hidden_size': 24, 'intermediate_size': 40, 'num_attention_heads': 4,
    'num_key_value_heads': 2, 'head_dim': 16, 'rope_theta': 1e4,
    'rms_norm_eps': 1e-6, 'tie_word_embeddings': False
}
SMALL = config.parse_config(dict(SMALL_JSON), 'SMALL_JSON')

# How Qwen2 and its heirs split text before they merge.
_SPLIT = (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r'|\s*[\r\n]+|\s+(?!\S)|\s+')
CHAT = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>"
        "assistant\n{% endif %}")


def make_bpe(folder, merges=(), eos='<|im_end|>', special=('<|im_start|>',)):
  """Writes a byte-level BPE tokenizer with a chat template; returns it."""
  merges = [tuple(m.split()) for m in merges]
  names = [
      *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
      *map(''.join, merges)
  ]
  model = tokenizers.Tokenizer(
      tokenizers.models.BPE(vocab={name: i for i, name in enumerate(names)},
                            merges=merges))
  model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
      tokenizers.pre_tokenizers.Split(tokenizers.Regex(_SPLIT), 'isolated'),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False,
                                          use_regex=False)
  ])
  model.decoder = tokenizers.decoders.ByteLevel()
  model.add_special_tokens([eos, *special])
  model.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(json.dumps({'eos_token': eos}))
  (folder / 'chat_template.jinja').write_text(CHAT)
  return Tokenizer(folder)


@pytest.fixture(scope='session', autouse=True)
def _cache_of_the_tests(tmp_path_factory):
  """Tests leave the user's cache alone; child processes inherit this.

  What one of pytest's processes has compiled, the others find.
  """
  os.environ['EXPRL_CACHE'] = str(tmp_path_factory.mktemp('cache'))
  base = tmp_path_factory.getbasetemp()
  shared = base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(shared / 'xla')
  compilation.use_cache(str(shared / 'xla'))


@pytest.fixture(scope='module', autouse=True)
def _forget_programs():
  """Compiled programs of a module's tests go when it is done.

  Each of them maps memory, and a process may have 65,530 maps: all tests
  together would need more, and XLA aborts then.
  """
  yield
  jax.clear_caches()
  gc.collect()


@pytest.fixture(scope='session')
def one_device():
  return mesh_lib.make_mesh(config_lib.Mesh(data=1, fsdp=1), jax.devices()[:1])


@pytest.fixture(scope='session')
def small(one_device):
  """(ModelConfig, parameters) of a random model."""
  del one_device
  return SMALL, transformer.init(SMALL, jax.random.key(0))


@pytest.fixture
def small_folder(small, tmp_path):
  """The small model as a Hugging Face directory, with a tokenizer."""
  base, folder = tmp_path / 'base', tmp_path / 'small'
  base.mkdir()
  (base / 'config.json').write_text(json.dumps(SMALL_JSON))
  for file in ('tokenizer.json', 'tokenizer_config.json'):
    shutil.copy(POLICY / file, base)
  hf.save(folder, *small, base)
  return folder


@pytest.fixture(scope='session')
def policy(one_device):
  """(ModelConfig, parameters, tokenizer) of the shipped policy."""
  return (*hf.load(POLICY, one_device), Tokenizer(POLICY))


@pytest.fixture
def rng():
  return np.random.default_rng(0)
