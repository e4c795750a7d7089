"""Floating-point operations of a model, as they are counted for MFU.

A multiplication and an addition are two. Counted are the matrix products of
layers and head, and attention's two products over what a token can see; not
norms, rotations, the embedding's look-up, nor what a backward pass computes
again (arXiv 2204.02311, appendix B).
"""

from collections.abc import Iterable

from exprl_jax.models.config import ModelConfig


def matmul_params(cfg: ModelConfig) -> int:
  """Counts the matrix entries that each token is multiplied with.

  The head counts, also if it is the embedding; the look-up in the embedding
  does not. Of a mixture of experts, the router and the chosen experts count.
  """
  attention = cfg.head_dim * (2 * cfg.num_heads + 2 * cfg.num_kv_heads)
  mlp = 3 * cfg.mlp_dim
  if cfg.num_experts:
    mlp = cfg.experts_per_token * mlp + cfg.num_experts
  return cfg.embed_dim * (cfg.num_layers * (attention + mlp) + cfg.vocab_size)


def forward_flops(cfg: ModelConfig, lengths: Iterable[int]) -> float:
  """Operations of a forward pass over sequences of these lengths."""
  lengths = [int(n) for n in lengths]
  pairs = sum(
      _pairs(n, w) for n in lengths for w in cfg.windows) if cfg.windows else (
          cfg.num_layers * sum(_pairs(n, 0) for n in lengths))
  return (2.0 * matmul_params(cfg) * sum(lengths) +
          4.0 * cfg.num_heads * cfg.head_dim * pairs)


def train_flops(cfg: ModelConfig, lengths: Iterable[int],
                frozen: bool = False) -> float:
  """Operations of a forward and a backward pass: 6 P tokens, and attention.

  Args:
    cfg: the model.
    lengths: of the sequences, in tokens.
    frozen: the matrices have no gradient (adapters train; theirs, which are
      small, are not counted): 4 P tokens.
  """
  lengths = list(lengths)
  total = 3.0 * forward_flops(cfg, lengths)
  if frozen:
    total -= 2.0 * matmul_params(cfg) * sum(lengths)
  return total


def _pairs(length: int, window: int) -> float:
  """Query-key pairs of a sequence under a causal mask, half of length**2.

  Args:
    length: tokens.
    window: tokens that a token looks back; 0: all.
  """
  if not window or length <= window:
    return length**2 / 2
  return window * length - window**2 / 2
