"""What the Linux kernel offers to contain a process: calls through ctypes.

Runs in the bare interpreter of `grading.jail`: imports nothing of the package.
Every function raises OSError where the kernel refuses.
"""

import ctypes
import os
import platform
import struct

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MS_NOSUID, MS_NODEV = 2, 4
CAP_SYS_PTRACE = 19

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP = 1, 4, 22
_PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 24, 36, 38
_NEW_NAMESPACES = (NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID |
                   NEWNET)

# Numbers of the denied calls (x86-64, arm64) by what they would allow.
_ALWAYS = {
    'memory of others': ((101, 117), (310, 270), (311, 271), (323, 282), (438,
                                                                          438)),
    'mounts and namespaces': ((165, 40), (166, 39), (155, 41), (161, 51),
                              (272, 97), (308, 268), (428, 428), (429, 429),
                              (430, 430), (431, 431), (432, 432), (433, 433),
                              (442, 442), (304, 265)),
    'sockets': ((41, 198), (425, 425), (426, 426), (427, 427)),
    'the kernel': ((321, 280), (298, 241), (250, 219), (248, 217), (249, 218)),
    'memory that no limit counts': ((319, 279), (447, 447), (29, 194),
                                    (68, 186), (64, 190), (240, 180)),
}
_SIGNALS = ((62, 129), (200, 130), (234, 131), (129, 138), (297, 240),
            (434, 434), (424, 424))
_CLONE, _CLONE3, _PRLIMIT = (56, 220), (435, 435), (302, 261)
_MACHINES = {'x86_64': (0, 0xC000003E), 'aarch64': (1, 0xC00000B7)}
_MOUNT_SETATTR, _PIVOT_ROOT, _LANDLOCK = 442, (155, 41), 444

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
  if result < 0:
    number = ctypes.get_errno()
    raise OSError(number, f'{what}: {os.strerror(number)}')
  return result


def _prctl(option: int, *args: int) -> None:
  values = [ctypes.c_ulong(a) for a in (*args, 0, 0, 0, 0)[:4]]
  _checked(_libc.prctl(option, *values), f'prctl {option}')


def _column() -> int:
  if platform.machine() not in _MACHINES:
    raise OSError(f'no system call numbers for {platform.machine()}')
  return _MACHINES[platform.machine()][0]


def hide() -> None:
  """Denies other processes this one's /proc files and memory (no ptrace)."""
  _prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent() -> None:
  """Asks for SIGKILL when the thread that started this process ends."""
  _prctl(_PR_SET_PDEATHSIG, 9)


def adopt_orphans() -> None:
  """Makes descendants children of this process when their parents end."""
  _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def no_new_privileges() -> None:
  """Makes setuid programs and file capabilities ineffective."""
  _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities(numbers: range) -> None:
  """Drops capabilities for all programs that this process starts."""
  for number in numbers:
    try:
      _prctl(_PR_CAPBSET_DROP, number)
    except OSError:  # not root, which has none, or no such capability
      pass


def unshare(flags: int) -> None:
  """Moves this process, or for NEWPID its children, to new namespaces."""
  _checked(_libc.unshare(flags), 'unshare')


def mount(source: str, target: str, kind: str = '', flags: int = 0,
          options: str = '') -> None:
  """Mounts a file system; see mount(2)."""
  _checked(
      _libc.mount(source.encode(), target.encode(),
                  kind.encode() or None, ctypes.c_ulong(flags),
                  options.encode() or None), f'mount {kind or "bind"}')


def read_only(path: str, recursive: bool) -> None:
  """Makes a mount, and the mounts within, read-only and setuid-free."""
  attributes = ctypes.create_string_buffer(struct.pack('=4Q', 1 | 2, 0, 0, 0))
  _checked(
      _libc.syscall(_MOUNT_SETATTR, -100, path.encode(),
                    0x8000 if recursive else 0, attributes, 32),
      'mount_setattr')


def enter_root(path: str) -> None:
  """Makes a mount the root directory and detaches the old one."""
  os.chdir(path)
  _checked(_libc.syscall(_PIVOT_ROOT[_column()], b'.', b'.'), 'pivot_root')
  _checked(_libc.umount2(b'.', 2), 'umount')
  os.chdir('/')


