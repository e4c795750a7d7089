"""The command: python -m exprl_jax.main --config=configs/tiny.py.

Flags after it override any key of exprl_jax/config/schema.py:
--config.seed=1 --config.optim.lr=3e-4. `--help` lists the rest, and
`--help=rollout` the keys of a section.
"""

from collections.abc import Callable, Sequence
import dataclasses
import difflib
import importlib
import logging as std_logging
import os
import sys
import tempfile
import traceback
from typing import TYPE_CHECKING, Any

from absl import flags, logging
from etils import epath
import ml_collections
from ml_collections import config_flags

from exprl_jax import config as config_lib
from exprl_jax.config import files, loading
from exprl_jax.config.loading import RENAMED
from exprl_jax.runtime import failures, peers, stopping, watchdog, xla_flags
from exprl_jax.types import InputError, StartAgain, Unfinished, printable

if TYPE_CHECKING:
  from exprl_jax import report

# Run modes without a workdir: runs/RUN.py has `RUN(config)`. The others have
# `RUN(config, workdir)` and return the rows of metrics.jsonl. They are imported
# when needed, so that a misspelt flag is reported at once.
_WITHOUT_WORKDIR = ('sample', 'rubrics', 'export', 'validate', 'replay')
# Run modes that do one long thing at a time.
_UNWATCHED = ('plan', 'validate', 'export', 'train_judge')
# Run modes with a report of their own.
_OWN_REPORT = ('judge', 'evaluate', 'plan')


def parse(
    argv: list[str]) -> tuple[str, ml_collections.ConfigDict, flags.FlagValues]:
  """Parses a command line (without the program's name).

  Returns:
    The path of the config file, its values with the overrides applied, and
    the other flags.

  Raises:
    InputError: a flag, a key or a value that cannot be.
  """
  known = flags.FlagValues()
  flags.DEFINE_string(
      'workdir', '', 'Where the run writes. A folder of the same run is '
      'resumed; by default a fresh one is made and its path printed. '
      'run=report compares several: A,B.', flag_values=known)
  flags.DEFINE_bool(
      'dry_run', False, 'Check the config, the data and the models, print one '
      'prompt of each kind, and stop.', flag_values=known)
  flags.DEFINE_string(
      'distributed', '', "Of several processes: 'auto' on TPU slices and GKE, "
      'HOST:PORT,PROCESSES,INDEX elsewhere. All see the same --workdir.',
      flag_values=known)
  flags.DEFINE_enum(
      'resume', 'auto', ['auto', 'always', 'never'],
      'auto resumes the run that '
      '--workdir holds, if any; always wants one; never wants none.',
      flag_values=known)
  flags.DEFINE_string(
      'deadline', '', 'Time from now, such as 90m or 3h, after which no step '
      'starts: the run saves and exits with 42 (start me again).',
      flag_values=known)
  flags.DEFINE_bool('verbose', False, 'Log what the libraries do.',
                    flag_values=known)
  for arg in argv:
    name, _, about = arg.partition('=')
    if name in ('--help', '-help', '-h'):
      from exprl_jax.config import help as config_help
      print(
          config_help.text(about
                          ) if about else f'{__doc__}\n{known.get_help()}\n' +
          config_help.overview())
      sys.exit(0)
  path, rest = _take_config(argv)
  _check_lists(rest)
  if path:
    values = config_lib.load(path)
  else:
    path, values = _of_workdir(rest)
  try:
    config_flags.DEFINE_config_dict('config', values, flag_values=known,
                                    sys_argv=rest)
    more = known(['main', *rest])[1:]
  except (flags.Error, AttributeError, KeyError) as e:
    for name, new in RENAMED.items():
      if any(arg.startswith(f'--config.{name}=') for arg in rest):
        raise InputError(
            f'command line: config.{name} was renamed to {new}') from None
    text = _unknown(rest) or ' '.join(str(e.args[0] if e.args else e).split())
    raise InputError(f'command line: {text}') from None
  if more:
    raise InputError(f'command line: {more[0]!r} is not a flag')
  return path, values, known


def _check_lists(args: Sequence[str]) -> None:
  """Refuses `A,B` for a list of texts, which would be one text.

  Numbers are told apart: --config.eval.ks=1,8. An entry of data.mixture has
  commas.

  Raises:
    InputError: names the flag, and both ways to write it.
  """
  lists = {
      f'config.{k}' for k, hint in loading.hints(config_lib.Config)
      if hint == tuple[str, ...] and k != 'data.mixture'
  }
  for arg in args:
    name, _, value = arg.lstrip('-').partition('=')
    if name in lists and ',' in value and value[0] not in '([':
      raise InputError(
          f'command line: --{name}={value}: one text or two? write '
          f'{tuple(value.split(","))!r} or {(value,)!r}, in quotes')


