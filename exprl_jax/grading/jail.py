"""Runs a command in a jail and ends all that it has started.

A process of its own, between the one that asks (`grading.sandbox`) and the
command: `python -I -S -c '...jail.main()' FD`. FD is a socket. The first line
in is an `Order`; lines out are a `Report`. When the other end is closed, or its
process dies, the jail ends. The command has no descriptor of the socket.

Imports nothing of the package but its siblings, and has one thread.
"""

import dataclasses
import json
import os
import resource
import select
import signal
import socket
import sys
import time

from exprl_jax.grading import jail_files, jail_limits, kernel, processes
from exprl_jax.grading.orders import Order, Report

_TICK = 0.02  # seconds between two looks at memory, processes and files
# User ids that no account has, so that jails cannot reach each other.
_FIRST_USER, _USERS = 61184, 4096
_SPACES = (kernel.NEWNS | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC |
           kernel.NEWUTS)


def main() -> None:
  """Runs what the socket says and reports how it ended."""
  control = socket.socket(fileno=int(sys.argv[1]))
  control.set_inheritable(False)
  with control.makefile('r', encoding='utf-8') as file:
    order = Order(**json.loads(file.readline()))
  os.setsid()
  try:
    if order.level == 'namespaces':
      _in_namespaces(order, control)
    else:
      if sys.platform == 'linux':
        kernel.hide()
        kernel.adopt_orphans()
      if order.level == 'user':
        order.user = _new_user()
        os.chown(order.cwd, order.user, order.user)
      _run(order, control, alone=False)
  except OSError as e:
    _send(control, Report(127, 'failed', f'{order.level}: {e}'))


def _new_user() -> int:
  return _FIRST_USER + int.from_bytes(os.urandom(4)) % _USERS


def _send(control: socket.socket, report: Report) -> None:
  try:
    control.sendall(json.dumps(dataclasses.asdict(report)).encode() + b'\n')
  except OSError:  # nobody waits for it any more
    pass


def _in_namespaces(order: Order, control: socket.socket) -> None:
  """Forks the first process of new namespaces; everything ends with it."""
  # 1. Root needs no user namespace; without one it can still read its files.
  spaces = _SPACES if order.program else kernel.NEWNS | kernel.NEWPID
  user, group = os.getuid(), os.getgid()
  try:
    kernel.unshare(spaces)
    if order.program:
      order.user = _new_user()
  except PermissionError:
    kernel.unshare(spaces | kernel.NEWUSER)
    for name, text in (('setgroups', 'deny'), ('uid_map', f'{user} {user} 1'),
                       ('gid_map', f'{group} {group} 1')):
      with open(f'/proc/self/{name}', 'w', encoding='ascii') as file:
        file.write(text)
  kernel.hide()
  # 2. The first process runs the command. This one waits for its end, which
  # comes when everything in the namespace has ended.
  first = os.fork()
  if first:
    _let_go_of_pipes()
    os.waitpid(first, 0)
    return
  try:
    kernel.die_with_parent()
    if order.program:
      jail_files.mount_root(order.readable, order.disk_mb)
    else:
      jail_files.mount_proc()
    _run(order, control, alone=True)
  except OSError as e:
    _send(control, Report(127, 'failed', f'namespaces: {e}'))
  finally:
    os._exit(0)


def _let_go_of_pipes() -> None:
  """Closes the command's pipes here, so that they end with the command."""
  null = os.open(os.devnull, os.O_RDWR)
  for descriptor in range(3):
    os.dup2(null, descriptor)
  os.close(null)


def _run(order: Order, control: socket.socket, alone: bool) -> None:
  """Starts the command and waits until it ends, or has to.

  Args:
    order: what to run.
    control: closed when nobody waits any more.
    alone: this is the first process of a process namespace.
  """
  # 1. A pipe that wakes `poll` when a child ends.
  wake, waker = os.pipe()
  for descriptor in (wake, waker):
    os.set_blocking(descriptor, False)
  signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
  signal.signal(signal.SIGCHLD, lambda *_: None)
  poll = select.poll()
  poll.register(wake, select.POLLIN)
  poll.register(control, select.POLLIN)
  # 2. Start, wait, and end what is left.
  child = _start(order, control)
  _let_go_of_pipes()
  report = None
  end = time.monotonic() + order.seconds
  while report is None:
    ready = poll.poll(1000 * _TICK if order.seconds else None)
    if any(descriptor == control.fileno() for descriptor, _ in ready):
      break
    if ready:
      os.read(wake, 1 << 16)
    report = _reap(child)
    if report is None and order.seconds:
      report = _too_much(order, end, alone)
  if not alone:
    processes.end_descendants(child)
  if report is not None:
    _send(control, report)


def _reap(child: int) -> Report | None:
  """Reaps what has ended; reports the end of the command."""
  report = None
  try:
    while (ended := os.waitpid(-1, os.WNOHANG))[0]:
      if ended[0] == child:
        code = os.waitstatus_to_exitcode(ended[1])
        late = code == -signal.SIGXCPU
        report = Report(code, 'timeout' if late else '')
  except ChildProcessError:
    pass
  return report


def _too_much(order: Order, end: float, alone: bool) -> Report | None:
  """Reports the limit that the command has exceeded, if any."""
  reason, me = '', os.getpid()
  found = ([p for p in processes.everyone() if p.pid != me]
           if alone else processes.descendants(me))
  if time.monotonic() > end:
    reason = 'timeout'
  elif processes.memory(found) > order.memory_mb << 20:
    reason = 'memory'
  elif len(found) > order.processes:  # root's are not limited by the kernel
    reason = 'processes'
  elif not alone and jail_files.written(
      order.cwd, order.disk_mb << 20) > order.disk_mb << 20:
    reason = 'disk'
  return Report(-signal.SIGKILL, reason) if reason else None


def _start(order: Order, control: socket.socket) -> int:
  """Forks the command; returns its process id."""
  cwd = order.cwd or os.getcwd()
  for name, text in order.files.items():
    with open(os.path.join(cwd, name), 'wb') as file:
      file.write(text.encode('utf-8', 'surrogatepass'))
  child = os.fork()
  if child:
    return child
  try:
    os.setsid()
    os.chdir(cwd)
    for name_ in (signal.SIGPIPE, signal.SIGXFSZ):
      signal.signal(name_, signal.SIG_DFL)
    missing = (jail_limits.limit(order)
               if order.program else jail_limits.separate(order))
    _send(control, Report(missing=missing))
    _close_from(3, control.fileno())
    os.execve(order.argv[0], order.argv, order.env)
  except (OSError, ValueError) as e:
    _send(control, Report(127, 'failed', f'{order.level}: {e}'))
  finally:
    os._exit(127)


def _close_from(first: int, but: int) -> None:
  """Closes all descriptors; `but`, which closes when the command starts."""
  os.closerange(first, but)
  os.closerange(but + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
