"""run='validate': checks of training and evaluation data, all at once.

The same checks run at the start of run='train' and 'sft' (`usable`).
docs/validation.md describes what is found.
"""

from collections.abc import Iterable, Iterator, Sequence
import json

from etils import epath
import jax

from exprl_jax import rewards
from exprl_jax.config import Config
from exprl_jax.data import checks, fields, problems, tiny_world, verdicts
from exprl_jax.data.checks import Budget, Report, Row
from exprl_jax.data.lazy import Lazy, digest, digest_of
from exprl_jax.data.validation import Rejects
from exprl_jax.evals import held_out
from exprl_jax.grading.grader import Grader
from exprl_jax.runs import budgets
from exprl_jax.types import LINES, InputError, Problem, printable

_ALL = 2**62  # rows
_SHOWN = 160  # characters of a finding in an error


def validate(config: Config) -> None:
  """Checks data.train and eval.problems and prints what there is to say.

  Writes the errors of training rows to data.rejects, if that is set.

  Raises:
    InputError: a file cannot be read, more than data.max_bad training rows have
      errors, or an evaluation problem has.
  """
  rejects = Rejects(_ALL)
  train = located(_name(config),
                  problems.training_problems(config, (), rejects))
  found = check(config, train, evaluation_rows(config),
                budgets.of_models(config),
                keep=_ALL if config.data.rejects else 0)
  found[0] = checks.with_unreadable(found[0], rejects.errors,
                                    _ALL if config.data.rejects else 0)
  if jax.process_index() == 0:
    for report in found:
      print(printable(table(report), keep=LINES), flush=True)
    write_rejects(config, found[0])
  for report in found:
    enforce(config, report)


def usable(config: Config, needs: Sequence[str], grader: Grader | None,
           limits: Sequence[Budget]) -> Sequence[Problem]:
  """Reads the training data of a run and checks it.

  Generated problems are not checked.

  Args:
    config: its `data`, `eval` and reward.
    needs: fields that must not be empty. With data.max_bad, rows that lack one
      are left out, as others with errors.
    grader: of final answers; None: gold answers are not checked.
    limits: limits of tokens.

  Returns:
    The problems without those that have errors.

  Raises:
    InputError: more than data.max_bad problems have errors, or all of them.
  """
  limit = config.data.max_bad
  rejects = Rejects(limit)
  training = problems.training_problems(config, () if limit else needs, rejects)
  if isinstance(training, tiny_world.PretrainingText):
    return training
  name, evaluation = _name(config), list(evaluation_rows(config))
  report = Report.from_json(
      verdicts.remembered(
          training,
          lambda: check_training(config, located(name, training), evaluation,
                                 limits, grader, config.data.max_bad).json(),
          'usable', config.run, config.reward, config.data, config.grading,
          config.rollout, config.judge, grader is not None,
          [(b.name, b.limit, b.tokenizer) for b in limits],
          [repr(p) for _, p in evaluation]))
  read = checks.with_unreadable(report, rejects.errors, limit)
  enforce(config, read)
  if jax.process_index() == 0:
    write_rejects(config, read)
    if read.counts:
      print(printable(f"{summary(read)}; run='validate' shows them"),
            flush=True)
  if not report.rejected:
    return training
  if report.bad_rows == report.rows:
    raise InputError(f'config.data.train={name}: all of its {report.rows} rows '
                     "have errors; run='validate' lists them")
  return Subset(training, [
      i for i, (where, _) in enumerate(located(name, training))
      if where not in report.rejected
  ])


class Subset(Lazy):
  """Some problems of a sequence."""

  def __init__(self, source: Sequence[Problem], rows: Sequence[int]) -> None:
    """Args: `rows` are numbers of problems of `source`."""
    self._source, self._rows = source, rows
    if own := digest_of(source):
      self.digest = digest(own, list(rows))

  def __len__(self) -> int:
    return len(self._rows)

  def get(self, i: int) -> Problem:
    """See Lazy."""
    return self._source[self._rows[i]]


def _name(config: Config) -> str:
  """Names the training data, for findings."""
  return config.data.train or 'mixture'


