"""Several judges as one: the mean or the minimum of their scores."""

from collections.abc import Sequence
import dataclasses
from typing import Any
import urllib.parse

import numpy as np

from exprl_jax import config as config_lib
from exprl_jax.config import loading
from exprl_jax.judge import cache as cache_lib
from exprl_jax.judge import readouts
from exprl_jax.judge.tree import Item, Judgments
from exprl_jax.runtime.registry import lookup
from exprl_jax.types import InputError, Problem

# Keys of config.judge that members may differ in. Other weights are not among
# them: the sizes of all pools are those of one judge (planning/memory.py).
KEYS = ('template', 'readout', 'context', 'reference', 'judgment', 'endpoint',
        'endpoint_model', 'endpoint_key')


def members(cfg: config_lib.Judge) -> list[config_lib.Judge]:
  """Returns the config's `judge` of each member; without a panel, itself.

  Raises:
    InputError: an entry of judge.panel is not as it should be.
  """
  alone = dataclasses.replace(cfg, panel=(), combine='mean')
  return [dataclasses.replace(alone, **_parse(entry)) for entry in cfg.panel
         ] or [alone]


def local(cfg: config_lib.Judge) -> list[config_lib.Judge]:
  """Returns those members that are asked on the run's own devices."""
  return [m for m in members(cfg) if not m.endpoint]


def check(cfg: config_lib.Judge) -> None:
  """Checks keys of panels and endpoints; reads nothing.

  Raises:
    InputError: names the keys and the remedy.
  """
  for own in members(cfg):
    lookup(readouts.READOUTS, own.readout, 'judge.readout')
    if own.endpoint:
      _check_endpoint(own)
    if own.judgment == 'group' and own.context == 'segment':
      raise InputError("config.judge.judgment='group' reads whole traces, "
                       "judge.context='segment' single steps: choose one")
  remote = len(local(cfg)) < len(members(cfg))
  for key in ('endpoint_model', 'endpoint_key'):
    if not remote and any(getattr(own, key) for own in members(cfg)):
      raise InputError(f'config.judge.{key} is not read without judge.endpoint')
  if cfg.init and not local(cfg):
    raise InputError(
        f'config.judge.init={cfg.init} is not read: judge.endpoint '
        'is asked in its place. Leave one of them empty, or ask '
        'both: judge.panel')
  if cfg.combine != 'mean' and not cfg.panel:
    raise InputError(
        f'config.judge.combine={cfg.combine!r} is not read without '
        'judge.panel')
  if cfg.templates and any('template' in _parse(x) for x in cfg.panel):
    raise InputError('config.judge.templates and a template in judge.panel: '
                     'which one is a domain to have? Leave one of them out')


def _check_endpoint(cfg: config_lib.Judge) -> None:
  """Checks the keys of one endpoint."""
  try:
    url = urllib.parse.urlsplit(cfg.endpoint)
    whole = (url.scheme in ('http', 'https') and bool(url.hostname)
             and url.port != 0
             and not (url.username or url.query or url.fragment))
  except ValueError:
    whole = False
  if not whole:
    raise InputError(f'config.judge.endpoint={cfg.endpoint}: want '
                     'http://HOST:PORT/v1, or https, without a name, password '
                     'or query; a key goes into the environment '
                     '(judge.endpoint_key)')
  if not cfg.endpoint_model:
    raise InputError(f'config.judge.endpoint={cfg.endpoint} needs judge.'
                     'endpoint_model, the name of the model there')
  if cfg.readout != 'generate':
    raise InputError(f'config.judge.endpoint={cfg.endpoint} answers in words: '
                     "it needs judge.readout='generate', not "
                     f'{cfg.readout!r} (in a panel: readout=generate)')


