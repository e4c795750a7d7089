"""Lines of JSON that are not as they should be, in all files that have them."""

import dataclasses
import functools
import gzip
import json
import math
import random
import re

import pyarrow as pa
import pytest

from exprl_jax import config as config_lib
from exprl_jax.data import problems as data
from exprl_jax.data import rubrics
from exprl_jax.evals import judge_traces
from exprl_jax.grading.grader import Grade
from exprl_jax.runs import sample
from exprl_jax.types import Problem
from tests import fuzzing
from tests.problem_files import WRITE as WRITE_ALL

GOOD = {'question': 'wie viel ist 2 ± 1 ?'}
PROBLEM = {
    'id': 'a', 'question': 'q ?', 'solution': 's', 'answer': 3,
    'rubric': [{'text': 'Find 1', 'points': 2}], 'more': {'x': [1, 2.5]}
}
PROMPTS = [{'id': 'a', 'prompt': 'ben has 3 figs'}, {'tokens': [3, 4, 5]},
           {'messages': [{'role': 'user', 'content': 'mar has 2 figs'}]}]
TRACE = {
    'id': 'a', 'question': 'q ?', 'solution': 's', 'trace': 'x .\n\ny .',
    'correct': True, 'rubric': 'Find 1'
}
OF_RUBRIC = Problem('r', 'q ?', 's')
RUBRIC = {
    'id': 'r', 'digest': rubrics.digest(OF_RUBRIC),
    'items': [{'text': 'Find 1', 'points': 2}, {'text': 'Say', 'points': .5}]
}


def lines_around(rng, row, before, after):
  """A good line, a damaged one, a good one."""
  bad = fuzzing.with_value(rng, row) if rng.random() < .5 else fuzzing.damage(
      rng,
      json.dumps(row).encode())
  good = [json.dumps(r).encode() for r in (before, after)]
  return b'\n'.join([good[0], bad, good[1], b''])


def is_sound(value, depth=0):
  """Whether UTF-8 can hold a value, and code can walk through it."""
  if isinstance(value, str):
    return not re.search('[\ud800-\udfff]', value)
  if isinstance(value, dict):
    return depth < 100 and all(
        is_sound(k) and is_sound(v, depth + 1) for k, v in value.items())
  return not isinstance(value, list) or depth < 100 and all(
      is_sound(v, depth + 1) for v in value)


def plain(content):
  """(number, value) of the lines, as the json module reads them; None: not."""
  rows = []
  for number, line in enumerate(content.split(b'\n'), 1):
    line = line.removeprefix(b'\xef\xbb\xbf') if number == 1 else line
    try:
      if line.strip():
        rows.append((number, json.loads(line.decode())))
    except (ValueError, RecursionError):
      return None
  return rows if all(is_sound(row) for _, row in rows) else None


def as_text(value, default='', number=False):
  """What a field becomes; None: it is none."""
  if value is None or value == '' and default:
    return default
  if number and (type(value) is int
                 or isinstance(value, float) and math.isfinite(value)):
    return str(value)
  bad = not isinstance(value, str) or re.search(
      '[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]', value)
  return None if bad else value


def is_rubric(value):
  return value is None or as_text(value) is not None or bool(value) and (
      isinstance(value, list) and all(
          isinstance(i, dict) and isinstance(i.get('text'), str)
          and i['text'].strip() and as_text(i['text']) is not None
          and type(i.get('points')) in (int, float) and 0 < i['points'] <= 1e9
          for i in value))


def want_problems(content):
  """The problems of a file, by the rules of docs/data.md; None: an error."""
  rows, out = plain(content), []
  for number, row in rows or ():
    if not isinstance(row, dict) or not is_rubric(row.get('rubric')):
      return None
    texts = [
        as_text(row.get('id'), str(number), True),
        as_text(row.get('question')),
        as_text(row.get('solution')),
        as_text(row.get('answer'), '', True)
    ]
    if None in texts or not all(
        any(c.isprintable() and c != ' ' for c in t) for t in texts[:2]):
      return None
    out.append(tuple(texts))
  if rows is None or len({t[0] for t in out}) < len(out):
    return None
  return out


WRITE = {
    'p.jsonl': lambda x: x,
    'p.jsonl.gz': functools.partial(gzip.compress, compresslevel=1),
    'p.jsonl.zst': lambda x: pa.compress(x, 'zstd', asbytes=True)
}


def fuzz_problems(rng, folder):
  name = rng.choice(list(WRITE))
  content = lines_around(rng, PROBLEM, GOOD, GOOD)
  (folder / name).write_bytes(WRITE[name](content))
  got, error = fuzzing.outcome(lambda: data.read_problems(folder / name),
                               content)
  want = want_problems(content)
  assert (got is None) == (want is None), (content[:2000], error)
  assert got is None or want == [
      (p.id, p.question, p.solution, p.answer) for p in got
  ]
  return name, error


