"""Self-distillation: the frozen base model, shown the solution, as a teacher.

It gives the policy's own tokens log-probabilities behind another prompt
(METHOD: on-policy self-distillation; Huebotter et al., arXiv 2601.20802).
"""

from collections.abc import Sequence

import numpy as np

from exprl_jax.config import Teacher, resolve
from exprl_jax.data import problems as data
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.types import InputError, Problem, Rollout

_TEMPLATE = '''Here is a problem, and below it a solution known to be right.

Problem:
{question}

Known solution:
{solution}

Read the solution until you understand why it works. Then put it aside and \
solve the problem yourself, step by step, in your own words. Write your final \
answer as \\boxed{}.'''


def prompts(tokenizer: Tokenizer, problems: Sequence[Problem],
            cfg: Teacher) -> list[list[int]]:
  """The teacher's prompts: question and solution in one user message.

  Raises:
    InputError: no such template, or a prompt that is too long; names the
      problem.
  """
  template = _TEMPLATE
  if cfg.template:
    path = resolve(cfg.template)
    if not path.is_file():
      raise InputError(f'config.teacher.template={cfg.template}: no such file')
    template = path.read_text().strip()
  for slot in ('{question}', '{solution}'):
    if template.count(slot) != 1:
      raise InputError(f'config.teacher.template={cfg.template}: it should '
                       f'hold {slot} once')
  out = []
  for problem in problems:
    ids = data.render(
        tokenizer, [{'role': 'user', 'content': template}],
        {'{question}': problem.question, '{solution}': problem.solution})
    if len(ids) > cfg.max_prompt_tokens:
      raise InputError(f"problem {problem.id}: the teacher's prompt has "
                       f'{len(ids)} tokens, teacher.max_prompt_tokens='
                       f'{cfg.max_prompt_tokens}')
    out.append(ids)
  return out


def aligned(rollout: Rollout, prompts: Sequence[Sequence[int]],
            width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The completions behind other prompts, all beginning in column `width`.

  Args:
    rollout: its completions are taken.
    prompts: one for each of its rows, at most `width` tokens.
    width: columns before the completions.

  Returns:
    (tokens i32[B, W], valid bool[B, W], completion bool[B, W]).
  """
  lengths = rollout.completion.sum(axis=1)
  shape = (len(lengths), width + int(lengths.max(initial=0)))
  tokens, valid = np.zeros(shape, np.int32), np.zeros(shape, bool)
  for row, mask, ids in zip(tokens, valid, prompts):
    row[width - len(ids):width], mask[width - len(ids):width] = ids, True
  columns = np.arange(shape[1])[None, :]
  completion = (columns >= width) & (columns < width + lengths[:, None])
  return moved(rollout.tokens, rollout.completion, completion,
               tokens), valid | completion, completion


def moved(x: np.ndarray, source: np.ndarray, target: np.ndarray,
          into: np.ndarray) -> np.ndarray:
  """x of the cells of mask `source`, in those of `target`, row by row."""
  into = into.astype(x.dtype)
  into[target] = x[source]
  return into
