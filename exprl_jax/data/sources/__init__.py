"""Formats of problem files, one file each.

SOURCES maps a prefix, such as 'tiny:', or a file suffix, such as '.jsonl', to
its source: see `base.Source`.
"""

from etils import epath

from exprl_jax.data.sources.base import Source
from exprl_jax.runtime import registry

SOURCES: dict[str, Source] = registry.collect('exprl_jax.data.sources',
                                              'SOURCES')
DEFAULT = '.jsonl'  # of files with any other suffix

__all__ = ['DEFAULT', 'SOURCES', 'Source', 'choose']


def choose(path: epath.PathLike) -> tuple[Source, str]:
  """Chooses the source of a path by its prefix, else by its suffix.

  Returns:
    The source, and what it is given: the text behind the prefix, or the path.
  """
  text = str(path)
  for key, source in SOURCES.items():
    if key.endswith(':') and text.startswith(key):
      return source, text.removeprefix(key)
  return SOURCES.get(epath.Path(text).suffix, SOURCES[DEFAULT]), text
