"""The LM head: logits, and log-probabilities without all logits at once.

The vocabulary is projected for a chunk of columns at a time, forward and again
backward, so that [B, T, V] never exists. The backward pass is written by hand:
a scan over chunks that adds up the head's gradient.
"""

import functools
import math

import jax
from jax.experimental.layout import Layout, with_layout_constraint
import jax.numpy as jnp

from exprl_jax.models import transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.models.matrices import dense
from exprl_jax.runtime import mesh as mesh_lib


def project(cfg: ModelConfig, params, hidden: jax.Array) -> jax.Array:
  """Logits f32[..., V] of hidden states f32[..., D], computed in float32."""
  return logits_of(cfg, head_matrix(cfg, params), hidden)


def head_matrix(cfg: ModelConfig, params) -> jax.Array:
  """The matrix [D, V] that projects to logits.

  It is in `cfg.dtype`, so that the parameters in float32 and their `cast` copy
  give the same.
  """
  out = params['embedding'].T if cfg.tied_embedding else params['head']
  if cfg.dtype == 'bfloat16':
    # `logits_of` computes in float32: XLA would drop a pair of casts.
    out = jax.lax.reduce_precision(out.astype(jnp.float32), 8, 7)
  return out.astype(cfg.dtype)


def logits_of(cfg: ModelConfig, head: jax.Array,
              hidden: jax.Array) -> jax.Array:
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