def _unknown(args: Sequence[str]) -> str:
  """What to say of the first --config.KEY that is no key; '' if all are."""
  known = [name for name, _ in loading.hints(config_lib.Config)]
  for arg in args:
    name = arg.lstrip('-').partition('=')[0].removeprefix('config.')
    if arg.lstrip('-').startswith('config.') and name not in known:
      own = name.rpartition('.')[2]
      named = [k for k in known if k.rpartition('.')[2] == own]
      close = named or difflib.get_close_matches(name, known, 1)
      hint = f'; did you mean {" or ".join(close)}?' if close else ''
      return f'unknown key config.{name}{hint}'
  return ''


def _take_config(argv: list[str]) -> tuple[str, list[str]]:
  """Takes --config=PATH[:ARGUMENT] (or --config PATH) out of a command line."""
  rest, path, args = [], '', iter(argv)
  for arg in args:
    name, equals, value = arg.lstrip('-').partition('=')
    if arg.startswith('-') and name == 'config':
      path = value if equals else next(args, '')
    elif arg.startswith('run='):  # short for a key that stands alone
      rest.append(f'--config.{arg}')
    else:
      rest.append(arg)
  return path, rest


def _of_workdir(args: Sequence[str]) -> tuple[str, ml_collections.ConfigDict]:
  """Name and config of the run that --workdir holds: without a --config.

  Of several workdirs (run=report), the first's.
  """
  from exprl_jax.runtime import workdir
  folders = [a.partition('=')[2] for a in args if a.startswith('--workdir=')]
  folder = folders[-1] if folders else ''
  if '--config.run=report' in args and not epath.Path(folder).exists():
    folder = folder.partition(',')[0]
  if not folder or not (epath.Path(folder) / 'config.json').exists():
    raise InputError('--config=FILE is missing; try --config=tiny')
  return epath.Path(folder).name, workdir.values(folder)


def compared(config: config_lib.Config, path: str) -> config_lib.Config:
  """The config that `config.compare` names, on the same problems, samples and
  steps: the two differ by reward, credit, loss and optimizer."""
  try:
    other = config_lib.freeze(
        config_lib.load(files.beside(path, config.compare)))
  except InputError as e:
    raise InputError(f"config.compare={config.compare}: {e}; '' compares with "
                     'nothing') from None
  return dataclasses.replace(
      other, compare='', **{
          key: getattr(config, key)
          for key in ('seed', 'steps', 'policy', 'data', 'rollout', 'grading',
                      'eval', 'checkpoint', 'mesh')
      })


def join(how: str) -> None:
  """Makes this process one of several: the flag --distributed.

  Raises:
    InputError: the flag is none of its forms.
  """
  import jax
  if how == 'auto':
    jax.distributed.initialize()
    return
  try:
    address, processes, index = how.split(',')
    jax.distributed.initialize(address, int(processes), int(index))
  except ValueError:
    raise InputError(f"--distributed={how}: 'auto', or HOST:PORT,PROCESSES,"
                     'INDEX') from None


def main(argv: list[str]) -> None:
  """Does what a command line says.

  Raises:
    InputError: something in it, or in what it names, is not as it should be.
  """
  # 1. The command line and the config.
  path, values, given = parse(argv)
  logging.set_verbosity(logging.INFO if given.verbose else logging.WARNING)
  if not given.verbose:  # it logs the traces of errors that `command` explains
    std_logging.getLogger('gcsfs').setLevel(std_logging.CRITICAL)
  if added := xla_flags.apply():  # before JAX asks for its devices
    logging.info('added to LIBTPU_INIT_ARGS: %s', added)
  from exprl_jax.runs import recipes
  config = recipes.freeze(values)
  if given.distributed:
    join(given.distributed)
    peers.start()
  if given.dry_run:
    from exprl_jax.runs import dry_run
    if config.compare:
      compared(config, path)
    dry_run.dry_run(config)
    return
  # 2. The run.
  stopping.until(given.deadline)
  if config.run not in _UNWATCHED:
    watchdog.limit(config.watchdog_minutes)
  if given.resume != 'auto':
    from exprl_jax.runtime import workdir
    with failures.naming(f'--workdir={given.workdir}'):
      workdir.check_resume(given.workdir, given.resume)
  run(config, path, given.workdir)


