"""Traces for the report's browser: some steps of traces/, else of samples/."""

from collections.abc import Mapping
import gzip
import json
from typing import Any

from etils import epath

from exprl_jax.runtime import jsonl
from exprl_jax.types import LINES, printable

_STEPS, _ROWS = 12, 48  # steps, and traces of each, that are shown
_BYTES = 6 * 10**6  # of all of them as JSON


def shown(workdir: epath.Path) -> list[dict[str, Any]]:
  """Traces of the first, the last and some steps between.

  Returns:
    {step, traces} each; a trace has id, question, domain, correct, answer,
    length, end, score, [text, score, advantage] of its steps, and reference and
    gold where traces/ has them. All text is printable.
  """
  files = _files(workdir)
  every = max(1, -(-(len(files) - 1) // (_STEPS - 1)))
  chosen = sorted({*list(files)[::every], *list(files)[-1:]})
  references = {
      str(row.get('problem')): row
      for row in jsonl.read(workdir / 'traces/references.jsonl').rows
  }
  out: list[dict[str, Any]] = []
  size = 0
  for step in reversed(chosen):  # the last ones matter most
    rows = [_row(row, references) for row in _read(files[step])[:_ROWS]]
    size += len(json.dumps(rows))
    if rows and (size <= _BYTES or not out):
      out.append({'step': step, 'traces': rows})
  return out[::-1]


def _files(workdir: epath.Path) -> dict[int, epath.Path]:
  """Step -> file with its traces."""
  found = {
      int(path.name[:8]): path
      for folder, end in (('samples', '.jsonl'), ('traces', '.jsonl.gz'))
      for path in (workdir / folder).glob('[0-9]' * 8 + end)
  }
  return dict(sorted(found.items()))


def _read(path: epath.Path) -> list[dict[str, Any]]:
  """The rows of a file that are whole."""
  data = path.read_bytes()
  if path.name.endswith('.gz'):
    try:
      data = gzip.decompress(data)
    except (EOFError, OSError):  # cut short, or damaged
      return []
  return [
      row for row in jsonl.parse(data).rows
      if isinstance(row.get('steps'), list) and 'id' in row
  ]


def _row(row: Mapping[str, Any],
         references: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  steps = [[
      _text(step.get('text')),
      step.get('score') if step.get('valid') else None,
      step.get('advantage')
  ] for step in row['steps'] if isinstance(step, dict)]
  scores = [score for _, score, _ in steps if score is not None]
  reference = references.get(str(row.get('problem')), {})
  end = row.get('finish_reason') or ('eos' if row.get('finished') else 'length')
  return {
      'id': _text(row['id']), 'question': _text(row.get('question')),
      'domain': _text(row.get('domain')), 'correct': row.get('correct'),
      'answer': _text(row.get('answer')), 'length': row.get('length'),
      'end': _text(end), 'score': scores[-1] if scores else None,
      'steps': steps, 'reference': _text(reference.get('solution')),
      'gold': _text(reference.get('answer'))
  }


def _text(value: object) -> str:
  return '' if value is None else printable(str(value), keep=LINES)
