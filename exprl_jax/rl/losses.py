"""Losses on token log-probabilities; each function states its formula."""

from collections.abc import Callable, Sequence
import functools
import math
from typing import NamedTuple

import jax
from jax.experimental.layout import Layout, with_layout_constraint
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from exprl_jax.config import Loss
from exprl_jax.models import transformer
from exprl_jax.models.config import ModelConfig
from exprl_jax.rl import kl as kl_lib
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime.registry import load_function, lookup
from exprl_jax.types import PackedBatch


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
  return read(cfg, params, hidden_states(cfg, params, tokens, segment_ids),
              tokens, segment_ids, temperature, chunk)


def read(cfg: ModelConfig, params, hidden: jax.Array, tokens: jax.Array,
         segment_ids: jax.Array, temperature: float, chunk: int,
         train_head: bool = True) -> tuple[jax.Array, jax.Array]:
  """`token_logprobs` of hidden states f32[B, T, D].

  With train_head=False the vocabulary's matrix gets no gradient (adapters).
  """
  size = _chunks(tokens.shape[1], chunk)
  logprobs, entropy = _read(cfg, temperature, train_head,
                            transformer.head(cfg, params),
                            _split(hidden, *size),
                            _split(jnp.roll(tokens, -1, axis=1), *size))
  real = goes_on(segment_ids)
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


