"""Readout 'direct': the expected score under the next-token distribution."""

from collections.abc import Sequence

from exprl_jax.config import Judge
from exprl_jax.judge.prompts import Template
from exprl_jax.judge.readouts.base import (
    Ask,
    Judgment,
    Readout,
    TracePrefix,
    expectation,
)
from exprl_jax.rollout.requests import Sampling


def direct(traces: Sequence[TracePrefix], ask: Ask, template: Template,
           cfg: Judge) -> list[list[Judgment]]:
  """Reads the probabilities of the five scores; nothing is generated."""
  samples = ask(traces, Sampling(1, 0.0, read_ids=template.score_ids))
  return [[
      expectation(s.read_logprobs, cfg.scale, cfg.min_score_probability)
      for s in row
  ]
          for row in samples]


READOUTS = {'direct': Readout(direct, generates=False)}
