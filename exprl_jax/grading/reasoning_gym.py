"""Tasks of reasoning-gym and their scorers: a plug-in of the grader.

    --config.grading.grader=exprl_jax.grading.reasoning_gym:grade

A problem is a function of its id, FAMILY?OPTIONS#INDEX, so the grader makes the
task anew instead of storing what its scorer needs to know.

Runs in workers, so it imports nothing that imports jax, and raises ValueError
instead of InputError.
"""

import dataclasses
import functools
import json
import os
import re
from typing import Any
import urllib.parse

from exprl_jax.grading import answers

# Families whose tasks depend on the order of sets of texts, which is another in
# every process unless PYTHONHASHSEED is set (reasoning-gym 0.1.25).
UNSTABLE = frozenset({
    'intermediate_integration', 'isomorphic_strings', 'knight_swap',
    'polynomial_multiplication', 'ransom_note', 'word_ladder'
})
# Families whose scores mean nothing (0.1.25), and why.
REFUSED = {
    'coin_flip': 'its scorer accepts 0 for every probability',
    'game_of_life_halting': 'its scorer accepts any text',
    'list_functions': 'it ignores its seed, so that no task can be made again'
}

_TAGS = re.compile(r'<answer>(.*?)</answer>', re.S)
_TEXT = re.compile(r'\\(?:text|mathrm|texttt)\s*\{(.*)\}', re.S)


def grade(text: str, problem: dict[str, str]) -> tuple[str, str]:
  """Grades by the scorer of the problem's family; only a score of 1 is correct.

  The answer is what stands between the last <answer> tags, or else the last
  box.

  Args:
    text: what the model wrote, without its thinking.
    problem: `id` and `question`; its `answer` is not read.

  Returns:
    A status, and the answer.

  Raises:
    ValueError: the id makes another question than the problem's.
  """
  name, _, index = problem['id'].rpartition('#')
  tasks = dataset(name)
  task = tasks[int(index)]
  if task['question'].strip() != problem['question']:
    raise ValueError(
        f'{problem["id"]} is another task than in the run: use one '
        'version of reasoning-gym, and set PYTHONHASHSEED=0')
  answer = _answer(text)
  if not answer:
    return 'no_answer', ''
  try:
    score = tasks.score_answer(answer, task)
  except Exception:  # some scorers raise at what they cannot read
    return 'unparsable', ''
  return ('correct' if score >= 1 else 'wrong'), answer


def _answer(text: str) -> str:
  tagged = _TAGS.findall(text)
  answer = tagged[-1] if tagged else answers.final_answer(text) or ''
  answer = answer.strip().strip('$')
  upright = _TEXT.fullmatch(answer)
  return (upright[1] if upright else answer).strip()


@functools.lru_cache(16)
def dataset(name: str) -> Any:
  """Makes the tasks of FAMILY?OPTIONS: a sequence of dicts, with a scorer.

  Args:
    name: as `full_name` returns it.

  Raises:
    ImportError: reasoning-gym is not installed.
    ValueError: there is no such family, or it does not take the options.
  """
  library = _library()
  family, options = parse(name)
  if family in REFUSED:
    raise ValueError(f'{REFUSED[family]}; choose another family')
  if family in UNSTABLE and os.environ.get('PYTHONHASHSEED',
                                           'random') == 'random':
    raise ValueError(f'{family} makes other tasks in every process; set the '
                     'environment variable PYTHONHASHSEED=0')
  known = [f.name for f in dataclasses.fields(library.DATASETS[family][1])]
  if unknown := sorted(options.keys() - set(known)):
    raise ValueError(f'{family} has no option {unknown[0]!r}, only '
                     f'{", ".join(known)}')
  try:
    return library.create_dataset(family, **options)
  except (AssertionError, TypeError, ValueError) as e:
    raise ValueError(f'{family} does not take {options} '
                     f'({type(e).__name__}: {e})') from None


def full_name(name: str) -> str:
  """Adds the seed and the size to FAMILY?OPTIONS and sorts the options.

  The library would draw a seed.

  Raises:
    ValueError: an option is not NAME=VALUE.
  """
  family, options = parse(name)
  options = {'seed': 0, 'size': 500} | options
  values = sorted((key, json.dumps(value)) for key, value in options.items())
  return f'{family}?{urllib.parse.urlencode(values)}'


def parse(name: str) -> tuple[str, dict[str, Any]]:
  """Splits FAMILY?NAME=VALUE&...; a value is JSON, or else a text.

  Raises:
    ValueError: an option is not NAME=VALUE.
  """
  family, _, query = name.partition('?')
  options: dict[str, Any] = {}
  for key, value in urllib.parse.parse_qsl(query, keep_blank_values=True,
                                           strict_parsing=bool(query)):
    try:
      options[key] = json.loads(value)
    except json.JSONDecodeError:
      options[key] = value
  return family, options


def families() -> list[str]:
  """Names the families of the installed version.

  Raises:
    ImportError: reasoning-gym is not installed.
  """
  return sorted(_library().DATASETS)


def _library() -> Any:
  try:
    from reasoning_gym import factory
  except ImportError as e:
    raise ImportError("reasoning-gym is not installed: pip install "
                      f"'exprl_jax[reasoning_gym]' ({e})") from None
  return factory
