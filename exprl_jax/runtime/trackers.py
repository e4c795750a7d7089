"""Metrics to TensorBoard, Weights & Biases or MLflow, beside metrics.jsonl.

config.log.trackers names them. Each is a `Tracker`; its package is an extra and
is imported when a run starts with it. Credentials and addresses are those of
the packages: WANDB_API_KEY, MLFLOW_TRACKING_URI and so on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import re
import sys
from typing import Any, NamedTuple, Protocol

from etils import epath
import jax

from exprl_jax.runtime.registry import lookup
from exprl_jax.types import InputError, printable

_PROJECT = 'exprl_jax'
_COLUMNS = ('step', 'id', 'question', 'text', 'score', 'correct')


class Tracker(Protocol):
  """A service that takes a run's numbers; process 0 alone has one."""

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Takes the metrics of a step."""

  def samples(self, rows: Sequence[Sequence[Any]]) -> None:
    """Takes all sampled traces that are shown so far: _COLUMNS of each."""

  def close(self, report: epath.Path | None) -> None:
    """Takes the report, if there is one, and ends the run."""


class TensorBoard:
  """Event files in WORKDIR/tensorboard."""

  def __init__(self, name: str, workdir: epath.Path, config: Mapping[str, Any],
               start: int) -> None:
    import tensorboardX
    self._writer = tensorboardX.SummaryWriter(
        str(workdir / 'tensorboard'), purge_step=start + 1 if start else None)
    self._writer.add_text('config',
                          _markdown([('key', 'value'), *config.items()]))
    self._writer.add_text('run', name)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """See Tracker."""
    for key, value in values.items():
      self._writer.add_scalar(key, value, step)

  def samples(self, rows: Sequence[Sequence[Any]]) -> None:
    """See Tracker."""
    self._writer.add_text('samples', _markdown([_COLUMNS, *rows[-32:]]))

  def close(self, report: epath.Path | None) -> None:
    """See Tracker; the report stays where it is."""
    if report is not None:
      self._writer.add_text('report', str(report))
    self._writer.close()


class WandB:
  """A run of Weights & Biases, resumed by the workdir's name."""

  def __init__(self, name: str, workdir: epath.Path, config: Mapping[str, Any],
               start: int) -> None:
    import wandb
    del start  # the same id goes on
    self._wandb = wandb
    self._run = wandb.init(project=os.environ.get('WANDB_PROJECT', _PROJECT),
                           name=name, dir=str(workdir), config=dict(config),
                           resume='allow', id=_id(workdir), reinit='create_new')

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """See Tracker."""
    self._run.log(dict(values), step=step)

  def samples(self, rows: Sequence[Sequence[Any]]) -> None:
    """See Tracker."""
    table = self._wandb.Table(columns=list(_COLUMNS),
                              data=[list(map(str, row)) for row in rows])
    # Without its step it would end that, and the step's evaluation be refused.
    self._run.log({'samples': table}, step=rows[-1][0])

  def close(self, report: epath.Path | None) -> None:
    """See Tracker."""
    if report is not None:
      artifact = self._wandb.Artifact(f'report-{_id(report.parent)}', 'report')
      artifact.add_file(str(report))
      self._run.log_artifact(artifact)
    self._run.finish()


class MLflow:
  """A run of MLflow, found again by its tag `workdir`."""

  def __init__(self, name: str, workdir: epath.Path, config: Mapping[str, Any],
               start: int) -> None:
    import mlflow
    del start
    self._client = mlflow.MlflowClient()
    project = os.environ.get('MLFLOW_EXPERIMENT_NAME', _PROJECT)
    found = self._client.get_experiment_by_name(project)
    experiment = (found.experiment_id
                  if found else self._client.create_experiment(project))
    mine = self._client.search_runs([experiment],
                                    f"tags.workdir = '{_id(workdir)}'",
                                    max_results=1)
    self._run = mine[0] if mine else self._client.create_run(
        experiment, run_name=name, tags={'workdir': _id(workdir)})
    self._id = self._run.info.run_id
    if not mine:
      for key, value in config.items():
        self._client.log_param(self._id, key, str(value)[:500])

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """See Tracker."""
    from mlflow.entities import Metric
    # Its names have no '@'.
    self._client.log_batch(
        self._id,
        [Metric(k.replace('@', '_at_'), v, 0, step) for k, v in values.items()])

  def samples(self, rows: Sequence[Sequence[Any]]) -> None:
    """See Tracker."""
    self._client.log_dict(self._id, {
        'columns': list(_COLUMNS),
        'data': [list(map(str, row)) for row in rows]
    }, 'samples.json')

  def close(self, report: epath.Path | None) -> None:
    """See Tracker."""
    if report is not None:
      self._client.log_artifact(self._id, str(report))
    self._client.set_terminated(self._id)


