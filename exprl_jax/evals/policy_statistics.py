"""Statistics of a model on its own samples: entropy, KL, lengths, steps."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Bool, Int
import numpy as np

from exprl_jax.config import Config
from exprl_jax.data.steps import Segmenter
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.models import head
from exprl_jax.models.config import ModelConfig
from exprl_jax.rollout.requests import Sample
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import metrics
from exprl_jax.types import InputError, Params

FIELDS = ('entropy', 'kl_k1', 'kl_k3', 'step_count')  # of a sample
# Of step counts: name -> its largest.
BUCKETS = {'0': 0, '1': 1, '2': 2, '3-5': 5, '6-10': 10, '>10': 10**9}
_BATCH_TOKENS = 4096  # on each device
_MIN_WIDTH = 128  # columns of a batch

Model = tuple[ModelConfig, Params]
Written = tuple[Sequence[int], Sample]  # (prompt, sample)


def check(
    config: Config, models: Sequence[tuple[str, Tokenizer,
                                           Sequence[Sequence[int]]]]) -> None:
  """Checks that the models, (name, tokenizer, prompts), can be compared.

  Raises:
    InputError: a model's tokens differ from the first's, so that there is no
      KL between them, or judge.delimiter is not a token.
  """
  _, first, prompts = models[0]
  for name, tokenizer, own in models:
    if tokenizer.vocab_size != first.vocab_size or own != prompts:
      raise InputError(
          f'config.eval.policy_statistics: {name} has another tokenizer or '
          'chat template than policy.init; KL needs the same')
  segmenter(config, first)


def segmenter(config: Config, tokenizer: Tokenizer) -> Segmenter:
  """Cuts at judge.delimiter, without a limit on number or length of steps.

  Raises:
    InputError: the delimiter is not a token.
  """
  return Segmenter(tokenizer, config.judge.delimiter, 10**9)


def of_samples(config: Config, model: Model, first: Model,
               mesh: jax.sharding.Mesh, segment: Segmenter,
               samples: Sequence[Written]) -> list[dict[str, Any]]:
  """Returns FIELDS of each sample.

  `entropy` of the full softmax at the rollout temperature and the estimates
  `kl_k1` and `kl_k3` of KL(model || first) are means over its tokens, in nats.

  Args:
    config: the temperature, and the head's chunk size.
    model: the model that wrote the samples.
    first: the model that the KL is to.
    mesh: where they are.
    segment: cuts into steps.
    samples: the samples with their prompts.
  """
  parts = mesh_lib.batch_parts(mesh)
  lengths = [len(p) + len(s.tokens) for p, s in samples]
  order = sorted(range(len(samples)), key=lengths.__getitem__)
  out: list[dict[str, Any]] = [{} for _ in samples]
  while order:
    # Rows of similar length together; few widths, as each is compiled.
    width = max(_MIN_WIDTH, 1 << (lengths[order[0]] - 1).bit_length())
    size = parts * max(1, _BATCH_TOKENS // width)
    batch = [i for i in order[:size] if lengths[i] <= width]
    order = order[len(batch):]
    arrays = _arrays([samples[i] for i in batch], size, width)
    with jax.set_mesh(mesh):
      values = _values(model[0], first[0], mesh, config.rollout.temperature
                       or 1.0, config.loss.logprob_chunk, model[1], first[1],
                       *mesh_lib.shard_rows(arrays, mesh))
    for name, column in zip(FIELDS, map(np.asarray, values)):
      for row, i in enumerate(batch):
        out[i][name] = round(float(column[row]), 6)
  for fields, (_, sample) in zip(out, samples):
    end = len(sample.tokens) - (sample.finish_reason == 'eos')
    fields['step_count'] = len(segment(sample.tokens[:end].tolist()))
  return out


def _arrays(
    samples: Sequence[Written], size: int, width: int
) -> tuple[Int[np.ndarray, 'B T'], Int[np.ndarray, 'B T'], Bool[np.ndarray,
                                                                'B T']]:
  """Pads to (tokens, valid, written), each [size, width]."""
  tokens = np.zeros((size, width), np.int32)
  valid, written = np.zeros((size, width), np.int32), tokens > 0
  for row, (prompt, sample) in enumerate(samples):
    n, end = len(prompt), len(prompt) + len(sample.tokens)
    tokens[row, :n], tokens[row, n:end] = prompt, sample.tokens
    valid[row, :end], written[row, n:end] = 1, True
  return tokens, valid, written


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _values(model: ModelConfig, first: ModelConfig, mesh: jax.sharding.Mesh,
            temperature: float, chunk: int, params: Params,
            first_params: Params, tokens: Int[jax.Array, 'B T'],
            valid: Int[jax.Array,
                       'B T'], written: Bool[jax.Array,
                                             'B T']) -> tuple[jax.Array, ...]:
  """Returns (entropy, k1, k3), each f32[B] and replicated."""
  mine, entropy = head.token_logprobs(model, params, tokens, valid, temperature,
                                      chunk)
  theirs, _ = head.token_logprobs(first, first_params, tokens, valid,
                                  temperature, chunk)
  d = jnp.clip(theirs - mine, -20.0, 20.0)
  count = jnp.maximum(written.sum(axis=1), 1)
  replicated = NamedSharding(mesh, PartitionSpec())
  return tuple(
      jax.lax.with_sharding_constraint(
          jnp.sum(x, axis=1, where=written) / count, replicated)
      for x in (entropy, -d, jnp.expm1(d) - d))


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Averages FIELDS over the tokens of all samples; adds lengths and steps.

  `length_correct` and `length_wrong` are nan if there is no such sample;
  `steps_histogram` has the share of traces by BUCKETS.
  """
  tokens = np.array([row['tokens'] for row in rows])
  out: dict[str, Any] = {
      name: float(np.average([row[name]
                              for row in rows], weights=tokens))
      for name in FIELDS[:3]
  }
  for name, right in (('correct', True), ('wrong', False)):
    out[f'length_{name}'] = metrics.mean(
        [row['tokens'] for row in rows if row['correct'] is right])
  steps = np.array([row['step_count'] for row in rows])
  out['steps_mean'] = float(steps.mean())
  buckets = np.searchsorted(list(BUCKETS.values()), steps)
  out['steps_histogram'] = {
      name: float((buckets == i).mean()) for i, name in enumerate(BUCKETS)
  }
  return out
