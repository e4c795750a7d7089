"""Hostile programs against the documented code grader, at every level."""

import contextlib
import json
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading

import pytest

from exprl_jax import config
from exprl_jax.grading import grader as grading
from exprl_jax.grading import processes, sandbox
from exprl_jax.types import InputError, Problem
from tests import hostile

CODE = pathlib.Path(__file__).parents[1] / 'docs/examples/code_grader.py'
SECRET = f'SECRET-{secrets.token_hex(16)}'  # one for all tests: memory keeps it
LEVELS = ('namespaces', 'user', 'limits')

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='needs Linux')


@pytest.fixture
def at_level(monkeypatch):
  """Sets the level of containment, here and in workers."""

  def set_level(level):
    monkeypatch.setenv(sandbox.LEVEL_VARIABLE, level)
    sandbox.containment.cache_clear()
    if level == 'user' and os.geteuid():
      pytest.skip('only root can become another user')
    found = sandbox.containment()
    if not found.level:
      pytest.skip(f'{level} does not work here: {found.reachable[0]}')
    if not found.enough:
      pytest.skip(f'{level} does not contain here: {found.reachable}')

  yield set_level
  sandbox.containment.cache_clear()


def survivors(mark):
  """Processes that were started with an argument."""
  found = []
  for process in processes.everyone():
    with contextlib.suppress(OSError):
      line = pathlib.Path(f'/proc/{process.pid}/cmdline').read_bytes()
      if mark.encode() in line.split(b'\0'):
        found.append(process.pid)
  return found


@pytest.fixture
def places(tmp_path):
  """What attacks are after: the secret in several places, a file, a signal."""
  secret = SECRET
  tmp_path.chmod(0o777)
  gold, grader = tmp_path / 'gold.jsonl', tmp_path / 'grader.py'
  gold.write_text(json.dumps({'answer': secret}))
  shutil.copy(CODE, grader)
  for file in (gold, grader):
    file.chmod(0o666)
  victim = subprocess.Popen(
      [sys.executable, '-c', 'import sys; sys.stdin.read()', secret],
      stdin=subprocess.PIPE,
      env={'TOKEN': secret})  # a process that knows the secret
  servers = [
      socket.create_server(('127.0.0.1', 0)),
      socket.socket(socket.AF_UNIX)
  ]
  path = f'/tmp/{secrets.token_hex(8)}.sock'
  servers[1].bind(path)
  os.chmod(path, 0o777)
  servers[1].listen()
  for server in servers:
    threading.Thread(target=_serve, args=(server, secret), daemon=True).start()
  received = []
  old = signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
  yield {
      'secret': secret, 'received': received, 'known': {
          'MAIN': os.getpid(), 'VICTIM': victim.pid, 'GOLD': str(gold),
          'GRADER': str(grader), 'OUT': str(tmp_path / 'out'), 'UNIX': path,
          'PORT': servers[0].getsockname()[1],
          'MARK': f'mark-{secrets.token_hex(8)}'
      }
  }
  victim.communicate()
  signal.signal(signal.SIGUSR1, old)
  for server in servers:
    server.shutdown(socket.SHUT_RDWR)
    server.close()
  os.unlink(path)


def _serve(server, secret):
  with contextlib.suppress(OSError):
    while True:
      connection = server.accept()[0]
      with connection:
        connection.sendall(secret.encode())


def ask(grader, programs, want):
  """Statuses of programs that should print `want`."""
  gold = json.dumps([['', want]])
  return [
      g.status for g in grader([(f'```python\n{p}\n```',
                                 Problem(str(i), 'q', answer=gold))
                                for i, p in enumerate(programs)])
  ]


@pytest.mark.parametrize('level', LEVELS)
def test_no_hostile_program_gets_credit_or_survives(level, at_level, places,
                                                    monkeypatch):
  at_level(level)
  folder = tempfile.mkdtemp(dir='/tmp')
  os.chmod(folder, 0o755)
  monkeypatch.setenv('TMPDIR', folder)  # of workers
  known, attacks = places['known'], hostile.THEFT | hostile.OTHERS
  assert len(attacks) >= 24
  before = pathlib.Path(known['GRADER']).read_text()
  grader = grading.Grader(
      config.Grading(grader=f'{known["GRADER"]}:grade', timeout=20.0))
  # Between the attacks there are right and wrong answers.
  honest = {
      'correct': f'print({places["secret"][:9]!r} {places["secret"][9:]!r})',
      'wrong': 'print(1)'
  }
  programs, want = [], []
  for number, body in enumerate(attacks.values()):
    programs.append(hostile.program(body, **known))
    want.append(None)
    if number % 3 == 0:
      status = ('correct', 'wrong')[number % 2]
      programs.append(f'{honest[status]}\n#{number}')
      want.append(status)
  got = ask(grader, programs, places['secret'])
  credited = [g for g, w in zip(got, want) if w is None and g == 'correct']
  assert credited == []
  assert [g for g, w in zip(got, want) if w] == [w for w in want if w]
  assert survivors(known['MARK']) == []
  assert not places['received']
  assert pathlib.Path(known['GRADER']).read_text() == before
  for outside in ('/tmp', '/var/tmp', '/dev/shm', '/', '/root'):
    assert not pathlib.Path(outside, known['MARK']).exists()
  assert not pathlib.Path(known['OUT']).exists()
  os.rmdir(folder)  # it is empty
  grader.close()


