"""The decoder: its parameters, and `lax.scan` over its layers.

Outside of `models` a model is a `ModelConfig` and a plain nested dict of
arrays; the NNX modules of `layers` are built from them inside jit.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from exprl_jax.models import attention, layers, paged
from exprl_jax.models.config import ModelConfig
from exprl_jax.models.matrices import is_int8
from exprl_jax.models.rope import frequencies
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import AnyArray, InputError, Params

# The residual stream, and the pool of keys and values.
_State = tuple[jax.Array, paged.Pool]
# Frequencies and factor of a rotary embedding.
_Rope = tuple[jax.Array, jax.Array]

_POLICIES = jax.checkpoint_policies
_INPUT = 'layer_input'
_UNROLLED = 8  # layers, at most: more take long to compile
# What is saved of a layer for the backward pass; the rest is computed again.
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


@functools.cache
def _define(cfg: ModelConfig) -> tuple[Any, Any]:
  """Returns the nnx.GraphDef of a model, and its abstract nnx.State."""
  with nnx.use_eager_sharding(False):
    return jax.eval_shape(lambda: nnx.split(layers.Decoder(cfg, nnx.Rngs(0))))


def abstract_params(cfg: ModelConfig) -> Params:
  """Returns a nested dict of ShapeDtypeStructs, float32."""
  return nnx.to_pure_dict(_define(cfg)[1])


def logical_axes(cfg: ModelConfig) -> Params:
  """Returns a nested dict of tuples that name each parameter's axes."""
  return jax.tree.map(lambda v: v.get_metadata()['out_sharding'],
                      nnx.to_pure_dict(_define(cfg)[1], extract_fn=lambda v: v),
                      is_leaf=lambda v: isinstance(v, nnx.Variable))


def init(cfg: ModelConfig, key: jax.Array, std: float = 0.0) -> Params:
  """Draws random parameters, float32; std 0 is 1 / sqrt(fan-in)."""
  with nnx.use_eager_sharding(False):
    return nnx.to_pure_dict(
        nnx.split(layers.Decoder(cfg, nnx.Rngs(key), std))[1])


def cast(cfg: ModelConfig, params: Params) -> Params:
  """Rounds the matrices to `cfg.dtype`, as `forward` does with each layer.

  Norms and routers stay float32. Results are the same, and take half the memory
  in bfloat16: for frozen models, and for the copy that samples.
  """
  return _cast(cfg, logical_axes(cfg), params)


def _cast(cfg: ModelConfig, axes: Params, params: Params) -> Params:
  keep = {'norm', 'router'}
  return jax.tree.map(
      lambda axes, x: x if keep & set(axes) else x.astype(cfg.dtype), axes,
      params, is_leaf=lambda x: isinstance(x, tuple))


def forward(
    cfg: ModelConfig, params: Params, tokens: Int[AnyArray, 'B T'],
    positions: Int[AnyArray,
                   'B T'], segment_ids: Int[AnyArray, 'B T'] | None = None,
    mask: Bool[AnyArray, 'B T T'] | None = None) -> Float[Array, 'B T D']:
  """Runs the layers over rows of tokens.

  Either `segment_ids` or `mask` decides which tokens a token attends to;
  windows of the model are applied on top.

  Args:
    cfg: the model.
    params: its parameters, in float32 or as `cast` or `quantization.quantize`
      leaves them; matrices may be `matrices.Adapted`.
    tokens: i32[B, T].
    positions: i32[B, T], for the rotary embedding; in packed rows they start
      again with each segment.
    segment_ids: i32[B, T]: earlier tokens of the same segment; 0 is padding.
    mask: bool[B, T, T]: whether query t attends to key s; False where s > t.

  Returns:
    Hidden states f32[B, T, D] after the final norm.
  """
  if (segment_ids is None) == (mask is None):
    raise ValueError('one of segment_ids and mask says what is visible')
  x = _scan_layers(cfg, params['layers'], _embed(cfg, params, tokens),
                   attention.View(positions, segment_ids, mask))
  return layers.rms_norm(cfg, x.astype(jnp.float32), params['final_norm'])


def _scan_layers(cfg: ModelConfig, stacked: Params, x: jax.Array,
                 view: attention.View) -> jax.Array:
  """Runs the stacked layers over x[B, T, D]."""
  run = _layer_runner(cfg)

  def body(x: jax.Array, scanned: tuple[Params, jax.Array,
                                        _Rope]) -> tuple[jax.Array, None]:
    weights, kind, rope = scanned
    x = checkpoint_name(x, _INPUT)
    return run(
        x, weights, view.positions, rope, lambda q, k, v:
        (attention.attend(cfg, q, k, v, view, kind), None))

  if cfg.remat != 'none':
    body = jax.checkpoint(body, policy=REMAT[cfg.remat])
  # CPUs copy each layer's weights out of the stack and its gradients into it:
  # a sixth of the time of a small model.
  unrolled = mesh_lib.platform() == 'cpu' and cfg.num_layers <= _UNROLLED
  x, _ = jax.lax.scan(body, x,
                      (stacked, jnp.array(cfg.layer_kinds), _ropes(cfg)),
                      unroll=cfg.num_layers if unrolled else 1)
  return x


