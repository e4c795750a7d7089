"""starts.jsonl: under which command, versions and devices a run was started."""

import importlib.metadata
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

from etils import epath
import jax

import exprl_jax
from exprl_jax.runtime import files, jsonl

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint')
_NAME = 'starts.jsonl'


def note(workdir: epath.PathLike) -> None:
  """Appends this start to the workdir's list."""
  path = epath.Path(workdir) / _NAME
  before = path.read_text() if path.exists() else ''
  files.write(path, before + files.dumps(describe()) + '\n')


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Reads the starts of a run, the first one first."""
  return jsonl.read(epath.Path(workdir) / _NAME).rows


def describe() -> dict[str, Any]:
  """This process: date, command, versions, commit, devices."""
  device = jax.devices()[0]
  return {
      'started': time.strftime('%Y-%m-%d %H:%M:%S UTC',
                               time.gmtime()), 'command': ' '.join(sys.argv),
      'python': platform.python_version(), 'platform': platform.platform(),
      'exprl_jax': exprl_jax.__version__, 'commit': _commit()
  } | {name: importlib.metadata.version(name) for name in _PACKAGES} | {
      'devices': f'{jax.device_count()} x {device.device_kind}',
      'processes': jax.process_count()
  }


def _commit() -> str:
  """The commit of the checkout, '+' where files differ; '': it is none."""
  root = pathlib.Path(exprl_jax.__file__).parents[1]
  if not (root / '.git').exists():
    return ''
  try:
    found = [
        subprocess.run(['git', '-C', str(root), *args], capture_output=True,
                       text=True, timeout=10, check=True).stdout.strip()
        for args in (('rev-parse', 'HEAD'), ('status', '--porcelain', '-uno'))
    ]
  except (OSError, subprocess.SubprocessError):  # no git
    return ''
  return found[0] + ('+' if found[1] else '')