def fuzz_lists(rng, folder):
  """The same rows as one list."""
  content = b'[' + lines_around(rng, PROBLEM, GOOD, GOOD).strip().replace(
      b'\n', b',\n') + b']'
  (folder / 'p.json').write_bytes(content)
  got, error = fuzzing.outcome(lambda: data.read_problems(folder / 'p.json'),
                               content)
  if got is not None:
    assert [p.question for p in got
           ] == [row['question'] for row in json.loads(content)]
  return 'p.json', error


def fuzz_prompts(rng, folder, tokenizer):
  row = rng.choice(PROMPTS)
  content = lines_around(rng, row, {'id': 'x', 'tokens': [3]}, {'tokens': [4]})
  (folder / 'in.jsonl').write_bytes(content)
  got, error = fuzzing.outcome(
      lambda: sample.read_prompts(folder / 'in.jsonl', tokenizer, 64), content)
  if got is not None:
    rows = plain(content)
    assert [p.id for p in got] == [
        as_text(row.get('id'), str(number), True) for number, row in rows
    ]
    for prompt, (_, row) in zip(got, rows):
      if 'tokens' in row:
        assert prompt.tokens == row['tokens']
  return 'in.jsonl', error


def fuzz_traces(rng, folder, tokenizer):
  content = lines_around(rng, TRACE, TRACE | {'id': 'x'}, TRACE | {'id': 'y'})
  (folder / 'in.jsonl').write_bytes(content)
  config = config_lib.Config()
  config = dataclasses.replace(
      config, judge=dataclasses.replace(config.judge,
                                        traces=str(folder / 'in.jsonl')))
  # No trace is graded: only the file is in question.
  grader = lambda pairs: [Grade('incorrect', '')] * len(pairs)
  got, error = fuzzing.outcome(
      lambda: judge_traces.read_traces(config, tokenizer, grader), content)
  if got is not None:
    rows = [row for _, row in plain(content)]
    assert [t.problem.question for t in got] == [r['question'] for r in rows]
    assert [t.correct for t in got if t.correct is not None
           ] == [r['correct'] for r in rows if r.get('correct') is not None]
  return 'in.jsonl', error


def fuzz_rubrics(rng, folder):
  x, y = ({**RUBRIC, 'id': name} for name in 'xy')
  content = lines_around(rng, RUBRIC, x, y)
  (folder / 'r.jsonl').write_bytes(content)
  problems = [OF_RUBRIC, dataclasses.replace(OF_RUBRIC, id='x')]
  got, error = fuzzing.outcome(
      lambda: data.with_rubrics(problems, folder / 'r.jsonl'), content)
  if got is not None:
    rows = {r['id']: r for _, r in plain(content)}
    assert [i.points for i in got[0].rubric_items
           ] == [i['points'] for i in rows.get('r', {}).get('items', ())]
  return 'r.jsonl', error


@pytest.fixture(scope='module')
def fuzzers(policy):
  tokenizer = policy[2]
  return [
      fuzz_problems, fuzz_lists,
      functools.partial(fuzz_prompts, tokenizer=tokenizer),
      functools.partial(fuzz_traces, tokenizer=tokenizer), fuzz_rubrics
  ]


def fuzz(fuzzers, folder, cases, seed):
  """Runs cases; returns how many were refused."""
  rng = random.Random(seed)
  refused = 0
  for i in range(cases):
    name, error = fuzzers[i % len(fuzzers)](rng, folder)
    if error:
      # File and line; of a rubric file that no longer has the id, the file.
      place = f'{folder / name}: none of its ' if 'none of its' in error else (
          rf'{folder / name}:\d+: ')
      assert re.match(place, error), error
      refused += 1
    (folder / name).unlink()
  return refused


def fuzz_formats(folder, cases, seed):
  """Damages files of all formats; their values may change unseen."""
  rng, whole = random.Random(seed), {}
  rows = [dict(PROBLEM, id=str(i), solution='s' * i) for i in range(9)]
  rows = [{k: str(v) for k, v in row.items()} for row in rows]
  for name in WRITE_ALL.keys() - {'saved'}:  # which is a folder
    WRITE_ALL[name](folder / name, rows)
    whole[name] = (folder / name).read_bytes()
  for i in range(cases):
    name = rng.choice(sorted(whole))
    (folder / name).write_bytes(fuzzing.damage(rng, whole[name]))
    read = functools.partial(data.read_problems, folder / name)
    _, error = fuzzing.outcome(read, (name, i))
    assert not error or error.startswith(str(folder / name)), error


def test_damaged_files_of_all_formats_are_read_or_named(tmp_path):
  fuzz_formats(tmp_path, 200, seed=0)


@pytest.mark.slow
def test_many_damaged_files_of_all_formats(tmp_path):
  fuzz_formats(tmp_path, 5000, seed=1)


def test_damaged_lines_are_read_rightly_or_named(fuzzers, tmp_path):
  assert 100 < fuzz(fuzzers, tmp_path, 300, seed=0) < 300


@pytest.mark.slow
def test_many_damaged_lines(fuzzers, tmp_path):
  refused = fuzz(fuzzers, tmp_path, 12000, seed=1)
  print(f'{refused} of 12000 files refused')
  assert 4000 < refused < 12000