def test_the_attacks_work_on_a_program_that_is_not_contained(places):
  for name, body in hostile.THEFT.items():
    argv = [
        sys.executable, '-I', '-c',
        hostile.program(body, **places['known'])
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30,
                          cwd=pathlib.Path(places['known']['GOLD']).parent)
    assert done.stdout.strip() == places['secret'], name


def test_a_program_finds_nothing_of_the_one_before(at_level, places):
  for level in ('namespaces', 'limits'):
    at_level(level)
    write = """
      for folder in (".", "/tmp", "/var/tmp", "/dev/shm"):
        with quiet(): open(f"{folder}/{MARK}", "w").close()
      print(os.path.exists(MARK))"""
    read = """
      for folder in (".", "/tmp", "/var/tmp", "/dev/shm"):
        print(os.path.exists(f"{folder}/{MARK}"))"""
    assert run(write, places).stdout == 'True\n'
    assert run(read, places).stdout == 'False\n' * 4


def run(body, places, **limits):
  text = hostile.program(body, **places['known'])
  return sandbox.run([sys.executable, '-I', 'main.py'], files={'main.py': text},
                     **{'seconds': 5.0, **limits})


@pytest.mark.parametrize('attack, reasons', [
    ('sleep', {'timeout'}),
    ('deaf', {'timeout'}),
    ('closed stdout', {'timeout'}),
    ('endless output', {'output'}),
    ('endless errors', {'output'}),
    ('memory of many', {'memory'}),
    ('disk', {'', 'disk'}),
    ('many files', {'', 'disk'}),
])
def test_a_limit_is_named(attack, reasons, at_level, places):
  for level in ('namespaces', 'limits'):
    at_level(level)
    seconds = 0.3 if 'timeout' in reasons else 5.0
    done = run(hostile.OTHERS[attack], places, seconds=seconds)
    assert done.reason in reasons and (done.reason or done.code == 1), level


def test_input_output_and_exit_status(places):
  big = 'x' * 300_000
  done = run(
      'data = sys.stdin.read(); sys.stderr.write(data[-3:])\n'
      'print(len(data)); sys.exit(7)', places, stdin=big + '\ud800')
  assert (done.code, done.stdout, done.reason) == (7, '300003\n', '')
  assert done.stderr  # of bytes that are not UTF-8
  assert run('os.abort()', places).code < 0
  missing = sandbox.run(['/no/such/program'])
  assert missing.reason == 'failed' and '/no/such' not in missing.stdout
  assert 'No such file' in missing.message


def test_a_program_that_is_no_text_ends_like_others():
  for text in ('print(1)\0', '\ud800', 'print("\ud800")', '\x1b[2J'):
    done = sandbox.run([sys.executable, '-I', 'main.py'],
                       files={'main.py': text})
    assert done.code == 1 and not done.reason


def test_libraries_work_inside():
  done = sandbox.run([
      sys.executable, '-I', '-c', 'import numpy, multiprocessing, threading\n'
      't = threading.Thread(target=print, args=(numpy.arange(3).sum(),))\n'
      't.start(); t.join()'
  ], seconds=20.0)
  assert done.stdout == '3\n', done.stderr


PLUG_IN = r'''
import os, subprocess, sys, time
def once(problem):
  try: os.close(os.open(problem['solution'], os.O_CREAT | os.O_EXCL))
  except FileExistsError: return False
  return True
def plain(code):
  return subprocess.run([sys.executable, '-I', '-c', code], timeout=20)
def judge(text, problem):
  if text == 'killed once' and once(problem): os.kill(os.getpid(), 9)
  if text == 'killed': os.kill(os.getpid(), 9)
  if text == 'stopped': os.kill(os.getpid(), 19)
  if text == 'forged':
    for fd in range(3, 32):
      try: os.write(fd, b'[[1, "0"], "correct", "", ""]\n')
      except OSError: pass
    return False
  if text == 'endless':
    for fd in range(3, 32):
      try:
        while True: os.write(fd, b'x' * 65536)
      except OSError: pass
  if text.startswith('run '): plain(text[4:])
  if text == 'rename':
    for folder in ('a', 'b'): os.makedirs(problem['solution'] + folder)
    open(problem['solution'] + 'a/x', 'w').write('5')
    os.rename(problem['solution'] + 'a/x', problem['solution'] + 'b/x')
    return open(problem['solution'] + 'b/x').read() == '5'
  if text == 'environment': return os.environ.get(problem['answer'], 'none')
  return text in ('right', 'killed once')
'''