def _parse(entry: str) -> dict[str, Any]:
  """Parses 'template=math_paper,readout=generate'."""
  hints = dict(loading.hints(config_lib.Judge))
  out: dict[str, Any] = {}
  for part in entry.split(','):
    key, equals, value = part.strip().partition('=')
    if not equals or key not in KEYS or key in out:
      raise InputError(f'config.judge.panel: {entry!r} should be KEY=VALUE, '
                       'more of them behind commas, each key once; keys: '
                       f'{", ".join(KEYS)}')
    loading.check(f'judge.{key}', value, hints[key])
    out[key] = value
  return out


class Panel:
  """Judges that are all asked about every trace.

  A step has a score if all members have one. Attributes that are not defined
  here are those of the first member that has weights, or of the first.
  """

  def __init__(self, judges: Sequence[Any], combine: str):
    """Takes the members, each with the interface of tree.Judge.

    Args:
      judges: at least one.
      combine: 'mean' or 'min'.
    """
    self._judges, self._combine = list(judges), combine

  def __getattr__(self, name: str) -> Any:
    first = next((j for j in self._judges if j.params), self._judges[0])
    return getattr(first, name)

  @property
  def weights_name(self) -> str:
    """Of the members; '' if one of them has none."""
    names = [j.weights_name for j in self._judges]
    return '+'.join(dict.fromkeys(names)) if all(names) else ''

  @property
  def template_text(self) -> str:
    """As Judge.template_text, of all members together."""
    return '\n'.join(dict.fromkeys(j.template_text for j in self._judges))

  def of(self, problem: Problem) -> 'Panel':
    """The judge of a problem: this one."""
    del problem
    return self

  def with_readout(self, name: str) -> 'Panel':
    """The same panel, members on our devices with another readout."""
    return Panel([j.with_readout(name) if j.params else j for j in self._judges
                 ], self._combine)  # yapf: disable

  def with_cache(self, cache: cache_lib.Cache) -> 'Panel':
    """The same panel, that remembers elsewhere."""
    return Panel([j.with_cache(cache) for j in self._judges], self._combine)

  def count_tokens(self, item: Item) -> tuple[int, int]:
    """As Judge.count_tokens, of all members together."""
    shared, own = zip(*(j.count_tokens(item) for j in self._judges))
    return sum(shared), sum(own)

  def usage(self) -> dict[str, float]:
    """As Judge.usage, of all members together."""
    out: dict[str, float] = {}
    for judge in self._judges:
      for name, value in judge.usage().items():
        out[name] = out.get(name, 0.0) + value
    return out

  def score(self, items: Sequence[Item], max_steps: int) -> Judgments:
    """As Judge.score: what `combined` makes of the members' judgments."""
    return combined([j.score(items, max_steps) for j in self._judges],
                    self._combine)


def combined(parts: Sequence[Judgments], combine: str) -> Judgments:
  """Combines judgments of the same steps.

  Where a member has no score the step has none: its status is that of the first
  such member. The probability of the score tokens is the least of those that
  were read.

  Args:
    parts: of each member.
    combine: 'mean' or 'min'.
  """
  first = parts[0]
  # 1. Scores; float64 sums of a few float32 are exact, so that equal members
  # are one.
  scores = np.stack([p.score for p in parts]).astype(np.float64)
  score = scores.mean(axis=0) if combine == 'mean' else scores.min(axis=0)
  # 2. Steps that a member cannot score.
  status = first.status
  for part in parts[1:]:
    status = np.where(np.isin(status, (readouts.OK, readouts.EMPTY)),
                      part.status, status)
  out = first._replace(status=status)
  probability = np.fmin.reduce([p.score_token_probability for p in parts])
  texts = [[_joined(of_step)
            for of_step in zip(*rows)]
           for rows in zip(*(p.texts for p in parts))]
  return out._replace(
      score=np.where(out.readable, score, 0.0).astype(np.float32),
      score_token_probability=probability,
      truncated=np.any([p.truncated for p in parts], axis=0), texts=texts)


def _joined(texts: Sequence[str]) -> str:
  return '\n'.join(filter(None, texts))
