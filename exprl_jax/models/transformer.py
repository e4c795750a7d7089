"""The decoder. Flax NNX defines its parameters, `lax.scan` runs its layers.

Outside this file a model is a `ModelConfig` and a plain nested dict of
arrays; NNX modules are built from them inside jit, where that costs nothing.
What the model families differ in is a field of `ModelConfig`, each read at one
place below.
"""

import dataclasses
import functools
import math

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from exprl_jax.models import attention, moe, paged
from exprl_jax.models.config import ModelConfig
from exprl_jax.models.rope import frequencies, rotate
from exprl_jax.runtime import mesh as mesh_lib

_POLICIES = jax.checkpoint_policies
_INPUT = 'layer_input'
_UNROLLED = 8  # layers, at most: more take long to compile
# What the backward pass finds saved of a layer; the rest is computed again.
REMAT = {
    'none': _POLICIES.everything_saveable,
    'full': _POLICIES.nothing_saveable,
    'dots': _POLICIES.dots_with_no_batch_dims_saveable,
    'save_attention': _POLICIES.save_only_these_names(attention.SAVED),
    # As 'full', with the layers' inputs in host memory until they are needed.
    'offload': _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=[_INPUT],
        offload_src='device', offload_dst='pinned_host'),
}
_ACTIVATIONS = {
    'silu': jax.nn.silu, 'gelu_tanh': functools.partial(jax.nn.gelu,
                                                        approximate=True)
}

