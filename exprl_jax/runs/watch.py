"""run='watch': follows a run from another terminal, by the files it writes."""

from collections.abc import Mapping, Sequence
import shutil
import sys
import time
from typing import Any

from etils import epath

from exprl_jax.runtime import metrics, starts
from exprl_jax.runtime import workdir as workdir_lib
from exprl_jax.types import printable

# Name -> metric.
_CURVES = {
    'reward': 'reward/mean', 'accuracy': 'reward/accuracy',
    'pass@1': 'eval/pass@1', 'loss': 'sft/loss', 'KL': 'policy/ref_kl',
    'entropy': 'policy/entropy', 'truncated': 'length/truncated_frac',
    'tokens/s': 'perf/tokens_per_s'
}
_PHASES = ('rollout', 'judge', 'logprob', 'update')
_LABEL, _NUMBER = 10, 9  # columns
_CLEAR = '\x1b[H\x1b[J'


def watch(workdir: epath.Path, every: float = 2.0) -> None:
  """Shows a run until it ends, or until Ctrl-C.

  A terminal shows the newest state; elsewhere a new one is written every half
  minute.

  Args:
    workdir: of the run, which may be on gs://.
    every: seconds between two looks.

  Raises:
    InputError: the workdir holds no run.
  """
  config = workdir_lib.read(workdir)
  live, shown, at = sys.stdout.isatty(), '', 0.0
  while True:
    ended = (workdir / 'model/config.json').exists()
    rows = metrics.read(workdir / 'metrics.jsonl')
    width = shutil.get_terminal_size().columns
    text = frame(str(workdir), config, starts.read(workdir), rows, width)
    if text != shown and (live or ended or time.monotonic() - at > 30):
      print(f'{_CLEAR if live else ""}{text}\n', flush=True)
      shown, at = text, time.monotonic()
    if ended:
      print(f'the run has ended: {printable(str(workdir))}/report.html')
      return
    try:
      time.sleep(every)
    except KeyboardInterrupt:
      return


def frame(name: str, config: Mapping[str, Any], begun: Sequence[Mapping[str,
                                                                        Any]],
          rows: Sequence[metrics.Row], width: int = 80) -> str:
  """What is shown of a run: progress, curves, and where the time goes.

  Args:
    name: of it.
    config: its config.json.
    begun: its starts.jsonl.
    rows: its metrics.jsonl.
    width: columns of the terminal.
  """
  done = int(rows[-1]['step']) if rows else 0
  total = int(config.get('steps', 0))
  timed = [r for r in rows if 'time/update' in r or 'time/rollout' in r][-20:]
  seconds = [sum(r.get(f'time/{p}', 0.0) for p in _PHASES) for r in timed]
  each = sum(seconds) / len(seconds) if seconds else 0.0
  lines = [printable(name)]
  if begun:
    last = begun[-1]
    lines.append(f'started {last.get("started", "?")} on '
                 f'{last.get("devices", "?")}')
  left = f', {each:.2f} s a step, {_clock(each * (total - done))} left'
  lines.append(f'step {done} of {total}' +
               (left if each else ': compiling, or loading'))
  for label, metric in _CURVES.items():
    values = [r[metric] for r in rows if metric in r]
    if values:
      room = max(8, min(60, width - _LABEL - _NUMBER - 1))
      lines.append(f'{label:{_LABEL}}{metrics.sparkline(values, room):{room}}'
                   f'{values[-1]:{_NUMBER}.3f}')
  if each:
    parts = ((p, sum(r.get(f'time/{p}', 0.0) for r in timed)) for p in _PHASES)
    lines.append('time      ' +
                 ', '.join(f'{p} {s / sum(seconds):.0%}' for p, s in parts))
  return '\n'.join(printable(line)[:width] for line in lines)


def _clock(seconds: float) -> str:
  """1:02:03 of seconds."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{rest:02}'
