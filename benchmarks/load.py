"""Compares the import of a Hugging Face model with reading its files.

  python benchmarks/load.py [--folder=DIR] [--devices=N]

Writes a model with random weights and the shape of Qwen3-0.6B in bfloat16
(1.2 GB), unless --folder names a model. Then prints JSON: medians of seconds
and MB/s, with the files in the page cache ("warm") and not ("cold"), of
  stream  reading the files through a small buffer
  plain   reading them into memory, which is the base of the ratios
  frozen  import in bfloat16, as many bytes as are stored
  master  import in float32, twice as many
and the peak resident memory of the importing process with the size of the
parameters. Every measurement is a process of its own; the kinds alternate.
Each begins by touching its memory: a virtual machine that has returned memory
to its host takes seconds per GB to get it back, whichever kind comes first.
"""

import argparse
from collections.abc import Iterator
import json
import mmap
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import numpy as np

_Figures = dict[str, Any]

QWEN3_06B = {
    'model_type': 'qwen3', 'vocab_size': 151936, 'num_hidden_layers': 28,
    'hidden_size': 1024, 'intermediate_size': 3072, 'num_attention_heads': 16,
    'num_key_value_heads': 8, 'head_dim': 128, 'rope_theta': 1e6,
    'rms_norm_eps': 1e-6, 'tie_word_embeddings': True
}


def write_model(folder: pathlib.Path) -> None:
  """Writes random weights, one tensor at a time."""
  from etils import epath
  import ml_dtypes
  import numpy as np

  from exprl_jax.models import config, safetensors, transformer
  from exprl_jax.models.stored import stored_parts
  (folder / 'config.json').write_text(json.dumps(QWEN3_06B))
  abstract = transformer.abstract_params(config.read_config(folder))
  cfg = config.read_config(folder)
  shapes = {
      name: part.stored_shape
      for part in stored_parts(cfg, abstract)
      for name in part.names
  }
  rng = np.random.default_rng(0)

  def arrays() -> Iterator[tuple[str, 'np.ndarray']]:
    for name, shape in shapes.items():
      yield name, (rng.standard_normal(shape, np.float32) * 0.02).astype(
          ml_dtypes.bfloat16)

  safetensors.write_folder(epath.Path(folder), shapes,
                           np.dtype(ml_dtypes.bfloat16), arrays(), 2**30)


def stream(folder: pathlib.Path) -> dict[str, float]:
  """Reads the files through one small buffer."""
  buffer = bytearray(2**24)
  start = time.perf_counter()
  for path in sorted(folder.glob('*.safetensors')):
    with path.open('rb', buffering=0) as file:
      while file.readinto(buffer):
        pass
  return {'seconds': time.perf_counter() - start}


def plain(folder: pathlib.Path) -> dict[str, float]:
  """Reads the files into memory, as an import has to."""
  start = time.perf_counter()
  kept = [path.read_bytes() for path in sorted(folder.glob('*.safetensors'))]
  return {'seconds': time.perf_counter() - start, 'files': len(kept)}


def load(folder: pathlib.Path, devices: int, frozen: bool) -> dict[str, float]:
  """Imports the model; measures until all parameters are in place."""
  import jax
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', devices)
  from exprl_jax import config as config_lib
  from exprl_jax.models import hf
  from exprl_jax.runtime import mesh as mesh_lib
  mesh = mesh_lib.make_mesh(config_lib.Mesh(data=1, fsdp=devices))
  jax.block_until_ready(jax.numpy.zeros(1) + 1)  # the platform is up
  before = peak_rss_gb()
  start = time.perf_counter()
  params = jax.block_until_ready(
      hf.load(folder, mesh, 'bfloat16', frozen=frozen)[1])
  return {
      'seconds': time.perf_counter() - start,
      'size_gb': sum(x.nbytes for x in jax.tree.leaves(params)) / 1e9,
      'rss_before_gb': before, 'peak_rss_gb': peak_rss_gb()
  }


def peak_rss_gb() -> float:
  """Reads this process's own peak; getrusage would include its parent's."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.partition('VmHWM:')[2].split()[0]) * 1024 / 1e9


def forget(folder: pathlib.Path) -> None:
  """Drops the files from the page cache."""
  for path in folder.glob('*.safetensors'):
    with path.open('rb') as file:
      os.fsync(file.fileno())
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _child(what: str, folder: pathlib.Path, devices: int) -> dict[str, float]:
  stored = sum(p.stat().st_size for p in folder.glob('*.safetensors'))
  mmap.mmap(-1, 3 * stored + 2**30,
            mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()
  out = subprocess.run([
      sys.executable, __file__, f'--child={what}', f'--folder={folder}',
      f'--devices={devices}'
  ], check=True, stdout=subprocess.PIPE).stdout
  return json.loads(out)


def main() -> None:
  """Measures, and prints the figures as JSON."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--folder', type=pathlib.Path)
  parser.add_argument('--devices', type=int, default=1)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--child')
  args = parser.parse_args()
  if args.child:
    print(
        json.dumps({
            'stream': lambda: stream(args.folder),
            'plain': lambda: plain(args.folder),
            'frozen': lambda: load(args.folder, args.devices, True),
            'master': lambda: load(args.folder, args.devices, False),
        }[args.child]()))
    return
  with tempfile.TemporaryDirectory() as temporary:
    folder = args.folder or pathlib.Path(temporary)
    if not args.folder:
      write_model(folder)
    stored = sum(p.stat().st_size for p in folder.glob('*.safetensors')) / 1e6
    result: _Figures = {'stored_mb': round(stored), 'devices': args.devices}
    for cache in ('cold', 'warm'):
      runs: dict[str, list[dict[str, float]]] = {
          'stream': [], 'plain': [], 'frozen': [], 'master': []
      }
      for _ in range(args.repeats):
        for what, results in runs.items():
          if cache == 'cold':
            forget(folder)
          results.append(_child(what, folder, args.devices))
      seconds = {
          k: statistics.median(r['seconds']
                               for r in v)
          for k, v in runs.items()
      }
      result[cache] = {
          f'{k}_{unit}': round(value, 2)
          for k, s in seconds.items()
          for unit, value in (('s', s), ('mb_per_s', stored / s))
      }
      for what in ('frozen', 'master'):
        result[cache][f'{what}_ratio'] = round(seconds[what] / seconds['plain'],
                                               2)
    for what in ('frozen', 'master'):
      result[what] = {
          k: round(v, 2) for k, v in runs[what][-1].items() if k.endswith('_gb')
      }
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
  main()
