"""What programs take beside arguments and results, without compiling them.

Each formula was fitted to compiled programs of Qwen3-4B and 8B on v5e and v6e
(docs/tpu.md); run='plan' compiles, and prints the true sizes.
"""

import jax

from exprl_jax.config import Config
from exprl_jax.models.config import ModelConfig
from exprl_jax.rl import packing
from exprl_jax.runtime import mesh as mesh_lib


def gradient(config: Config, model: ModelConfig,
             mesh: jax.sharding.Mesh) -> float:
  """Bytes on each device of the gradient's program.

  The inputs of all layers (or more, by `remat`) and the larger of one layer's
  backward pass and the vocabulary's.
  """
  tokens, size = _tokens(config, mesh), _size(model)
  tensor = mesh.shape['tensor']
  saved = model.num_layers * tokens * _saved(model, config.policy.remat, tensor)
  mlp, heads = _widths(model, tensor)
  layer = tokens * size * (6 * mlp + 4 * heads + 4 * model.embed_dim)
  rows = config.optim.micro_rows
  vocabulary = -(-model.vocab_size // tensor)
  head = 4 * vocabulary * (3 * config.loss.logprob_chunk * rows +
                           1.5 * model.embed_dim)
  return saved + max(layer, head)


def logprobs(config: Config, model: ModelConfig,
             mesh: jax.sharding.Mesh) -> float:
  """Bytes on each device of a forward pass with log-probabilities."""
  mlp, heads = _widths(model, mesh.shape['tensor'])
  return _tokens(
      config, mesh) * _size(model) * (2 * mlp + 2 * heads + 4 * model.embed_dim)


def copy(model: ModelConfig, mesh: jax.sharding.Mesh) -> float:
  """Bytes on each device while parameters change their sharding: one layer of
  each kind, and the vocabulary's matrix."""
  if mesh.size == 1:
    return 0.0
  width = model.vocab_size + 3 * model.mlp_dim * max(1, model.num_experts)
  return 1.3 * _size(model) * model.embed_dim * width


def _tokens(config: Config, mesh: jax.sharding.Mesh) -> float:
  """Of a micro-batch, on each device."""
  cells = packing.micro_rows(config, mesh) * packing.row_tokens(config)
  return cells / mesh_lib.batch_parts(mesh)


def _size(model: ModelConfig) -> int:
  """Bytes of a number in activations."""
  return 2 if model.dtype == 'bfloat16' else 4


def _widths(model: ModelConfig, tensor: int) -> tuple[float, float]:
  """Numbers of a token on each device: in the MLP, in all queries."""
  experts = max(1, model.experts_per_token)
  return (experts * model.mlp_dim / tensor,
          model.num_heads * model.head_dim / tensor)


def _saved(model: ModelConfig, remat: str, tensor: int) -> float:
  """Bytes of a token that each layer keeps for the backward pass."""
  mlp, heads = _widths(model, tensor)
  kv = model.num_kv_heads * model.head_dim / tensor
  dots = 2 * model.embed_dim + 2 * heads + 2 * kv + 3 * mlp
  return _size(model) * {
      'full': model.embed_dim,
      'offload': 0.5 * model.embed_dim,  # on their way
      'save_attention': model.embed_dim + heads,
      'dots': dots,
      'none': 3.4 * dots
  }[remat]
