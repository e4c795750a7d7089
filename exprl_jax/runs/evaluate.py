"""run='evaluate': models on held-out problems, compared with the first.

Each model's samples go to a JSON Lines file, wave by wave, and every statistic
is computed from these files. A run that is started again samples only what is
missing. docs/evaluation.md has formulas and files.
"""

from collections.abc import Sequence

from etils import epath
import jax

from exprl_jax.config import Config
from exprl_jax.evals import (
    behavior_judge,
    behaviors,
    candidates,
    comparison,
    comparison_tables,
    held_out,
    policy_statistics,
    sampling,
)
from exprl_jax.evals.candidates import Candidate
from exprl_jax.evals.comparison import Result
from exprl_jax.evals.held_out import Item
from exprl_jax.evals.sampling import CandidateSamples, Row
from exprl_jax.grading.grader import Grader
from exprl_jax.runtime import files, metrics
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import workdir as workdir_lib
from exprl_jax.types import LINES, InputError, printable


def evaluate(config: Config, workdir: epath.Path) -> list[metrics.Row]:
  """Scores policy.init and eval.models on eval.problems.

  Writes samples/NAME.jsonl, comparison.json and metrics.jsonl (a row for each
  model, its `step` the model's place) into `workdir`; with eval.newly_solved_k
  also newly_solved/NAME.jsonl, with eval.behaviors='judge' also
  behaviors/NAME.jsonl.

  Returns:
    The rows of metrics.jsonl.

  Raises:
    InputError: a bad key, problem, model or file; names it.
  """
  # 1. All that can fail on input.
  mesh = mesh_lib.rollout_mesh(mesh_lib.make_mesh(config.mesh),
                               config.mesh.rollout_tensor)
  items, models = check(config)
  judge = (behavior_judge.BehaviorJudge(config, mesh)
           if config.eval.behaviors == 'judge' else None)
  folder, grader = epath.Path(workdir), Grader(config.grading)
  # 2. Samples and grades.
  try:
    grader.check([item.problem for item in items])
    workdir_lib.claim(workdir, config)
    samples = sampling.sample_all(config, folder, items, models, mesh, grader)
  finally:
    grader.close()
  # 3. Statistics.
  counts = _count_behaviors(config, folder, items, models, samples, judge)
  results = comparison.compare(config, items, models, samples, counts)
  # 4. Reports.
  log = metrics.Log(workdir, 0, main=jax.process_index() == 0)
  for i, (result, drawn) in enumerate(zip(results, samples)):
    log.write(i, result.metrics() | {'time/eval': drawn.seconds})
  log.close()
  if jax.process_index() == 0:
    _write_comparison(config, folder, items, results)
    print(printable(comparison_tables.tables(config, results), keep=LINES),
          flush=True)
    print(f'comparison {workdir}/comparison.json')
  return metrics.read(workdir / 'metrics.jsonl')


def check(config: Config) -> tuple[list[Item], list[Candidate]]:
  """Reads the problems and finds the models; reads no weights.

  Raises:
    InputError: a bad key, problem or model; names it.
  """
  cfg = config.eval
  if cfg.behaviors == 'judge' and not config.judge.init:
    raise InputError("config.judge.init is empty; eval.behaviors='judge' "
                     'needs it')
  if cfg.newly_solved_k > cfg.samples:
    raise InputError(
        f'config.eval.newly_solved_k={cfg.newly_solved_k}: at most eval.'
        f'samples={cfg.samples}')
  if cfg.newly_solved_k and cfg.newly_solved_min > cfg.newly_solved_k:
    raise InputError(
        f'config.eval.newly_solved_min={cfg.newly_solved_min}: at most '
        f'eval.newly_solved_k={cfg.newly_solved_k}')
  items = held_out.read_items(cfg)
  models = candidates.find_candidates(config, [item.problem for item in items])
  if cfg.policy_statistics:
    policy_statistics.check(config,
                            [(m.name, m.tokenizer, m.prompts) for m in models])
  return items, models


def _count_behaviors(
    config: Config, folder: epath.Path, items: Sequence[Item],
    models: Sequence[Candidate], samples: Sequence[CandidateSamples],
    judge: behavior_judge.BehaviorJudge | None) -> list[list[list[Row]]]:
  """Returns counts [model][P][n]; [] without eval.behaviors."""
  if not config.eval.behaviors:
    return []
  if judge is None:
    return [[[behaviors.count_words(row['text'])
              for row in group]
             for group in drawn.rows]
            for drawn in samples]
  return [
      judge.complete_file(folder / f'behaviors/{model.name}.jsonl', items,
                          drawn.rows) for model, drawn in zip(models, samples)
  ]


def _write_comparison(config: Config, folder: epath.Path, items: Sequence[Item],
                      results: Sequence[Result]) -> None:
  files.write_json(
      folder / 'comparison.json', {
          'problems': len(items), 'samples': config.eval.samples,
          'seed': config.seed, 'models': [r.json() for r in results]
      }, indent=1)
