"""What a person sees of training steps: lines, statistics, samples."""

from collections.abc import Mapping
from typing import Any

from etils import epath
from jaxtyping import Float
import numpy as np

from exprl_jax.rl.scored import ScoredRollouts
from exprl_jax.runtime import files, metrics


def statistics(scored: ScoredRollouts,
               credit: Float[np.ndarray, 'B S']) -> dict[str, float]:
  """Lengths of a batch, advantages of its steps."""
  lengths = np.array([len(t.completion) for t in scored.trajectories])
  a = credit[np.asarray(scored.scores.valid)]
  return {
      'length/response_mean': float(lengths.mean()),
      'length/response_max': float(lengths.max()),
      'advantage/abs_max': float(np.abs(a).max()) if len(a) else 0.0,
      'advantage/mean': metrics.mean(a.tolist())
  }


def line(step: int, values: Mapping[str, float]) -> str:
  """The terminal's line about a step."""
  seconds = sum(v for k, v in values.items() if k.startswith('time/'))
  if 'optim/lr' not in values:
    return f'step {step:5d}  nothing to train on  {seconds:.2f} s'
  more = '  no credit' if 'policy/loss' not in values else ''
  for name in ('ref_kl', 'entropy'):
    if f'policy/{name}' in values:
      more += f'  {name.removeprefix("ref_")} {values[f"policy/{name}"]:.3f}'
  return (f'step {step:5d}  reward {values["reward/mean"]:.3f}  accuracy '
          f'{values["reward/accuracy"]:.3f}{more}  {seconds:.2f} s')


def sample_table(step: int, scored: ScoredRollouts,
                 most: int = 16) -> list[list[Any]]:
  """(step, id, question, text, score, correct) of the first traces."""
  value, valid = scored.scores
  out = []
  for i, trace in enumerate(scored.traces[:most]):
    scores = value[i][np.asarray(valid[i])]
    out.append([
        step, trace.problem.id, trace.problem.question, trace.text,
        float(scores[-1]) if len(scores) else None,
        trace.correct if trace.gradable else None
    ])
  return out


def write_samples(path: epath.Path, scored: ScoredRollouts,
                  credit: Float[np.ndarray, 'B S']) -> None:
  """Writes traces with their step scores and advantages, one JSON object a row.

  The reference solution is not among them: it stays in the problem file.

  Args:
    path: of the file; its folder is made.
    scored: the rows.
    credit: the advantage of each step.
  """
  value, valid = scored.scores
  lines = []
  for i, trace in enumerate(scored.traces):
    steps = [{
        'text': text, 'score': round(float(s), 4),
        'advantage': round(float(a), 4), 'valid': bool(v)
    } for text, s, a, v in zip(trace.steps, value[i], credit[i], valid[i])]
    lines.append(
        files.dumps({
            'id': trace.problem.id, 'question': trace.problem.question,
            'steps': steps, 'correct': trace.correct if trace.
            gradable else None, 'finished': trace.trajectory.finished
        }) + '\n')
  files.write(path, ''.join(lines))
