"""The models that run='evaluate' compares, and their weights."""

from collections.abc import Sequence
import dataclasses
import itertools
import re

import jax

from exprl_jax.config import Config, longest
from exprl_jax.data import chat
from exprl_jax.data.tokenizer import Tokenizer
from exprl_jax.models import references
from exprl_jax.models.config import ModelConfig, for_length
from exprl_jax.rollout import decode
from exprl_jax.rollout.sampler import Sampler
from exprl_jax.types import Params, Problem


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
  """A model under comparison.

  Attributes:
    name: of its files and in tables.
    source: as the config names it.
    reference: the model it names.
    tokenizer: its own.
    prompts: token ids of all problems.
  """

  name: str
  source: str
  reference: references.Reference
  tokenizer: Tokenizer
  prompts: list[list[int]]


def find_candidates(config: Config,
                    problems: Sequence[Problem]) -> list[Candidate]:
  """Finds policy.init and eval.models; reads no weights.

  Raises:
    InputError: no such model, or a problem does not fit its prompt.
  """
  candidates: list[Candidate] = []
  for source in (config.policy.init, *config.eval.models):
    reference = references.find_to_sample(source)
    tokenizer = Tokenizer(reference.folder, config.rollout.stop_ids)
    name = unique_name(source, {c.name for c in candidates})
    prompts = chat.policy_prompts(tokenizer, problems, config)
    candidates.append(Candidate(name, source, reference, tokenizer, prompts))
  return candidates


def unique_name(source: str, taken: set[str]) -> str:
  """Returns a file name: the last part of the path, made plain and unique."""
  path = [p for p in source.removeprefix('asset:').split('/') if p]
  if path[-1:] == ['model']:  # of a workdir
    path.pop()
  name = re.sub(r'[^\w.@-]', '_', path[-1]) if path else 'model'
  numbers = itertools.count(2)
  while name in taken:
    name = re.sub(r'(-\d+)?$', f'-{next(numbers)}', name, count=1)
  return name


class Loader:
  """Loads one candidate's weights at a time.

  With eval.policy_statistics it keeps the first candidate's beside them, for
  the KL.
  """

  def __init__(self, config: Config, candidates: Sequence[Candidate],
               mesh: jax.sharding.Mesh) -> None:
    self._config, self._candidates, self.mesh = config, candidates, mesh
    self._loaded: dict[int, tuple[ModelConfig, Params]] = {}
    self._sampler: tuple[int, Sampler] | None = None

  def weights(self, i: int) -> tuple[ModelConfig, Params]:
    """Returns candidate i in the sampling layout."""
    if i not in self._loaded:
      self._free_all_but_first(i)
      policy = self._config.policy
      _, model, params = references.load(self._candidates[i].reference,
                                         self.mesh, policy.dtype, frozen=True,
                                         attention=policy.attention)
      model = for_length(model, longest(self._config))
      self._loaded[i] = model, decode.prepare(model, params, self.mesh)
    return self._loaded[i]

  def sampler(self, i: int) -> Sampler:
    """Returns the sampler of candidate i."""
    if self._config.eval.policy_statistics:
      self.weights(0)  # first: the page pool is sized by the free memory
    model, _ = self.weights(i)
    if self._sampler is None or self._sampler[0] != i:
      self._sampler = i, Sampler(self._config, model,
                                 self._candidates[i].tokenizer, self.mesh)
    return self._sampler[1]

  def _free_all_but_first(self, i: int) -> None:
    """Frees memory for candidate i."""
    keep_first = self._config.eval.policy_statistics
    self._loaded = {
        j: weights
        for j, weights in self._loaded.items()
        if keep_first and 0 in (i, j)
    }
    self._sampler = None
