"""What the checks of a data set find, counted by kind."""

from collections.abc import Callable, Collection, Iterable, Sequence
import dataclasses
from typing import Any, NamedTuple

EXAMPLES = 20  # findings of each kind that a report keeps


class Finding(NamedTuple):
  """Something that a check has to say about a row."""

  kind: str  # of KINDS
  where: str  # FILE:LINE
  field: str
  message: str


class Kind(NamedTuple):
  """A kind of finding."""

  level: str  # 'error'; 'warning'; 'gold': an error where gold answers decide,
  # else a warning; 'overlap': by data.contamination
  meaning: str


KINDS = {
    'unreadable_row': Kind('error', 'not JSON, or a field of another type'),
    'duplicate_id': Kind('error', 'the id of an earlier row'),
    'missing_field': Kind('error', 'a field that the run needs is empty'),
    'invisible_text': Kind('error',
                           'a field of blank or zero-width characters'),
    'control_characters': Kind('error',
                               'control characters, as of \\b in JSON'),
    'too_long': Kind('error', 'more tokens than the budget'),
    'solution_is_question': Kind('error', 'the solution repeats the question'),
    'duplicate_question': Kind('warning', 'the question of an earlier row'),
    'answer_in_question': Kind('warning', 'the question states the answer'),
    'conflicting_answers': Kind('gold', 'equal questions, different answers'),
    'gold_missing': Kind('gold', 'no gold answer'),
    'gold_unreadable': Kind('gold', 'the grader cannot read the gold answer'),
    'gold_alternatives': Kind('gold',
                              'several forms, none of which is correct'),
    'gold_not_in_solution': Kind('gold', "the solution's own answer is wrong"),
    'gold_in_words': Kind('warning', 'a value in words, wrong without them'),
    'in_evaluation': Kind('overlap', 'the question of an evaluation problem'),
    'overlaps_evaluation': Kind('overlap', 'shares 13-grams with evaluation'),
}


def error_kinds(graded: bool, contamination: str) -> frozenset[str]:
  """Lists the kinds that are errors; all others are warnings.

  Args:
    graded: gold answers decide: reward='sparse', or an evaluation set.
    contamination: data.contamination.
  """
  levels = {'error'} | ({'gold'} if graded else set())
  kinds = {name for name, kind in KINDS.items() if kind.level in levels}
  if contamination in ('exact', 'ngrams'):
    kinds.add('in_evaluation')
  if contamination == 'ngrams':
    kinds.add('overlaps_evaluation')
  return frozenset(kinds)


@dataclasses.dataclass(frozen=True)
class Report:
  """The findings about one data set.

  Attributes:
    name: of the data set.
    rows: number of rows.
    bad_rows: number of rows with an error.
    counts: findings by kind, errors first.
    errors: the kinds among them that are errors.
    examples: the first EXAMPLES findings of each kind.
    rejects: the errors of the first `keep` bad rows.
  """

  name: str
  rows: int
  bad_rows: int
  counts: dict[str, int]
  errors: list[str]
  examples: dict[str, list[Finding]]
  rejects: list[Finding]

  @property
  def rejected(self) -> frozenset[str]:
    """FILE:LINE of the rows in `rejects`."""
    return frozenset(finding.where for finding in self.rejects)

  def share(self, *kinds: str) -> float:
    """Returns findings of these kinds per row."""
    return sum(self.counts.get(kind, 0) for kind in kinds) / max(1, self.rows)

  def json(self) -> dict[str, Any]:
    """Returns a value that JSON can hold."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> 'Report':
    """Reads what `json` returned."""
    examples = {
        kind: [Finding(*f)
               for f in found]
        for kind, found in values['examples'].items()
    }
    rejects = [Finding(*f) for f in values['rejects']]
    return cls(**values | {'examples': examples, 'rejects': rejects})


def with_unreadable(report: Report, errors: Sequence[str], keep: int) -> Report:
  """Adds the errors of rows that could not be read, 'FILE:LINE: MESSAGE'."""
  if not errors:
    return report
  kind = 'unreadable_row'
  found = [Finding(kind, *_split(error)) for error in errors]
  return dataclasses.replace(
      report, rows=report.rows + len(errors),
      bad_rows=report.bad_rows + len(errors),
      counts={kind: len(errors)} | report.counts, errors=[kind, *report.errors],
      examples={kind: found[:EXAMPLES]} | report.examples,
      rejects=[*found[:keep], *report.rejects])


def _split(error: str) -> tuple[str, str, str]:
  """Returns FILE:LINE, no field, and the message."""
  where, _, message = error.partition(': ')
  return where, 'row', message


def summarize(name: str, findings: Iterable[Finding], errors: Collection[str],
              keep: int, rows: Callable[[], int]) -> Report:
  """Counts findings, in one pass.

  Args:
    name: of the data set.
    findings: of all rows.
    errors: the kinds that are errors.
    keep: number of bad rows whose errors are kept.
    rows: the number of rows; called at the end.
  """
  counts: dict[str, int] = {}
  examples: dict[str, list[Finding]] = {}
  rejects: list[Finding] = []
  bad: set[str] = set()
  for finding in findings:
    kind = finding.kind
    counts[kind] = counts.get(kind, 0) + 1
    if counts[kind] <= EXAMPLES:
      examples.setdefault(kind, []).append(finding)
    if kind in errors:
      if len(bad) < keep or finding.where in bad and len(bad) == keep:
        rejects.append(finding)
      bad.add(finding.where)
  order = sorted(counts, key=lambda k: (k not in errors, list(KINDS).index(k)))
  return Report(name, rows(), len(bad), {k: counts[k] for k in order},
                [k for k in order if k in errors],
                {k: examples[k] for k in order}, rejects)
