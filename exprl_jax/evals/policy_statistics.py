"""How a model's samples look from inside: entropy, KL to another, steps."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from exprl_jax.config import Config
from exprl_jax.data.steps import Segmenter
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.models import head
from exprl_jax.rollout.requests import Sample
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import metrics
from exprl_jax.types import InputError

FIELDS = ('entropy', 'kl_k1', 'kl_k3', 'step_count')  # of a sample
BUCKETS = {'0': 0, '1': 1, '2': 2, '3-5': 5, '6-10': 10, '>10': 10**9}
_TOKENS = 4096  # of a batch on each device
_NARROWEST = 128  # columns


def check(
    config: Config, models: Sequence[tuple[str, Tokenizer,
                                           Sequence[Sequence[int]]]]) -> None:
  """Whether the models, (name, tokenizer, prompts), can be diagnosed.

  Raises:
    InputError: one has other tokens than the first, so that there is no KL
      between them, or judge.delimiter is no token.
  """
  _, first, prompts = models[0]
  for name, tokenizer, own in models:
    if tokenizer.vocab_size != first.vocab_size or own != prompts:
      raise InputError(
          f'config.eval.policy_statistics: {name} has another tokenizer or '
          'chat template than policy.init; KL needs the same')
  segmenter(config, first)


def segmenter(config: Config, tokenizer: Tokenizer) -> Segmenter:
  """Steps by judge.delimiter, however many and however short.

  Raises:
    InputError: the delimiter is no token.
  """
  return Segmenter(tokenizer, config.judge.delimiter, 10**9)


def diagnose(
    config: Config, model, first, mesh: jax.sharding.Mesh, segment: Segmenter,
    samples: Sequence[tuple[Sequence[int], Sample]]) -> list[dict[str, Any]]:
  """FIELDS of each sample.

  Args:
    config: the temperature, and how the vocabulary is projected.
    model: (ModelConfig, parameters) of the model that has written them.
    first: of the model to which there is KL.
    mesh: where they are.
    segment: cuts into steps.
    samples: (prompt, sample).

  Returns:
    By sample: `entropy` of the full softmax at the rollout temperature, `kl_k1`
    and `kl_k3` estimates of KL(model || first), all in nats, means over its
    tokens; `step_count`.
  """
  temperature = config.rollout.temperature or 1.0
  parts = mesh_lib.batch_parts(mesh)
  lengths = [len(p) + len(s.tokens) for p, s in samples]
  order = sorted(range(len(samples)), key=lengths.__getitem__)
  out: list[dict[str, Any]] = [{}] * len(samples)
  while order:
    # Rows of like length together; few shapes, as each is compiled.
    width = max(_NARROWEST, 1 << (lengths[order[0]] - 1).bit_length())
    size = parts * max(1, _TOKENS // width)
    batch = [i for i in order[:size] if lengths[i] <= width]
    order = order[len(batch):]
    tokens, valid, written = _arrays([samples[i] for i in batch], size, width)
    with jax.set_mesh(mesh):
      values = _values(model[0], first[0], mesh, temperature,
                       config.loss.logprob_chunk, model[1], first[1],
                       *mesh_lib.shard_rows((tokens, valid, written), mesh))
    for row, i in enumerate(batch):
      out[i] = {
          name: round(float(x[row]), 6)
          for name, x in zip(FIELDS, jax.tree.map(np.asarray, values))
      }
  for row, (_, sample) in zip(out, samples):
    end = len(sample.tokens) - (sample.finish_reason == 'eos')
    row['step_count'] = len(segment(sample.tokens[:end].tolist()))
  return out


def _arrays(samples, size: int, width: int):
  """tokens i32, valid i32 and written bool, each [size, width]."""
  tokens = np.zeros((size, width), np.int32)
  valid, written = np.zeros((size, width), np.int32), tokens > 0
  for row, (prompt, sample) in enumerate(samples):
    n, end = len(prompt), len(prompt) + len(sample.tokens)
    tokens[row, :n], tokens[row, n:end] = prompt, sample.tokens
    valid[row, :end], written[row, n:end] = 1, True
  return tokens, valid, written


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _values(model, first, mesh, temperature, chunk, params, first_params,
            tokens, valid, written):
  """(entropy, k1, k3), each f32[B] and whole in every process."""
  mine, entropy = head.token_logprobs(model, params, tokens, valid, temperature,
                                      chunk)
  theirs, _ = head.token_logprobs(first, first_params, tokens, valid,
                                  temperature, chunk)
  d = jax.numpy.clip(theirs - mine, -20.0, 20.0)
  count = jax.numpy.maximum(written.sum(axis=1), 1)
  whole = NamedSharding(mesh, PartitionSpec())
  return tuple(
      jax.lax.with_sharding_constraint(
          jax.numpy.sum(x, axis=1, where=written) / count, whole)
      for x in (entropy, -d, jax.numpy.expm1(d) - d))


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Of all samples of a model: FIELDS as token means, lengths, steps.

  `length_correct` and `length_wrong` are nan where there is no such sample;
  `steps_histogram` has the share of traces by BUCKETS.
  """
  tokens = np.array([row['tokens'] for row in rows])
  out = {
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
