"""Draws docs/architecture.svg from the imports of the package.

    python docs/architecture.py

Prints the table of docs/design.md, too; tests/test_layers.py holds both against
the code.
"""

import ast
from collections.abc import Iterator, Mapping
import pathlib

import matplotlib

matplotlib.use('svg')

from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent / 'exprl_jax'
Graph = Mapping[str, set[str]]


def package_imports() -> dict[str, set[str]]:
  """Returns package or top-level module -> those that it imports."""
  graph: dict[str, set[str]] = {}
  for path in sorted(ROOT.rglob('*.py')):
    unit = path.relative_to(ROOT).parts[0].removesuffix('.py')
    if unit == '__init__':
      continue
    for target in _targets(ast.parse(path.read_text())):
      graph.setdefault(unit, set()).add(target)
    graph.setdefault(unit, set())
  return {
      unit: {t
             for t in targets
             if t in graph and t != unit}
      for unit, targets in graph.items()
  }


def _targets(tree: ast.Module) -> Iterator[str]:
  """Yields the first name below exprl_jax of every import."""
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module:
      package, *rest = node.module.split('.')
      if package == 'exprl_jax':
        yield from rest[:1] or (alias.name for alias in node.names)


def levels(graph: Graph) -> dict[str, int]:
  """Returns the floor of every unit, one above the highest of its imports.

  Raises:
    RecursionError: the imports have a cycle.
  """

  def level(unit: str) -> int:
    return 1 + max(map(level, graph[unit]), default=-1)

  return {unit: level(unit) for unit in graph}


def direct(graph: Graph) -> dict[str, set[str]]:
  """Returns the imports that no other import implies (transitive reduction)."""

  def below(unit: str) -> set[str]:
    return graph[unit].union(*map(below, graph[unit]))

  return {
      unit: targets - set().union(*map(below, targets))
      for unit, targets in graph.items()
  }


def table(graph: Graph) -> str:
  """Formats the graph as the table of docs/design.md."""
  floor = levels(graph)
  rows = ['| unit | imports |', '|---|---|']
  for unit in sorted(graph, key=lambda u: (-floor[u], u)):
    names = sorted(graph[unit], key=lambda u: (-floor[u], u))
    rows.append(f'| {unit} | {", ".join(names) or "–"} |')
  return '\n'.join(rows)


def draw(graph: Graph, path: pathlib.Path) -> None:
  """Draws the units by floors, with the imports that no other implies."""
  floor = levels(graph)
  rows: dict[int, list[str]] = {}
  for unit in sorted(graph):
    rows.setdefault(floor[unit], []).append(unit)
  spots = {
      unit: ((i + 0.5) / len(row), y)
      for y, row in rows.items()
      for i, unit in enumerate(row)
  }
  plt.rcParams['svg.hashsalt'] = 'exprl_jax'  # the same file every time
  figure, axes = plt.subplots(figsize=(7.2, 0.7 * len(rows)))
  for unit, targets in direct(graph).items():
    x, y = spots[unit]
    for target in sorted(targets):
      to_x, to_y = spots[target]
      axes.annotate('', (to_x, to_y + 0.24), (x, y - 0.24), zorder=1,
                    arrowprops={'arrowstyle': '->', 'color': '#888'})
  for unit, (x, y) in spots.items():
    axes.add_patch(
        FancyBboxPatch((x - 0.1, y - 0.22), 0.2, 0.44, 'round,pad=0.01',
                       facecolor='#eef3fa', edgecolor='#345', zorder=2))
    axes.text(x, y, unit, ha='center', va='center', zorder=3)
  axes.set(xlim=(0, 1), ylim=(-0.4, len(rows) - 0.6))
  axes.axis('off')
  figure.savefig(path, bbox_inches='tight', metadata={'Date': None})
  plt.close(figure)


if __name__ == '__main__':
  imports = package_imports()
  draw(imports, DOCS / 'architecture.svg')
  print(table(imports))
