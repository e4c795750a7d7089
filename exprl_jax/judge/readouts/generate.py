"""Readout 'generate': the score that the judge writes, behind its rationale."""

from collections.abc import Sequence

from exprl_jax.config import Judge
from exprl_jax.judge.prompts import Template
from exprl_jax.judge.readouts.base import (
    Ask,
    Judgment,
    Readout,
    TracePrefix,
    answer_tokens,
    rationale,
    written,
)
from exprl_jax.rollout.requests import Sampling


def generate(traces: Sequence[TracePrefix], ask: Ask, template: Template,
             cfg: Judge) -> list[list[Judgment]]:
  """Samples greedily and reads the last line that is a score."""
  samples = ask(
      traces,
      Sampling(answer_tokens(template, cfg), 0.0,
               eos_ids=template.tokenizer.eos_ids))
  return [[
      written(f'{template.begun} {rationale(s, template, ())[1]}', cfg.scale)
      for s in row
  ]
          for row in samples]


READOUTS = {'generate': Readout(generate, generates=True)}
