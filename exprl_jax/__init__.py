"""ExpRL: exploratory RL mid-training of language models, in JAX for TPUs.

The functions of exprl_jax/api.py, which docs/python.md explains, are names of
the package. They are imported when they are first used: `import exprl_jax`
alone imports nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from exprl_jax.api import (
      Completion,
      Config,
      InputError,
      Model,
      Problem,
      TraceScores,
      dry_run,
      load_config,
      load_model,
      run,
      sample,
      score,
  )

__version__ = '0.1.0'
__all__ = [
    'Completion', 'Config', 'InputError', 'Model', 'Problem', 'TraceScores',
    'dry_run', 'load_config', 'load_model', 'run', 'sample', 'score'
]


def __getattr__(name: str) -> Any:
  """Imports exprl_jax.api for a name of __all__ (PEP 562)."""
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from exprl_jax import api
  return getattr(api, name)


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
