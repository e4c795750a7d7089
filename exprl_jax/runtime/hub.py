"""Snapshots of repositories of the Hugging Face Hub.

`huggingface_hub` does the work: the token (HF_TOKEN, `hf auth login`), the
cache (HF_HOME), HF_ENDPOINT and HF_HUB_OFFLINE are as everywhere. A file that
is in the cache is not downloaded again; without a network the cached snapshot
is taken.
"""

from collections.abc import Sequence
import functools
import re
import time
from typing import Any, NamedTuple

from absl import logging
from etils import epath
import jax

from exprl_jax.runtime import mesh as mesh_lib
from exprl_jax.types import InputError

_ID = re.compile(r'([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(.+))?')
_WAITS = (1, 2, 4)  # seconds before another attempt, if the Hub has failed


class Id(NamedTuple):
  """A repository, and a branch, tag or commit of it; None: the default."""

  repo: str
  revision: str | None


def parse(name: str) -> Id | None:
  """Parses ORG/NAME or ORG/NAME@REVISION; None: it is neither."""
  match = _ID.fullmatch(name)
  return Id(*match.groups()) if match else None


def snapshot(repo_id: str, revision: str | None, patterns: Sequence[str],
             repo_type: str = 'model') -> epath.Path:
  """Downloads the files of a repository that are not in the cache yet.

  All processes call it, and get the same commit. Process 0 downloads first;
  those that share its cache find the files there, others download for
  themselves, once a host: the library locks each file.

  Args:
    repo_id: ORG/NAME.
    revision: a branch, tag or commit; None: the default branch. A process asks
      once what a branch is, so it does not change during a run.
    patterns: of the files ('*.json'); '*' matches '/' as well.
    repo_type: 'model' or 'dataset'.

  Returns:
    A folder with the files, named by its commit; files of other patterns may
    be there, too.

  Raises:
    InputError: no such repository or revision, no permission, or no network and
      nothing in the cache.
  """
  return _snapshot(repo_id, revision, tuple(patterns), repo_type)


@functools.cache
def _snapshot(repo_id: str, revision: str | None, patterns: tuple[str, ...],
              repo_type: str) -> epath.Path:
  folder, error = None, ''
  if jax.process_index() == 0:
    try:
      folder = _download(repo_id, revision, patterns, repo_type)
    except InputError as e:
      error = str(e)
  commit, error = mesh_lib.broadcast([folder and folder.name, error])
  if error:  # the same in all processes: none of them waits for the others
    raise InputError(error)
  return folder or _download(repo_id, commit, patterns, repo_type)


def _download(repo_id: str, revision: str | None, patterns: tuple[str, ...],
              repo_type: str) -> epath.Path:
  """Downloads in this process; tries again if the Hub has failed."""
  import huggingface_hub

  bar = None if jax.process_index() == 0 else _silent_bar()
  for wait in (*_WAITS, None):
    try:
      return epath.Path(
          huggingface_hub.snapshot_download(repo_id, revision=revision,
                                            repo_type=repo_type,
                                            allow_patterns=list(patterns),
                                            tqdm_class=bar))
    except Exception as e:  # of network, disk, names and a native client
      if wait is None or not _is_transient(e):
        what = repo_id + (f'@{revision}' if revision else '')
        raise InputError(_explain(e, what, repo_type)) from None
      logging.warning('%s: the Hub has failed (%s); trying again', repo_id,
                      _first_line(e.__cause__ or e))
      time.sleep(wait)
  raise AssertionError('the last attempt returns or raises')


def _silent_bar() -> Any:
  """Returns a class of progress bars that show nothing."""
  from huggingface_hub.utils import tqdm

  class Silent(tqdm):

    def __init__(self, *args: Any, **kwargs: Any):
      super().__init__(*args, **kwargs | {'disable': True})

  return Silent


def _is_transient(error: Exception) -> bool:
  """Whether the server cannot answer now (5xx, 408, 429), or stopped to."""
  from huggingface_hub import errors

  response = getattr(error.__cause__ or error, 'response', None)
  if response is None:  # a stream that broke; no network is an OSError
    return isinstance(error, errors.HTTPError)
  return response.status_code >= 500 or response.status_code in (408, 429)


def _explain(error: Exception, what: str, repo_type: str) -> str:
  """Returns one line: what is wrong with a repository, and what to do."""
  from huggingface_hub import constants, errors

  kind = 'data set' if repo_type == 'dataset' else 'model'
  where = 'datasets/' if repo_type == 'dataset' else ''
  start = f'{kind} {what} of the Hub'
  repo = what.partition('@')[0]
  if isinstance(error, errors.GatedRepoError):
    return (f'{start} needs a license: accept it at '
            f'{constants.ENDPOINT}/{where}{repo}, then `hf auth login` or set '
            'HF_TOKEN')
  if isinstance(error, errors.RepositoryNotFoundError):
    return (f'{start} does not exist, or is private: check the name, or '
            '`hf auth login` (or set HF_TOKEN)')
  if isinstance(error, errors.RevisionNotFoundError):
    return f'{start} has no such revision; name a branch, tag or commit'
  if isinstance(error, errors.HFValidationError):
    return f'{start} has no valid name ({_first_line(error)})'
  if isinstance(error, errors.LocalEntryNotFoundError):
    if constants.HF_HUB_OFFLINE:
      return (f'{start} is not in the cache ({constants.HF_HUB_CACHE}), and '
              'HF_HUB_OFFLINE is set; unset it to download')
    return (f'{start} is not in the cache, and {constants.ENDPOINT} cannot '
            f'be reached ({_first_line(error.__cause__ or error)})')
  return f'{start} cannot be downloaded ({_first_line(error)})'


def _first_line(error: BaseException) -> str:
  lines = str(error).strip().splitlines()
  return f'{type(error).__name__}: {lines[0] if lines else ""}'
