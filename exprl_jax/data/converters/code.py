"""Programming problems whose tests grade them.

Shapes of rows:

    livecodebench  livecodebench/code_generation_lite: question_title,
                   question_content, platform, question_id, contest_id,
                   contest_date, starter_code, difficulty, public_test_cases
                   (JSON), private_test_cases (JSON, or base64 of zlib of a
                   pickled JSON text), metadata (JSON); by the benchmark's
                   lcb_runner/benchmarks/code_generation.py
"""

import base64
import io
import json
import pickle
from typing import Any
import zlib

from exprl_jax.data.converters import base
from exprl_jax.data.converters.base import Row
from exprl_jax.types import InputError

_INSTRUCTION = ('Write a Python program that reads the input from stdin and '
                'writes the answer to stdout. Put it into one ```python block.')


def livecodebench(row: Row) -> dict[str, str] | None:
  """Keeps the problems whose programs read stdin, with all their tests.

  The answer is what docs/examples/code_grader.py reads. Drops problems that
  ask for a function (LeetCode's). The set has no solutions.
  """
  question = base.text(row, 'question_content')
  tests = [
      *json.loads(base.text(row, 'public_test_cases') or '[]'),
      *_private(base.text(row, 'private_test_cases'))
  ]
  if not question or not tests or any(
      test['testtype'] != 'stdin' for test in tests):
    return None
  pairs = [[test['input'], test['output']] for test in tests]
  return {
      'id': base.text(row, 'question_id'),
      'question': f'{question}\n\n{_INSTRUCTION}', 'answer': json.dumps(pairs),
      'domain': base.CODE
  }


def _private(packed: str) -> list[dict[str, Any]]:
  """Unpacks the private tests.

  Raises:
    InputError: they are packed in another way.
  """
  if not packed:
    return []
  try:
    if packed.startswith('['):
      return json.loads(packed)
    data = zlib.decompress(base64.b64decode(packed))
    return json.loads(_Texts(io.BytesIO(data)).load())
  except (ValueError, TypeError, zlib.error, pickle.UnpicklingError) as e:
    raise InputError('private_test_cases cannot be unpacked '
                     f'({type(e).__name__}: {e}); get the data set from its '
                     'authors') from None


class _Texts(pickle.Unpickler):
  """Unpickles texts only; another pickle may run any code."""

  def find_class(self, module_name: str, global_name: str, /) -> Any:
    raise pickle.UnpicklingError(f'imports {module_name}.{global_name}')


CONVERTERS = {'livecodebench': livecodebench}