def token_logprobs(cfg: ModelConfig, params, tokens: jax.Array,
                   segment_ids: jax.Array, temperature: float = 1.0,
                   chunk: int = 512) -> tuple[jax.Array, jax.Array]:
  """Log-probability of every token given the ones before it, and entropy.

  The one place that shifts by one. The vocabulary is projected for `chunk`
  columns at a time, in float32, forward and again backward, so that [B, T, V]
  never exists.

  Args:
    cfg: the model.
    params: its parameters.
    tokens: i32[B, T].
    segment_ids: i32[B, T]: several sequences packed into a row have ids of
      their own, each in neighbouring columns; 0 is padding. A row of one
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
    cfg: ModelConfig, params, hidden: jax.Array, tokens: jax.Array,
    segment_ids: jax.Array, temperature: float, chunk: int,
    train_head: bool = True) -> tuple[jax.Array, jax.Array]:
  """`token_logprobs` of hidden states f32[B, T, D].

  With train_head=False the vocabulary's matrix gets no gradient (adapters).
  """
  size = _chunks(tokens.shape[1], chunk)
  logprobs, entropy = _read(cfg, temperature, train_head,
                            head_matrix(cfg, params), _split(hidden, *size),
                            _split(jnp.roll(tokens, -1, axis=1), *size))
  real = continues_segment(segment_ids)
  join = lambda x: jnp.where(real, _join(x, tokens.shape[1]), 0.0)
  return join(logprobs), join(entropy)


def hidden_states(cfg: ModelConfig, params, tokens: jax.Array,
                  segment_ids: jax.Array) -> jax.Array:
  """Hidden states f32[B, T, D] of packed rows; see `token_logprobs`."""
  same = segment_ids[:, 1:] == segment_ids[:, :-1]
  column = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  start = jax.lax.cummax(jnp.where(jnp.pad(same, ((0, 0), (1, 0))), 0, column),
                         axis=1)
  return transformer.forward(cfg, params, tokens, column - start,
                             segment_ids=segment_ids)


def continues_segment(segment_ids: jax.Array) -> jax.Array:
  """bool[B, T]: a token behind another one of the same sequence."""
  same = segment_ids[:, 1:] == segment_ids[:, :-1]
  return jnp.pad(same, ((0, 0), (1, 0))) & (segment_ids > 0)


def _chunks(columns: int, chunk: int) -> tuple[int, int]:
  """Into how many chunks columns are divided, and how wide they are."""
  n = max(-(-columns // chunk), 1)
  return n, max(-(-columns // n), 1)


def _split(x, n: int, width: int):
  """[B, T, ...] -> [n, B, width, ...]; a view where n * width = T."""
  pad = n * width - x.shape[1]
  x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
  return x.reshape(len(x), n, width, *x.shape[2:]).swapaxes(0, 1)


def _join(x, columns: int):
  """[n, B, width] -> [B, T], a column later: 0 in the first one."""
  x = x.swapaxes(0, 1).reshape(x.shape[1], -1)[:, :columns - 1]
  return jnp.pad(x, ((0, 0), (1, 0)))


def _gathered(head):
  """Whole but for the vocabulary, once: not for every chunk in the loop."""
  return mesh_lib.constrain(head, None, 'vocab')


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _read(cfg: ModelConfig, temperature: float, train_head: bool, head, hidden,
          targets):
  """Log-probability of the targets, and entropy: f32[n, B, width] each."""
  return _read_forward(cfg, temperature, train_head, head, hidden, targets)[0]


def _read_forward(cfg, temperature, train_head, head, hidden, targets):
  del train_head
  whole = _gathered(head)

  def one(_, inputs):
    h, target = inputs
    logits = logits_of(cfg, whole, h) / temperature
    lse = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    expected = jnp.sum(jnp.exp(logits - lse[..., None]) * logits, axis=-1)
    return None, (picked - lse, lse - expected, lse)

  _, (logprobs, entropy, lse) = jax.lax.scan(one, None, (hidden, targets))
  return (logprobs, entropy), (head, hidden, targets, entropy, lse)


def _read_backward(cfg, temperature, train_head, saved, gradients):
  """With p the probabilities and H the entropy, of a logit z_v:

  d log p_y / d z_v = [v = y] - p_v,  d H / d z_v = -p_v (log p_v + H).
  """
  head, hidden, targets, entropy, lse = saved

  def to_logits(logits, target, entropy, lse, to_logprob, to_entropy):
    logp = logits - lse
    hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == target
    d = jnp.exp(logp) * -(to_logprob + to_entropy * (logp + entropy))
    return d + jnp.where(hit, to_logprob, 0.0)

  return *_project_backward(cfg, temperature, train_head, head, hidden,
                            to_logits,
                            (targets, entropy, lse, *gradients)), None


def _project_backward(cfg, temperature, train_head, head, hidden, to_logits,
                      inputs):
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
  whole, axes = _gathered(head), _row_axes(hidden.shape[1])
  parts = math.prod(axes.values())
  # As the layers' products: in bfloat16 where the model is.
  precision = None if cfg.dtype == 'bfloat16' else jax.lax.Precision.HIGHEST
  last = lambda x: x if x.ndim == hidden.ndim - 1 else x[..., None]
  flat = lambda x: x.reshape(parts, -1, x.shape[-1])

  def one(total, inputs):
    h, *inputs = inputs
    logits = logits_of(cfg, whole, h)
    d = to_logits(logits / temperature, *map(last, inputs)) / temperature
    if cfg.logit_softcap:
      d *= 1.0 - (logits / cfg.logit_softcap)**2
    if train_head:
      total += jnp.einsum('ptd,ptv->pdv', flat(h), flat(d), precision=precision)
      total = mesh_lib.constrain(total, 'batch', None, 'vocab')
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
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return {}
  axes = mesh_lib.axes_of(mesh_lib.spec(('batch',), (rows,), mesh)[0])
  return {a: mesh.shape[a] for a in axes}


def _sum_of_parts(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """[parts, D, V] over mesh axes -> their sum [D, V], split as parameters are.
  """
  if not axes:
    return x[0]
  mesh = jax.sharding.get_abstract_mesh()
  split = tuple(a for a in mesh_lib.axes_of(
      mesh_lib.spec(('embed', 'vocab'), x.shape[1:], mesh)[0]) if a in axes)
  rest = tuple(a for a in axes if a not in split)
  # Row by row: XLA would make a transposed copy of the whole matrix first, as
  # the embedding's gradient is laid out.
  rows = Layout(major_to_minor=(0, 1))

  def add(x):
    x = jax.lax.psum(x[0], rest) if rest else x[0]
    x = with_layout_constraint(x, rows)
    x = jax.lax.psum_scatter(x, split, tiled=True) if split else x
    return with_layout_constraint(x, rows)

  return jax.shard_map(add, in_specs=jax.P(axes), out_specs=jax.P(split
                                                                  or None),
                       axis_names=set(axes), check_vma=False)(x)


_read.defvjp(_read_forward, _read_backward)


def exact_kl(cfg: ModelConfig, params, hidden: jax.Array, teacher: jax.Array,
             frozen, segment_ids: jax.Array, temperature: float, chunk: int,
             train_head: bool = True) -> jax.Array:
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
  size = _chunks(hidden.shape[1], chunk)
  out = _exact_kl(
      cfg, temperature, train_head, head_matrix(cfg, params),
      _split(hidden, *size),
      *jax.lax.stop_gradient((head_matrix(cfg, frozen), _split(teacher,
                                                               *size))))
  return jnp.where(continues_segment(segment_ids), _join(out, hidden.shape[1]),
                   0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _exact_kl(cfg: ModelConfig, temperature: float, train_head: bool, head,
              hidden, other, teacher):
  """KL f32[n, B, width] of hidden states under `head` from those of another.
  """
  return _exact_kl_forward(cfg, temperature, train_head, head, hidden, other,
                           teacher)[0]


def _exact_kl_forward(cfg, temperature, train_head, head, hidden, other,
                      teacher):
  del train_head
  heads = _gathered(head), _gathered(other)

  def one(_, states):
    p, q = (jax.nn.log_softmax(logits_of(cfg, w, h) / temperature)
            for w, h in zip(heads, states))
    return None, jnp.sum(jnp.exp(p) * (p - q), axis=-1)

  _, kl = jax.lax.scan(one, None, (hidden, teacher))
  return kl, (head, hidden, other, teacher, kl)


def _exact_kl_backward(cfg, temperature, train_head, saved, gradient):
  """d KL / d z_v = p_v (log p_v - log q_v - KL)."""
  head, hidden, other, teacher, kl = saved
  whole = _gathered(other)

  def to_logits(logits, teacher, kl, gradient):
    p = jax.nn.log_softmax(logits)
    q = jax.nn.log_softmax(logits_of(cfg, whole, teacher) / temperature)
    return gradient * jnp.exp(p) * (p - q - kl)

  return *_project_backward(cfg, temperature, train_head, head, hidden,
                            to_logits, (teacher, kl, gradient)), None, None


_exact_kl.defvjp(_exact_kl_forward, _exact_kl_backward)