class Kind(NamedTuple):
  """A tracker, and what it needs."""

  make: Callable[[str, epath.Path, Mapping[str, Any], int], Tracker]
  package: str
  extra: str


TRACKERS = {
    'tensorboard': Kind(TensorBoard, 'tensorboardX', 'tensorboard'),
    'wandb': Kind(WandB, 'wandb', 'wandb'),
    'mlflow': Kind(MLflow, 'mlflow', 'mlflow'),
}
_KEPT = 1000  # samples that a tracker's table has
# Of this process: trackers of the run, of runs before it, and sampled traces.
_open: dict[str, Tracker] = {}
_ended: list[tuple[str, Tracker]] = []
_rows: list[Sequence[Any]] = []


def check(names: Sequence[str]) -> None:
  """Checks that trackers are known and installed.

  Raises:
    InputError: one is not; names it.
  """
  for name in names:
    kind = lookup(TRACKERS, name, 'log.trackers')
    if not importlib.util.find_spec(kind.package):
      raise InputError(f'config.log.trackers={tuple(names)}: {kind.package} is '
                       f'not installed; pip install -e ".[{kind.extra}]"')


def start(names: Sequence[str], workdir: epath.Path, config: Mapping[str, Any],
          step: int) -> None:
  """Begins to track a run, or goes on with it.

  Args:
    names: of TRACKERS.
    workdir: of the run, which is named by it.
    config: by key.
    step: that the run goes on from.

  Raises:
    InputError: one cannot start.
  """
  _ended.extend(_open.items())
  _open.clear()
  _rows.clear()
  for name in names if not jax.process_index() else ():
    try:
      _open[name] = TRACKERS[name].make(workdir.name, workdir, config, step)
    except Exception as e:  # no key, no server: better known now than later
      why = ' '.join(f'{type(e).__name__}: {e}'.split())[:300]
      raise InputError(
          f'config.log.trackers: {name} cannot start ({why})') from e


def scalars(step: int, values: Mapping[str, float]) -> None:
  """Gives the metrics of a step to all trackers."""
  _each(lambda tracker: tracker.scalars(step, values))


def samples(rows: Sequence[Sequence[Any]]) -> None:
  """Gives sampled traces, _COLUMNS of each, to all trackers."""
  _rows.extend(rows)
  del _rows[:-_KEPT]
  _each(lambda tracker: tracker.samples(_rows))


@dataclasses.dataclass
class Tracked:
  """What trackers are given when they are closed."""

  report: epath.Path | None = None


@contextlib.contextmanager
def closing() -> Iterator[Tracked]:
  """Closes all trackers behind a block, also where it fails."""
  tracked = Tracked()
  try:
    yield tracked
  finally:
    _finish(tracked.report)


def _finish(report: epath.Path | None) -> None:
  for name, tracker in [*_ended, *_open.items()]:
    _open[name] = tracker
    _each(lambda tracker: tracker.close(report))
    _open.clear()
  _ended.clear()


def _each(call: Callable[[Tracker], None]) -> None:
  """Calls all trackers; one that fails is left out from then on, as no service
  is worth a run."""
  for name, tracker in list(_open.items()):
    try:
      call(tracker)
    except Exception as e:
      del _open[name]
      print(
          printable(f'warning: {name} is not written any more: '
                    f'{type(e).__name__}: {" ".join(str(e).split())[:200]}'),
          file=sys.stderr, flush=True)


def _id(workdir: epath.Path) -> str:
  """Names a run by its workdir: the same when it is resumed."""
  digest = hashlib.sha256(str(workdir).encode()).hexdigest()[:8]
  return f'{re.sub("[^A-Za-z0-9_-]", "-", workdir.name)}-{digest}'


def _markdown(rows: Sequence[Sequence[Any]]) -> str:
  """A table; its first row is the header."""
  lines = [
      '|' + '|'.join(printable(str(cell)).replace('|', '\\|')
                     for cell in row) + '|'
      for row in rows
  ]
  return '\n'.join([lines[0], '|---' * len(rows[0]) + '|', *lines[1:]])
