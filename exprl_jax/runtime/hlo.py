"""What a compiled program moves: bytes of HBM and of the network.

XLA's own cost analysis counts the body of a loop once. Here it counts as often
as it runs. Where that is not in the program (a `while` whose end depends on the
data), the caller says how often.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
import re

_BITS = {
    'pred': 8, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16, 'u16': 16,
    's32': 32, 'u32': 32, 's64': 64, 'u64': 64, 'bf16': 16, 'f16': 16,
    'f32': 32, 'f64': 64, 'c64': 64, 'f8e4m3fn': 8, 'f8e5m2': 8
}
_COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
                'collective-permute', 'ragged-all-to-all')
# These move nothing themselves.
_FREE = {
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while',
    'conditional', 'call', 'after-all', 'partition-id', 'replica-id', 'iota',
    'optimization-barrier', 'custom-call-start', 'add-dependency', 'domain'
}
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\](?:\{([^}]*)\})?')
_INSTRUCTION = re.compile(r'\s*(?:ROOT )?(%[\w.\-]+) = (.*?) ([\w\-]+)\((.*)$')


@dataclasses.dataclass
class Traffic:
  """Per device and call of a program.

  Attributes:
    memory_bytes: read from and written to HBM.
    network_bytes: sent to other devices.
    collectives: kind -> number of executions.
  """

  memory_bytes: float = 0.0
  network_bytes: float = 0.0
  collectives: dict[str, float] = dataclasses.field(default_factory=dict)

  def add(self, other: 'Traffic', times: float = 1.0) -> None:
    """Adds another's, so many times."""
    self.memory_bytes += times * other.memory_bytes
    self.network_bytes += times * other.network_bytes
    for kind, count in other.collectives.items():
      self.collectives[kind] = self.collectives.get(kind, 0) + times * count


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a program."""

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  text: str

  def calls(self, *keys: str) -> list[str]:
    """Names of the computations under attributes such as body=."""
    found: list[str] = []
    for key in keys:
      for group in re.findall(rf'\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)', self.text):
        found += re.findall(r'%[\w.\-]+', group)
    return found


Program = dict[str, list[Instruction]]


def parse(text: str) -> tuple[Program, str]:
  """Parses `compiled.as_text()`.

  Returns:
    The instructions of each computation, and the name of the entry.
  """
  out: Program = {}
  name = entry = ''
  for line in text.splitlines():
    start = re.match(r'(ENTRY )?(%[\w.\-]+) .*\{$', line)
    if start:
      name = start[2]
      out[name] = []
      entry = name if start[1] else entry
    elif name and (found := _INSTRUCTION.match(line)):
      head = found[4].split('), ')[0]
      operands = tuple(re.findall(r'%[\w.\-]+', head))
      out[name].append(Instruction(found[1], found[2], found[3], operands,
                                   line))
  return out, entry


def traffic(text: str, unknown_trips: float = 1.0) -> Traffic:
  """Adds up a program's traffic.

  Args:
    text: `compiled.as_text()`.
    unknown_trips: how often a loop runs whose number of trips is not known;
      such loops inside of it count once.
  """
  program, entry = parse(text)

  @functools.cache
  def visit(name: str, unknown: float) -> Traffic:
    total = Traffic()
    shapes = {i.name: i.shape for i in program[name]}
    for i in program[name]:
      total.add(_own(i, shapes, program))
      if i.opcode == 'while':
        trips = _trips(i, program)
        inner = unknown if trips else 1.0  # once in each other
        total.add(visit(i.calls('body')[0], inner), trips or unknown)
      elif i.opcode == 'conditional':
        # Rare branches are the expensive ones: truncated sampling.
        branches = i.calls('branch_computations', 'true_computation',
                           'false_computation')
        total.add(
            min((visit(b, unknown) for b in branches),
                key=lambda t: t.memory_bytes))
      elif i.opcode in ('call', 'async-start'):
        for callee in i.calls('to_apply', 'calls'):
          total.add(visit(callee, unknown))
      elif i.opcode == 'fusion':  # what is in it stays on the chip
        for callee in i.calls('calls'):
          inside = visit(callee, unknown)
          total.add(Traffic(0.0, inside.network_bytes, inside.collectives))
    return total

  return visit(entry, unknown_trips)


def collectives(text: str) -> Iterator[tuple[Instruction, str]]:
  """Yields collective operations and the computations they are in."""
  for name, body in parse(text)[0].items():
    for i in body:
      if _collective(i):
        yield i, name


def array_bytes(shape: str, hbm_only: bool = False) -> int:
  """Bytes of a shape such as bf16[8,128]{1,0} or of a tuple of them.

  Args:
    shape: as HLO prints it.
    hbm_only: leave out arrays that are in the chip's own memory, S(1), or in
      the host's, S(5).
  """
  total = 0
  for dtype, dims, layout in _ARRAY.findall(shape):
    if dtype in _BITS and not (hbm_only and re.search(r'S\([15]\)', layout)):
      size = math.prod(map(int, dims.split(','))) if dims else 1
      total += size * _BITS[dtype] // 8
  return total


def _trips(i: Instruction, program: Program) -> float:
  """How often a loop runs: what its condition compares the counter with.

  0: that depends on the data.
  """
  found = re.search(r'"known_trip_count":\{"n":"(\d+)"', i.text)
  if found:
    return float(found[1])
  condition = program[i.calls('condition')[0]]
  root = next(x for x in condition if x.text.lstrip().startswith('ROOT'))
  if root.opcode != 'compare' or 'direction=LT' not in root.text:
    return 0.0
  for x in condition:
    bound = re.search(r' constant\((\d+)\)', x.text)
    if bound and x.name in root.operands:
      return float(bound[1])
  return 0.0


def _collective(i: Instruction) -> str:
  """The kind of a collective operation; '' for all others and their ends."""
  kind = i.opcode.removesuffix('-start')
  return kind if kind in _COLLECTIVES else ''


def _own(i: Instruction, shapes: dict[str, str], program: Program) -> Traffic:
  """What an instruction moves, without the computations it calls."""
  kind = _collective(i)
  if kind:
    size = max(
        array_bytes(i.shape) if not i.opcode.endswith('-start') else 0,
        max((array_bytes(shapes.get(o, '')) for o in i.operands), default=0))
    if kind == 'all-gather' and i.opcode.endswith('-start'):
      size *= _group(i)
    sent = size * _SENT[kind](_group(i))
    return Traffic(2.0 * size, sent, {kind: 1.0})
  if i.opcode in _FREE or i.opcode.endswith(('-done', '-update')):
    return Traffic()
  if i.opcode == 'async-start':
    return Traffic()
  if i.opcode.endswith('-start'):  # (target, source, ...)
    sizes = [array_bytes(x[0], True) for x in re.finditer(_ARRAY, i.shape)]
    moved = min(
        array_bytes(x[0]) for x in list(re.finditer(_ARRAY, i.shape))[:2])
    return Traffic(float(moved * sum(size > 0 for size in sizes[:2])))
  if i.opcode in ('dynamic-slice', 'gather', 'slice'):
    return Traffic(2.0 * array_bytes(i.shape, True))
  if i.opcode in ('dynamic-update-slice', 'scatter'):
    update = i.operands[1 if i.opcode.startswith('dynamic') else -1]
    return Traffic(2.0 * array_bytes(shapes.get(update, ''), True))
  if i.opcode == 'fusion':
    return Traffic(_fusion_bytes(i, shapes, program))
  if i.opcode == 'custom-call':  # kernels: the planner counts what they read
    return Traffic()
  return Traffic(
      float(
          array_bytes(i.shape, True) +
          sum(array_bytes(shapes.get(o, ''), True) for o in i.operands)))


_SENT = {
    'all-gather': lambda n: (n - 1) / n,
    'reduce-scatter': lambda n: (n - 1) / n,
    'all-reduce': lambda n: 2 * (n - 1) / n,
    'all-to-all': lambda n: (n - 1) / n,
    'ragged-all-to-all': lambda n: (n - 1) / n,
    'collective-permute': lambda n: 1.0,
}


def _group(i: Instruction) -> int:
  """Devices that take part in a collective operation together."""
  listed = re.search(r'replica_groups=\{\{([\d,]+)\}', i.text)
  if listed:
    return len(listed[1].split(','))
  iota = re.search(r'replica_groups=\[(\d+),(\d+)\]', i.text)
  if iota:
    return int(iota[2])
  mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", i.text)
  if mesh:
    sizes = dict(re.findall(r"('\w+')=(\d+)", mesh[1]))
    return math.prod(int(sizes[axis]) for axis in mesh[2].split(','))
  return 1


def _fusion_bytes(i: Instruction, shapes: dict[str, str],
                  program: Program) -> float:
  """What a fusion reads and writes: of operands that it only slices, the
  slices; of an operand that it updates in place, the update."""
  (name,) = i.calls('calls')
  total, in_place = 0.0, False
  for n, operand in enumerate(i.operands):
    read, updated = _uses(program, name, n)
    whole = array_bytes(shapes.get(operand, ''), True)
    total += min(whole, read + 2 * updated)
    in_place |= 0 < updated and shapes.get(operand, '').split('{')[0] in i.shape
  return total if in_place else total + array_bytes(i.shape, True)


def _uses(program: Program, name: str, n: int) -> tuple[float, float]:
  """Bytes read of, and written into, parameter n of a fused computation."""
  body = program[name]
  shapes = {x.name: x.shape for x in body}
  param = next(x for x in body
               if x.opcode == 'parameter' and f'parameter({n})' in x.text)
  names, read, updated = {param.name}, 0.0, 0.0
  for x in body:  # operands come before their uses
    for at, operand in enumerate(x.operands):
      if operand not in names:
        continue
      if x.opcode in ('bitcast', 'reshape', 'copy', 'convert'):
        names.add(x.name)
      elif x.opcode in ('dynamic-slice', 'slice', 'gather') and at == 0:
        read += array_bytes(x.shape)
      elif x.opcode in ('dynamic-update-slice', 'scatter') and at == 0:
        update = x.operands[-1 if x.opcode == 'scatter' else 1]
        updated += array_bytes(shapes[update])
      elif x.opcode == 'fusion':
        inner = _uses(program, x.calls('calls')[0], at)
        read, updated = read + inner[0], updated + inner[1]
      else:
        read += array_bytes(param.shape)
  return read, updated
