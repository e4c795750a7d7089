"""Readout 'generate_expect': a rationale, then the expected score behind it."""

from collections.abc import Sequence

from exprl_jax.config import Judge
from exprl_jax.judge.prompts import Template
from exprl_jax.judge.readouts.base import (
    Ask,
    Judgment,
    Readout,
    TracePrefix,
    answer_tokens,
    expectation,
    rationale,
)
from exprl_jax.judge.readouts.direct import direct
from exprl_jax.rollout.requests import Fork, Sampling


def generate_expect(traces: Sequence[TracePrefix], ask: Ask, template: Template,
                    cfg: Judge) -> list[list[Judgment]]:
  """Samples a rationale up to the score line, then asks for the score."""
  if not template.force:  # no section [reason]: nothing to write
    return direct(traces, ask, template, cfg)
  # 1. Rationales.
  stops = (f'\n{template.score}',)
  samples = ask(
      traces,
      Sampling(answer_tokens(template, cfg), 0.0,
               eos_ids=template.tokenizer.eos_ids, stop_strings=stops))
  written = [[rationale(s, template, stops) for s in row] for row in samples]
  # 2. The scores behind them.
  forced = []
  for trace, row in zip(traces, written):
    questions = [
        q._replace(
            fork=Fork(q.fork.at, [*q.fork.suffix, *tokens, *template.force]))
        for q, (tokens, _) in zip(trace.questions, row)
    ]
    forced.append(trace._replace(questions=questions))
  samples = ask(forced, Sampling(1, 0.0, read_ids=template.score_ids))
  return [[
      expectation(s.read_logprobs, cfg.scale, cfg.min_score_probability, text)
      for s, (_, text) in zip(a, b)
  ]
          for a, b in zip(samples, written)]


READOUTS = {'generate_expect': Readout(generate_expect, generates=True)}
