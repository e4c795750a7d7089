"""Grades programs: a plug-in for `config.grading.domains` (docs/grading.md).

    --config.grading.domains="('code=docs/examples/code_grader.py:grade',)"

The answer of a problem is JSON, `[[stdin, stdout], ...]`. The last ```python
block of the text is run once for each pair and must print what is asked for.

THIS IS NO SANDBOX. The program runs as you: it can read and delete your files
and use the network. The limits below stop accidents, nobody's intent. Run
programs of a model that you do not trust in a container without network.
"""

import json
import re
import resource
import subprocess
import sys
import tempfile

SECONDS = 1.0  # of processor time for each test; all of them must end within
# config.grading.timeout
MEMORY = 512 << 20  # bytes


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
  except ValueError:
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
  with tempfile.TemporaryDirectory() as folder:
    try:
      done = subprocess.run([sys.executable, '-I', '-c', program], input=given,
                            cwd=folder, env={}, capture_output=True, text=True,
                            errors='replace', timeout=2 * SECONDS,
                            preexec_fn=_limit)
    except subprocess.TimeoutExpired:
      return 'timeout'
  # Spaces at the ends of lines do not count.
  lines = [line.rstrip() for line in done.stdout.rstrip().splitlines()]
  expected = [line.rstrip() for line in want.rstrip().splitlines()]
  return 'correct' if done.returncode == 0 and lines == expected else 'wrong'


def _limit():
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
  resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS) + 1,) * 2)
