"""Measures the start of a run on large data sets, and drawing from them.

  python benchmarks/data.py [--rows=1000000] [--files=2000] [--only=Parquet]

Writes problems of about 700 bytes with short answers: a thousand as JSONL,
--rows of them as JSONL, Parquet and .jsonl.gz, and a mixture of two sets with
half of --files each, --rows in all; with --only, those with that in their
title. Prints a table, of the first start and of the next one, each in a process
of its own:
  read   seconds until problems can be drawn: all rows checked
  check  seconds of the checks at the start of a run (runs/validate.py, prompts
         by the tokenizer of the tiny policy), behind that
  RSS    resident memory after that, and its peak, in MB
  draw   problems per second, in the random order of training
Seconds are of processor time, which other work on the machine changes little.
"""

import argparse
from collections.abc import Callable, Iterator
import gzip
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

WORDS = [f'word{i}' for i in range(5000)]
Rows = Iterator[dict[str, str]]
DataSets = dict[str, tuple[Callable[[], None], dict[str, Any]]]
COLUMNS = ('read', 'check', 'RSS', 'peak', 'draw')


def rows(count: int, start: int = 0) -> Rows:
  """Yields problems."""
  rng = random.Random(start)
  for i in range(start, start + count):
    text = ' '.join(rng.choices(WORDS, k=90))
    yield {
        'id': f'p{i}', 'question': text[:200], 'solution': text[200:],
        'answer': str(i)
    }


def write_jsonl(path: pathlib.Path, items: Rows) -> None:
  """Writes a JSONL file."""
  with path.open('w') as file:
    file.writelines(json.dumps(row) + '\n' for row in items)


def write_parquet(path: pathlib.Path, items: Rows,
                  per_write: int = 100_000) -> None:
  """Writes a Parquet file with large row groups."""
  import pyarrow as pa
  import pyarrow.parquet as pq
  writer = None
  while part := list(itertools.islice(items, per_write)):
    table = pa.Table.from_pylist(part)
    writer = writer or pq.ParquetWriter(path, table.schema)
    writer.write_table(table)
  writer.close()


def write_gz(path: pathlib.Path, items: Rows) -> None:
  """Writes a compressed JSONL file."""
  with gzip.open(path, 'wt', compresslevel=1) as file:
    file.writelines(json.dumps(row) + '\n' for row in items)


def write_files(folder: pathlib.Path, count: int, files: int) -> None:
  """Writes two folders of JSONL files."""
  for i in range(files):
    part = folder / 'ab'[i % 2]
    part.mkdir(parents=True, exist_ok=True)
    n = count // files
    write_jsonl(part / f'{i:05d}.jsonl', rows(n, i * n))


def data_sets(folder: pathlib.Path, count: int, files: int) -> DataSets:
  """What is written, and the keys of `data` that name it, by title."""
  parts = folder / 'parts'
  one = lambda name, write, n: (lambda: write(folder / name, rows(n)),
                                {'train': f'{folder}/{name}'})
  return {
      '1,000 rows, JSONL': one('few.jsonl', write_jsonl, 1000),
      f'{count:,} rows, JSONL': one('many.jsonl', write_jsonl, count),
      f'{count:,} rows, Parquet': one('many.parquet', write_parquet, count),
      f'{count:,} rows, .jsonl.gz': one('many.jsonl.gz', write_gz, count),
      f'{count:,} rows, mixture of {files:,} files': (
          lambda: write_files(parts, count, files),
          {'mixture': (f'a=0.7,{parts}/a', f'b=0.3,{parts}/b')})
  }


def measure(keys: dict[str, Any]) -> dict[str, float]:
  """Starts on a data set, in this process."""
  from exprl_jax import config as config_lib
  from exprl_jax.data import problems as data
  from exprl_jax.data.batches import batches
  from exprl_jax.data.tokenizer import Tokenizer
  from exprl_jax.grading.grader import Grader
  from exprl_jax.runs import budgets, validate
  keys = {k: tuple(v) if isinstance(v, list) else v for k, v in keys.items()}
  config = config_lib.Config(data=config_lib.Data(batch=64,
                                                  **keys), reward='sparse',
                             rollout=config_lib.Rollout(max_prompt_tokens=4096))
  tokenizer = Tokenizer(config_lib.resolve('asset:tiny_policy'))
  grader = Grader(config.grading)
  start = time.process_time()
  problems = data.training_problems(config, ('solution', 'answer'))
  batch_of = batches(problems, config.data.batch, config.seed)
  batch_of(0)
  read = time.process_time() - start
  start = time.process_time()
  validate.usable(config, ('solution', 'answer'), grader,
                  [budgets.policy_prompt(config, tokenizer)])
  check = time.process_time() - start
  memory = status('VmRSS'), status('VmHWM')
  start = time.process_time()
  for step in range(200):
    batch_of(step)
  draw = 200 * config.data.batch / (time.process_time() - start)
  grader.close()
  return dict(zip(COLUMNS, (read, check, *memory, draw)))


def status(name: str) -> float:
  """A figure of /proc/self/status in MB."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(name + ':'):
      return int(line.split()[1]) / 1000
  raise AssertionError(name)


def main() -> None:
  """Prints the table; with --measure, the figures of one start as JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rows', type=int, default=1_000_000)
  parser.add_argument('--files', type=int, default=2000)
  parser.add_argument('--only', default='', help='part of a title')
  parser.add_argument('--measure', type=json.loads, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.measure:
    print(json.dumps(measure(args.measure)))
    return
  print('| data | start |' + ''.join(f' {c} |' for c in COLUMNS))
  print('|---' * (2 + len(COLUMNS)) + '|', flush=True)
  with tempfile.TemporaryDirectory() as name:
    sets = data_sets(pathlib.Path(name), args.rows, args.files)
    env = os.environ | {'EXPRL_CACHE': f'{name}/cache', 'JAX_PLATFORMS': 'cpu'}
    for title, (write, keys) in sets.items():
      if args.only in title:
        write()
        for which in ('first', 'next'):
          print(f'| {title} | {which} |' + figures(keys, env), flush=True)


def figures(keys: dict[str, Any], env: dict[str, str]) -> str:
  """The columns of one start, in a process of its own."""
  child = subprocess.run(
      [sys.executable, __file__, '--measure',
       json.dumps(keys)], env=env, stdout=subprocess.PIPE, text=True,
      check=True)
  found = json.loads(child.stdout.splitlines()[-1])
  return ''.join(
      f' {found[c]:.1f} |' if c in ('read', 'check') else f' {found[c]:,.0f} |'
      for c in COLUMNS)


if __name__ == '__main__':
  main()
