"""What goes into a jail, and what comes out of it (`grading.jail`)."""

import dataclasses


@dataclasses.dataclass
class Order:
  """What to run, and with which limits."""

  argv: list[str]  # the program's path first
  env: dict[str, str]
  # namespaces: own users, processes, files, network; user: another user id
  # (root only); limits: neither.
  level: str
  program: bool  # of a model; False: a worker, which keeps files and network
  cwd: str = ''  # '': stay
  files: dict[str, str] = dataclasses.field(default_factory=dict)  # to write
  readable: list[str] = dataclasses.field(default_factory=list)  # paths
  seconds: float = 0.0  # 0: no limits at all
  memory_mb: int = 0
  disk_mb: int = 0
  processes: int = 0  # and threads
  user: int = -1  # runs as this user id; -1: as the caller


@dataclasses.dataclass
class Report:
  """How a command ended."""

  code: int = 0  # -N: by signal N
  # timeout, memory, processes, disk, failed: it did not start; '': by itself
  reason: str = ''
  message: str = ''
  missing: dict[str, str] = dataclasses.field(default_factory=dict)  # of the
  # kernel, and why
