"""Runs a config on a GKE TPU slice.

  python launch/gke.py --name=exprl-4b --slice=v5e-8 --image=IMAGE \
    --bucket=BUCKET -- --config=configs/qwen3_4b.py:exprl_process_fast \
    --config.policy.init=/bucket/models/Qwen3-4B-Instruct-2507

Flags after `--` go to exprl_jax.main. The bucket is mounted at /bucket, and the
workdir is gs://BUCKET/runs/NAME. --dry_run prints the manifest instead of
applying it. Only slices of one host are supported.
"""

import json
import pathlib
import re
import string
import subprocess

from absl import app, flags

# slice -> (accelerator, topology, chips of its one host)
SLICES = {
    'v5e-1': ('tpu-v5-lite-podslice', '1x1', 1),
    'v5e-4': ('tpu-v5-lite-podslice', '2x2', 4),
    'v5e-8': ('tpu-v5-lite-podslice', '2x4', 8),
    'v5p-8': ('tpu-v5p-slice', '2x2x1', 4),  # 8 cores are 4 chips
    'v6e-1': ('tpu-v6e-slice', '1x1', 1),
    'v6e-4': ('tpu-v6e-slice', '2x2', 4),
    'v6e-8': ('tpu-v6e-slice', '2x4', 8),
}

# Seconds from SIGTERM to SIGKILL: the run saves its step in them.
_GRACE = 120

_NAME = flags.DEFINE_string('name', None, 'Name of the job.', required=True)
_SLICE = flags.DEFINE_enum('slice', 'v5e-8', sorted(SLICES), 'TPU slice.')
_IMAGE = flags.DEFINE_string('image', None, 'Container image: '
                             'launch/Dockerfile, pushed.', required=True)
_BUCKET = flags.DEFINE_string(
    'bucket', None, 'Bucket for models, data and '
    'workdirs, without gs://.', required=True)
_ACCOUNT = flags.DEFINE_string('service_account', 'default',
                               'Kubernetes service account.')
_RESTARTS = flags.DEFINE_integer('max_restarts', 100,
                                 'After evictions and exit code 42.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the manifest only.')


def manifest(name: str, slice_name: str, image: str, bucket: str,
             service_account: str, max_restarts: int, args: list[str]) -> str:
  """The filled-in launch/jobset.yaml.

  Raises:
    ValueError: the name is not a Kubernetes name, or there is no --config.
  """
  if not re.fullmatch(r'[a-z]([-a-z0-9]{0,40}[a-z0-9])?', name):
    raise ValueError(f'--name={name}: lower-case letters, digits and -')
  if not any(a.startswith('--config=') for a in args):
    raise ValueError('no --config=FILE after --')
  accelerator, topology, chips = SLICES[slice_name]
  text = pathlib.Path(__file__).with_name('jobset.yaml').read_text()
  body = ''.join(line for line in text.splitlines(keepends=True)
                 if not line.startswith('#'))
  return string.Template(body).substitute(
      name=name, image=image, bucket=bucket, service_account=service_account,
      max_restarts=max_restarts, accelerator=accelerator, topology=topology,
      chips=chips, grace=_GRACE, args=json.dumps([
          f'--config.checkpoint.grace_s={_GRACE}', *args,
          f'--workdir=gs://{bucket}/runs/{name}'
      ]))


def main(argv):
  """Applies the manifest, or prints it."""
  try:
    text = manifest(_NAME.value, _SLICE.value, _IMAGE.value, _BUCKET.value,
                    _ACCOUNT.value, _RESTARTS.value, argv[1:])
  except ValueError as e:
    raise app.UsageError(str(e)) from None
  if _DRY_RUN.value:
    print(text)
    return
  subprocess.run(['kubectl', 'apply', '-f', '-'], input=text, text=True,
                 check=True)
  print(f'logs: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name='
        f'{_NAME.value}')


if __name__ == '__main__':
  app.run(main)
