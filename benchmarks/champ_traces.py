"""Traces of CHAMP as a file for judge.traces.

  pip install champ-dataset
  python benchmarks/champ_traces.py OUT.jsonl [--count=N]

540 solutions of competition problems by language models, in which people marked
the first wrong step (Mao et al., 2024), with the human solutions as references.
96 have no wrong step. `correct` is whether a solution has none: the marks are
the only truth here. The order is shuffled, the same way every time.
"""

import argparse
import importlib.util
import json
import pathlib
import random

from exprl_jax.data.converters import champ


def rows(problems):
  """Yields a line for every marked trace."""
  for row in problems:
    problem = champ.champ(row)
    for author, mark in sorted(row['fws_annotations'].items()):
      start = mark['start_idx']
      yield {
          'id': f'{problem["id"]}/{author}', 'question': problem['question'],
          'solution': problem['solution'], 'trace': mark['text'],
          'wrong_at': -1 if start is None else start, 'correct': start is None
      }


def main():
  """Writes the file."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('out')
  parser.add_argument('--count', type=int, default=540)
  args = parser.parse_args()
  spec = importlib.util.find_spec('champ_dataset')
  if not spec or not spec.origin:
    parser.error('pip install champ-dataset')
  folder = pathlib.Path(spec.origin).parent
  data = json.loads((folder / 'dataset_files/v0.json').read_text())
  found = list(rows(data['problems'].values()))
  random.Random(0).shuffle(found)
  with open(args.out, 'w', encoding='utf-8') as file:
    for row in found[:args.count]:
      file.write(json.dumps(row) + '\n')
  print(f'{min(args.count, len(found))} traces -> {args.out}')


if __name__ == '__main__':
  main()
