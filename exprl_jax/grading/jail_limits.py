"""What a process in a jail gives up before it starts its command.

Like `grading.jail`, which uses it, imports nothing of the package but siblings.
"""

import os
import resource
import sys

from exprl_jax.grading import kernel, processes
from exprl_jax.grading.orders import Order


def separate(order: Order) -> dict[str, str]:
  """Denies a worker and its children the memory of processes outside.

  Returns:
    What the kernel lacks, by name.
  """
  if sys.platform != 'linux':
    return {'landlock': 'needs Linux'}
  only = kernel.CAP_SYS_PTRACE
  kernel.drop_capabilities(range(only, only + 1))
  if order.level == 'namespaces':
    return {}
  try:
    kernel.no_new_privileges()
    kernel.separate()
  except OSError as e:
    return {'landlock': str(e)}
  return {}


def limit(order: Order) -> dict[str, str]:
  """Gives up all that the program should not have; cannot be undone.

  Returns:
    What the kernel lacks, by name: 'landlock', 'seccomp'.

  Raises:
    OSError: a limit cannot be set.
  """
  _limit_resources(order)
  # 1. Privileges.
  linux = sys.platform == 'linux'
  if linux:
    kernel.drop_capabilities(range(64))
  if order.user >= 0:
    os.setgroups([])
    os.setresgid(order.user, order.user, order.user)
    os.setresuid(order.user, order.user, order.user)
  if not linux:
    return {name: 'needs Linux' for name in ('landlock', 'seccomp')}
  kernel.no_new_privileges()
  # 2. Files, where the root is not its own, and system calls.
  missing, scoped = {}, order.level != 'limits'
  if order.level != 'namespaces':
    try:
      scoped |= kernel.landlock([*order.readable, '/dev/urandom'],
                                [order.cwd, '/dev/null'])
    except OSError as e:
      missing['landlock'] = str(e)
  try:
    kernel.deny_calls(signals=not scoped)
  except OSError as e:
    missing['seccomp'] = str(e)
  return missing


def _limit_resources(order: Order) -> None:
  """Sets limits of each process. Those that are lower already stay."""
  count = order.processes
  if order.level == 'limits':  # then the kernel counts all of the user
    count += processes.threads_of(os.getuid())
  limits = {
      resource.RLIMIT_CPU: int(order.seconds) + 1,
      resource.RLIMIT_AS: order.memory_mb << 20,
      resource.RLIMIT_FSIZE: order.disk_mb << 20, resource.RLIMIT_NPROC: count,
      resource.RLIMIT_NOFILE: 256, resource.RLIMIT_CORE: 0
  }
  for kind, value in limits.items():
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
      resource.setrlimit(kind, (value, value))
    except ValueError:  # macOS does not take all of them
      if sys.platform == 'linux':
        raise
