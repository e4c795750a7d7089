"""Config files, as --config and config.compare name them: FILE.py[:ARGUMENT].

Shipped ones have names, too: tiny, tiny:grpo, small/word_problems. A file
defines `get_config()`, or `get_config(argument)` and with it

  RECIPES = {'': process, 'grpo': grpo}

which has a function for every argument; '' stands for none. A file without
RECIPES makes what it likes of its argument.
"""

from collections.abc import Iterable, Iterator
import difflib
import importlib.util
import inspect
import pathlib
import traceback
import types
from typing import Any

from exprl_jax.types import InputError

_ROOTS = pathlib.Path(__file__).parents  # [2] of a checkout, [1] installed
# The folder that holds configs/.
_SHIPPED = _ROOTS[2] if (_ROOTS[2] / 'configs').is_dir() else _ROOTS[1]


def split(path: str) -> tuple[pathlib.Path, str]:
  """Splits FILE.py:ARGUMENT; the argument of FILE.py is ''.

  NAME and NAME:ARGUMENT are those of a shipped config.
  """
  file, colon, argument = path.rpartition(':')
  if not colon:
    file, argument = path, ''
  if file.endswith('.py'):
    return pathlib.Path(file), argument
  shipped = _SHIPPED / 'configs' / f'{file}.py'
  if file and shipped.is_file():
    return shipped, argument
  return pathlib.Path(path), ''


def shipped() -> list[str]:
  """Names the shipped configs."""
  folder = _SHIPPED / 'configs'
  return sorted(
      str(file.relative_to(folder).with_suffix(''))
      for file in folder.rglob('*.py'))


def title(path: str) -> str:
  """Names a run by its config: tiny, or tiny:grpo."""
  file, argument = split(path)
  return f'{file.stem}:{argument}' if argument else file.stem


def beside(path: str, other: str) -> str:
  """Resolves a FILE.py[:ARGUMENT] relative to the folder of another, or of the
  shipped configs where there is none."""
  found = split(path)[0].parent / other
  shipped = _SHIPPED / 'configs' / other
  if not split(str(found))[0].is_file() and split(str(shipped))[0].is_file():
    return str(shipped)
  return str(found)


def read(path: str) -> Any:
  """Calls `get_config` of a file, with the argument if there is one.

  Returns:
    What it returns: a ConfigDict, not yet laid over the defaults.

  Raises:
    InputError: there is no such file, no get_config in it, no such argument, or
      the file fails.
  """
  file, argument = split(path)
  if not file.is_file() and (_SHIPPED / file).is_file():
    file = _SHIPPED / file  # configs/tiny.py, from any folder
  if file.suffix != '.py' or not file.is_file():
    renamed = next(_renames(file), '')
    raise InputError(f'--config={path}: ' +
                     (f'{file} was renamed to {renamed}'
                      if renamed else 'no such file, nor one of the shipped '
                      f'configs: {", ".join(shipped())}'))
  module = _execute(file)
  get_config = getattr(module, 'get_config', None)
  if not callable(get_config):
    raise InputError(f'--config={path}: {file} has no get_config')
  if hasattr(module, 'RECIPES'):
    _check_argument(path, file, argument, module.RECIPES)
  elif argument and not inspect.signature(get_config).parameters:
    raise InputError(f'--config={path}: {file} takes no argument')
  try:
    return get_config(argument) if argument else get_config()
  except (Exception, SystemExit) as e:
    raise _failed(path, file, e) from e


def arguments(file: pathlib.Path) -> tuple[str, ...]:
  """Lists the arguments of a file; '' is among them if it can do without.

  Raises:
    InputError: the file fails.
  """
  return tuple(getattr(_execute(file), 'RECIPES', ('',)))


def _execute(file: pathlib.Path) -> types.ModuleType:
  spec = importlib.util.spec_from_file_location(file.stem, file)
  assert spec and spec.loader, file  # it ends in .py
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as e:
    raise _failed(str(file), file, e) from e
  return module


def _failed(path: str, file: pathlib.Path, error: BaseException) -> InputError:
  """Makes the error of a file that fails: the line in it, and what is wrong."""
  lines = [
      frame.lineno
      for frame in traceback.extract_tb(error.__traceback__)
      if frame.filename == str(file)
  ]
  line: int | None = lines[-1] if lines else None
  if isinstance(error, SyntaxError) and error.filename == str(file):
    line = error.lineno
  text = error.msg if isinstance(error, SyntaxError) else ' '.join(
      str(error).split())[:500]
  return InputError(f'--config={path}: {f"line {line}: " if line else ""}'
                    f'{type(error).__name__}: {text}')


def _check_argument(path: str, file: pathlib.Path, argument: str,
                    known: Iterable[str]) -> None:
  """Raises InputError, with what may be meant, unless an argument is known."""
  if argument in known:
    return
  names = [name for name in known if name]
  choices = f'one of {", ".join(names)}'
  if not argument:
    raise InputError(f'--config={path} needs an argument, such as '
                     f'{file}:{names[0]}: {choices}')
  close = difflib.get_close_matches(argument, names, 1)
  hint = f' (did you mean {close[0]!r}?)' if close else ''
  raise InputError(f'--config={path}: {file} has no {argument!r}{hint}: '
                   f'{choices}')


def _renames(file: pathlib.Path) -> Iterator[str]:
  """Yields the FILE.py:ARGUMENT that a file of its own has become.

  DIR/NAME_ARGUMENT.py and DIR/NAME/ARGUMENT.py are now DIR/NAME.py:ARGUMENT.
  """
  if file.stem == 'prepare' and file.with_stem('rubrics').is_file():
    yield str(file.with_stem('rubrics'))
  stem, folder = file.stem, file.parent
  candidates = [(folder / f'{stem[:i]}.py', stem[i + 1:])
                for i, letter in enumerate(stem)
                if letter == '_']
  candidates.append((folder.parent / f'{folder.name}.py', stem))
  for family, argument in candidates:
    if family.is_file() and argument and argument in arguments(family):
      yield f'{family}:{argument}'
