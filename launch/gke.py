"""Runs a config on TPU slices on GKE.

  python launch/gke.py --name=exprl-4b --slice=v5e-64 --image=IMAGE \
    --bucket=BUCKET -- --config=configs/qwen3_4b.py:exprl_process_fast \
    --config.policy.init=gs://BUCKET/models/Qwen3-4B-Instruct-2507 \
    --config.judge.init=gs://BUCKET/models/Qwen3-4B-Instruct-2507 \
    --config.data.train=gs://BUCKET/data/train.jsonl

Flags after `--` go to exprl_jax.main. The workdir is gs://BUCKET/runs/NAME, and
the same command resumes the run that is in it. --dry_run prints the manifest
instead of applying it. docs/launch.md begins without a cluster.
"""

import json
import pathlib
import re
import string
import subprocess
import sys
from typing import Any

from absl import app, flags
import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import slices as slices_lib  # noqa: E402

_NAME = flags.DEFINE_string('name', None, 'Of the job and its workdir.',
                            required=True)
_SLICE = flags.DEFINE_string('slice', 'v5e-8', 'TPU slice: v5e-64, v5p-16, ...')
_SLICES = flags.DEFINE_integer('slices', 1, 'Number of slices.', lower_bound=1)
_IMAGE = flags.DEFINE_string('image', None, 'Container image: '
                             'launch/Dockerfile, pushed.', required=True)
_BUCKET = flags.DEFINE_string(
    'bucket', None, 'Bucket for workdirs and compiled programs, without gs://.',
    required=True)
_MOUNT = flags.DEFINE_bool(
    'mount', False, 'Mount the bucket at /bucket (GCS FUSE), '
    'for data or models that are read as files.')
_ACCOUNT = flags.DEFINE_string('service_account', 'default',
                               'Kubernetes service account.')
_SPOT = flags.DEFINE_bool('spot', False, 'On spot nodes.')
_RESERVATION = flags.DEFINE_string('reservation', '',
                                   'Only on nodes of a reservation.')
_QUEUE = flags.DEFINE_string('queue', '', "Kueue's local queue.")
_RESTARTS = flags.DEFINE_integer(
    'max_restarts', 100, 'Of the whole job, after '
    'evictions, exit code 42 and exit code 1.')
_GRACE = flags.DEFINE_integer(
    'grace', 120, 'Seconds from SIGTERM to SIGKILL: the run saves its step in '
    'them. Spot nodes get about 30 whatever is asked for.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the manifest only.')

_EXCLUSIVE = 'alpha.jobset.sigs.k8s.io/exclusive-topology'
_MOUNT_OPTIONS = (
    'implicit-dirs',  # folders that no object stands for
    'rename-dir-limit:100000',  # a model is written aside and renamed
    'file-cache:enable-parallel-downloads:true',
    'metadata-cache:ttl-secs:60',  # other hosts write to the bucket, too
    'metadata-cache:negative-ttl-secs:0',  # a checkpoint's last file is awaited
)


def manifest(name: str, slice_: slices_lib.Slice, count: int, image: str,
             bucket: str, args: list[str], service_account: str = 'default',
             max_restarts: int = 100, grace: int = 120, spot: bool = False,
             reservation: str = '', queue: str = '',
             mount: bool = False) -> dict[str, Any]:
  """Fills in launch/jobset.yaml; arguments are the flags above.

  Raises:
    ValueError: a name is none of Kubernetes' or of buckets, or there is no
      --config.
  """
  slices_lib.check_name(name)
  if not re.fullmatch(r'[a-z0-9][-_.a-z0-9]{1,61}[a-z0-9]', bucket):
    raise ValueError(f'--bucket={bucket}: the name of a bucket, without gs://')
  if any(a.startswith('--workdir') for a in args):
    raise ValueError('--workdir: it is gs://BUCKET/runs/NAME here, so that '
                     'every job has its own; leave it out')
  if spot and reservation:
    raise ValueError('--spot and --reservation: nodes are one or the other')
  args = slices_lib.flags_of(slice_, count, args)
  text = pathlib.Path(__file__).with_name('jobset.yaml').read_text()
  text = ''.join(x for x in text.splitlines(True) if not x.startswith('#'))
  out = yaml.safe_load(
      string.Template(text).substitute(
          name=name, slices=count, hosts=slice_.hosts, image=json.dumps(image),
          bucket=bucket, service_account=service_account, grace=grace,
          max_restarts=max_restarts, accelerator=slice_.accelerator,
          topology=slice_.topology, chips=slice_.host_chips, args=json.dumps([
              f'--config.checkpoint.grace_s={grace}', *args,
              f'--workdir=gs://{bucket}/runs/{name}'
          ])))
  job = out['spec']['replicatedJobs'][0]['template']['spec']
  pod = job['template']
  if slice_.hosts > 1:
    # A node pool of several hosts is one slice. One of single hosts may have
    # room for many jobs.
    out['metadata']['annotations'][_EXCLUSIVE] = 'cloud.google.com/gke-nodepool'
  if queue:
    out['metadata']['labels'] = {'kueue.x-k8s.io/queue-name': queue}
  if spot:
    pod['spec']['nodeSelector']['cloud.google.com/gke-spot'] = 'true'
    pod['spec']['tolerations'].append({
        'key': 'cloud.google.com/gke-spot', 'operator': 'Equal',
        'value': 'true', 'effect': 'NoSchedule'
    })
  if reservation:
    pod['spec']['nodeSelector'][
        'cloud.google.com/reservation-name'] = reservation
  if mount:
    _mount(pod, bucket)
  return out


def _mount(pod: dict[str, Any], bucket: str) -> None:
  """Mounts the bucket at /bucket."""
  pod['metadata']['annotations']['gke-gcsfuse/volumes'] = 'true'
  pod['spec']['volumes'].append({
      'name': 'bucket', 'csi': {
          'driver': 'gcsfuse.csi.storage.gke.io', 'volumeAttributes': {
              'bucketName': bucket, 'mountOptions': ','.join(_MOUNT_OPTIONS)
          }
      }
  })
  pod['spec']['containers'][0]['volumeMounts'].append(
      {'name': 'bucket', 'mountPath': '/bucket'})


def main(argv):
  """Applies the manifest, or prints it."""
  try:
    job = manifest(_NAME.value, slices_lib.find(_SLICE.value), _SLICES.value,
                   _IMAGE.value, _BUCKET.value, argv[1:], _ACCOUNT.value,
                   _RESTARTS.value, _GRACE.value, _SPOT.value,
                   _RESERVATION.value, _QUEUE.value, _MOUNT.value)
  except ValueError as e:
    sys.exit(f'error: {e}')
  text = yaml.safe_dump(job, sort_keys=False)
  if _DRY_RUN.value:
    print(text)
    return
  subprocess.run(['kubectl', 'apply', '-f', '-'], input=text, text=True,
                 check=True)
  select = f'jobset.sigs.k8s.io/jobset-name={_NAME.value}'
  print(f'logs: kubectl logs -f -l {select},'
        'jobset.sigs.k8s.io/job-index=0,'
        'batch.kubernetes.io/job-completion-index=0\n'
        f'stop: kubectl delete jobset {_NAME.value}')


if __name__ == '__main__':
  app.run(main)
