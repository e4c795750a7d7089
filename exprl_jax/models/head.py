"""The LM head: logits, and log-probabilities without all logits at once.

The vocabulary is projected for a chunk of columns at a time, forward and again
backward, so that [B, T, V] never exists. The backward pass is written by hand:
a scan over chunks that adds up the head's gradient.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
from jax.experimental.layout import Layout, with_layout_constraint
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from exprl_jax.models import transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.models.matrices import dense
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import AnyArray, Params


def project(cfg: ModelConfig, params: Params,
            hidden: Float[Array, '*rows D']) -> Float[Array, '*rows V']:
  """Logits f32[..., V] of hidden states f32[..., D], computed in float32."""
  return logits_of(cfg, head_matrix(cfg, params), hidden)


def head_matrix(cfg: ModelConfig, params: Params) -> Float[Array, 'D V']:
  """The matrix [D, V] that projects to logits.

  It is in `cfg.dtype`, so that the parameters in float32 and their `cast` copy
  give the same.
  """
  out = params['embedding'].T if cfg.tied_embedding else params['head']
  if cfg.dtype == 'bfloat16' and out.dtype != jnp.bfloat16:
    # `logits_of` computes in float32: XLA would drop a pair of casts.
    out = jax.lax.reduce_precision(out.astype(jnp.float32), 8, 7)
  return out.astype(cfg.dtype)


def logits_of(cfg: ModelConfig, head: Float[Array, 'D V'],
              hidden: Float[Array, '*rows D']) -> Float[Array, '*rows V']:
  """Logits f32[..., V], by the `head`.

  With a bfloat16 head, Precision.HIGH (three bfloat16 passes on a TPU) is
  float32 but for the last bits.
  """
  out = dense(
      hidden, head, jax.lax.Precision.HIGH
      if cfg.dtype == 'bfloat16' else jax.lax.Precision.HIGHEST)
  if cfg.logit_softcap:
    out = cfg.logit_softcap * jnp.tanh(out / cfg.logit_softcap)
  return out


def token_logprobs(
    cfg: ModelConfig, params: Params, tokens: Int[AnyArray, 'B T'],
    segment_ids: Int[AnyArray, 'B T'] | Bool[AnyArray, 'B T'],
    temperature: float = 1.0,
    chunk: int = 512) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
  """Log-probability of every token given the ones before it, and entropy.

  The one place that shifts by one. The vocabulary is projected for `chunk`
  columns at a time, in float32, forward and again backward, so that [B, T, V]
  never exists.

  Args:
    cfg: the model.
    params: its parameters.
    tokens: i32[B, T].
    segment_ids: i32[B, T]: several sequences packed into a row have ids of
      their own, each in neighboring columns; 0 is padding. A row of one
      sequence may give bool: what is not padding.
    temperature: logits are divided by it, as the sampler does; nats.
    chunk: columns per projection.

  Returns:
    logprobs f32[B, T] and entropy f32[B, T] of the distribution that each
    token was drawn from; both 0 in the first column of a sequence and at
    padding.
  """
  segment_ids = segment_ids.astype(jnp.int32)
  return logprobs_from_hidden(cfg, params,
                              hidden_states(cfg, params, tokens, segment_ids),
                              tokens, segment_ids, temperature, chunk)


def logprobs_from_hidden(
    cfg: ModelConfig, params: Params, hidden: Float[Array, 'B T D'],
    tokens: Int[AnyArray,
                'B T'], segment_ids: Int[AnyArray,
                                         'B T'], temperature: float, chunk: int,
    train_head: bool = True) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
  """`token_logprobs` of hidden states f32[B, T, D].

  With train_head=False the vocabulary's matrix gets no gradient (adapters).
  """
  size = chunks(tokens.shape[1], chunk)
  logprobs, entropy = _read(cfg, temperature, train_head,
                            head_matrix(cfg, params), split(hidden, *size),
                            split(jnp.roll(tokens, -1, axis=1), *size))
  real = continues_segment(segment_ids)
  columns = tokens.shape[1]
  return (jnp.where(real, join(logprobs, columns),
                    0.0), jnp.where(real, join(entropy, columns), 0.0))


def hidden_states(cfg: ModelConfig, params: Params, tokens: Int[AnyArray,
                                                                'B T'],
                  segment_ids: Int[AnyArray, 'B T']) -> Float[Array, 'B T D']:
  """Hidden states f32[B, T, D] of packed rows; see `token_logprobs`."""
  same = segment_ids[:, 1:] == segment_ids[:, :-1]
  column = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  start = jax.lax.cummax(jnp.where(jnp.pad(same, ((0, 0), (1, 0))), 0, column),
                         axis=1)
  return transformer.forward(cfg, params, tokens, column - start,
                             segment_ids=segment_ids)


def continues_segment(segment_ids: Int[AnyArray, 'B T']) -> Bool[Array, 'B T']:
  """bool[B, T]: a token behind another one of the same sequence."""
  same = segment_ids[:, 1:] == segment_ids[:, :-1]
  return jnp.pad(same, ((0, 0), (1, 0))) & (segment_ids > 0)


def chunks(columns: int, chunk: int) -> tuple[int, int]:
  """Into how many chunks columns are divided, and how wide they are."""
  n = max(-(-columns // chunk), 1)
  return n, max(-(-columns // n), 1)


def split(x: AnyArray, n: int, width: int) -> Array:
  """[B, T, ...] -> [n, B, width, ...]; a view where n * width = T."""
  pad = n * width - x.shape[1]
  x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
  return x.reshape(len(x), n, width, *x.shape[2:]).swapaxes(0, 1)


def join(x: Array, columns: int) -> Array:
  """[n, B, width] -> [B, T], a column later: 0 in the first one."""
  x = x.swapaxes(0, 1).reshape(x.shape[1], -1)[:, :columns - 1]
  return jnp.pad(x, ((0, 0), (1, 0)))


def gathered(head: Array) -> Array:
  """Whole but for the vocabulary, once: not for every chunk in the loop."""
  return mesh_lib.constrain(head, None, 'vocab')


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _read(cfg: ModelConfig, temperature: float, train_head: bool, head: Array,
          hidden: Array, targets: Array) -> tuple[Array, Array]:
  """Log-probability of the targets, and entropy: f32[n, B, width] each."""
  return _read_forward(cfg, temperature, train_head, head, hidden, targets)[0]


def _read_forward(
    cfg: ModelConfig, temperature: float, train_head: bool, head: Array,
    hidden: Array,
    targets: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
  del train_head
  whole = gathered(head)

  def one(
      _: None, inputs: tuple[Array,
                             Array]) -> tuple[None, tuple[Array, Array, Array]]:
    h, target = inputs
    logits = logits_of(cfg, whole, h) / temperature
    lse = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    expected = jnp.sum(jnp.exp(logits - lse[..., None]) * logits, axis=-1)
    return None, (picked - lse, lse - expected, lse)

  _, (logprobs, entropy, lse) = jax.lax.scan(one, None, (hidden, targets))
  return (logprobs, entropy), (head, hidden, targets, entropy, lse)


def _read_backward(cfg: ModelConfig, temperature: float, train_head: bool,
                   saved: tuple[Array, ...],
                   gradients: tuple[Array, Array]) -> tuple[Array, Array, None]:
  """With p the probabilities and H the entropy, of a logit z_v:

  d log p_y / d z_v = [v = y] - p_v,  d H / d z_v = -p_v (log p_v + H).
  """
  head, hidden, targets, entropy, lse = saved

  def to_logits(logits: Array, target: Array, entropy: Array, lse: Array,
                to_logprob: Array, to_entropy: Array) -> Array:
    logp = logits - lse
    hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == target
    d = jnp.exp(logp) * -(to_logprob + to_entropy * (logp + entropy))
    return d + jnp.where(hit, to_logprob, 0.0)

  d_head, d_hidden = project_backward(cfg, temperature, train_head, head,
                                      hidden, to_logits,
                                      (targets, entropy, lse, *gradients))
  return d_head, d_hidden, None


def project_backward(cfg: ModelConfig, temperature: float, train_head: bool,
                     head: Array, hidden: Array, to_logits: Callable[...,
                                                                     Array],
                     inputs: tuple[Array, ...]) -> tuple[Array, Array]:
  """Gradients of the head and of hidden states f32[n, B, width, D].

  Args:
    cfg: the model.
    temperature: that logits are divided by.
    train_head: False: its gradient is not wanted, and 0.
    head: [D, V].
    hidden: in chunks.
    to_logits: (logits / temperature, *inputs of a chunk) -> their gradient.
    inputs: [n, B, width], or [n, B, width, D].
  """
  whole, axes = gathered(head), _row_axes(hidden.shape[1])
  parts = math.prod(axes.values())
  # As the layers' products: in bfloat16 where the model is.
  precision = None if cfg.dtype == 'bfloat16' else jax.lax.Precision.HIGHEST

  def last(
      x: Array) -> Array:  # [B, width] or [B, width, D] beside [B, width, V]
    return x if x.ndim == hidden.ndim - 1 else x[..., None]

  def flat(x: Array) -> Array:  # [B, width, ...] -> [parts, rows, ...]
    return x.reshape(parts, -1, x.shape[-1])

  def one(total: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
    h, *rest = inputs
    # 1. The logits of a chunk once more, and the gradient of the loss by them.
    logits = logits_of(cfg, whole, h)
    d = to_logits(logits / temperature, *map(last, rest)) / temperature
    if cfg.logit_softcap:
      d *= 1.0 - (logits / cfg.logit_softcap)**2
    # 2. The head's gradient, summed over chunks.
    if train_head:
      total += jnp.einsum('ptd,ptv->pdv', flat(h), flat(d), precision=precision)
      total = mesh_lib.constrain(total, 'batch', None, 'vocab')
    # 3. The gradient of the hidden states of the chunk.
    d = d.reshape(-1, d.shape[-1])
    return total, jax.lax.dot(d, whole.T, precision=precision).reshape(h.shape)

  # Each device adds up its own rows. Were the total split as the parameter is,
  # all of it would go over the network for every chunk.
  zero = (parts, *head.shape) if train_head else ()
  d_head, d_hidden = jax.lax.scan(one, jnp.zeros(zero, jnp.float32),
                                  (hidden, *inputs))
  if not train_head:
    return jnp.zeros_like(head), d_hidden
  d_head = _sum_of_parts(d_head, tuple(axes)).astype(head.dtype)
  # The sum is taken before the layers' gradients. Else it is fused with the
  # embedding's, and the whole matrix is there until the layers' are done.
  return jax.lax.optimization_barrier((d_head, d_hidden))


def _row_axes(rows: int) -> dict[str, int]:
  """The axes of the mesh in context that split rows, and their sizes."""
  mesh: Any = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return {}
  return {a: mesh.shape[a] for a in mesh_lib.split_axes('batch', rows, mesh)}


def _sum_of_parts(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """[parts, D, V] over mesh axes -> their sum [D, V], split as parameters are.
  """
  if not axes:
    return x[0]
  mesh: Any = jax.sharding.get_abstract_mesh()
  scattered = tuple(
      a for a in mesh_lib.split_axes('embed', x.shape[1], mesh) if a in axes)
  rest = tuple(a for a in axes if a not in scattered)
  # Row by row: XLA would make a transposed copy of the whole matrix first, as
  # the embedding's gradient is laid out.
  rows = Layout(major_to_minor=(0, 1))

  def add(x: Array) -> Array:
    x = jax.lax.psum(x[0], rest) if rest else x[0]
    x = with_layout_constraint(x, rows)
    x = jax.lax.psum_scatter(x, scattered, tiled=True) if scattered else x
    return with_layout_constraint(x, rows)

  return jax.shard_map(add, in_specs=jax.P(axes), out_specs=jax.P(scattered
                                                                  or None),
                       axis_names=set(axes), check_vma=False)(x)


_read.defvjp(_read_forward, _read_backward)
