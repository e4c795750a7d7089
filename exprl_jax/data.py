"""Problems from JSONL, and the order in which a run sees them."""

from collections.abc import Sequence
import json

from etils import epath
import grain

from exprl_jax.tiny import world
from exprl_jax.types import InputError, Problem

_FIELDS = ('id', 'question', 'solution', 'answer', 'domain', 'rubric')


def read_problems(path: epath.PathLike, needs: Sequence[str] = (),
                  limit: int = 0) -> Sequence[Problem]:
  """Reads a JSONL file of problems and checks every row.

  'tiny:pretraining' stands for the text that the tiny policy is made from,
  'tiny:SPLIT' for problems of the tiny world.

  A row is an object with `question` and, by purpose, `solution` (judge, SFT)
  and `answer` (grader); `id` defaults to the line number, `domain` to 'math'.

  Args:
    path: the file.
    needs: fields that must not be empty, for what the run will do.
    limit: stop after so many rows; 0 reads all.

  Raises:
    InputError: no such file, no rows, or a bad row; names file and line.
  """
  if str(path).startswith('tiny:'):
    return world.named(str(path)[len('tiny:'):], limit)
  path = epath.Path(path)
  if not path.is_file():
    raise InputError(f'{path}: no such problem file (JSONL: one object with '
                     'question, solution, answer a line)')
  problems, seen = [], {}
  with path.open(encoding='utf-8') as file:
    for number, line in enumerate(file, 1):
      if line.strip():
        row = _row(line, f'{path}:{number}', number, needs)
        if row.id in seen:
          raise InputError(f'{path}:{number}: id {row.id!r} stands already in '
                           f'line {seen[row.id]}')
        seen[row.id] = number
        problems.append(row)
        if len(problems) == limit:
          break
  if not problems:
    raise InputError(f'{path}: no problems in it')
  return problems


def needs(config) -> tuple[str, ...]:
  """The fields that the training rows of a config must have."""
  if config.run == 'sft':
    return ('solution',)
  return ('answer',) if config.reward == 'sparse' else ('solution', 'answer')


def _row(line: str, where: str, number: int, needs) -> Problem:
  try:
    row = json.loads(line)
  except json.JSONDecodeError as e:
    raise InputError(f'{where}: not JSON ({e})') from None
  if not isinstance(row, dict):
    raise InputError(f'{where}: want an object, got {type(row).__name__}')
  values = {k: row[k] for k in _FIELDS if k in row}
  values.setdefault('id', str(number))
  for name, value in values.items():
    if isinstance(value, (int, float)) and name in ('id', 'answer'):
      values[name] = str(value)
    elif not isinstance(value, str):
      raise InputError(f'{where}: {name} should be text, it is '
                       f'{type(value).__name__}')
  for name in ('question', *needs):
    if not values.get(name, '').strip():
      raise InputError(f'{where}: row has no {name}; add it or remove the row')
  return Problem(**values)


def batches(problems: Sequence[Problem], batch: int, seed: int):
  """A function of the step alone: step -> its batch of problems.

  Every epoch is another permutation. As no state is kept, resuming at a step
  needs nothing but its number.
  """
  order = grain.MapDataset.source(problems).seed(seed).shuffle().repeat()
  return lambda step: [order[step * batch + i] for i in range(batch)]


def policy_prompt(tokenizer, question: str, system_prompt: str = ''
                  ) -> list[int]:
  """The policy's prompt. It takes the question, so no solution can leak.

  The question enters with special tokens disarmed; the chat template around
  it does not.
  """
  slot = '\x00question\x00'
  messages = [{'role': 'user', 'content': slot}]
  if system_prompt:
    messages.insert(0, {'role': 'system', 'content': system_prompt})
  before, after = tokenizer.render(messages).split(slot)
  return (tokenizer.encode(before, special=True) + tokenizer.encode(question)
          + tokenizer.encode(after, special=True))


def policy_prompts(tokenizer, problems: Sequence[Problem], config
                   ) -> list[list[int]]:
  """The policy's prompts of all problems.

  Raises:
    InputError: a question does not fit; names the problem.
  """
  room, out = config.rollout.max_prompt_tokens, []
  for problem in problems:
    ids = policy_prompt(tokenizer, problem.question,
                        config.rollout.system_prompt)
    if len(ids) > room:
      raise InputError(f'problem {problem.id}: its prompt has {len(ids)} '
                       f'tokens, rollout.max_prompt_tokens={room}')
    out.append(ids)
  return out
