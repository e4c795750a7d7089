"""report.html: one page that needs nothing else, not even a network."""

import base64
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

from etils import epath
import jinja2
from plotly import offline

from exprl_jax.report import Result, panels, summary, traces
from exprl_jax.runtime import files, metrics, starts, workdir
from exprl_jax.types import LINES, printable

_FOLDER = pathlib.Path(__file__).parent


def write(path: epath.Path, results: Sequence[Result]) -> None:
  """Writes the page about some runs; traces are those of the first one."""
  environment = jinja2.Environment(autoescape=True, trim_blocks=True,
                                   lstrip_blocks=True)
  environment.filters['printable'] = functools.partial(printable, keep=LINES)
  scripts = [offline.get_plotlyjs(), (_FOLDER / 'page.js').read_text()]
  main = results[0]
  files.write(
      path,
      environment.from_string((_FOLDER / 'page.html').read_text()).render(
          titles=[r.title for r in results], table=summary(list(results)),
          figures=_json(panels.figures(results)),
          traces=_json(traces.shown(main.workdir)), times=times(main.rows),
          differences=differences(results), starts=starts.read(main.workdir),
          workdirs=[
              (r.title, str(r.workdir)) for r in results
          ], config=json.dumps(dataclasses.asdict(main.config), indent=1),
          style=(_FOLDER / 'page.css').read_text(), scripts=scripts,
          hashes=' '.join(f"'sha256-{_hash(s)}'" for s in scripts)))


def _json(value: Any) -> str:
  """JSON that no script element ends in."""
  return json.dumps(value, allow_nan=False).replace('<', '\\u003c')


def _hash(script: str) -> str:
  """Of a script that the page's policy allows."""
  return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def times(rows: Sequence[metrics.Row]) -> dict[str, float]:
  """Sums the seconds of each phase over a run."""
  out: dict[str, float] = {}
  for row in rows:
    for name, value in row.items():
      if name.startswith('time/'):
        out[name[5:]] = out.get(name[5:], 0.0) + value
  return out


def differences(results: Sequence[Result]) -> list[list[str]]:
  """Keys whose values differ between runs: [key, value of each run]."""
  flat = [workdir.flat(dataclasses.asdict(r.config)) for r in results]
  return [[key, *(str(values[key])
                  for values in flat)]
          for key in flat[0]
          if any(values[key] != flat[0][key] for values in flat)]