def check(config: Config, train: Iterable[Row], evaluation: Iterable[Row],
          limits: Sequence[Budget], keep: int = 0) -> list[Report]:
  """Checks training and evaluation data.

  Args:
    config: its `data`, `grading` and reward.
    train: FILE:LINE and problem of all rows; read once.
    evaluation: the same.
    limits: limits of tokens of training rows.
    keep: number of bad rows whose errors are kept.

  Returns:
    The reports on data.train and, if there is evaluation data, on it.
  """
  evaluation = list(evaluation)
  grader = Grader(config.grading)
  try:
    out = [check_training(config, train, evaluation, limits, grader, keep)]
    if evaluation:
      prompt = [b for b in limits if b.key == budgets.POLICY_KEY]
      # Nobody reads the solutions of an evaluation set.
      errors = checks.error_kinds(
          True, 'off') - {'gold_not_in_solution', 'solution_is_question'}
      out.append(
          checks.check('eval.problems', evaluation, errors=errors,
                       budgets=prompt, grader=grader))
    return out
  finally:
    grader.close()


def check_training(config: Config, train: Iterable[Row],
                   evaluation: Sequence[Row], limits: Sequence[Budget],
                   grader: Grader | None, keep: int) -> Report:
  """Checks training data, also for what the evaluation data holds.

  Args:
    config: its `data` and reward.
    train: FILE:LINE and problem of all rows; read once.
    evaluation: the same.
    limits: limits of tokens.
    grader: of gold answers; None: they are not checked.
    keep: number of bad rows whose errors are kept.
  """
  data = config.data
  needs: tuple[str, ...] = ('solution',)
  if config.run != 'sft':
    needs = rewards.lookup(config.reward).needs
  index = None
  if evaluation and data.contamination != 'off':
    index = checks.Evaluation(evaluation, data.contamination_overlap)
  # An empty answer is gold_missing, unless a plug-in does without.
  return checks.check(
      'data.train', train, errors=checks.error_kinds('answer' in needs,
                                                     data.contamination),
      needs=[name for name in needs if name != 'answer'], budgets=limits,
      grader=grader, evaluation=index, keep=keep)


def located(path: str, source: Iterable[Problem]) -> Iterator[Row]:
  """Yields FILE:ID and problem; the id of a row without one is its line."""
  for p in source:
    name = p.id if p.id.isprintable() else ascii(p.id)[1:-1]
    yield f'{path}:{name}', p


def evaluation_rows(config: Config) -> Iterator[Row]:
  """Yields FILE:ID and problem of all evaluation sets.

  Raises:
    InputError: a file cannot be read.
  """
  if config.eval.problems:
    sets = held_out.files(config.eval.problems)
    for name, file in sets.items():
      yield from located(
          file,
          problems.read_problems(file, (), config.eval.limit,
                                 fields.of(config.eval, list(sets), name)))


def table(report: Report) -> str:
  """Formats counts by kind, each with its first findings."""
  lines = [summary(report)]
  for kind, count in report.counts.items():
    level = 'error' if kind in report.errors else 'warning'
    lines.append(f'  {level:7}  {kind:22} {count:7}  '
                 f'{checks.KINDS[kind].meaning}')
    lines += [
        printable(f'             {f.where}: {f.field}: {f.message}')
        for f in report.examples[kind]
    ]
  return '\n'.join(lines)


def summary(report: Report) -> str:
  """Formats a report in a line."""
  counts = ', '.join(f'{n} {kind}' for kind, n in report.counts.items())
  text = f'{report.name}: {report.rows} rows, {report.bad_rows} with errors'
  missing = report.share('gold_missing', 'gold_unreadable')
  if missing:
    text += f', {1 - missing:.1%} gradable'
  overlap = report.share('in_evaluation', 'overlaps_evaluation')
  if overlap:
    text += f', {overlap:.1%} shared with eval.problems'
  return f'{text}; {counts or "nothing found"}'


def enforce(config: Config, report: Report) -> None:
  """Allows up to data.max_bad rows with errors, in data.train only.

  Raises:
    InputError: there are more.
  """
  limit = config.data.max_bad if report.name == 'data.train' else 0
  if report.bad_rows <= limit:
    return
  counts = ', '.join(f'{report.counts[kind]} {kind}' for kind in report.errors)
  first = report.examples[report.errors[0]][0]
  told = f'{first.where}: {first.field}: {first.message}'
  more = f', more than data.max_bad={limit}' if limit else ''
  raise InputError(
      f'config.{report.name}: {report.bad_rows} of {report.rows} rows have '
      f"errors{more} ({counts}), such as {told[:_SHOWN]}; run='validate' lists "
      'them')


def write_rejects(config: Config, report: Report) -> None:
  """Writes the kept errors to data.rejects, one JSON object a line."""
  if not config.data.rejects:
    return
  path = epath.Path(config.data.rejects)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(
      json.dumps(finding._asdict()) + '\n' for finding in report.rejects))
