"""Imports go downward only: docs/design.md has the picture."""

import ast
import functools
import pathlib
import runpy

import exprl_jax

# Later layers may import earlier ones, not the other way round. A module is in
# the layer of the longest prefix of its name.
LAYERS = [
    {'types'},
    {'runtime', 'config'},
    {'data', 'grading', 'models', 'report'},
    {'rollout', 'tiny.traces', 'tiny.assets'},
    {'judge', 'rl', 'tiny'},
    {'rewards', 'evals', 'tiny.judge_data', 'tiny.judge_recipe'},
    {'planning'},
    {'runs'},
    {'main'},
    {'api'},
]
ROOT = pathlib.Path(exprl_jax.__file__).parent


@functools.cache
def modules():
  """(name, syntax tree) of every module."""
  return list(_modules())


def _modules():
  for path in ROOT.rglob('*.py'):
    name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    if not name.endswith('__init__'):
      yield name, ast.parse(path.read_text())


def imports(tree, top_level_only=False):
  nodes = tree.body if top_level_only else ast.walk(tree)
  for node in nodes:
    if isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{a.name}' for a in node.names)
    elif isinstance(node, ast.Import):
      yield from (a.name for a in node.names)


def rank(name):
  """The layer of the longest prefix that has a place."""
  parts = name.split('.')
  for n in range(len(parts), 0, -1):
    prefix = '.'.join(parts[:n])
    found = [i for i, layer in enumerate(LAYERS) if prefix in layer]
    if found:
      return found[0]
  raise AssertionError(f'{name} has no place in LAYERS')


def test_imports_go_down():
  names = {name for name, _ in modules()}
  for name, tree in modules():
    for target in imports(tree):
      target = target.removeprefix('exprl_jax.')
      other = target if target in names else target.rpartition('.')[0]
      if other in names and other != name:
        same = rank(name) == rank(other)
        assert rank(name) > rank(other) or same and not cycle(other, name), (
            f'{name} imports {other}')


def cycle(a, b):
  """Whether a imports b, too."""
  tree = dict(modules())[a]
  targets = (t.removeprefix('exprl_jax.') for t in imports(tree))
  return any(t == b or t.startswith(f'{b}.') for t in targets)


def test_flax_is_imported_in_models_only():
  for name, tree in modules():
    if not name.startswith('models.'):
      assert not any(t.startswith('flax') for t in imports(tree)), name


def test_no_torch_and_no_transformers_at_start_up():
  for name, tree in modules():
    for target in imports(tree):
      assert not target.startswith('torch'), name
    for target in imports(tree, top_level_only=True):
      assert not target.startswith('transformers'), name


def test_the_picture_and_the_table_show_the_imports():
  root = ROOT.parent
  drawing = runpy.run_path(str(root / 'docs/architecture.py'))
  table = drawing['table'](drawing['package_imports']())
  assert table in (root / 'docs/design.md').read_text(), (
      'run docs/architecture.py and copy its table to docs/design.md')
  picture = (root / 'docs/architecture.svg').read_text()
  for unit in drawing['package_imports']():
    assert f'<!-- {unit} -->' in picture, unit
