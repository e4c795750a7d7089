"""KL(policy || teacher) over the whole vocabulary, in chunks, as head.py."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from exprl_jax.models import head as head_lib
from exprl_jax.models.config import ModelConfig
from exprl_jax.types import AnyArray, Params


def exact_kl(cfg: ModelConfig, params: Params, hidden: Float[Array, 'B T D'],
             teacher: Float[Array, 'B T D'], frozen: Params,
             segment_ids: Int[AnyArray, 'B T'], temperature: float, chunk: int,
             train_head: bool = True) -> Float[Array, 'B T']:
  """KL(policy || teacher) over the whole vocabulary, f32[B, T], in nats.

  sum_v p_v (log p_v - log q_v) of the distribution that each token was drawn
  from, aligned with the tokens as log-probabilities are.

  Args:
    cfg: both models' shape.
    params: of the policy.
    hidden: f32[B, T, D] of the policy.
    teacher: the same of the teacher; it gets no gradient.
    frozen: the teacher's parameters.
    segment_ids: i32[B, T].
    temperature: of both.
    chunk: columns per projection.
    train_head: see `logprobs_from_hidden`.
  """
  size = head_lib.chunks(hidden.shape[1], chunk)
  out = _exact_kl(
      cfg, temperature, train_head, head_lib.head_matrix(cfg, params),
      head_lib.split(hidden, *size),
      *jax.lax.stop_gradient(
          (head_lib.head_matrix(cfg, frozen), head_lib.split(teacher, *size))))
  return jnp.where(head_lib.continues_segment(segment_ids),
                   head_lib.join(out, hidden.shape[1]), 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _exact_kl(cfg: ModelConfig, temperature: float, train_head: bool,
              head: Array, hidden: Array, other: Array,
              teacher: Array) -> Array:
  """KL f32[n, B, width] of hidden states under `head` from those of another.
  """
  return _exact_kl_forward(cfg, temperature, train_head, head, hidden, other,
                           teacher)[0]


def _exact_kl_forward(cfg: ModelConfig, temperature: float, train_head: bool,
                      head: Array, hidden: Array, other: Array,
                      teacher: Array) -> tuple[Array, tuple[Array, ...]]:
  del train_head
  heads = head_lib.gathered(head), head_lib.gathered(other)

  def one(_: None, states: tuple[Array, Array]) -> tuple[None, Array]:
    p, q = (jax.nn.log_softmax(head_lib.logits_of(cfg, w, h) / temperature)
            for w, h in zip(heads, states))
    return None, jnp.sum(jnp.exp(p) * (p - q), axis=-1)

  _, kl = jax.lax.scan(one, None, (hidden, teacher))
  return kl, (head, hidden, other, teacher, kl)


def _exact_kl_backward(cfg: ModelConfig, temperature: float, train_head: bool,
                       saved: tuple[Array, ...],
                       gradient: Array) -> tuple[Array, Array, None, None]:
  """d KL / d z_v = p_v (log p_v - log q_v - KL)."""
  head, hidden, other, teacher, kl = saved
  whole = head_lib.gathered(other)

  def to_logits(logits: Array, teacher: Array, kl: Array,
                gradient: Array) -> Array:
    p = jax.nn.log_softmax(logits)
    q = jax.nn.log_softmax(
        head_lib.logits_of(cfg, whole, teacher) / temperature)
    return gradient * jnp.exp(p) * (p - q - kl)

  d_head, d_hidden = head_lib.project_backward(cfg, temperature, train_head,
                                               head, hidden, to_logits,
                                               (teacher, kl, gradient))
  return d_head, d_hidden, None, None


_exact_kl.defvjp(_exact_kl_forward, _exact_kl_backward)