def split_layers(cfg: ModelConfig, params: Params) -> Params:
  """Splits the stacked layers into a list, for `forward_paged` to run unrolled.

  Done once outside of a decoding loop. CPUs and GPUs would copy a layer's
  weights out of the stack at every token; TPUs read them in place. Layers in
  int8 stay stacked: each is converted when it runs, and XLA would convert all
  of an unrolled loop before it begins.
  """
  if is_int8(params):
    return params
  return params | {
      'layers': [
          jax.tree.map(lambda w, i=i: w[i], params['layers'])
          for i in range(cfg.num_layers)
      ]
  }


def forward_paged(
    cfg: ModelConfig, layout: paged.Layout, params: Params,
    tokens: Int[AnyArray, 'B T'], positions: Int[AnyArray,
                                                 'B T'], pool: paged.Pool,
    table: Int[AnyArray, 'B M']) -> tuple[Float[Array, 'B T D'], paged.Pool]:
  """Runs the layers over new tokens of rows whose past is in pages.

  Args:
    cfg: the model.
    layout: of the pool.
    params: as `cast`, `quantization.quantize` or `split_layers` leaves them.
    tokens: i32[B, T].
    positions: i32[B, T]; see paged.attend.
    pool: keys and values so far; those of `tokens` are added.
    table: i32[B, M], the pages of each row.

  Returns:
    Hidden states f32[B, T, D] after the final norm, and the pool.
  """
  run = _layer_runner(cfg)

  def body(state: _State, scanned: tuple[Params, Any, _Rope,
                                         Any]) -> tuple[_State, None]:
    x, pool = state
    weights, kind, rope, layer = scanned
    return run(
        x, _from_bits(weights), positions, rope, lambda q, k, v: paged.attend(
            cfg, layout, q, k, v, pool, table, positions, layer, kind)), None

  state = _embed(cfg, params, tokens), pool
  ropes = _ropes(cfg)
  if isinstance(params['layers'], list):
    for i, weights in enumerate(params['layers']):
      rope = jax.tree.map(lambda table, i=i: table[i], ropes)
      state, _ = body(state, (weights, cfg.layer_kinds[i], rope, i))
  else:
    state, _ = jax.lax.scan(
        body, state, (_as_bits(params['layers']), jnp.array(
            cfg.layer_kinds), ropes, jnp.arange(cfg.num_layers)))
  x, pool = state
  return layers.rms_norm(cfg, x.astype(jnp.float32), params['final_norm']), pool


def _as_bits(stacked: Params) -> Params:
  """On CPUs, bfloat16 as the integers that it is stored as.

  To take one layer of a bfloat16 stack, XLA:CPU converts the whole stack to
  float32 and back.
  """
  if mesh_lib.platform() != 'cpu':
    return stacked
  return jax.tree.map(
      lambda x: (jax.lax.bitcast_convert_type(x, jnp.uint16)
                 if x.dtype == jnp.bfloat16 else x), stacked)


def _from_bits(weights: Params) -> Params:
  """Undoes `_as_bits`."""
  return jax.tree.map(
      lambda x: (jax.lax.bitcast_convert_type(x, jnp.bfloat16)
                 if x.dtype == jnp.uint16 else x), weights)


def _embed(cfg: ModelConfig, params: Params, tokens: AnyArray) -> jax.Array:
  """Looks up embeddings [B, T, D], in `cfg.dtype`."""
  x = params['embedding'][tokens].astype(cfg.dtype)
  if cfg.embed_scaled:
    x *= jnp.asarray(cfg.embed_dim**0.5, x.dtype)
  # Without this XLA rematerializes the whole gather on a sharded mesh.
  return mesh_lib.constrain(x, 'batch', None, None)


def _layer_runner(cfg: ModelConfig) -> Callable[..., tuple[jax.Array, Any]]:
  """Returns (x, weights, positions, rope, attend) -> one layer's results."""
  graphdef = nnx.split(nnx.merge(_define(cfg)[0],
                                 abstract_params(cfg)).layers)[0]
  axes = logical_axes(cfg)['layers']

  def run(x: jax.Array, weights: Params, positions: jax.Array, rope: _Rope,
          attend: layers.Attend) -> tuple[jax.Array, Any]:
    # Cast here, layer by layer: there is no second copy of all parameters.
    layer = nnx.merge(graphdef, _cast(cfg, axes, weights))
    return layer(x, positions, rope, attend)

  return run


def _ropes(cfg: ModelConfig) -> _Rope:
  """Returns frequencies f32[L, H / 2] and factors f32[L] of all layers.

  Raises:
    InputError: they depend on the longest sequence, which nobody stated.
  """
  if cfg.needs_length and not cfg.max_tokens:
    raise InputError(f'rope_type {cfg.rope.kind!r} depends on the longest '
                     'sequence; this run has no budget of tokens to fix it by')
  # Frequency 0 rotates by nothing.
  none = np.zeros(cfg.head_dim // 2, np.float32), 1.0
  tables = [
      frequencies(rope, cfg.head_dim, cfg.max_tokens) if rope else none
      for rope in cfg.layer_ropes
  ]
  return (jnp.array([f for f, _ in tables]),
          jnp.array([factor for _, factor in tables], jnp.float32))