@pytest.fixture
def judge(tmp_path):
  file = tmp_path / 'plug.py'
  file.write_text(PLUG_IN)
  made = []

  def make(**keys):
    made.append(
        grading.Grader(
            config.Grading(
                **{'grader': f'{file}:judge', 'timeout': 2.0, **keys})))

    def ask(texts, answer='5'):
      return [
          g.status for g in made[-1]([(
              t,
              Problem(str(i), 'q', answer=answer, solution=str(tmp_path /
                                                               'flag')))
                                      for i, t in enumerate(texts)])
      ]

    return ask

  yield make
  for grader in made:
    grader.close()


@pytest.mark.parametrize('level', ('namespaces', 'limits'))
def test_only_the_guilty_answer_suffers(level, at_level, judge):
  at_level(level)
  texts = ['killed', 'forged', 'stopped', 'killed once', 'endless']
  got = judge(workers=2)([t for text in texts for t in (text, 'right', 'no')])
  assert got[1::3] == ['correct'] * 5 and got[2::3] == ['wrong'] * 5
  # What was killed once may have been killed by another: it is asked again.
  assert got[::3] == ['error', 'error', 'timeout', 'correct', 'error']


@pytest.mark.parametrize('level', ('namespaces', 'limits'))
def test_a_worker_withstands_programs_that_it_starts(level, at_level, judge,
                                                     places):
  """Plug-ins that call `subprocess`, without the sandbox."""
  at_level(level)
  names = ('reply through /proc', 'reply through descriptors', 'ptrace',
           'reply on stdout', 'memory by process_vm_readv', 'many daemons',
           'signals')
  known = {**places['known'], 'VICTIM': 1}
  texts = ['run ' + hostile.program(hostile.OTHERS[n], **known) for n in names]
  ask = judge(workers=1, timeout=20.0)
  # A signal ends the worker of the one that sends it, no other process.
  assert ask([*texts,
              'right']) == ['wrong'] * (len(names) - 1) + ['error', 'correct']
  assert not places['received']
  assert ask(['rename']) == ['correct']  # plug-ins keep their files


def test_everything_ends_with_the_grader(at_level, tmp_path, places):
  file = tmp_path / 'plug.py'
  file.write_text(PLUG_IN)
  for level in ('namespaces', 'limits'):
    at_level(level)
    grader = grading.Grader(config.Grading(grader=f'{file}:judge',
                                           timeout=20.0))
    daemons = hostile.program(hostile.OTHERS['many daemons'], **places['known'])
    grader([('run ' + daemons + '\ntime.sleep(0.3)', Problem('p', 'q'))])
    assert len(survivors(places['known']['MARK'])) == 10
    grader.close()
    assert survivors(places['known']['MARK']) == []


def test_workers_inherit_no_environment(judge, monkeypatch):
  monkeypatch.setenv('SECRET_TOKEN', 'wrong')
  monkeypatch.setenv('ANOTHER', 'wrong')
  ask = judge(environment=('ANOTHER',))
  assert ask(['environment'], 'SECRET_TOKEN') == ['error']  # 'none'
  assert ask(['environment'], 'ANOTHER') == ['wrong']


def test_require_sandbox(monkeypatch, caplog):
  keys = {'grader': f'{CODE}:grade'}
  monkeypatch.setattr(
      sandbox, 'containment', lambda: sandbox.Containment(
          'limits',
          ('files: it reads what this user may', 'the network'), False))
  with pytest.raises(InputError, match='require_sandbox.*files.*the network'):
    grading.Grader(config.Grading(require_sandbox=True, **keys))
  grading.Grader(config.Grading(**keys)).close()
  assert caplog.text.count('can still reach: files') == 1
  grading.Grader(config.Grading(require_sandbox=True)).close()  # runs nothing


def test_missing_parts_of_the_kernel_are_told(at_level, monkeypatch):
  at_level('limits')
  assert sandbox.containment().reachable == ('names, sizes and owners of '
                                             'files',)
  told = sandbox._reachable('limits', {'namespaces': 'EPERM'},
                            {'landlock': 'no', 'seccomp': 'no'})
  assert 'memory and environment of processes of this user' in told[0]
  assert told[1:] == ('the network',
                      'signals to processes of this user (EPERM)')
  monkeypatch.setenv(sandbox.LEVEL_VARIABLE, 'nothing')
  sandbox.containment.cache_clear()


@pytest.mark.parametrize('keys',
                         [{'timeout': float('nan')}, {'timeout': 0.0},
                          {'timeout': -1.0}, {'timeout': float('inf')},
                          {'memory_mb': 0}, {'memory_mb': -1}, {'workers': 0}])
def test_limits_that_limit_nothing_are_refused(keys):
  (name,) = keys
  with pytest.raises(InputError, match=f'config.grading.{name}='):
    grading.Grader(config.Grading(**keys))
