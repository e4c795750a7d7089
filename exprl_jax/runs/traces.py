"""Every sampled trace of a training run, compressed, a file a step.

traces/STEP.jsonl.gz has all that credit and the update are computed from but
the references: those are in traces/references.jsonl, once a problem, so that
traces can be shared without them. docs/reliability.md describes the fields;
run='replay' reads them back.
"""

import base64
from collections.abc import Sequence
import gzip
from typing import Any

from etils import epath
import jax
from jaxtyping import Float
import numpy as np

from exprl_jax import config as config_lib
from exprl_jax.data import rubrics
from exprl_jax.rl.scored import ScoredRollouts
from exprl_jax.runtime import files, jsonl
from exprl_jax.types import InputError, Problem, Trajectory

_LEVEL = 3  # of gzip


class Traces:
  """The folder `traces` of a workdir; process 0 writes."""

  def __init__(self, workdir: epath.PathLike, cfg: config_lib.Traces) -> None:
    """Reads which steps and references are there already."""
    self._folder = epath.Path(workdir) / 'traces'
    self._keep_bytes = int(cfg.keep_gb * 1e9)
    self._on = bool(self._keep_bytes) and jax.process_index() == 0
    self._bytes: dict[str, int] = {}  # by file
    self._references = jsonl.Lines(self._folder / 'references.jsonl')
    self._known: set[str] = set()  # problems with a reference in the file
    if self._on:
      self._bytes = {
          p.name: p.stat().length
          for p in self._folder.glob('[0-9]' * 8 + '.jsonl.gz')
      }
      self._known = {str(r.get('problem')) for r in self._references.keep()}

  def write(self, step: int, scored: ScoredRollouts,
            advantage: Float[np.ndarray,
                             'B S'], dropped: ScoredRollouts) -> None:
    """Writes the traces of a step, and deletes those of the oldest steps if
    there are too many.

    Args:
      step: as it is logged.
      scored: the rows that train.
      advantage: of their steps; 0 where nothing trained.
      dropped: rows without a gradient, which do not.
    """
    if not self._on:
      return
    rows = [*_rows(scored, advantage), *_rows(dropped, None)]
    text = ''.join(files.dumps(row) + '\n' for row in rows)
    data = gzip.compress(text.encode(), _LEVEL, mtime=0)
    name = _name(step)
    files.write(self._folder / name, data)
    self._bytes[name] = len(data)
    for trace in (*scored.traces, *dropped.traces):
      self._refer(trace.problem)
    self._references.flush()
    while sum(self._bytes.values()) > self._keep_bytes and len(self._bytes) > 1:
      oldest = min(self._bytes)
      (self._folder / oldest).unlink(missing_ok=True)
      del self._bytes[oldest]

  def _refer(self, problem: Problem) -> None:
    """Writes the reference of a problem that is new."""
    digest = rubrics.digest(problem)
    if digest not in self._known:
      self._known.add(digest)
      self._references.append({
          'problem': digest, 'id': problem.id, 'solution': problem.solution,
          'answer': problem.answer, 'rubric': problem.rubric
      })

  def close(self) -> None:
    """Stores the last references."""
    if self._on:
      self._references.close()


def read(path: epath.PathLike) -> list[dict[str, Any]]:
  """Reads the rows of a step's file that are whole.

  Raises:
    OSError: the file is not there, or it is damaged.
  """
  try:
    text = gzip.decompress(epath.Path(path).read_bytes())
  except EOFError as e:
    raise OSError(f'{path}: cut short ({e})') from None
  return jsonl.parse(text).rows


def trained(workdir: epath.PathLike, step: int) -> list[dict[str, Any]]:
  """The rows of a step that trained, each with its problem's `reference`.

  Raises:
    InputError: the step has no traces, or they are damaged.
  """
  folder = epath.Path(workdir) / 'traces'
  path = folder / _name(step)
  if not path.exists():
    have = sorted(int(p.name[:8]) for p in folder.glob('[0-9]' * 8 + '.*'))
    raise InputError(f'{path}: no traces of step {step}; the workdir has ' +
                     (f'steps {have[0]} to {have[-1]}' if have else 'none') +
                     ' (traces.keep_gb bounds them)')
  try:
    rows = [row for row in read(path) if row['trains']]
    references = {
        row['problem']: row
        for row in jsonl.read(folder / 'references.jsonl').rows
    }
    return [row | {'reference': references[row['problem']]} for row in rows]
  except (OSError, KeyError, TypeError) as e:
    raise InputError(f'{path}: damaged ({e}); choose another step') from None


def trajectory(row: dict[str, Any], prompt: Sequence[int]) -> Trajectory:
  """The trajectory of a row; its prompt is not kept."""
  return Trajectory(np.array(prompt, np.int32), _unpacked(row['tokens'], '<i4'),
                    _unpacked(row['logprobs'], '<f4'), row['finish_reason'],
                    tuple(row['step_ends']))


def _rows(scored: ScoredRollouts,
          advantage: Float[np.ndarray, 'B S'] | None) -> list[dict[str, Any]]:
  """One object a trace; without advantages for rows that do not train."""
  out = []
  value, valid = scored.scores
  for i, trace in enumerate(scored.traces):
    steps: list[dict[str, Any]] = [
        {'text': text, 'score': exact(s), 'valid': bool(v)}
        for text, s, v in zip(trace.steps, value[i], valid[i])
    ]  # yapf: disable
    if advantage is not None:
      for part, a in zip(steps, advantage[i]):
        part['advantage'] = exact(a)
    trajectory = trace.trajectory
    out.append({
        'problem': rubrics.digest(trace.problem), 'id': trace.problem.id,
        'question': trace.problem.question, 'steps': steps, 'text': trace.text,
        'trains': advantage is not None, 'status': trace.grade.status,
        'answer': trace.grade.answer, 'domain': trace.problem.domain,
        'correct': trace.correct if trace.gradable else None,
        'length': len(trajectory.completion),
        'step_ends': [int(e) for e in trajectory.step_ends
                     ], 'finish_reason': trajectory.finish_reason,
        'tokens': _packed(trajectory.completion,
                          '<i4'), 'logprobs': _packed(trajectory.logprobs,
                                                      '<f4')
    })
  return out


def _packed(values: np.ndarray, dtype: str) -> str:
  """The bytes of an array as text: as floats, JSON would be three times it."""
  return base64.b64encode(values.astype(dtype).tobytes()).decode()


def _unpacked(text: str, dtype: str) -> np.ndarray:
  values = np.frombuffer(base64.b64decode(text), dtype)
  return values.astype(values.dtype.newbyteorder('='))


def _name(step: int) -> str:
  return f'{step:08d}.jsonl.gz'


def exact(x: Any) -> float:
  """A float32 as the shortest number that reads back as it."""
  return float(str(np.float32(x)))
