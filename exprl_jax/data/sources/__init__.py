"""Formats of problem files and sources of problems, one file each.

FORMATS maps a file suffix, such as '.jsonl', to the function that reads its
rows (`base.Format`). SOURCES maps a prefix, such as 'tiny:', to the function
that makes problems (`base.Source`).
"""

from exprl_jax.data.sources.base import COMPRESSED, Format, Source
from exprl_jax.runtime import registry

FORMATS: dict[str, Format] = registry.collect('exprl_jax.data.sources',
                                              'FORMATS')
SOURCES: dict[str, Source] = registry.collect('exprl_jax.data.sources',
                                              'SOURCES')
DEFAULT = '.jsonl'  # of files with any other suffix

__all__ = [
    'COMPRESSED', 'DEFAULT', 'FORMATS', 'SOURCES', 'Format', 'Source', 'choose',
    'format_of', 'suffix'
]


def choose(name: str) -> tuple[Source, str] | None:
  """Chooses a source by the prefix of a name.

  Returns:
    The source and the text behind the prefix; None: the name is of files.
  """
  for key, source in SOURCES.items():
    if name.startswith(key):
      return source, name.removeprefix(key)
  return None


def format_of(name: str) -> Format:
  """Chooses the format of a file by its suffix."""
  return FORMATS.get(suffix(name), FORMATS[DEFAULT])


def suffix(name: str) -> str:
  """Returns the suffix of a file, that of its content if it is compressed."""
  name = name.rpartition('/')[2].lower()
  for ending in COMPRESSED:
    name = name.removesuffix(ending)
  _, dot, ending = name.rpartition('.')
  return dot + ending if dot else ''
