"""Data sets of the Hugging Face Hub: hf:ORG/NAME[@REVISION][:CONFIG[:SPLIT]].

The files of a data set are downloaded and read by the formats of data/sources;
no code of the data set runs. Its README.md may say which files a config and a
split have, as `datasets` reads it:

    configs:
    - config_name: main
      data_files:
      - split: train
        path: main/train-*

Otherwise, the files of a config are those in the folder of its name, and those
of a split have its name at the start of the name of the file or its folder.
"""

from collections.abc import Sequence
import fnmatch
import re
from typing import Any, NamedTuple

from etils import epath

from exprl_jax.runtime import inputs
from exprl_jax.types import InputError

PREFIX = 'hf:'
_FORM = re.compile(r'hf:(?P<repo>[^/@:]+/[^/@:]+)(@(?P<revision>[^:]+))?'
                   r'(:(?P<config>[^:]*)(:(?P<split>[^:]+))?)?')


class Name(NamedTuple):
  """A part of a data set."""

  repo: str
  revision: str | None
  config: str  # '': the only or the default one
  split: str


def parse(text: str) -> Name:
  """Parses hf:ORG/NAME[@REVISION][:CONFIG[:SPLIT]]; the split is 'train'.

  Raises:
    InputError: it has another form.
  """
  match = _FORM.fullmatch(text)
  if not match:
    raise InputError(f'{text}: want hf:ORG/NAME, hf:ORG/NAME:CONFIG, '
                     'hf:ORG/NAME:CONFIG:SPLIT or hf:ORG/NAME::SPLIT, each '
                     'with @REVISION behind NAME or without')
  return Name(match['repo'], match['revision'], match['config'] or '',
              match['split'] or 'train')


def find(text: str) -> tuple[epath.Path, list[str]]:
  """Downloads a part of a data set.

  Returns:
    The folder of the snapshot, and the patterns of the files in it.

  Raises:
    InputError: no such data set, or README.md has no such config or split.
  """
  from exprl_jax.runtime import hub

  name = parse(text)
  folder = hub.snapshot(name.repo, name.revision, ('README.md',), 'dataset')
  readme = folder / 'README.md'
  described = inputs.decode(inputs.read_bytes(readme),
                            str(readme)) if readme.is_file() else ''
  patterns = choose(_configs(described), name, text)
  return hub.snapshot(name.repo, name.revision, patterns, 'dataset'), patterns


def choose(configs: Sequence[dict[str, Any]], name: Name,
           text: str) -> list[str]:
  """Chooses the patterns of the files of a config and a split.

  Args:
    configs: what README.md says, with `config_name` and `data_files`.
    name: of the part.
    text: the same as the user gave it, for errors.

  Raises:
    InputError: README.md has other configs or splits.
  """
  by_name = {
      c.get('config_name', 'default'): c for c in configs if c.get('data_files')
  }
  if not by_name:
    folder = f'{name.config}/' if name.config else ''
    return [
        f'{folder}{middle}{name.split}{end}' for middle in ('', '*/')
        for end in ('[-._/]*', '[0-9]*')
    ]
  config = name.config or _default(by_name)
  if config not in by_name:
    raise InputError(f'{text}: choose a config, as in hf:{name.repo}:CONFIG; it'
                     f' has {", ".join(by_name)}')
  splits = _splits(by_name[config]['data_files'])
  if name.split not in splits:
    raise InputError(f'{text}: choose a split, as in hf:{name.repo}:{config}:'
                     f'SPLIT; it has {", ".join(splits)}')
  return [path.removeprefix('./') for path in splits[name.split]]


def _default(configs: dict[str, dict[str, Any]]) -> str:
  """The config that is marked as default, called so, or the only one."""
  for name, config in configs.items():
    if config.get('default') or len(configs) == 1:
      return name
  return 'default'


def _splits(files: Any) -> dict[str, list[str]]:
  """Reads `data_files`: a path, a list of them, or of {split, path}."""
  out: dict[str, list[str]] = {}
  for entry in files if isinstance(files, list) else [files]:
    if not isinstance(entry, dict):
      entry = {'path': entry}
    paths = entry.get('path', [])
    out.setdefault(entry.get('split', 'train'),
                   []).extend(paths if isinstance(paths, list) else [paths])
  return out


def matches(file: str, patterns: Sequence[str]) -> bool:
  """Whether a file is named like one of the patterns."""
  return any(fnmatch.fnmatchcase(file, p) for p in patterns)


def _configs(readme: str) -> list[dict[str, Any]]:
  """Reads `configs` of the YAML at the top of README.md."""
  import yaml

  match = re.match(r'---\s*\n(.*?)\n---\s*(\n|$)', readme, re.DOTALL)
  try:
    head = yaml.safe_load(match[1]) if match else {}
  except (yaml.YAMLError, ValueError, RecursionError):
    head = {}
  configs = head.get('configs') if isinstance(head, dict) else None
  configs = configs if isinstance(configs, list) else []
  return [c for c in configs if isinstance(c, dict)]
