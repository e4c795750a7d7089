"""Compiles a run's programs before weights are loaded: run='plan', for here."""

from collections.abc import Sequence

import jax

from exprl_jax.config import Config
from exprl_jax.planning import compiled, search
from exprl_jax.planning import plan as plan_lib
from exprl_jax.types import InputError


def warm_up(config: Config, devices: Sequence[jax.Device]) -> None:
  """Fills the compilation cache, and checks that the run fits.

  Only with a persistent cache (config.compile_cache): there the run finds them.

  Args:
    config: of a training run.
    devices: that the run has.

  Raises:
    InputError: the compiled programs do not fit; says what would.
  """
  if not jax.config.values['jax_compilation_cache_dir']:
    return
  compiler = compiled.Compiler()
  plan = plan_lib.make(config, devices, compiler)
  account = plan.account
  size, phase = account.peak()
  limit = f' of {account.limit / 1e9:.1f}' if account.limit else ''
  if jax.process_index() == 0:
    print(
        f'compiled {len(plan.weights)} programs in {compiler.seconds:.0f} s; '
        f'most memory is taken in phase {phase}, {size / 1e9:.1f} GB{limit} '
        'of each device', flush=True)
  if account.margin < 0:
    changes = search.suggest(config, devices)
    remedy = f'estimated to fit: {search.flags(changes)}' if changes else (
        "run='plan' with plan.search=True looks for what fits")
    raise InputError(f'the compiled programs do not fit: {remedy}')