def goes_on(segment_ids: jax.Array) -> jax.Array:
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
    logits = transformer.logits(cfg, whole, h) / temperature
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
    logits = transformer.logits(cfg, whole, h)
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
    train_head: see `read`.
  """
  size = _chunks(hidden.shape[1], chunk)
  out = _exact_kl(
      cfg, temperature, train_head, transformer.head(cfg, params),
      _split(hidden, *size),
      *jax.lax.stop_gradient(
          (transformer.head(cfg, frozen), _split(teacher, *size))))
  return jnp.where(goes_on(segment_ids), _join(out, hidden.shape[1]), 0.0)


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
    p, q = (jax.nn.log_softmax(transformer.logits(cfg, w, h) / temperature)
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
    q = jax.nn.log_softmax(
        transformer.logits(cfg, whole, teacher) / temperature)
    return gradient * jnp.exp(p) * (p - q - kl)

  return *_project_backward(cfg, temperature, train_head, head, hidden,
                            to_logits, (teacher, kl, gradient)), None, None


_exact_kl.defvjp(_exact_kl_forward, _exact_kl_backward)


def token_weights(masks: Sequence[np.ndarray], aggregation: str,
                  max_tokens: int) -> list[np.ndarray]:
  """Weighs each token's loss: the loss of an update is the dot product.

  Made of all rows of the update at once, so that neither micro-batches nor
  packing change it. With N tokens in K trained rows of l_k tokens each:

    token_mean           1 / N
    seq_mean_token_mean  1 / (K l_k)
    seq_mean_token_sum   1 / K
    fixed_length         1 / (K max_tokens)   (Dr. GRPO)

  Args:
    masks: bool[n] for each row, True at the tokens that train.
    aggregation: one of the four.
    max_tokens: rollout.max_new_tokens.

  Returns:
    f32[n] for each row, 0 where nothing trains.
  """
  lengths = [int(mask.sum()) for mask in masks]
  rows, tokens = max(sum(n > 0 for n in lengths), 1), max(sum(lengths), 1)
  weigh = {
      'token_mean': lambda n: 1.0 / tokens,
      'seq_mean_token_mean': lambda n: 1.0 / (rows * max(n, 1)),
      'seq_mean_token_sum': lambda n: 1.0 / rows,
      'fixed_length': lambda n: 1.0 / (rows * max_tokens)
  }[aggregation]
  return [
      (mask * weigh(n)).astype(np.float32) for mask, n in zip(masks, lengths)
  ]


class Terms(NamedTuple):
  """What the loss of a token is made of, f32[R, L] each."""

  logprobs: Float[Array, 'R L']  # under the parameters that train
  log_ratio: Float[Array, 'R L']  # logprobs - old_logprobs, clipped to +-20
  advantages: Float[Array, 'R L']
  mask: Bool[Array, 'R L']  # tokens that train
  segment_ids: Int[Array, 'R L']  # of their sequences


# Per token: the loss, and the ratio that is logged as policy/ratio_max.
TokenLoss = tuple[Float[Array, 'R L'], Float[Array, 'R L']]


def ppo(terms: Terms, cfg: Loss) -> TokenLoss:
  """max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)); r the token's ratio.

  For A < 0 at most -A dual_clip (arXiv 1912.09729).
  """
  ratio = jnp.exp(terms.log_ratio)
  a = terms.advantages
  loss = _clipped(a, ratio, cfg)
  if cfg.dual_clip:
    loss = jnp.where(a < 0, jnp.minimum(loss, -a * cfg.dual_clip), loss)
  return loss, ratio


def gspo(terms: Terms, cfg: Loss) -> TokenLoss:
  """PPO with r = exp of the mean log-ratio of the sequence (GSPO-token).

  The gradient goes to each token's own log-ratio, so that advantages may
  differ along the sequence (arXiv 2507.18071).
  """
  mean = _sequence_mean(terms.log_ratio, terms.mask, terms.segment_ids)
  ratio = jnp.exp(
      jax.lax.stop_gradient(mean - terms.log_ratio) + terms.log_ratio)
  return _clipped(terms.advantages, ratio, cfg), ratio


def cispo(terms: Terms, cfg: Loss) -> TokenLoss:
  """-A sg(clip(r, 1 - clip_low, 1 + clip_high)) logprobs (arXiv 2506.13585)."""
  ratio = jnp.exp(terms.log_ratio)
  weight = jax.lax.stop_gradient(_clip(ratio, cfg))
  return -terms.advantages * weight * terms.logprobs, ratio


def reinforce(terms: Terms, cfg: Loss) -> TokenLoss:
  """-A logprobs."""
  del cfg
  return -terms.advantages * terms.logprobs, jnp.exp(terms.log_ratio)


class Kind(NamedTuple):
  """An entry of LOSSES.

  Attributes:
    per_token: (Terms, config.Loss) -> TokenLoss.
    keys: the keys of config.Loss that it reads, besides those that all do.
    needs_ratio: False: it has no ratio to an older policy, so the update takes
      one optimizer step per batch.
    teacher: the loss is the exact KL to a teacher, which needs the teacher's
      forward pass; `per_token` is logged only.
  """

  per_token: Callable[[Terms, Loss], TokenLoss]
  keys: tuple[str, ...] = ()
  needs_ratio: bool = True
  teacher: bool = False


_CLIP = ('clip_low', 'clip_high')
LOSSES: dict[str, Kind] = {
    'ppo': Kind(ppo, (*_CLIP, 'dual_clip', 'entropy_coef')),
    'gspo': Kind(gspo, (*_CLIP, 'entropy_coef')),
    'cispo': Kind(cispo, (*_CLIP, 'entropy_coef')),
    'reinforce': Kind(reinforce, ('entropy_coef',), needs_ratio=False),
    'exact_kl': Kind(ppo, needs_ratio=False, teacher=True),
}


@functools.cache
def kind(name: str) -> Kind:
  """The entry of LOSSES, or a function `FILE.py:FUNCTION`, `MODULE:FUNCTION`.

  Such a function takes (Terms, config.Loss) and returns a TokenLoss.

  Raises:
    InputError: there is no such loss.
  """
  if ':' in name:
    return Kind(load_function(name, 'loss.kind'), (*_CLIP, 'entropy_coef'))
  return lookup(LOSSES, name, 'loss.kind')


def policy_loss(logprobs: Float[Array, 'R L'], entropy: Float[Array, 'R L'],
                batch: PackedBatch,
                cfg: Loss) -> tuple[Float[Array, ''], tuple[dict, dict]]:
  """The loss of a policy gradient, and what is logged of its tokens.

  loss = sum(loss_weight * (w L + kl_coef KL - entropy_coef H)), with L by
  cfg.kind. w = sg(min(exp(old_logprobs - rollout_logprobs), tis_cap)) corrects
  for what the sampler computes differently (truncated importance sampling).

  Args:
    logprobs: under the parameters that train.
    entropy: of the same distributions.
    batch: packed rows; `loss_weight` is `token_weights`.
    cfg: see config.Loss.

  Returns:
    The loss, and metrics: (sums over tokens, largest values).
  """
  mask = batch.loss_weight > 0
  log_ratio = jnp.clip(logprobs - batch.old_logprobs, -20.0, 20.0)
  loss, ratio = kind(cfg.kind).per_token(
      Terms(logprobs, log_ratio, batch.advantages, mask, batch.segment_ids),
      cfg)
  mismatch = jnp.clip(batch.old_logprobs - batch.rollout_logprobs, -20.0, 20.0)
  weight = jnp.exp(mismatch)  # both are given: no gradient
  if cfg.tis_cap:
    loss *= jnp.minimum(weight, cfg.tis_cap)
  kl = kl_lib.estimate(logprobs, batch.ref_logprobs, cfg.kl_estimator,
                       cfg.kl_clamp)
  in_loss = cfg.kl_coef if cfg.kl_in == 'loss' else 0.0
  regularized = loss + in_loss * kl - cfg.entropy_coef * entropy
  metrics = _metrics(batch, cfg, loss, entropy, kl, log_ratio, ratio, mismatch)
  return jnp.sum(batch.loss_weight * regularized, where=mask), metrics


def _metrics(batch: PackedBatch, cfg: Loss, loss: Array, entropy: Array,
             kl: Array, log_ratio: Array, ratio: Array,
             mismatch: Array) -> tuple[dict[str, Array], dict[str, Array]]:
  """Sums over the tokens that train, and largest values."""
  mask, a = batch.loss_weight > 0, batch.advantages
  weight = jnp.exp(mismatch)

  def total(x: Array) -> Array:
    return jnp.sum(x, where=mask)

  sums = {
      'policy/loss': jnp.sum(batch.loss_weight * loss, where=mask),
      'policy/entropy': total(entropy),
      'policy/approx_kl': total(jnp.exp(log_ratio) - log_ratio - 1.0),
      'policy/clip_frac_low': total((ratio < 1.0 - cfg.clip_low) & (a < 0)),
      'policy/clip_frac_high': total((ratio > 1.0 + cfg.clip_high) & (a > 0)),
      'mismatch/logprob_abs_diff': total(jnp.abs(mismatch)),
      'mismatch/kl': total(-mismatch + jnp.exp(mismatch) - 1.0),
      'mismatch/ratio': total(weight),
      'mismatch/ratio_square': total(weight**2),
      'mismatch/is_clipped_frac': total(weight > (cfg.tis_cap or np.inf)),
      'tokens': total(jnp.ones(mask.shape)),
  }
  if cfg.kl_coef:  # without it there is no reference
    sums['policy/ref_kl'] = total(kl)
  largest = {
      'policy/ratio_max': jnp.max(ratio, where=mask, initial=0.0),
      'mismatch/ratio_max': jnp.max(weight, where=mask, initial=0.0)
  }
  return sums, largest


def _clip(ratio: Array, cfg: Loss) -> Array:
  return jnp.clip(ratio, 1.0 - cfg.clip_low, 1.0 + cfg.clip_high)


def _clipped(advantages: Array, ratio: Array, cfg: Loss) -> Array:
  """PPO's pessimistic surrogate."""
  return jnp.maximum(-advantages * ratio, -advantages * _clip(ratio, cfg))


def _sequence_mean(x: Array, mask: Array, segment_ids: Array) -> Array:
  """Gives each token its sequence's mean of x over the mask."""
  rows, columns = x.shape
  ids = (segment_ids + (columns + 1) * jnp.arange(rows)[:, None]).ravel()

  def total(y: Array) -> Array:
    return jax.ops.segment_sum(
        jnp.where(mask, y, 0.0).ravel(), ids, rows * (columns + 1))

  mean = total(x) / jnp.maximum(total(jnp.ones_like(x)), 1.0)
  return mean[ids].reshape(x.shape)


def nll(logprobs: Float[Array, 'R L'],
        loss_weight: Float[Array, 'R L']) -> Float[Array, '']:
  """Negative log-likelihood: -sum(loss_weight * logprobs), in nats."""
  return -jnp.sum(loss_weight * logprobs, where=loss_weight > 0)
