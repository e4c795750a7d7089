"""What a readout is, and from an answer of the judge to a score in [0, 1]."""

from collections.abc import Callable, Sequence
import re
from typing import NamedTuple
import unicodedata

from jaxtyping import Float
import numpy as np

from exprl_jax.config import Judge
from exprl_jax.judge.prompts import Template
from exprl_jax.rollout.requests import Fork, Sample, Sampling

# What became of a question to the judge. Only OK and EMPTY have a score.
STATUSES = ('ok', 'empty', 'unreadable', 'overlong', 'dropped')
OK, EMPTY, UNREADABLE, OVERLONG, DROPPED = range(5)

REMEDY = {
    'unreadable': (
        'is {name} a judge for judge.template={judge.template!r}? The '
        'scores 1..5 have less probability than judge.min_score_probability='
        '{judge.min_score_probability}, or no line says `Score: N`'),
    'overlong': ('their prompts without the trace have more than '
                 'judge.max_prompt_tokens={judge.max_prompt_tokens} tokens'),
    'dropped': 'judge.scale={judge.scale!r} has no place for their scores'
}

# Likert 1..5 to [0, 1]; nan: such judgments are dropped.
_NAN = float('nan')
SCALES = {
    'smooth': (0.0, 0.25, 0.5, 0.75, 1.0),
    'semi_smooth': (0.0, _NAN, _NAN, 0.8, 1.0),
    'extreme': (0.0, _NAN, _NAN, _NAN, 1.0)
}


class Judgment(NamedTuple):
  """What the judge says of a step."""

  score: float  # in [0, 1]; 0 where the status has none
  score_token_probability: float  # of the five scores together; nan: not read
  status: int  # index into STATUSES
  text: str = ''  # what the judge wrote


class Question(NamedTuple):
  """A question to the judge about a step."""

  step: int
  fork: Fork  # off its trace, at the end of the step
  weight: float  # among the questions about the same step


class TracePrefix(NamedTuple):
  """A trace behind its prompt, and the questions forked off it."""

  tokens: list[int]  # instructions, problem, reference, trace
  shared: int  # first tokens that all traces of the problem share
  start: int  # of the trace
  questions: list[Question]


# Samples an answer to every question of every trace.
Ask = Callable[[Sequence[TracePrefix], Sampling], list[list[Sample]]]


class Readout(NamedTuple):
  """An entry of READOUTS.

  Attributes:
    read: (traces, Ask, Template, config.Judge) -> a Judgment per question.
    generates: the judge may write a rationale before the score.
  """

  read: Callable[[Sequence[TracePrefix], Ask, Template, Judge],
                 list[list[Judgment]]]
  generates: bool

  def max_new_tokens(self, template: Template, cfg: Judge) -> int:
    """Tokens behind a question that an answer may take."""
    if not self.generates:
      return 1
    return answer_tokens(template, cfg) + len(template.force) + 1


def answer_tokens(template: Template, cfg: Judge) -> int:
  """Budget of a written answer: without a section [reason] in the template an
  answer is the score alone."""
  return cfg.rationale_tokens if template.force else 1


def rationale(sample: Sample, template: Template,
              stops: Sequence[str]) -> tuple[list[int], str]:
  """Tokens and text before the end token or the stop string."""
  tokenizer, tokens = template.tokenizer, sample.tokens.tolist()
  if sample.finish_reason == 'eos':
    tokens.pop()
  text = tokenizer.decode(tokens)
  while stops and stops[0] in text:
    tokens.pop()
    text = tokenizer.decode(tokens)
  return tokens, text


def expectation(logprobs: Float[np.ndarray, '5'] | None, scale: str,
                min_score_probability: float, text: str = '') -> Judgment:
  """Computes the mean of the scale over the distribution of the next token.

  Renormalized over the scores that the scale keeps. A judgment is unreadable
  where all five have less than `min_score_probability`, and dropped where the
  scale drops the larger part of them.

  Args:
    logprobs: f32[5] of the score tokens.
    scale: a key of SCALES.
    min_score_probability: see above.
    text: the rationale.
  """
  assert logprobs is not None, 'the request reads them'
  p = np.exp(logprobs.astype(np.float64))
  values = np.array(SCALES[scale])
  kept = np.isfinite(values)
  total = float(p.sum())
  if not total >= min_score_probability or total == 0:
    return Judgment(0.0, total, UNREADABLE, text)
  if p[kept].sum() < 0.5 * total:
    return Judgment(0.0, total, DROPPED, text)
  return Judgment(float(p[kept] @ values[kept] / p[kept].sum()), total, OK,
                  text)


def written(text: str, scale: str) -> Judgment:
  """The score that the judge wrote down: see `last_score`."""
  level = last_score(text)
  if level is None:
    return Judgment(0.0, _NAN, UNREADABLE, text)
  value = SCALES[scale][level - 1]
  if value != value:
    return Judgment(0.0, _NAN, DROPPED, text)
  return Judgment(value, _NAN, OK, text)


# A line that says nothing but the score, with the ornaments that models add:
# '**Score:** 4', '### Score' and the number in the next line, '[4]', '4/5'.
_NUMBER = (r'[\s*_\[("]*([-+]?\d[\d.,]*)[*_\])"]*'
           r'(?:[ \t]*\(?(?:/|out[ \t]+of)[ \t]*5(?:\.0)?)?[*_\])". \t]*$')
_SCORE_LINE = re.compile(
    r'^[\s#>*_-]*(?:(?:final|overall|total)[ \t]+)?score[*_]*[ \t]*'
    rf'(?::|=|[ \t]is\b|(?=\n)|[ \t]){_NUMBER}'
    # Behind the reasons, on their line; in quotation marks it is a quotation.
    r'|^[\s#>*_-]*(?:reasoning|rationale|reason|explanation|analysis|judgment)'
    r'[*_]*[ \t]*:[^\n"\u201c`]*[.!?;][*_]*[ \t]+[*_]*'
    rf'(?:(?:final|overall)[ \t]+)?score[*_]*[ \t]*[:=]{_NUMBER}',
    re.IGNORECASE | re.MULTILINE)


def last_score(text: str) -> int | None:
  """The number of the last line that is a score and nothing else.

  Reasons may stand before it on the line, `4.0`, `4/5` and `4 out of 5` are 4.
  None if there is no such line, or if the last one is not 1, 2, 3, 4 or 5:
  earlier ones are thoughts or quotations.
  """
  text = unicodedata.normalize('NFKC', text)  # wide colons and digits
  text = text.replace('\r\n', '\n').replace('\r', '\n')
  found = [a or b for a, b in _SCORE_LINE.findall(text)]
  last = found[-1].rstrip('.').removesuffix('.0') if found else ''
  return int(last) if last in ('1', '2', '3', '4', '5') else None


def weighted(judgments: Sequence[Judgment],
             weights: Sequence[float]) -> Judgment:
  """The judgments on the items of a rubric as one, weighted by their points."""
  failed = [j for j in judgments if j.status != OK]
  text = '\n'.join(j.text for j in judgments if j.text)
  probability = min(j.score_token_probability for j in judgments)
  if failed:
    return Judgment(0.0, probability, failed[0].status, text)
  score = np.average([j.score for j in judgments], weights=weights)
  return Judgment(float(score), probability, OK, text)