# The layers' matrices and their input axes, counted from the end.
_INPUTS = {
    'q': (-3,), 'k': (-3,), 'v': (-3,), 'o': (-3, -2), 'gate': (-2,),
    'up': (-2,), 'down': (-2,)
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
  """A matrix in eight bits, in place of its array: values * scale."""

  values: jax.Array  # i8, the matrix's shape
  scale: jax.Array  # f32, one of each output channel; input axes have size 1

  @property
  def shape(self):
    """Of the matrix."""
    return self.values.shape

  def astype(self, dtype) -> jax.Array:
    """The matrix."""
    return (self.values.astype(jnp.float32) * self.scale).astype(dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
  """A frozen matrix and its low-rank adapter, in place of an array (lora.py).
  """

  base: jax.Array  # [*in, *out]
  a: jax.Array  # [in, rank]
  b: jax.Array  # [rank, out]

  @property
  def shape(self):
    """Of the matrix."""
    return self.base.shape

  def astype(self, dtype) -> 'Adapted':
    """All three in another dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), self,
                        is_leaf=lambda x: x is not self)

  def reshape(self, *shape) -> 'Adapted':
    """The matrix in another shape; the adapter has only one."""
    return dataclasses.replace(self, base=self.base.reshape(*shape))

  def __getitem__(self, everything) -> 'Adapted':
    return self


class _Layer(nnx.Module):
  """One layer; which parameters it has says the config."""

  def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, std: float):
    d, n, k, h, f = (cfg.embed_dim, cfg.num_heads, cfg.num_kv_heads,
                     cfg.head_dim, cfg.mlp_dim)
    param = functools.partial(_param, rngs, std)
    norm = functools.partial(_constant, 0.0 if cfg.norm_offset else 1.0)
    self.cfg = cfg
    self.attention_norm = norm((d,), ('norm',))
    self.q = param((d, n, h), ('embed', 'heads', 'head_dim'))
    self.k = param((d, k, h), ('embed', 'kv_heads', 'head_dim'))
    self.v = param((d, k, h), ('embed', 'kv_heads', 'head_dim'))
    self.o = param((n, h, d), ('heads', 'head_dim', 'embed'))
    if cfg.qkv_bias:
      self.q_bias = _constant(0.0, (n, h), ('heads', 'head_dim'))
      self.k_bias = _constant(0.0, (k, h), ('kv_heads', 'head_dim'))
      self.v_bias = _constant(0.0, (k, h), ('kv_heads', 'head_dim'))
    if cfg.qk_norm:
      self.q_norm = norm((h,), ('norm',))
      self.k_norm = norm((h,), ('norm',))
    self.mlp_norm = norm((d,), ('norm',))
    if cfg.post_norms:
      self.attention_post_norm = norm((d,), ('norm',))
      self.mlp_post_norm = norm((d,), ('norm',))
    if cfg.num_experts:
      e = cfg.num_experts
      self.router = param((d, e), ('embed', 'router'))
      self.gate = param((e, d, f), ('experts', 'embed', 'mlp'))
      self.up = param((e, d, f), ('experts', 'embed', 'mlp'))
      self.down = param((e, f, d), ('experts', 'mlp', 'embed'))
    else:
      self.gate = param((d, f), ('embed', 'mlp'))
      self.up = param((d, f), ('embed', 'mlp'))
      self.down = param((f, d), ('mlp', 'embed'))

  def __call__(self, x, positions, rope, attend):
    """The residual stream x[B, T, D] after the layer, and attend's state.

    Args:
      x: before it.
      positions: i32[B, T].
      rope: frequencies and factor of this layer's rotary embedding.
      attend: (q, k, v) -> what the queries find, and a state to hand on.
    """
    with jax.named_scope('attention'):
      q, k, v = self._project(self._norm(x, 'attention_norm'), positions, rope)
      y, state = attend(q, k, v)
      n, h, d = self.o.shape
      y = dense(y.reshape(*y.shape[:2], n * h), self.o[...].reshape(n * h, d))
      x += self._norm(y, 'attention_post_norm') if self.cfg.post_norms else y
    with jax.named_scope('mlp'):
      y = self._mlp(self._norm(x, 'mlp_norm'))
      x += self._norm(y, 'mlp_post_norm') if self.cfg.post_norms else y
    return x, state

  def _norm(self, x, name):
    return rms_norm(self.cfg, x, getattr(self, name)[...])

  def _project(self, x, positions, rope):
    cfg = self.cfg
    q, k, v = (dense(x, w[...]) for w in (self.q, self.k, self.v))
    if cfg.qkv_bias:
      q, k, v = (y + b[...][None, None]
                 for y, b in ((q, self.q_bias), (k, self.k_bias),
                              (v, self.v_bias)))
    if cfg.qk_norm:
      q, k = self._norm(q, 'q_norm'), self._norm(k, 'k_norm')
    # The scale of the scores enters here, in float32, not after the rounding.
    frequency, factor = rope
    scale = cfg.attention_scale or cfg.head_dim**-0.5
    return (rotate(q, positions, frequency,
                   factor * scale), rotate(k, positions, frequency, factor), v)

  def _mlp(self, x):
    act = _ACTIVATIONS[self.cfg.activation]
    if self.cfg.num_experts:
      return moe.mixture(self.cfg, x, self.router[...], self.gate[...],
                         self.up[...], self.down[...], act)
    return dense(
        act(dense(x, self.gate[...])) * dense(x, self.up[...]), self.down[...])


class _Decoder(nnx.Module):

  def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, std: float = 0.0):
    self.embedding = _param(rngs, std, (cfg.vocab_size, cfg.embed_dim),
                            ('vocab', 'embed'))

    @nnx.split_rngs(splits=cfg.num_layers)
    @nnx.vmap(in_axes=(0,), out_axes=0,
              transform_metadata={nnx.PARTITION_NAME: 'layers'})
    def layers(rngs):
      return _Layer(cfg, rngs, std)

    self.layers = layers(rngs)
    self.final_norm = _constant(0.0 if cfg.norm_offset else 1.0,
                                (cfg.embed_dim,), ('norm',))
    if not cfg.tied_embedding:
      self.head = _param(rngs, std, (cfg.embed_dim, cfg.vocab_size),
                         ('embed', 'vocab'))


def _param(rngs, std, shape, axes):
  """Normal; std 0 is 1 / sqrt(fan-in)."""
  fan_in = {
      'vocab': shape[-1], 'heads': math.prod(shape[:-1]), 'experts': shape[-2]
  }.get(axes[0], shape[0])
  value = jax.random.normal(rngs.params(), shape) * (std or fan_in**-0.5)
  return nnx.Param(value, out_sharding=axes)


def _constant(value, shape, axes):
  return nnx.Param(jnp.full(shape, value, jnp.float32), out_sharding=axes)


@functools.cache
def _define(cfg: ModelConfig):
  """The graph definition and the abstract parameters of a model."""
  with nnx.use_eager_sharding(False):
    return jax.eval_shape(lambda: nnx.split(_Decoder(cfg, nnx.Rngs(0))))


def abstract_params(cfg: ModelConfig):
  """A nested dict of ShapeDtypeStructs, float32."""
  return nnx.to_pure_dict(_define(cfg)[1])


def logical_axes(cfg: ModelConfig, weights: str = ''):
  """A nested dict of tuples that name each parameter's axes.

  Args:
    cfg: the model.
    weights: 'int8': of the parameters as `quantise` leaves them.
  """
  out = jax.tree.map(lambda v: v.get_metadata()['out_sharding'],
                     nnx.to_pure_dict(_define(cfg)[1], extract_fn=lambda v: v),
                     is_leaf=lambda v: isinstance(v, nnx.Variable))
  for key, inputs in _INPUTS.items() if weights else ():
    axes = out['layers'][key]
    out['layers'][key] = Int8(
        axes,
        tuple(
            None if i - len(axes) in inputs else a for i, a in enumerate(axes)))
  return out


def init(cfg: ModelConfig, key: jax.Array, std: float = 0.0):
  """Random parameters, float32; std 0 is 1 / sqrt(fan-in)."""
  with nnx.use_eager_sharding(False):
    return nnx.to_pure_dict(nnx.split(_Decoder(cfg, nnx.Rngs(key), std))[1])


def cast(cfg: ModelConfig, params):
  """The parameters as `forward` computes with them: matrices in `cfg.dtype`.

  Norms and routers stay float32. Half the memory in bfloat16, and the same
  results: for frozen models, and for the copy that samples.
  """
  return _cast(cfg, logical_axes(cfg), params)


def _cast(cfg, axes, params):
  keep = {'norm', 'router'}
  return jax.tree.map(
      lambda axes, x: x if keep & set(axes) else x.astype(cfg.dtype), axes,
      params, is_leaf=lambda x: isinstance(x, tuple))


@functools.partial(jax.jit, static_argnums=0)
def quantise(cfg: ModelConfig, params):
  """As `cast`, but the layers' matrices in int8: for frozen models."""
  out = cast(cfg, params)
  return out | {
      'layers': out['layers'] |
      {k: int8(k, params['layers'][k]) for k in _INPUTS}
  }


def quantised(params) -> bool:
  """Are the layers' matrices in int8?"""
  return isinstance(params['layers']['q'], Int8)


def int8(key: str, w: jax.Array | Int8) -> Int8:
  """A parameter of layers, rounded to the nearest multiple of its scale."""
  if isinstance(w, Int8):
    return w
  w = w.astype(jnp.float32)
  most = jnp.abs(w).max(axis=_INPUTS[key], keepdims=True)
  scale = jnp.maximum(most, 1e-30) / 127.0
  return Int8(jnp.round(w / scale).astype(jnp.int8), scale)


def forward(cfg: ModelConfig, params, tokens: jax.Array, positions: jax.Array,
            segment_ids: jax.Array | None = None,
            mask: jax.Array | None = None) -> jax.Array:
  """Runs the layers over whole rows.

  What a token may look at is said by either `segment_ids` or `mask`; windows
  of the model are applied on top.

  Args:
    cfg: the model.
    params: its parameters, in float32 or as `cast` or `quantise` leaves them.
    tokens: i32[B, T].
    positions: i32[B, T], for the rotary embedding; in packed rows they start
      again with each segment.
    segment_ids: i32[B, T]: earlier tokens of the same segment; 0 is padding.
    mask: bool[B, T, T]: may query t look at key s?

  Returns:
    Hidden states f32[B, T, D] after the final norm.
  """
  if (segment_ids is None) == (mask is None):
    raise ValueError('one of segment_ids and mask says what is visible')
  view = attention.View(positions, segment_ids, mask)
  run = _layer_runner(cfg)

  def body(x, scanned):
    weights, kind = scanned
    x = checkpoint_name(x, _INPUT)
    return run(
        x, weights, kind, positions, lambda q, k, v:
        (attention.attend(cfg, q, k, v, view, kind), None))

  if cfg.remat != 'none':
    body = jax.checkpoint(body, policy=REMAT[cfg.remat])
  # CPUs copy each layer's weights out of the stack and its gradients into it:
  # a sixth of the time of a small model.
  unrolled = jax.default_backend() == 'cpu' and cfg.num_layers <= _UNROLLED
  x, _ = jax.lax.scan(body, _embed(cfg, params, tokens),
                      (params['layers'], jnp.array(cfg.layer_kinds)),
                      unroll=cfg.num_layers if unrolled else 1)
  return rms_norm(cfg, x.astype(jnp.float32), params['final_norm'])


def split_layers(cfg: ModelConfig, params):
  """The stacked layers one by one, for `forward_paged` to run unrolled.

  Done once outside of a decoding loop. CPUs and GPUs would copy a layer's
  weights out of the stack at every token; TPUs read them in place. Layers in
  int8 stay stacked: their copy is what they are computed with, and XLA would
  make those of all layers at once, before the loop.
  """
  if quantised(params):
    return params
  return params | {
      'layers': [
          jax.tree.map(lambda w, i=i: w[i], params['layers'])
          for i in range(cfg.num_layers)
      ]
  }


def forward_paged(cfg: ModelConfig, layout: paged.Layout, params,
                  tokens: jax.Array, positions: jax.Array, pool: paged.Pool,
                  table: jax.Array) -> tuple[jax.Array, paged.Pool]:
  """Runs the layers over new tokens of rows whose past is in pages.

  Args:
    cfg: the model.
    layout: of the pool.
    params: as `cast`, `quantise` or `split_layers` leaves them.
    tokens: i32[B, T].
    positions: i32[B, T]; see paged.attend.
    pool: keys and values so far; those of `tokens` are added.
    table: i32[B, M], the pages of each row.

  Returns:
    Hidden states f32[B, T, D] after the final norm, and the pool.
  """
  run = _layer_runner(cfg)

  def body(carry, scanned):
    x, pool = carry
    weights, kind, layer = scanned
    return run(
        x, weights, kind, positions, lambda q, k, v: paged.attend(
            cfg, layout, q, k, v, pool, table, positions, layer, kind)), None

  carry, layers = (_embed(cfg, params, tokens), pool), params['layers']
  if isinstance(layers, list):
    for i, weights in enumerate(layers):
      carry, _ = body(carry, (weights, cfg.layer_kinds[i], i))
  else:
    carry, _ = jax.lax.scan(
        body, carry,
        (layers, jnp.array(cfg.layer_kinds), jnp.arange(cfg.num_layers)))
  x, pool = carry
  return rms_norm(cfg, x.astype(jnp.float32), params['final_norm']), pool


def _embed(cfg, params, tokens):
  x = params['embedding'][tokens].astype(cfg.dtype)
  if cfg.embed_scaled:
    x *= jnp.asarray(cfg.embed_dim**0.5, x.dtype)
  # Without this XLA rematerialises the whole gather on a sharded mesh.
  return mesh_lib.constrain(x, 'batch', None, None)


def _layer_runner(cfg):
  """(x, weights, kind, positions, attend) -> one layer of the model."""
  graphdef = nnx.split(nnx.merge(_define(cfg)[0],
                                 abstract_params(cfg)).layers)[0]
  ropes, axes = _ropes(cfg), logical_axes(cfg)['layers']

  def run(x, weights, kind, positions, attend):
    # Cast here, layer by layer: there is no second copy of all parameters.
    layer = nnx.merge(graphdef, _cast(cfg, axes, weights))
    rope = jax.tree.map(lambda table: table[kind], ropes)
    return layer(x, positions, rope, attend)

  return run


def _ropes(cfg: ModelConfig) -> tuple[jax.Array, jax.Array]:
  """Frequencies f32[kinds, H / 2] and factors f32[kinds]."""
  tables = [
      frequencies(cfg.local_rope if window and cfg.local_rope else cfg.rope,
                  cfg.head_dim) for window in cfg.kinds
  ]
  return (jnp.array([f for f, _ in tables]),
          jnp.array([factor for _, factor in tables], jnp.float32))


def dense(x, w, precision=None):
  """x[..., D] times w[D, ...]: flattened, which XLA:CPU runs twice as fast.

  float32 means float32: TPUs and GPUs would round it by default.
  """
  if precision is None and x.dtype == jnp.float32:
    precision = jax.lax.Precision.HIGHEST
  if isinstance(w, Adapted):  # the base gets no gradient
    return dense(x, jax.lax.stop_gradient(w.base), precision) + dense(
        dense(x, w.a, precision), w.b, precision).reshape(
            *x.shape[:-1], *w.shape[1:])
  out = jax.lax.dot(x.reshape(-1, x.shape[-1]), w.reshape(w.shape[0], -1),
                    precision=precision)
  return out.reshape(*x.shape[:-1], *w.shape[1:])


def rms_norm(cfg: ModelConfig, x, weight):
  """SharedPrefix-mean-square norm in float32, returned in x's dtype."""
  y = x.astype(jnp.float32)
  y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + cfg.norm_eps)
  y *= jnp.broadcast_to(weight + 1.0 if cfg.norm_offset else weight, y.shape)
  return y.astype(x.dtype)
