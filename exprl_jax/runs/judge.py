"""run='judge': judgments on traces, and how far they can be trusted."""

from collections.abc import Sequence
import time

from etils import epath
import jax

from exprl_jax.config import Config
from exprl_jax.data import problems
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.evals import judge_calibration, judge_traces
from exprl_jax.evals.judge_traces import Trace, TraceSampler
from exprl_jax.judge import calibration_report, factory
from exprl_jax.judge.tree import Judgments
from exprl_jax.runs import budgets
from exprl_jax.runtime import files, metrics
from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.runtime import workdir as workdir_lib
from exprl_jax.types import LINES, Problem, printable


def judge(config: Config, workdir: epath.Path) -> list[metrics.Row]:
  """Judges the traces of judge.traces, or samples of the policy.

  Writes judgments.jsonl into `workdir`, and the judge's report card,
  calibration.json and calibration.png. Judgments are kept in the workdir, so an
  interrupted run continues where it stopped.

  Returns:
    No rows: there is no metrics.jsonl.

  Raises:
    InputError: a line of judge.traces is not as it should be.
  """
  mesh = mesh_lib.rollout_mesh(mesh_lib.make_mesh(config.mesh),
                               config.mesh.rollout_tensor)
  main = jax.process_index() == 0
  tokenizer = factory.tokenizer_of(config)
  # 1. Traces of a file or of the policy; all that can fail on input.
  traces, sampler = _traces(config, mesh, tokenizer)
  # 2. The judge, with space for the longest trace of a file.
  longest = max(
      sum(len(tokenizer.encode(step)) for step in t.steps) for t in traces)
  workdir_lib.claim(workdir, config)
  judge_ = factory.load(config, mesh, workdir,
                        max_trace_tokens=longest if config.judge.traces else 0)
  # 3. Judgments.
  start = time.perf_counter()
  judgments = judge_traces.score(judge_, traces,
                                 workdir / 'judgments.jsonl' if main else None)
  seconds = time.perf_counter() - start
  factory.check_readable(config.judge, judgments)
  if main:
    _print_summary(judgments, seconds, workdir)
  # 4. The report card.
  report = judge_calibration.calibrate(config, judge_, traces, judgments,
                                       sampler)
  report['cost'] = _cost(judge_, traces, judgments, seconds)
  if main:
    _write_report(report, workdir)
  return []


def _cost(judge_: factory.AnyJudge, traces: Sequence[Trace],
          judgments: Judgments, seconds: float) -> dict[str, float]:
  """What a judgment takes: tokens that are read and may be written, seconds."""
  count = int(judgments.exists.sum())
  shared: dict[str, int] = {}  # of a problem's traces, computed once
  tokens = 0
  for trace in traces:
    prefix, own = judge_.count_tokens(trace.item)
    shared[trace.problem.question] = prefix
    tokens += own
  tokens += sum(shared.values())
  return {'n': count, 'tokens': tokens / count, 'seconds': seconds / count}


def check(config: Config, of: Sequence[Problem]) -> None:
  """Checks that the judge can be asked about problems; reads no weights.

  Raises:
    InputError: no such model or template, a problem without a rubric, or some
      that are too long.
  """
  factory.check(config, of)
  budgets.check_judge_prompts(config, of)


def _traces(
    config: Config, mesh: jax.sharding.Mesh,
    tokenizer: Tokenizer) -> tuple[Sequence[Trace], TraceSampler | None]:
  """Reads or samples the traces; the sampler, if there is one."""
  if config.judge.traces:
    traces = judge_traces.read_traces(config, tokenizer)
    check(config, [t.problem for t in traces])
    return traces, None
  check(config, problems.training_problems(config, judge_traces.NEEDS))
  sampler = TraceSampler(config, mesh)
  return sampler.traces(), sampler


def _print_summary(judgments: Judgments, seconds: float,
                   workdir: epath.Path) -> None:
  print(
      f'{len(judgments.truncated)} traces, {int(judgments.exists.sum())} '
      f'judgments in {seconds:.1f} s -> {workdir}/judgments.jsonl\nmean score '
      f'{judgments.score[judgments.readable].mean():.3f}, without a score '
      f'{(~judgments.readable[judgments.exists]).mean():.1%}, truncated '
      f'{judgments.truncated.mean():.1%}')


def _write_report(report: judge_calibration.Report,
                  workdir: epath.Path) -> None:
  """Writes calibration.json and calibration.png, and prints the table."""
  files.write_json(workdir / 'calibration.json', report, indent=1)
  with files.local(workdir / 'calibration.png') as picture:
    calibration_report.plots(report, picture)
  print(printable(calibration_report.table(report), keep=LINES))
  probes = sorted(report['probes'].items(), key=lambda x: -x[1])[:3]
  print(f'of {len(report["probes"])} probes the best-liked: ' +
        ', '.join(f'{name} {score:.2f}' for name, score in probes))
  print(f'judge {report["fit"]["why"]}')
  print(f'report {workdir}/calibration.json, calibration.png')
