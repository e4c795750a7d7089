"""The policy in training: its model, what is frozen beside it, log-probs."""

from collections.abc import Sequence
import dataclasses
import functools

import jax
from jaxtyping import Array, Float, Int
import numpy as np

from exprl_jax.config import Config, Loss
from exprl_jax.models import head, lora
from exprl_jax.models.config import ModelConfig
from exprl_jax.rl import losses, packing
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
  """What trains and what does not, apart from the parameters that change.

  Attributes:
    config: of the run.
    model: the decoder.
    mesh: to train on.
    reference: the frozen starting parameters: the KL reference, the teacher of
      self-distillation, and the base under adapters. None where nothing needs
      them.
    kl_reference: in place of `reference` for the KL (reference.init).
    teacher: in place of `reference` as a teacher (teacher.init).
    resident: other arrays that are alive while the policy trains: a judge's.
      The gradient's program is told of them, so that it fits beside them.
  """

  config: Config
  model: ModelConfig
  mesh: jax.sharding.Mesh
  reference: Params | None = None
  kl_reference: Params | None = None
  teacher: Params | None = None
  resident: Params = ()

  @property
  def lora_scale(self) -> float | None:
    """Of the adapters; None where all parameters train."""
    return lora.scale(self.config.policy)

  def base_params(self, loss: Loss) -> Params | None:
    """The frozen parameters that the gradient of a loss needs."""
    if loss.kind != 'nll' and losses.kind(loss.kind).teacher:
      return self.teacher or self.reference
    return self.reference if self.lora_scale is not None else None

  @property
  def frozen(self) -> tuple[Params, ...]:
    """All parameters that do not train."""
    return tuple(x for x in (self.reference, self.kl_reference, self.teacher)
                 if x is not None)

  def sampling_params(self, params: Params) -> Params:
    """All parameters, to sample from; adapters stay beside their matrices."""
    if self.lora_scale is None:
      return params
    return lora.attach(self.reference, params, self.lora_scale)

  def merged_params(self, params: Params) -> Params:
    """All parameters as plain matrices in float32, to save."""
    if self.lora_scale is None:
      return params
    return lora.merge(self.reference, params, self.lora_scale)

  def logprobs(self, params: Params,
               sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Log-probabilities f32[n] of sequences i32[n] under trained parameters."""
    base = None if self.lora_scale is None else self.reference
    return self._logprobs(params, base, sequences)

  def reference_logprobs(self,
                         sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Log-probabilities f32[n] of sequences i32[n] under the KL reference."""
    return self._logprobs(self.kl_reference or self.reference, None, sequences)

  def teacher_logprobs(self,
                       sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Log-probabilities f32[n] of sequences i32[n] under the teacher."""
    return self._logprobs(self.teacher or self.reference, None, sequences)

  def _logprobs(self, params: Params, base: Params | None,
                sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    lengths = [len(x) for x in sequences]
    plan = packing.plan_batch(lengths, self.config, self.mesh)
    scale = None if base is None else self.lora_scale
    out = []
    with jax.set_mesh(self.mesh):
      for i in range(plan.micro_batches):
        tokens, segment_ids = mesh_lib.shard_rows(
            (plan.pack(sequences, i), plan.segment_ids(lengths, i)), self.mesh)
        out.append(
            packed_logprobs(self.model, params, tokens, segment_ids, base,
                            scale, self.config.rollout.temperature or 1.0,
                            self.config.loss.logprob_chunk))
    return plan.unpack([mesh_lib.fetch(x) for x in out])


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def packed_logprobs(model: ModelConfig, params: Params,
                    tokens: Int[Array, 'R L'], segment_ids: Int[Array, 'R L'],
                    base_params: Params | None, lora_scale: float | None,
                    temperature: float, chunk: int) -> Float[Array, 'R L']:
  """Log-probabilities of packed rows, without a gradient; 0 at padding."""
  full = (params if lora_scale is None else lora.attach(base_params, params,
                                                        lora_scale))
  return head.token_logprobs(model, full, tokens, segment_ids, temperature,
                             chunk)[0]
