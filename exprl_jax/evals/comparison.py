"""Statistics of a candidate, and its difference from the first candidate."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from jaxtyping import Bool
import numpy as np

from exprl_jax.config import Config, Eval
from exprl_jax.evals import behaviors, estimators, held_out, policy_statistics
from exprl_jax.evals.candidates import Candidate
from exprl_jax.evals.estimators import GradedSamples
from exprl_jax.evals.held_out import Item
from exprl_jax.evals.sampling import CandidateSamples, Row, graded

Counts = Sequence[Sequence[Row]]  # of behaviors, [P][n]


@dataclasses.dataclass(frozen=True)
class Result:
  """The statistics of one candidate; the optional ones may be empty.

  Attributes:
    candidate: the model.
    eval: metrics on its own.
    difference: from the first candidate, 'PART/pass@k' -> mean, low, high.
    same_text: share of samples with the first candidate's text; nan for the
      first candidate itself, as `difference` and `newly_solved` are empty.
    newly_solved: counts of problems and the excess over the null.
    policy_statistics: entropy, KL, lengths, steps.
    behaviors: kind -> mean, gain, loss, net.
    unread: share of samples whose behaviors the judge failed to count.
  """

  candidate: Candidate
  eval: dict[str, float]
  difference: dict[str, dict[str, float]]
  same_text: float
  newly_solved: dict[str, float]
  policy_statistics: dict[str, Any]
  behaviors: dict[str, dict[str, float]]
  unread: float

  @property
  def is_first(self) -> bool:
    """Whether it is the candidate that the others are compared with."""
    return not self.difference

  def metrics(self) -> dict[str, float]:
    """Returns 'area/name' -> value; metrics.jsonl leaves nan out."""
    out = dict(self.eval)
    for name, values in self.difference.items():
      out |= {
          f'compare/{name}_diff': values['mean'],
          f'compare/{name}_diff_low': values['low'],
          f'compare/{name}_diff_high': values['high']
      }
    out |= {'compare/same_text_frac': self.same_text}
    out |= {f'newly_solved/{k}': v for k, v in self.newly_solved.items()}
    out |= {
        f'policy_statistics/{k}': v
        for k, v in self.policy_statistics.items()
        if k != 'steps_histogram'
    }
    for kind, values in self.behaviors.items():
      out[f'behaviors/{kind}_mean'] = values['mean']
      if not self.is_first:
        out |= {
            f'behaviors/{kind}_{k}': values[k] for k in ('gain', 'loss', 'net')
        }
    if self.behaviors:
      out['behaviors/failed_frac'] = self.unread
    return out

  def json(self) -> dict[str, Any]:
    """Returns its entry of comparison.json, without nan."""
    out = {
        'name': self.candidate.name, 'source': self.candidate.source,
        'step': self.candidate.reference.step, 'metrics': self.eval
    }
    if not self.is_first:
      out |= {'difference': self.difference, 'same_text_frac': self.same_text}
    for name in ('newly_solved', 'policy_statistics', 'behaviors'):
      if value := getattr(self, name):
        out[name] = value
    return _without_nan(out)


def _without_nan(tree: Any) -> Any:
  """Replaces nan, which JSON lacks, by null."""
  if isinstance(tree, dict):
    return {k: _without_nan(v) for k, v in tree.items()}
  return None if tree != tree else tree


def compare(config: Config, items: Sequence[Item],
            candidates: Sequence[Candidate],
            samples: Sequence[CandidateSamples],
            counts: Sequence[Counts]) -> list[Result]:
  """Compares all candidates with the first.

  Args:
    config: its `eval`.
    items: the P problems.
    candidates: the models.
    samples: of each.
    counts: behaviors of each; [] without eval.behaviors.
  """
  return [
      _result(config.eval, items, candidate, samples[i], samples[0],
              counts[i] if counts else [], counts[0] if counts else [])
      for i, candidate in enumerate(candidates)
  ]


def _result(cfg: Eval, items: Sequence[Item], candidate: Candidate,
            mine: CandidateSamples, first: CandidateSamples, counts: Counts,
            first_counts: Counts) -> Result:
  samples, base = graded(mine.rows), graded(first.rows)
  is_first, has_new = mine is first, bool(mine.independent)
  flat = [row for rows in mine.rows for row in rows]
  return Result(
      candidate, held_out.all_metrics(samples, items, cfg.ks),
      {} if is_first else differences(samples, base, items, cfg.ks),
      float('nan') if is_first else _same_text(mine.rows, first.rows),
      _newly_solved(base.correct, mine.independent, first.independent, cfg)
      if has_new and not is_first else {},
      policy_statistics.summary(flat) if cfg.policy_statistics else {},
      behaviors.compare(counts, first_counts) if counts else {},
      float(np.mean(['failed' in row for rows in counts for row in rows]))
      if counts else 0.0)


def _same_text(mine: Counts, first: Counts) -> float:
  return float(
      np.mean([
          a['text'] == b['text']
          for x, y in zip(mine, first)
          for a, b in zip(x, y)
      ]))


def differences(samples: GradedSamples, base: GradedSamples,
                items: Sequence[Item],
                ks: Sequence[int]) -> dict[str, dict[str, float]]:
  """Returns the difference in pass@k and maj@k from the base model.

  'PART/pass@k' -> its mean and its 95 % interval, paired by problem, over all
  problems, over each of `held_out.parts`, and the mean over several sets.
  """
  mine = estimators.per_problem(samples, ks)
  theirs = estimators.per_problem(base, ks)
  out = {
      part + name: estimators.interval((mine[name] - theirs[name])[rows],
                                       (-1.0, 1.0))
      for part, rows in held_out.parts(items).items()
      for name in mine
  }
  if sets := held_out.set_names(items):
    out |= {
        f'mean_over_sets/{name}': estimators.mean_over_sets(
            [out[f'{s}/{name}'] for s in sets]) for name in mine
    }
  return {name: found._asdict() for name, found in out.items()}


def _newly_solved(base: Bool[np.ndarray,
                             'P n'], independent: Sequence[Sequence[Row]],
                  null: Sequence[Sequence[Row]], cfg: Eval) -> dict[str, float]:
  """Counts problems; the excess over the null has an interval."""
  k = cfg.newly_solved_k
  unsolved = estimators.base_unsolved(base, k)
  mine, by_luck = (estimators.newly_solved(base, _correct(rows, k), k,
                                           cfg.newly_solved_min)
                   for rows in (independent, null))
  out: dict[str, float] = {
      'base_unsolved': int(unsolved.sum()), 'count': int(mine.sum()),
      'null': int(by_luck.sum()), 'excess': int(mine.sum() - by_luck.sum())
  }
  if unsolved.any():
    difference = (mine.astype(float) - by_luck)[unsolved]
    found = estimators.interval(difference, (-1.0, 1.0))
    out |= {
        'excess_low': found.low * len(difference),
        'excess_high': found.high * len(difference)
    }
  return out


def _correct(rows: Sequence[Sequence[Row]], k: int) -> Bool[np.ndarray, 'P k']:
  """Problems without samples count as wrong."""
  return np.array(
      [[row['correct'] for row in samples] or [False] * k for samples in rows])
