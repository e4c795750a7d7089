"""Runs a config on TPU VMs.

  python launch/tpu_vm.py --name=exprl-4b --zone=us-east5-b --slice=v6e-16 \
    -- --config=configs/qwen3_4b.py:exprl_process_fast \
    --workdir=gs://BUCKET/runs/exprl-4b

Asks for the slice (a queued resource) if it does not exist, waits for it, ships
the working tree with all uncommitted changes to all its hosts, installs it
beside earlier versions, and starts a supervised run that outlives the
connection. Flags after `--` go to exprl_jax.main. The same command after the
run has ended resumes it.

  --do=status|logs|stop|delete    looks at the run, stops it (its step is
                                  saved), or deletes the slice
  --dry_run                       prints the commands
"""

import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import slices as slices_lib  # noqa: E402
import working_tree  # noqa: E402

_ROOT = pathlib.Path(__file__).parent.parent
_REMOTE = pathlib.Path(__file__).with_name('remote.sh')
_POLL = 30  # seconds between two looks at a queued resource

_NAME = flags.DEFINE_string('name', None, 'Of the slice and the run.',
                            required=True)
_ZONE = flags.DEFINE_string('zone', None, 'Zone of the TPU.', required=True)
_SLICE = flags.DEFINE_string('slice', 'v6e-8', 'TPU slice: v5e-8, v5p-16, ...')
_SLICES = flags.DEFINE_integer('slices', 1, 'Number of slices.', lower_bound=1)
_BUCKET = flags.DEFINE_string(
    'bucket', '', 'The workdir is gs://BUCKET/runs/NAME; or give --workdir.')
_SPOT = flags.DEFINE_bool('spot', False, 'Spot capacity.')
_RESERVED = flags.DEFINE_bool('reserved', False, 'Reserved capacity.')
_DO = flags.DEFINE_enum('do', 'run',
                        ['run', 'status', 'logs', 'stop', 'delete'],
                        'What to do.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the commands only.')


class Vms:
  """The commands of gcloud that concern one queued resource."""

  def __init__(self, name: str, zone: str, count: int):
    self._name, self._count = name, count
    self._tpus = ['gcloud', 'compute', 'tpus']
    self._zone = f'--zone={zone}'

  def create(self, slice_: slices_lib.Slice, spot: bool,
             reserved: bool) -> list[str]:
    """Asks for the slices."""
    nodes = ([f'--node-count={self._count}', f'--node-prefix={self._name}']
             if self._count > 1 else [f'--node-id={self._name}'])
    more = ['--spot'] * spot + ['--reserved'] * reserved
    return [
        *self._tpus, 'queued-resources', 'create', self._name, self._zone,
        *nodes, f'--accelerator-type={slice_.vm_type}',
        f'--runtime-version={slice_.vm_version}', *more
    ]

  def state(self) -> list[str]:
    """Prints the state: ACTIVE when the slices are there."""
    return [
        *self._tpus, 'queued-resources', 'describe', self._name, self._zone,
        '--format=value(state.state)'
    ]

  def delete(self) -> list[str]:
    """Gives the slices back."""
    return [
        *self._tpus, 'queued-resources', 'delete', self._name, self._zone,
        '--force', '--quiet'
    ]

  def nodes(self) -> list[str]:
    """Names of the slices."""
    if self._count == 1:
      return [self._name]
    return [f'{self._name}-{i}' for i in range(self._count)]

  def copy(self, node: str, files: list[str]) -> list[str]:
    """Copies files to the home folder of all hosts of a slice."""
    return [
        *self._tpus, 'tpu-vm', 'scp', *files, f'{node}:', self._zone,
        '--worker=all'
    ]

  def ssh(self, node: str, command: str, workers: str = 'all') -> list[str]:
    """Runs a command on hosts of a slice."""
    return [
        *self._tpus, 'tpu-vm', 'ssh', node, self._zone, f'--worker={workers}',
        f'--command={command}'
    ]


