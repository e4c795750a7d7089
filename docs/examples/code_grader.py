"""Grades programs: a plug-in for `config.grading.domains` (docs/grading.md).

    --config.grading.domains="('code=docs/examples/code_grader.py:grade',)"

The answer of a problem is JSON, `[[stdin, stdout], ...]`. The last ```python
block of the text is run once for each pair and must print what is asked for.
It runs in a sandbox; docs/grading.md says what that contains.
"""

import json
import re
import sys

from exprl_jax.grading import sandbox

SECONDS = 1.0  # for each test; all of them must end within
# config.grading.timeout
MEMORY_MB = 512


def grade(text: str, problem: dict) -> str:
  """Whether the program passes all tests of the problem.

  Args:
    text: what the model wrote, without its thinking.
    problem: `id`, `question`, `answer`, `domain` and `solution`, all strings.

  Returns:
    A status of `exprl_jax.grading.grader.STATUSES`.
  """
  try:
    tests = [
        (str(given), str(want)) for given, want in json.loads(problem['answer'])
    ]
  except (TypeError, ValueError):
    return 'gold_unparsable'
  programs = re.findall(r'```python\s*\n(.*?)```', text, re.S)
  if not programs:
    return 'no_answer'
  for given, want in tests:
    status = _run(programs[-1], given, want)
    if status != 'correct':
      return status
  return 'correct' if tests else 'gold_unparsable'


def _run(program, given, want) -> str:
  done = sandbox.run([sys.executable, '-I', 'main.py'],
                     files={'main.py': program}, stdin=given, seconds=SECONDS,
                     memory_mb=MEMORY_MB)
  if done.reason == 'timeout':
    return 'timeout'
  if done.reason == 'failed':
    raise RuntimeError(done.message)
  # Spaces at the ends of lines do not count.
  lines = [line.rstrip() for line in done.stdout.rstrip().splitlines()]
  expected = [line.rstrip() for line in want.rstrip().splitlines()]
  right = not done.reason and done.code == 0 and lines == expected
  return 'correct' if right else 'wrong'
