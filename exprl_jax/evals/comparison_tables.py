"""The tables that run='evaluate' prints."""

from collections.abc import Sequence

from exprl_jax import report
from exprl_jax.config import Config, Eval
from exprl_jax.evals import held_out, policy_statistics
from exprl_jax.evals.comparison import Result

Table = tuple[str, list[list[str]]]  # title, rows with the header first


def tables(config: Config, results: Sequence[Result]) -> str:
  """Formats all results."""
  cfg, first, others = config.eval, results[0], results[1:]
  found = [_scores(results, cfg.ks)]
  if sets := _sets(config):
    found.append(_scores_of_sets(results, cfg.ks, sets))
  if others:
    found.append(_differences(others, first))
  if others and sets:
    found.append(_differences_of_sets(others, first, sets))
  if cfg.newly_solved_k and others:
    found.append(_newly_solved(others, first, cfg))
  if cfg.policy_statistics:
    found.append(_policy_statistics(results))
  if cfg.behaviors:
    found.append(_behaviors(results, cfg.behaviors))
  return '\n\n'.join(
      f'{title}\n{report.as_text(rows)}' for title, rows in found)


def _sets(config: Config) -> list[str]:
  """Returns the parts of a table over several sets; [] if there is one set."""
  names = list(held_out.files(config.eval.problems))
  return [*names, 'mean_over_sets'] if len(names) > 1 else []


def _scores(results: Sequence[Result], ks: Sequence[int]) -> Table:
  majority = [k for k in ks if f'eval/maj@{k}' in results[0].eval]
  rows = [[
      '', *(f'pass@{k} [95 %]' for k in ks), *(f'maj@{k}' for k in majority),
      'truncated', 'no answer', 'tokens'
  ]]
  for r in results:
    get = lambda name, r=r: r.eval[f'eval/{name}']
    rows.append([
        r.candidate.name, *_passes(r, '', ks),
        *(f'{get(f"maj@{k}"):.3f}' for k in majority),
        f'{get("truncated_frac"):.1%}', f'{get("no_answer_frac"):.1%}',
        f'{get("length_mean"):.1f}'
    ])
  return '\nheld-out problems', rows


def _passes(result: Result, part: str, ks: Sequence[int]) -> list[str]:
  """Formats pass@k, with its interval, of a part of the problems."""
  get = lambda k, end='': result.eval[f'eval/{part}pass@{k}{end}']
  return [
      f'{get(k):.3f} [{get(k, "_low"):.3f}, {get(k, "_high"):.3f}]' for k in ks
  ]


def _scores_of_sets(results: Sequence[Result], ks: Sequence[int],
                    sets: Sequence[str]) -> Table:
  rows = [['', 'set', *(f'pass@{k} [95 %]' for k in ks)]]
  rows += [[r.candidate.name, s, *_passes(r, f'{s}/', ks)]
           for s in sets
           for r in results]
  return 'each set, and the unweighted mean over sets', rows


def _differences(others: Sequence[Result], first: Result) -> Table:
  names = [n for n in others[0].difference if '/' not in n]
  rows = [['', *names, 'same texts']]
  for r in others:
    rows.append([
        r.candidate.name, *(_signed(r.difference[n]) for n in names),
        f'{r.same_text:.0%}'
    ])
  return (f'difference from {first.candidate.name} [95 %, paired by problem]',
          rows)


def _signed(difference: dict[str, float]) -> str:
  return '{mean:+.3f} [{low:+.3f}, {high:+.3f}]'.format(**difference)


def _differences_of_sets(others: Sequence[Result], first: Result,
                         sets: Sequence[str]) -> Table:
  names = [n for n in others[0].difference if '/' not in n]
  rows = [['', 'set', *names]]
  rows += [[
      r.candidate.name, s, *(_signed(r.difference[f'{s}/{n}']) for n in names)
  ] for s in sets for r in others]
  return f'the same for each set, from {first.candidate.name}', rows


def _newly_solved(others: Sequence[Result], first: Result, cfg: Eval) -> Table:
  k, name = cfg.newly_solved_k, first.candidate.name
  rows = [['', 'newly solved', f'null: {name} again', 'excess [95 %]']]
  for r in others:
    n = r.newly_solved
    interval = (f' [{n["excess_low"]:+.0f}, {n["excess_high"]:+.0f}]'
                if 'excess_low' in n else '')
    rows.append([
        r.candidate.name,
        str(n['count']),
        str(n['null']), f'{n["excess"]:+d}{interval}'
    ])
  unsolved = others[0].newly_solved['base_unsolved']
  return (f'newly solved: of {unsolved} problems of which {name} has 0 of {k} '
          f'right, those with at least {cfg.newly_solved_min} of {k} '
          'independent samples right', rows)


def _policy_statistics(results: Sequence[Result]) -> Table:
  buckets = policy_statistics.BUCKETS
  rows = [[
      '', 'entropy', 'KL (k1)', 'KL (k3)', 'tokens, right', 'wrong', 'steps',
      *buckets
  ]]
  for r in results:
    d = r.policy_statistics
    rows.append([
        r.candidate.name,
        *(f'{d[k]:.4f}' for k in ('entropy', 'kl_k1', 'kl_k3')),
        *(f'{d[k]:.1f}'
          for k in ('length_correct', 'length_wrong', 'steps_mean')),
        *(f'{d["steps_histogram"][b]:.0%}' for b in buckets)
    ])
  return ('on its own samples: nats per token; share of traces by number of '
          'steps', rows)


def _behaviors(results: Sequence[Result], how: str) -> Table:

  def cell(r: Result, kind: str) -> str:
    b = r.behaviors[kind]
    change = f' (+{b["gain"]} -{b["loss"]} = {b["net"]:+d})'
    return f'{b["mean"]:.3f}' + ('' if r.is_first else change)

  rows = [['', *(r.candidate.name for r in results)]]
  rows += [
      [kind, *(cell(r, kind) for r in results)] for kind in results[0].behaviors
  ]
  rows.append(['not read', *(f'{r.unread:.1%}' for r in results)])
  return (
      f'behaviors by {how}, mean per trace (problems with more, with fewer, '
      'net)', rows)
