"""Manifests and scripts, as far as they go without a cluster."""

import importlib.util
import pathlib
import re
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest
import yaml

import exprl_jax
from exprl_jax.runtime import failures

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


def job(gke, slice_name):
  text = gke.manifest('run-1', slice_name, 'image', 'bucket', 'account', 3,
                      ['--config=configs/tiny.py:grpo', '--config.seed=1'])
  return yaml.safe_load(text)


def test_jobset_runs_the_command_on_the_whole_slice(gke):
  for slice_name, (accelerator, topology, chips) in gke.SLICES.items():
    spec = job(gke, slice_name)
    assert spec['kind'] == 'JobSet' and spec['metadata']['name'] == 'run-1'
    (replicated,) = spec['spec']['replicatedJobs']
    batch_job = replicated['template']['spec']
    pod = batch_job['template']['spec']
    (container,) = pod['containers']
    assert container['command'] == ['python', '-m', 'exprl_jax.main']
    assert container['args'] == [
        '--config.checkpoint.grace_s=120', '--config=configs/tiny.py:grpo',
        '--config.seed=1', '--workdir=gs://bucket/runs/run-1'
    ]
    assert container['resources']['limits']['google.com/tpu'] == chips
    sizes = [int(n) for n in topology.split('x')]
    product = 1
    for n in sizes:
      product *= n
    assert product == chips, 'one host holds the slice'
    assert pod['nodeSelector']['cloud.google.com/gke-tpu-accelerator'] == (
        accelerator)
    assert pod['restartPolicy'] == 'Never'  # wanted by podFailurePolicy
    rule = batch_job['podFailurePolicy']['rules'][0]['onExitCodes']
    assert rule['containerName'] == container['name']
    assert rule['operator'] == 'In' and rule['values'] == [
        failures.BUG, failures.INPUT, failures.VERDICT, failures.UNFINISHED
    ]
    assert pod['terminationGracePeriodSeconds'] == 120


def test_gke_rejects_bad_names_and_no_config(gke):
  with pytest.raises(ValueError, match='lower-case'):
    gke.manifest('Run_1', 'v5e-8', 'i', 'b', 'a', 1, ['--config=x.py'])
  with pytest.raises(ValueError, match='no --config'):
    gke.manifest('run', 'v5e-8', 'i', 'b', 'a', 1, [])


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


def test_tpu_vm_dry_run_prints_the_command():

  def run(*args):
    return subprocess.run(['bash', LAUNCH / 'tpu_vm.sh', *args], text=True,
                          capture_output=True)

  out = run('--dry_run', 'n', 'zone', 'v6e-8', '--config=configs/tiny.py:sft',
            "--config.run=a b")
  assert out.returncode == 0, out.stderr
  assert 'exprl_jax.main --config=configs/tiny.py:sft' in out.stdout
  assert run('n', 'zone').returncode == 2
  assert 'one of' in run('--dry_run', 'n', 'z', 'v9-8', '--config=c').stderr


def test_gke_dry_run_prints_yaml():
  out = subprocess.run([
      sys.executable, LAUNCH / 'gke.py', '--dry_run', '--name=n', '--image=i',
      '--bucket=b', '--', '--config=c.py'
  ], text=True, capture_output=True, check=True)
  assert yaml.safe_load(out.stdout)['kind'] == 'JobSet'


def test_launchers_install_extras_that_exist():
  for name in ('Dockerfile', 'tpu_vm.sh'):
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