def start_command(name: str, version: str, slice_: slices_lib.Slice, count: int,
                  args: list[str], bucket: str = '') -> str:
  """The command that starts a run on a host.

  Raises:
    ValueError: there is no --config, or no workdir that all hosts share.
  """
  args = slices_lib.flags_of(slice_, count, args)
  if bucket:
    args = [*args, f'--workdir=gs://{bucket}/runs/{name}']
  workdir = [a for a in args if a.startswith('--workdir=')]
  several = slice_.hosts * count > 1
  if several and not (workdir and workdir[0].startswith('--workdir=gs://')):
    raise ValueError('several hosts need --bucket=BUCKET, or a --workdir='
                     'gs://BUCKET/FOLDER after --')
  if len(workdir) > 1:
    raise ValueError('--bucket and --workdir: give one of them')
  args += [] if workdir else [f'--workdir=runs/{name}/workdir']
  return shlex.join(['bash', 'remote.sh', 'start', name, version, *args])


def run(command: list[str], dry_run: bool) -> None:
  """Runs a command, or prints it."""
  if dry_run:
    print(shlex.join(command))
  else:
    subprocess.run(command, check=True)


def acquire(vms: Vms, slice_: slices_lib.Slice, dry_run: bool) -> None:
  """Asks for the slices, if nobody has, and waits for them."""

  def state() -> str:
    found = subprocess.run(vms.state(), capture_output=True, text=True,
                           check=False)
    return found.stdout.strip() if found.returncode == 0 else 'none'

  if dry_run or state() == 'none':
    run(vms.create(slice_, _SPOT.value, _RESERVED.value), dry_run)
  if dry_run:
    print(f'{shlex.join(vms.state())}  # until it is ACTIVE')
    return
  while (now := state()) != 'ACTIVE':
    if now in ('FAILED', 'SUSPENDED', 'SUSPENDING', 'DELETING'):
      sys.exit(f'error: the queued resource is {now}: --do=delete, then again')
    print(f'queued resource: {now.lower() or "unknown"}', flush=True)
    time.sleep(_POLL)


def launch(vms: Vms, slice_: slices_lib.Slice, args: list[str],
           dry_run: bool) -> None:
  """Ships the code to all hosts and starts the run.

  Raises:
    ValueError: as start_command.
  """
  data, version, changed = working_tree.pack(_ROOT)
  command = start_command(_NAME.value, version, slice_, _SLICES.value, args,
                          _BUCKET.value)
  if changed:
    print(f'ships {len(changed)} uncommitted files: {", ".join(changed[:5])}'
          f'{", ..." * (len(changed) > 5)}')
  acquire(vms, slice_, dry_run)
  with tempfile.TemporaryDirectory() as folder:
    archive = pathlib.Path(folder) / f'exprl_jax-{version}.tar.gz'
    archive.write_bytes(data)
    for node in vms.nodes():
      run(vms.copy(node, [str(archive), str(_REMOTE)]), dry_run)
  for node in vms.nodes():
    run(vms.ssh(node, command), dry_run)


def main(argv):
  """Does --do."""
  vms = Vms(_NAME.value, _ZONE.value, _SLICES.value)
  try:
    slice_ = slices_lib.find(_SLICE.value)
    slices_lib.check_name(_NAME.value)
    if not slice_.vm_type:
      raise ValueError(f'--slice={_SLICE.value}: on GKE only (launch/gke.py)')
    if _SPOT.value and _RESERVED.value:
      raise ValueError('--spot and --reserved: capacity is one or the other')
    if _DO.value == 'run':
      launch(vms, slice_, argv[1:], _DRY_RUN.value)
      return
  except ValueError as e:
    sys.exit(f'error: {e}')
  if _DO.value == 'delete':
    run(vms.delete(), _DRY_RUN.value)
    return
  workers = '0' if _DO.value == 'logs' else 'all'
  nodes = vms.nodes()[:1] if _DO.value == 'logs' else vms.nodes()
  for node in nodes:
    run(vms.ssh(node, f'bash remote.sh {_DO.value} {_NAME.value}', workers),
        _DRY_RUN.value)


if __name__ == '__main__':
  app.run(main)