def landlock(readable: list[str], writable: list[str]) -> bool:
  """Denies this process all files but those beneath the given paths.

  Denies TCP and signals to processes outside as far as the kernel can, and the
  memory and /proc files of processes outside. Needs `no_new_privileges`.

  Returns:
    Whether it denies signals.
  """
  # 1. The rights that this kernel knows.
  version = _checked(_libc.syscall(_LANDLOCK, None, 0, 1), 'landlock')
  every = (1 << 13) - 1 | (version >= 2) << 13 | (version >= 3) << 14 | (
      version >= 5) << 15
  of_files = 0b111 | 1 << 14 | 1 << 15
  size = 24 if version >= 6 else 16 if version >= 4 else 8
  handled = struct.pack('=3Q', every, 3, 3)[:size]
  rules = _checked(_libc.syscall(_LANDLOCK, handled, size, 0), 'landlock')
  # 2. A rule for each path. From then on they hold, for children, too.
  for paths, rights in ((readable, 0b1101), (writable, every)):
    for path in paths:
      is_folder = os.path.isdir(path)
      _allow(rules, path, rights & every & (-1 if is_folder else of_files))
  _checked(_libc.syscall(_LANDLOCK + 2, rules, 0), 'landlock')
  os.close(rules)
  return version >= 6


def separate() -> None:
  """Denies this process the memory and /proc files of processes outside.

  So it is with its children. Denies signals to processes outside as far as the
  kernel can, but no files: a Landlock domain whose only rule allows what it
  handles. Needs `no_new_privileges`.
  """
  version = _checked(_libc.syscall(_LANDLOCK, None, 0, 1), 'landlock')
  make_block = 1 << 11 | (version >= 2) << 13  # and renames between folders
  size = 24 if version >= 6 else 8
  handled = struct.pack('=3Q', make_block, 0, 2)[:size]
  rules = _checked(_libc.syscall(_LANDLOCK, handled, size, 0), 'landlock')
  _allow(rules, '/', make_block)
  _checked(_libc.syscall(_LANDLOCK + 2, rules, 0), 'landlock')
  os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
  """Adds a rule for all that is beneath a path."""
  file = os.open(path, os.O_PATH | os.O_CLOEXEC)
  rule = struct.pack('=Qi', rights, file)
  _checked(_libc.syscall(_LANDLOCK + 1, rules, 1, rule, 0), 'landlock rule')
  os.close(file)


def deny_calls(signals: bool) -> None:
  """Makes system calls fail that a graded program has no use for.

  Args:
    signals: whether to deny signals as well, also to its own processes.
  """
  column = _column()
  denied = [n[column] for group in _ALWAYS.values() for n in group]
  denied += [n[column] for n in _SIGNALS] if signals else []
  program = _filter(column, denied)
  code = ctypes.create_string_buffer(b''.join(program))
  header = ctypes.create_string_buffer(
      struct.pack('@HP', len(program), ctypes.addressof(code)))
  _prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(header))


def _filter(column: int, denied: list[int]) -> list[bytes]:
  """Returns instructions of classic BPF over (number, architecture, args)."""
  load, equal, at_least, any_bit = 0x20, 0x15, 0x35, 0x45
  allow, kill, no_permission, no_such_call = (0x7FFF0000, 0x80000000, 0x50001,
                                              0x50026)

  def op(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack('=HBBI', code, true, false, value)

  def give(value: int) -> bytes:
    return op(0x06, value)

  # 1. Calls of another architecture have other numbers.
  program = [
      op(load, 4),
      op(equal, _MACHINES[platform.machine()][1], true=1),
      give(kill),
      op(load, 0),
      op(at_least, 0x40000000, false=1),
      give(no_permission)
  ]
  # 2. Denied by number. The C library replaces clone3 by clone.
  for number in denied:
    program += [op(equal, number, false=1), give(no_permission)]
  program += [op(equal, _CLONE3[column], false=1), give(no_such_call)]
  # 3. Denied by the first argument: flags of clone, the process of prlimit.
  for number, test in ((_CLONE[column], op(any_bit, _NEW_NAMESPACES,
                                           false=1)), (_PRLIMIT[column],
                                                       op(equal, 0, true=1))):
    program += [
        op(equal, number, false=4),
        op(load, 16), test,
        give(no_permission),
        give(allow)
    ]
  return [*program, give(allow)]