def run(config: config_lib.Config, path: str,
        workdir: str = '') -> list['report.Result']:
  """Runs a config, and the one that it is compared with.

  Args:
    config: checked (runs/recipes.py).
    path: of its file: the runs' titles, and where config.compare is beside.
    workdir: where to write; a fresh temporary folder by default.

  Returns:
    What came of each; [] for run modes without a workdir.

  Raises:
    InputError: something is not as it should be.
    Unfinished: all is trained and saved, but for a report or model.
  """
  if config.run not in ('validate', 'watch'):  # which need no devices
    from exprl_jax.runtime import compilation
    compilation.use_cache(config.compile_cache)
    compilation.announce()
  if config.run == 'watch':
    from exprl_jax.runs import watch
    if not workdir:
      raise InputError("--workdir is missing: run='watch' follows the run in "
                       'it')
    watch.watch(epath.Path(workdir))
    return []
  # 1. Modes without a workdir.
  if config.run in _WITHOUT_WORKDIR:
    run_mode(config.run)(config)
    return []
  if config.run == 'report' and workdir:
    from exprl_jax.runs import report as runs_report
    if ',' in workdir and not epath.Path(workdir).exists():
      return runs_report.side_by_side(workdir.split(','), epath.Path('.'))
    if not runs_report.has_ended(config, workdir):
      return runs_report.side_by_side([workdir], epath.Path(workdir))
  # 2. The others, each in its folder.
  import jax

  from exprl_jax import report
  from exprl_jax.runtime import bugs, lock, trackers
  first = jax.process_index() == 0
  with failures.naming(f'--workdir={workdir}'):
    folder = _folder(config, path, workdir)
  runs = [(path, config, folder)]
  if config.compare:
    runs.append((config.compare, compared(config, path), folder / 'compare'))
  if first:
    print(f'workdir {folder}', flush=True)
  with lock.Lock(folder), bugs.counting(folder), trackers.closing() as tracked:
    results, failed = _run_each(runs, config.run == 'report')
    if first and config.run not in _OWN_REPORT:
      report.finish(folder, results)
      tracked.report = folder / 'report.html'
  if failed:
    raise failed
  return results


def _run_each(runs: Sequence[tuple[str, config_lib.Config, epath.Path]],
              again: bool) -> tuple[list['report.Result'], Unfinished | None]:
  """Runs (path, config, workdir) one after the other.

  Args:
    runs: what to run.
    again: run='report': only what their ends write.

  Returns:
    Their results, and why one of them has no model.
  """
  import jax

  from exprl_jax import report
  from exprl_jax.runs import report as again_lib
  from exprl_jax.runtime import metrics
  if again:
    runs = [(name, again_lib.original(c, own), own) for name, c, own in runs]
  results, failed = [], None
  for name, config, own in runs:
    title = f'{files.title(name)}, seed {config.seed}'
    if jax.process_index() == 0:
      print(f'\n{title}', flush=True)
    try:
      rows = run_mode('report' if again else config.run)(config, own)
    except Unfinished as e:  # the other run and the report can still be made
      failed, rows = e, metrics.read(own / 'metrics.jsonl')
    results.append(report.Result(title, config, own, rows))
  return results, failed


def _folder(config: config_lib.Config, path: str, workdir: str) -> epath.Path:
  """The checked workdir of a run; a temporary one where none is given."""
  import jax

  from exprl_jax.runtime import workdir as workdir_lib
  if jax.process_count() > 1 and not workdir:
    raise InputError('--workdir is missing: several processes need the same')
  prefix = files.title(path).replace(':', '-')
  if not workdir and config.run == 'report':
    raise InputError(
        "--workdir is missing: run='report' is about the run in it")
  folder = epath.Path(workdir or tempfile.mkdtemp(prefix=f'{prefix}-'))
  if config.run != 'report':  # which checks that itself
    workdir_lib.check(folder, config)
  return folder


def run_mode(name: str) -> Callable[..., Any]:
  """The function of runs/NAME.py that is called as its module."""
  return getattr(importlib.import_module(f'exprl_jax.runs.{name}'), name)


def command(argv: list[str]) -> int:
  """Runs a command line, to be stopped by signals and by the watchdog.

  Returns:
    The exit code (runtime/failures.py).
  """
  code = _command(argv)
  peers.leave(code)
  return code


def _command(argv: list[str]) -> int:
  try:
    stopping.install()
    watchdog.start()
    main(argv)
    return failures.DONE
  except (InputError, StartAgain, Unfinished) as e:  # one line, no trace
    kind = 'stopped' if isinstance(e, StartAgain) else 'error'
    print(printable(f'{kind}: {e}'), file=sys.stderr, flush=True)
    return failures.exit_code(e)
  except Exception as e:
    code = failures.exit_code(e)
    if code in (failures.AGAIN, failures.BUG):
      peers.await_news()
    plain = code == failures.INPUT or failures.unreachable(e)
    if not plain or logging.get_verbosity() >= logging.INFO:
      traceback.print_exc()
    if code == failures.AGAIN:
      print(
          printable(f'stopped: {failures.brief(e)}; this may pass; the same '
                    'command resumes the run'), file=sys.stderr)
    elif code == failures.INPUT:
      print(printable(f'error: {failures.brief(e)}; {failures.remedy(e)}'),
            file=sys.stderr)
    sys.stderr.flush()
    _leave_at_once(code)
    return code


def _leave_at_once(code: int) -> None:
  """Exits without waiting for other processes, which may wait for this one."""
  import jax
  if jax.process_count() > 1:
    peers.leave(code)
    os._exit(code)


if __name__ == '__main__':
  sys.exit(command(sys.argv[1:]))
